//! Devices that get their Vault `secret_id` over MQTT (protocol.md §8): what is stored of one, the only changes it may go through, and the port.
//!
//! One document per device, changed by compare-and-swap, so that several relays can serve the same devices. Read in this order: [`documents`] →
//! [`store`] (the changes and the port) → [`lifecycle`] (pure: document and change in, document and audit records out).
//!
//! What must always hold:
//! - an intent is recorded before the issuer is called, and is forgotten only when its outcome is known: every `secret_id` that may live is named in the
//!   document, by accessor (`outstanding`, `superseded`, `current`, `earlier`, `doomed`) or by the nonce it was asked for with (`unresolved`);
//! - one unconfirmed issue per device; a newer nonce supersedes it, and what it made goes when a newer one is proven or superseded too;
//! - the `secret_id` in use is destroyed before its time only after a proven `ok` of its successor, or by the operator;
//! - a nonce is accepted once per device;
//! - lists are bounded by refusing, never by forgetting what still counts.

#[cfg(feature = "contract")]
pub mod contract;
pub mod documents;
pub mod lifecycle;
pub mod store;

pub use documents::{
    DeviceDoc, DeviceOptions, DevicePolicy, DeviceState, Doomed, Held, Outstanding, Sealing, Spent,
    Stage, Unresolved, UsedNonce,
};
pub use store::{Answer, Change, DeviceStore, Limits, Mint, Minted};
