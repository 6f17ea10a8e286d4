//! The flow over a real store, with an issuer and a broker that can be told to fail.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod another_issuer;
mod at_once;
pub(super) mod faulty;
mod flood;
mod flow;
mod order;
mod outage;
mod recorded;
mod refused;
mod schedule;
mod trouble;
mod unknown;
mod voices;
pub(super) mod world;
