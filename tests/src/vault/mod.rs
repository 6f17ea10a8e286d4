//! Servers of Vault's API to test the issuer against.
//!
//! [`Rvault`] is somebody else's server of the same interface as a child process; [`Api`] is ours, which does what the documentation says (policies, wrapping,
//! namespaces, renewal, real error shapes) and misbehaves on request; with `VAULT_ADDR` and `VAULT_TOKEN` set, any real Vault or OpenBao. [`Operator`] sets any of
//! them up by HTTP, as an operator would.

pub mod api;
mod certificates;
mod operator;
mod rvault;

pub use api::{Api, Fault, Shape};
pub use certificates::{certificates, client_certificate};
pub use operator::{Operator, Stand, hcl};
pub use rvault::Rvault;
