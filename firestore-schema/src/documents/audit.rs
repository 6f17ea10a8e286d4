//! The audit trail as it is stored: entries that commit to the one before, and one head per chain.
//!
//! Neither bears a secret or a hash of one: auditors read both. How entries are chained and checked stands in [`crate::audit`].

use keyturn_proto::{ClientId, UnixMs};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AuditRecord, ClientStatus};

/// `audit/{id}`: one record in its place. Created once, never changed, never deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditEntry {
    /// Document id: the chain's id, `-`, and `seq` as 10 digits. Ids sort chain by chain, and within a chain by `seq`.
    pub id: String,
    /// What happened.
    #[serde(flatten)]
    pub record: AuditRecord,
    /// `client:<client_id>`, or `instance:<instance>` for what names no client.
    pub chain: String,
    /// 1 for the first entry of the chain, one more for each that follows.
    pub seq: u64,
    /// `hash` of the entry before, 64 hex digits; zeros for the first.
    pub previous: String,
    /// SHA-256 over all of this but `id`, 64 hex digits.
    pub hash: String,
}

/// `audit_chains/{id}`: the head of one chain, replaced in the transaction that appends to it. For a client's chain it also says what auditors
/// want to know of the client: the client document itself bears hashes, and they may not read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditChainDoc {
    /// Document id: the first 32 hex digits of SHA-256 over `chain`.
    pub id: String,
    /// As in [`AuditEntry`].
    pub chain: String,
    /// The client of a client's chain.
    pub client_id: Option<ClientId>,
    /// `seq` of the last entry; 0 while there is none.
    pub seq: u64,
    /// `hash` of the last entry; zeros while there is none.
    pub hash: String,
    /// Last change.
    pub updated_at: UnixMs,
    /// The client's status; `None` for an instance's chain, and for a client that was named but never registered.
    pub status: Option<ClientStatus>,
    /// `not_before` of the client's current version.
    pub secret_since: Option<UnixMs>,
    /// When a rotation of the client was last promoted.
    pub last_rotation_at: Option<UnixMs>,
    /// `not_after` of the version in grace.
    pub grace_until: Option<UnixMs>,
}
