//! What Keyturn stores, who may change it and how a presented secret is judged against it.
//!
//! Read in this order: [`documents`] (what lies in the store) → [`lifecycle`] (the only changes allowed, pure) → [`audit`] (how records are chained,
//! pure) → [`store`] (the port: one method per transaction) → [`sqlite`] (the embedded backend) and [`firestore`] (the production one) → [`mac`] (the keyed hash) → [`verifier`] (the hot
//! path). [`devices`] is the same for devices that get a `secret_id` over MQTT. [`collections`] and [`queries`] say who may read what in Firestore, and
//! what is asked of it. [`schema`] describes the documents for other
//! languages; `contract` (a feature) is the suite that every backend must pass, `emulator` (a feature) the Firestore emulator that tests run on.

#![forbid(unsafe_code)]

pub mod approle;
pub mod audit;
pub mod collections;
#[cfg(feature = "contract")]
pub mod contract;
mod damage;
pub mod devices;
pub mod documents;
#[cfg(feature = "emulator")]
pub mod emulator;
#[cfg(feature = "fake-kms")]
pub mod fake_kms;
pub mod firestore;
mod fits;
pub mod lifecycle;
pub mod mac;
pub mod metrics;
pub mod queries;
pub mod schema;
pub mod sqlite;
pub mod store;
pub mod transfer;
pub mod verifier;
