//! Getting events out of and into the relay.

pub mod port;
