//! The core on a real store and real MLS members; only the relay is a fake, which can lose, delay and reverse events.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod acks;
mod actions;
mod admin;
mod crashes;
mod flow;
mod groups;
mod metrics;
pub(crate) mod relay;
mod standby;
mod world;
