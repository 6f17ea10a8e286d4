//! Our own AppRole: roles and the secret_ids issued under them, for deployments without Vault.
//!
//! What must always hold: a secret_id is stored only as a MAC; a use is counted in the transaction that allows it, so that of two logins with a last use one is
//! refused; what has ended is refused whether it was purged or not.

pub mod documents;
mod store;

#[cfg(feature = "contract")]
pub mod contract;

pub use documents::{AppRoleDoc, SecretIdDoc};
pub use store::{AppRoleStore, Spent};
