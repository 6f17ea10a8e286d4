//! The sibling of the rotation: devices get fresh AppRole secret_ids (protocol.md §8). It shares the store, the audit trail and the shutdown of the rotation and
//! none of its policy; either works when the other is down.
//!
//! In the order a message walks: [`mqtt`] or the web listener's webhook → [`turns`] (one device's after one another) → [`intake`] (checks, pure) → [`limits`] → `judge` and [`flow`] (the store decides) →
//! `at_once` (the short way: one commit and the answer), or [`queue`] (in fair order) → [`work`] (the issuer) → [`outgoing`] (the answer) → `results` (the device's own, with `outlast` while the store is
//! away) → [`upkeep`] (destruction, orphans, deadlines, pings). `repeated` tells what a write of unknown outcome came to, [`refusals`] what becomes of the rest.
//!
//! What must always hold:
//! - a message is acknowledged to the broker only when what it caused is stored, or the device has been told to ask again;
//! - nothing is issued without a recorded intent, and what an intent may have made is destroyed or known;
//! - memory is bounded: the queue, the answers under way, the limiters' tables.

mod at_once;
pub mod flow;
pub mod intake;
pub mod issuer;
mod judge;
pub mod limits;
pub mod mqtt;
pub mod outgoing;
mod outlast;
pub mod queue;
pub mod refusals;
mod repeated;
mod results;
pub mod settings;
pub mod start;
pub mod turns;
pub mod upkeep;
pub mod work;

pub use flow::{Devices, Parts};
pub use intake::{Carriage, Incoming, Refused};
pub use outgoing::{Outgoing, Outlet};
pub use settings::Settings;

#[cfg(test)]
mod tests;
