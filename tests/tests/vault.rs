//! The issuer's Vault client against servers of Vault's API (feature: devices get secret_ids).
//!
//! `real` runs against the Vault or OpenBao that `VAULT_ADDR` and `VAULT_TOKEN` name, or else against `rvault`; `documented` runs the same behaviours, and what
//! only a server that enforces policies can show, against ours; `faults`, `token`, `doctor` and `leaks` need a server that misbehaves on request.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "vault/behaviour.rs"]
mod behaviour;
#[path = "vault/doctor.rs"]
mod doctor;
#[path = "vault/documented.rs"]
mod documented;
#[path = "vault/faults.rs"]
mod faults;
#[path = "vault/leaks.rs"]
mod leaks;
#[path = "vault/load.rs"]
mod load;
#[path = "vault/real.rs"]
mod real;
#[path = "vault/token.rs"]
mod token;
