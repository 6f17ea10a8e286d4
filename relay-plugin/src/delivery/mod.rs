//! Getting events out of and into the relay, and secrets to their admins.
//!
//! [`port`] is the relay as the core sees it; [`rnostr`] implements it on `publish` (a session of our own inside the relay) and `readback` (the
//! relay's database). [`member_thread`] runs the MLS member; [`service_member`] is what the relay does as a member of the admin groups, with
//! [`inbox`] (what is kept of opened messages), [`welcome`] (joining), [`keys`] (whose MLS key is whose) and [`commits`] (following and making them) and `siblings` (other instances). [`distributor`] seals for exactly those
//! who may read, and [`outbox`] moves the finished events.

pub mod commits;
pub mod distributor;
pub mod inbox;
pub mod keys;
pub mod member_thread;
pub mod outbox;
pub mod port;
mod publish;
mod readback;
pub mod rnostr;
pub mod service_member;
mod siblings;
pub mod welcome;
