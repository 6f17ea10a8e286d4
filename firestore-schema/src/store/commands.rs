//! What the rotation flow asks of the store, and what it is told.

use keyturn_proto::notify::Outcome;
use keyturn_proto::{ClientId, Npub, RotationId, UnixMs, VersionId};

use crate::documents::{
    AckEntry, ActionDoc, ActiveRotation, AuditRecord, ClientDoc, ClientStatus, OutboxDoc,
    RotationDoc, VersionDoc,
};

/// Reserves a client for one rotation: idempotency key, TOTP step, `active_rotation`, audit.
#[derive(Clone, Debug)]
pub struct Reserve {
    /// The rotation as it will be recorded, in state `reserved`, with `attempt` 1.
    pub rotation: RotationDoc,
    /// The TOTP step that matched, to be accepted once; `None` when policy asks for none.
    pub totp_step: Option<u64>,
    /// Minimum time since the last promotion, milliseconds, judged again inside the transaction.
    pub min_interval_ms: u64,
    /// For an emergency: retire every living version in this same transaction.
    pub revoke_living: bool,
    /// Now.
    pub now: UnixMs,
    /// Written with it.
    pub audit: AuditRecord,
}

/// Result of [`crate::store::SecretStore::reserve`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// The client is ours.
    New(ActiveRotation),
    /// Same id, same content: here is how far it has come.
    Repeat(Box<RotationDoc>),
    /// Same id, other content.
    IdReused,
    /// Another rotation is active.
    Busy(RotationId),
    /// Minimum interval not over; when it will be.
    TooSoon(UnixMs),
    /// That TOTP step was used before.
    TotpReplayed,
    /// The client is not in a state that can rotate (revoked).
    NotRotatable(ClientStatus),
}

/// Records a generated version and its ciphertext (step 4).
#[derive(Clone, Debug)]
pub struct Prepare {
    /// Conditional on this still being the client's active rotation.
    pub active: ActiveRotation,
    /// State `pending`.
    pub version: VersionDoc,
    /// Who it was sealed for.
    pub readers: Vec<Npub>,
    /// The notify's `relay_msg_id`.
    pub distribution_message_id: String,
    /// The finished events.
    pub outbox: Vec<OutboxDoc>,
    /// Now.
    pub now: UnixMs,
    /// Written with it.
    pub audit: AuditRecord,
}

/// Records one admin's ack and promotes in the same transaction if that completes the quorum and `not_before` has come.
#[derive(Clone, Debug)]
pub struct RecordAck {
    /// The operation.
    pub rotation_id: RotationId,
    /// Must be its new version.
    pub version_id: VersionId,
    /// Who, proven or not, when.
    pub ack: AckEntry,
    /// How long ciphertext is kept after the end, milliseconds.
    pub retention_ms: u64,
    /// Fencing number of the lease under which it was judged.
    pub fence: u64,
    /// Now.
    pub now: UnixMs,
    /// Written with it.
    pub audit: AuditRecord,
}

/// Result of [`crate::store::SecretStore::record_ack`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AckResult {
    /// The rotation afterwards.
    pub rotation: RotationDoc,
    /// False if this ack added nothing (repeat, or a reader that does not count).
    pub counted: bool,
    /// True if this very transaction promoted.
    pub promoted: bool,
}

/// Ends a rotation without promotion.
#[derive(Clone, Debug)]
pub struct Cancel {
    /// The operation.
    pub rotation_id: RotationId,
    /// `canceled` or `expired`.
    pub outcome: Outcome,
    /// When given, only if the attempt and fence are still these.
    pub only_if: Option<ActiveRotation>,
    /// How long ciphertext is kept, milliseconds.
    pub retention_ms: u64,
    /// Fencing number of the lease under which it was judged; `None` for the operator, who needs no lease.
    pub fence: Option<u64>,
    /// Now.
    pub now: UnixMs,
    /// Written with it.
    pub audit: AuditRecord,
}

/// The `cancel` action of an admin: ends the rotation that it names, or else the one that is under way.
#[derive(Clone, Debug)]
pub struct Withdraw {
    /// Whose.
    pub client_id: ClientId,
    /// The rotation to end; `None` means the one that is under way when this is first recorded.
    pub target: Option<RotationId>,
    /// Idempotency key of the action.
    pub action_id: RotationId,
    /// SHA-256 of the request, hex.
    pub request_digest: String,
    /// TOTP step to accept once.
    pub totp_step: Option<(Npub, u64)>,
    /// How long ciphertext is kept, milliseconds.
    pub retention_ms: u64,
    /// Fencing number of the lease under which it was judged.
    pub fence: u64,
    /// Now.
    pub now: UnixMs,
    /// Written with it; its `event` and `reason` when there was nothing to end are the lifecycle's.
    pub audit: AuditRecord,
}

/// Result of [`crate::store::SecretStore::withdraw`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// This very transaction ended the rotation.
    Done(Box<RotationDoc>),
    /// It was withdrawn before, by another request; that this one asked as well is recorded.
    Before(Box<RotationDoc>),
    /// Nothing was under way, or the rotation named is not one of this client. Recorded: the same request never ends a later rotation.
    Nothing,
    /// Decided before, same id and content: this is what was recorded then.
    Repeat(Box<ActionDoc>),
    /// Same id, other content.
    IdReused,
    /// That TOTP step was used before.
    TotpReplayed,
}

/// Retires versions at once (protocol.md §3, revoke). Without a living version left the client is suspended; a pending rotation of a revoked
/// version ends as `revoked`.
#[derive(Clone, Debug)]
pub struct Revoke {
    /// Whose.
    pub client_id: ClientId,
    /// Which; `None` for all living ones, the pending one included.
    pub version_id: Option<VersionId>,
    /// Idempotency key of the action.
    pub action_id: RotationId,
    /// SHA-256 of the request, hex.
    pub request_digest: String,
    /// TOTP step to accept once.
    pub totp_step: Option<(Npub, u64)>,
    /// How long ciphertext is kept, milliseconds.
    pub retention_ms: u64,
    /// Fencing number of the lease under which it was judged.
    pub fence: u64,
    /// Now.
    pub now: UnixMs,
    /// Written with it.
    pub audit: AuditRecord,
}

/// Re-promotes the version in grace; the withdrawn one is retired at once.
#[derive(Clone, Debug)]
pub struct Rollback {
    /// Whose.
    pub client_id: ClientId,
    /// The rotation to undo; `None` means the one that made the current version.
    pub target: Option<RotationId>,
    /// Idempotency key of the action.
    pub action_id: RotationId,
    /// SHA-256 of the request, hex.
    pub request_digest: String,
    /// TOTP step to accept once.
    pub totp_step: Option<(Npub, u64)>,
    /// Fencing number of the lease under which it was judged.
    pub fence: u64,
    /// Now.
    pub now: UnixMs,
    /// Written with it.
    pub audit: AuditRecord,
}

/// Result of an action that is not a rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActionResult {
    /// Done now; the client afterwards.
    Done(Box<ClientDoc>),
    /// Done before, same id and content.
    Repeat(Box<ClientDoc>),
    /// Same id, other content.
    IdReused,
    /// That TOTP step was used before.
    TotpReplayed,
}
