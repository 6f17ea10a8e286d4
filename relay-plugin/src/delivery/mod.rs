//! Getting events out of and into the relay.
//!
//! `port` is what the core knows; `rnostr` implements it on `publish` (a session of our own inside the relay) and
//! `readback` (the relay's database).

pub mod port;
mod publish;
mod readback;
pub mod rnostr;
