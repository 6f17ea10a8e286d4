//! Where secret_ids come from: a port, Vault or OpenBao behind it in production, our own roles behind it without one (protocol.md §8).
//!
//! What must always hold:
//! - the caller has recorded its intent (role, device, nonce hash) before [`SecretIdIssuer::issue`] is called, and the nonce hash travels with the secret_id, so
//!   that one whose answer was lost is found again by [`SecretIdIssuer::find`] and destroyed;
//! - destroying is idempotent: gone is fine;
//! - a credential is shown by one method of one type, and no error, log line or metric carries a piece of one or of an answer's body.

pub mod choose;
mod credential;
pub mod embedded;
mod error;
mod names;
pub mod vault;

use std::time::Duration;

use async_trait::async_trait;
use keyturn_store::approle::SecretIdDoc;

pub use credential::{Credential, CredentialText};
pub use error::{IssuerError, Reason};
pub use names::{Accessor, Cidr, InvalidName, MountPath, NonceHash, RoleName};
pub use vault::VaultAddress;

/// What to issue, and for whom.
pub struct IssueRequest<'a> {
    /// The device's role.
    pub role: &'a RoleName,
    /// Which device; kept with the secret_id as metadata.
    pub device: &'a str,
    /// Hash of the request's nonce; kept with the secret_id as metadata, for recovery.
    pub nonce: &'a NonceHash,
    /// How long the secret_id shall live. The issuer may shorten it, never lengthen it.
    pub ttl: Duration,
    /// How many logins it allows; 0 for any number.
    pub num_uses: u32,
    /// Networks it may be used from, and the tokens got with it; empty for any.
    pub cidrs: &'a [Cidr],
    /// When given, the device gets a single-use wrapping token of this lifetime instead of the secret_id, which then only the device ever sees.
    /// An issuer that cannot wrap refuses.
    pub wrap_ttl: Option<Duration>,
}

/// What was issued.
pub struct Issued {
    /// The role's static id, which the device needs to log in.
    pub role_id: String,
    /// What the device is sent.
    pub credential: Credential,
    /// Names the secret_id without revealing it: for the log, the audit trail and destruction.
    pub accessor: Accessor,
    /// How long the secret_id lives from now on.
    pub ttl: Duration,
}

/// What became of a destruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destroyed {
    /// It existed and is gone now.
    Now,
    /// It was gone already: expired, used up or destroyed before.
    AlreadyGone,
}

/// What was recorded before a secret_id was issued, and is found with it again. Both count: a nonce is fresh only to the device that chose it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Intent {
    /// Which device it was to be for.
    pub device: String,
    /// Hash of the request's nonce.
    pub nonce: NonceHash,
}

/// A secret_id found by the intent that was recorded before it was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it was issued for.
    pub intent: Intent,
    /// What destroys it.
    pub accessor: Accessor,
}

/// Issues and destroys secret_ids. Cheap to share; waits for its own turn when too many calls are under way.
#[async_trait]
pub trait SecretIdIssuer: Send + Sync {
    /// Which issuer this is; kept with what it makes. The same on every relay that shares a store, and after a restart, unless the configuration chose another one.
    fn name(&self) -> &str;

    /// Issues one secret_id. After [`IssuerError::InDoubt`] one may exist: look for it with [`SecretIdIssuer::find`] before the intent is forgotten.
    ///
    /// # Errors
    /// [`IssuerError`].
    async fn issue(&self, request: IssueRequest<'_>) -> Result<Issued, IssuerError>;

    /// Whether [`SecretIdIssuer::make_at_once`] is worth a try.
    fn makes_at_once(&self) -> bool {
        false
    }

    /// Makes one secret_id and stores nothing: for an issuer whose secret_ids lie in the store of the devices, so that intent, secret_id and outcome can be one
    /// commit of the caller's. Waits for nothing. `None` when that cannot be done for this request; [`SecretIdIssuer::issue`] may.
    fn make_at_once(&self, _: IssueRequest<'_>) -> Option<(Issued, SecretIdDoc)> {
        None
    }

    /// Destroys the secret_id that `accessor` names. A repeat is fine.
    ///
    /// # Errors
    /// [`IssuerError`]; on any of them the secret_id may still live. [`Reason::AnotherIssuer`] for an accessor that cannot be one of ours.
    async fn destroy(&self, role: &RoleName, accessor: &Accessor)
    -> Result<Destroyed, IssuerError>;

    /// Living secret_ids of `role` that were issued for one of `intents`. One pass over the role whatever their number; `known` (accessors
    /// whose owner is clear) need not be looked at, which is what keeps the pass short. Nothing found means that there is nothing: a search that could not be made fails.
    ///
    /// # Errors
    /// [`IssuerError`].
    async fn find(
        &self,
        role: &RoleName,
        intents: &[Intent],
        known: &[Accessor],
    ) -> Result<Vec<Found>, IssuerError>;

    /// Whether issuing would work now, as far as that can be told without issuing; for readiness.
    ///
    /// # Errors
    /// [`IssuerError`].
    async fn health(&self) -> Result<(), IssuerError>;

    /// Gives back what the issuer has got for itself, when the process ends. What it was given by somebody stays as it is.
    async fn close(&self) {}
}
