//! The port: one method per transaction.

use async_trait::async_trait;
use keyturn_proto::{UnixMs, VersionId};

use super::documents::{AppRoleDoc, SecretIdDoc};
use crate::documents::AuditRecord;
use crate::store::Result;

/// What became of a login's use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spent {
    /// Allowed; the document afterwards. A last use has removed it.
    Allowed(Box<SecretIdDoc>),
    /// Gone, ended or used up.
    Gone,
}

/// Roles and secret_ids of the embedded issuer.
#[async_trait]
pub trait AppRoleStore: Send + Sync {
    /// The role; `fresh` is stored, with the record, if there is none of its name. All who race get the same one.
    async fn ensure_role(&self, fresh: AppRoleDoc, audit: AuditRecord) -> Result<AppRoleDoc>;

    /// The role that a login names.
    async fn role_by_id(&self, role_id: &str) -> Result<Option<AppRoleDoc>>;

    /// Stores a new secret_id; `Conflict` if its accessor exists.
    async fn add_secret_id(&self, doc: SecretIdDoc) -> Result<()>;

    /// One secret_id, ended or not.
    async fn secret_id(&self, accessor: &VersionId) -> Result<Option<SecretIdDoc>>;

    /// Takes one use, and writes the record if that is allowed.
    async fn spend_secret_id(
        &self,
        accessor: &VersionId,
        now: UnixMs,
        audit: AuditRecord,
    ) -> Result<Spent>;

    /// Removes a secret_id of this role; false if it was gone.
    async fn destroy_secret_id(&self, role: &str, accessor: &VersionId) -> Result<bool>;

    /// Secret_ids of `role` that are alive and were issued for one of `nonce_hashes`.
    async fn secret_ids_for(
        &self,
        role: &str,
        nonce_hashes: &[String],
        now: UnixMs,
    ) -> Result<Vec<SecretIdDoc>>;

    /// Removes what has ended, at most `limit`; how many.
    async fn purge_secret_ids(&self, now: UnixMs, limit: usize) -> Result<usize>;
}
