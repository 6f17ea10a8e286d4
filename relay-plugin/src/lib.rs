//! Keyturn: secret rotation inside a rust-nostr-relay.

pub mod admission;
