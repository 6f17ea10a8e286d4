//! Keyturn: secret rotation inside a rust-nostr-relay.
//!
//! The core (admission, rotation, delivery) knows only ports; the host (`extension`, `host`, `web`, `config`) knows rnostr,
//! HTTP and the operator. `service` is the boundary between the two.

#![forbid(unsafe_code)]

pub mod admission;
pub mod assembly;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod core;
pub mod crash;
pub mod delivery;
pub mod devices;
pub mod doctor;
pub mod extension;
pub mod hardening;
pub mod host;
pub mod mac;
pub mod metrics;
pub mod operator;
pub mod quickstart;
pub mod rotation;
pub mod running;
pub mod service;
pub mod store;
pub mod telemetry;
pub mod trail;
pub mod web;
