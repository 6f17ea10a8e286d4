//! The port: one method per transaction. Each takes everything it needs to decide and writes its audit record in the same transaction.
//!
//! A backend reads the documents, asks [`crate::lifecycle`] for the change, and writes it conditionally. Every method is safe to repeat: the
//! repeat of something done reports what was done.

use async_trait::async_trait;
use futures::future::BoxFuture;
use keyturn_proto::notify::Outcome;
use keyturn_proto::{ClientId, ErrorClass, Npub, RotationId, UnixMs, VersionId};

use crate::devices::DeviceStore;
use crate::documents::{
    AckEntry, ActionDoc, ActiveRotation, AdminDoc, AdminGroupDoc, AuditChainDoc, AuditEntry,
    AuditRecord, ClientDoc, ClientStatus, GroupState, NonceDoc, OutboxDoc, RefusalDoc, RotationDoc,
    VersionDoc,
};
use crate::lifecycle::Known;

/// Why a transaction did not happen. Nothing was changed, except with [`StoreError::Unknown`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The document asked for does not exist.
    #[error("{what} does not exist")]
    NotFound {
        /// Which kind of document.
        what: &'static str,
    },
    /// It exists already, or the state machine forbids the change.
    #[error("conflict: {why}")]
    Conflict {
        /// A stable machine word.
        why: &'static str,
    },
    /// `attempt` or `fence` are no longer ours: somebody else has taken over.
    #[error("fenced off: another instance has taken over")]
    Fenced,
    /// The store could not be reached, or was too slow.
    #[error("store unavailable: {cause}")]
    Unavailable {
        /// A redacted cause.
        cause: &'static str,
    },
    /// The commit may or may not have happened; settle it by `attempt` and `fence`.
    #[error("outcome unknown: {cause}")]
    Unknown {
        /// A redacted cause.
        cause: &'static str,
    },
    /// A text that cannot be the id of a document: empty, over 1,500 bytes, with `/` or control characters, or one of `.`, `..`, `__…__`.
    #[error(
        "no usable id of a {what}: 1 to 1500 bytes without '/' or control characters, and none of '.', '..', '__…__'"
    )]
    InvalidId {
        /// Which kind of document.
        what: &'static str,
    },
    /// What was to be written has no exact counterpart in every backend: a time past the year 9999, or a number beyond 63 bits.
    #[error("the {what} holds a time past the year 9999, or a number that is too large")]
    Unrepresentable {
        /// Which kind of document.
        what: &'static str,
    },
    /// What was read breaks the schema.
    #[error("stored document is damaged: {what}")]
    Damaged {
        /// Which kind of document, never its content.
        what: &'static str,
    },
}

impl StoreError {
    /// A stable machine word, without values.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::Conflict { why } => why,
            Self::Fenced => "fenced",
            Self::Unavailable { .. } => "unavailable",
            Self::Unknown { .. } => "outcome_unknown",
            Self::InvalidId { .. } => "invalid_id",
            Self::Unrepresentable { .. } => "unrepresentable",
            Self::Damaged { .. } => "damaged",
        }
    }
}

/// Most decisions that are recorded at a time. Each is an entry and perhaps a refusal: far below the 500 writes of one Firestore commit.
pub const MAX_DECISIONS: usize = 100;

/// The result type of the port.
pub type Result<T> = std::result::Result<T, StoreError>;

/// What was committed: seen by everybody, before everything that is committed after it, and never lost with a process. Until [`Early::durable`] says so a power
/// cut may still undo it, together with everything that came after it.
pub struct Early<T> {
    /// What came of it.
    pub answer: T,
    durable: BoxFuture<'static, Result<()>>,
}

impl<T> Early<T> {
    /// From what came of it, and the wait for the disk.
    pub fn new(answer: T, durable: impl Future<Output = Result<()>> + Send + 'static) -> Self {
        Self {
            answer,
            durable: Box::pin(durable),
        }
    }

    /// Waits until it survives a power cut.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when nobody can say whether it does.
    pub async fn durable(self) -> Result<()> {
        self.durable.await
    }
}

/// One use of a proof's nonce.
#[derive(Clone, Debug)]
pub struct BurnNonce {
    /// SHA-256 of the nonce, hex.
    pub nonce_hash: String,
    /// The Nostr event that carries it. The same event may come again after a crash and finds its own nonce.
    pub owner_event: String,
    /// When the record may be forgotten.
    pub expires_at: UnixMs,
    /// Now.
    pub now: UnixMs,
    /// Written with it, the first time; a use by another event is refused, and recorded as the refusal that it is.
    pub audit: AuditRecord,
}

/// Result of burning a nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Burned {
    /// Ours now (or already, from before a crash).
    Fresh,
    /// Used by another event.
    Reused,
}

/// The refusal of an event, which stands whoever looks at the event again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refuse {
    /// The Nostr event, hex.
    pub event_id: String,
    /// What its sender is told.
    pub class: ErrorClass,
    /// The reason, as the trail has it.
    pub reason: String,
    /// When nobody can come with the event any more.
    pub expires_at: UnixMs,
}

impl Refuse {
    /// The document that remembers it.
    #[must_use]
    pub fn document(&self) -> NonceDoc {
        NonceDoc {
            nonce_hash: NonceDoc::refusal_id(&self.event_id),
            owner_event: self.event_id.clone(),
            expires_at: self.expires_at,
            refused: Some(RefusalDoc {
                class: self.class,
                reason: self.reason.clone(),
            }),
        }
    }
}

/// A decision that changes nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What the trail remembers of it.
    pub audit: AuditRecord,
    /// The event that it refuses. An event is refused once: what is recorded already is not recorded again.
    pub refuses: Option<Refuse>,
}

/// A question after what was decided before, by whichever instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The Nostr event, hex.
    pub event_id: String,
    /// The operation that it is about, if it names one.
    pub operation: Option<RotationId>,
}

/// The answer to an [`Asked`].
#[derive(Clone, Debug, Default)]
pub struct Decided {
    /// How the event was refused.
    pub refused: Option<RefusalDoc>,
    /// What is recorded under the operation's id.
    pub known: Known,
}

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

/// Result of [`SecretStore::reserve`].
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

/// Result of [`SecretStore::record_ack`].
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

/// Result of [`SecretStore::withdraw`].
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

/// Timed work that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// Reserved but never prepared, and its proof has expired.
    StaleReservation(RotationDoc),
    /// The ack deadline has passed without a quorum.
    Expire(RotationDoc),
    /// Quorum met and `not_before` reached.
    Promote(RotationDoc),
    /// The grace window is over.
    Retire {
        /// Whose.
        client_id: ClientId,
        /// Which version.
        version_id: VersionId,
    },
    /// Over, and its end was not announced yet (`announced_at` is empty); due from `completed_at` on.
    Announce(RotationDoc),
    /// Ciphertext past its retention.
    Purge(Vec<OutboxDoc>),
}

/// Where a listing of withdrawn events goes on: after this time and, within it, after this event id.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WithdrawnAfter {
    /// `withdrawn_at` of the last event seen.
    pub at: UnixMs,
    /// Its id.
    pub event_id: String,
}

/// A lease with its fencing number (strictly increasing with every change of owner).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Fencing number.
    pub fence: u64,
    /// Until when it is held.
    pub until: UnixMs,
}

/// The rotation flow: one method per transaction.
///
/// Whatever changes a client is made under a fencing number, and is [`StoreError::Fenced`] once somebody with a higher one has changed that
/// client: an instance that was stopped in the middle of a step, and wakes up long after its lease was taken, changes nothing that its
/// successor has touched.
#[async_trait]
pub trait SecretStore: Send + Sync {
    /// Step 2a: uses a nonce once. A create-once record, committed before any TOTP code is looked at.
    async fn burn_nonce(&self, burn: BurnNonce) -> Result<Burned>;
    /// A wrong TOTP code: counts it, locks after `max_failures` for `lock_ms`, and writes the audit record and the refusal of the event that brought it. An
    /// event that was refused before counts no second time. Returns the state afterwards.
    async fn totp_failed(
        &self,
        npub: Npub,
        max_failures: u32,
        lock_ms: u64,
        now: UnixMs,
        audit: AuditRecord,
        refuses: Option<Refuse>,
    ) -> Result<AdminDoc>;
    /// Records decisions in their order, those of one chain in one commit; at most [`MAX_DECISIONS`] at a time. After an error some may be recorded; what
    /// refuses an event may be recorded again, and is then found to be so.
    async fn record(&self, decisions: Vec<Decision>) -> Result<()>;
    /// What was decided before, for each question in its order. One read, however many.
    async fn decided(&self, asked: &[Asked]) -> Result<Vec<Decided>>;
    /// Step 2.
    async fn reserve(&self, reserve: Reserve) -> Result<Reserved>;
    /// Step 4.
    async fn prepare(&self, prepare: Prepare) -> Result<RotationDoc>;
    /// Steps 6 and 7.
    async fn record_ack(&self, ack: RecordAck) -> Result<AckResult>;
    /// Step 7 when the quorum came before `not_before`. Acks and readers are judged again: the rotation may be cancelled, or wait for other acks
    /// instead; its outcome tells.
    async fn promote(
        &self,
        rotation_id: &RotationId,
        retention_ms: u64,
        fence: u64,
        now: UnixMs,
        audit: AuditRecord,
    ) -> Result<RotationDoc>;
    /// Withdraws or expires a rotation, by the relay's or the operator's own decision; its pending version is `cancelled`.
    async fn cancel(&self, cancel: Cancel) -> Result<RotationDoc>;
    /// The same by an admin's action, once per id. `Conflict` (`rotation.over`) for a rotation that ended otherwise; that is not recorded here.
    async fn withdraw(&self, withdraw: Withdraw) -> Result<Withdrawn>;
    /// The admins were told how it ended; a repeat changes nothing.
    async fn mark_announced(&self, rotation_id: &RotationId, now: UnixMs) -> Result<()>;
    /// Step 8.
    async fn retire(
        &self,
        client: &ClientId,
        version: &VersionId,
        fence: u64,
        now: UnixMs,
        audit: AuditRecord,
    ) -> Result<ClientDoc>;
    /// Within grace.
    async fn rollback(&self, rollback: Rollback) -> Result<ActionResult>;
    /// At once.
    async fn revoke(&self, revoke: Revoke) -> Result<ActionResult>;
    /// Recovery: makes `active` ours under a new attempt, so that a write in doubt cannot land. Also voids the old attempt's pending version and outbox.
    async fn take_over(
        &self,
        active: &ActiveRotation,
        fence: u64,
        now: UnixMs,
        audit: AuditRecord,
    ) -> Result<ActiveRotation>;
    /// One rotation.
    async fn rotation(&self, id: &RotationId) -> Result<Option<RotationDoc>>;
    /// Every rotation that is not done. Like every listing by which the relay finds its work, this one sets a document that cannot be read aside with
    /// an alarm (`keyturn_store_set_aside_total`): it stops nobody else's.
    async fn active_rotations(&self) -> Result<Vec<RotationDoc>>;
    /// Timed work that is due at `now`, oldest first, at most `limit`.
    async fn due(&self, now: UnixMs, limit: usize) -> Result<Vec<Due>>;
    /// The earliest moment at which [`SecretStore::due`] would return something, as known to the store.
    async fn next_due(&self) -> Result<Option<UnixMs>>;
    /// Outbox events of a rotation's present attempt, in the order of their ids, without those that were withdrawn.
    async fn outbox(&self, rotation: &RotationId) -> Result<Vec<OutboxDoc>>;
    /// Outbox events of any rotation and attempt, in the order of their ids, after `after`, at most `limit`, without those that were
    /// withdrawn. Whether an event may still go out is the caller's to judge. Fewer than `limit` means that there are no more.
    async fn outbox_page(&self, after: Option<&str>, limit: usize) -> Result<Vec<OutboxDoc>>;
    /// Forgets those of these outbox events whose `delete_after` has come (after they were deleted from the relay); the deletion of ciphertext is
    /// recorded. With `keep_until` an event's id is kept until then, as withdrawn and without its ciphertext, so
    /// that other relays delete theirs.
    async fn purge(
        &self,
        event_ids: &[String],
        keep_until: Option<UnixMs>,
        now: UnixMs,
    ) -> Result<()>;
    /// Forgets at most `limit` nonces that have expired; how many it forgot. Fewer than `limit` means that there are no more for now. Nothing is
    /// recorded: a use is judged by its time first, and the record of it was only kept until then.
    async fn forget_nonces(&self, now: UnixMs, limit: usize) -> Result<u64>;
    /// Withdrawn events in the order they were withdrawn, at most `limit`. Fewer than `limit` means that there are no more for now.
    async fn withdrawn(&self, after: &WithdrawnAfter, limit: usize) -> Result<Vec<OutboxDoc>>;
    /// Takes or renews a lease; `Conflict` while somebody else holds it. With a `ttl_ms` of 0 the holder gives it up. A change of hands is
    /// recorded.
    async fn lease(&self, name: &str, owner: &str, ttl_ms: u64, now: UnixMs) -> Result<Lease>;
}

/// What operators and admission look up and register.
#[async_trait]
pub trait Registry: Send + Sync {
    /// Creates a client with its first version (state `current`), or without any.
    async fn create_client(
        &self,
        client: ClientDoc,
        first: Option<VersionDoc>,
        audit: AuditRecord,
    ) -> Result<()>;
    /// One client.
    async fn client(&self, id: &ClientId) -> Result<Option<ClientDoc>>;
    /// Clients in id order, after `after`, at most `limit`.
    async fn clients(&self, after: Option<&ClientId>, limit: usize) -> Result<Vec<ClientDoc>>;
    /// All versions of a client, oldest first.
    async fn versions(&self, id: &ClientId) -> Result<Vec<VersionDoc>>;
    /// Operator: suspends, revokes or re-activates a client, or changes its groups and policy.
    async fn update_client(
        &self,
        id: &ClientId,
        status: Option<ClientStatus>,
        admin_groups: Option<Vec<String>>,
        policy: Option<crate::documents::PolicyOverrides>,
        now: UnixMs,
        audit: AuditRecord,
    ) -> Result<ClientDoc>;
    /// Creates or replaces an admin (enrolment keeps a live TOTP lock and step unless the seed changes). The document bears the `updated_at` with which
    /// it was read, and is stored with the time of the record; `Conflict` (`admin.changed`) when somebody changed it since, or made it.
    async fn put_admin(&self, admin: AdminDoc, audit: AuditRecord) -> Result<()>;
    /// One admin.
    async fn admin(&self, npub: &Npub) -> Result<Option<AdminDoc>>;
    /// All admins that can be read; the others are set aside with an alarm.
    async fn admins(&self) -> Result<Vec<AdminDoc>>;
    /// A number that differs once an admin was enrolled, changed or given a key since it was last asked for; it may also differ when nothing of that
    /// happened. One read, however many admins there are: whoever keeps the list asks this first.
    async fn admins_revision(&self) -> Result<u64>;
    /// Adds a proven MLS signature key to an enrolled admin; a repeat changes nothing.
    async fn prove_key(
        &self,
        npub: &Npub,
        key: crate::documents::ProvenKey,
        audit: AuditRecord,
    ) -> Result<AdminDoc>;
    /// Creates or replaces a group binding, on the same condition (`group.changed`).
    async fn put_group(&self, group: AdminGroupDoc, audit: AuditRecord) -> Result<()>;
    /// All groups that can be read, likewise.
    async fn groups(&self) -> Result<Vec<AdminGroupDoc>>;
    /// Suspends or re-activates a group.
    async fn set_group_state(
        &self,
        alias: &str,
        state: GroupState,
        now: UnixMs,
        audit: AuditRecord,
    ) -> Result<AdminGroupDoc>;
}

/// A document as it was found, with the id under which it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored<T> {
    /// The document id.
    pub id: String,
    /// `None` when it does not read as what it should be.
    pub doc: Option<T>,
}

/// The audit trail: chains of entries ([`crate::audit`]). Every record that another method of the port takes is sealed by the backend into the same transaction.
///
/// `chains`, `chain_head`, `chain`, `entries` and `stored_clients` are for whoever checks the trail: they are ordered by document id (bytewise), they hand out
/// what does not read as a document instead of failing, they go on behind any id that they handed out, and they need no index beyond that of the ids.
#[async_trait]
pub trait AuditTrail: Send + Sync {
    /// Appends a record of its own (a refusal, an alarm), once.
    async fn append(&self, record: AuditRecord) -> Result<()>;
    /// Records in order of time, newest last: those of `client` when given, at most `limit`.
    async fn read(&self, client: Option<&ClientId>, limit: usize) -> Result<Vec<AuditRecord>>;
    /// Heads in order of their id, after the id `after`, at most `limit`.
    async fn chains(&self, after: Option<&str>, limit: usize)
    -> Result<Vec<Stored<AuditChainDoc>>>;
    /// The head with this id.
    async fn chain_head(&self, id: &str) -> Result<Option<Stored<AuditChainDoc>>>;
    /// Entries of the chain whose head has this id, in order of `seq`, from `from_seq` on, at most `limit`.
    async fn chain(&self, id: &str, from_seq: u64, limit: usize)
    -> Result<Vec<Stored<AuditEntry>>>;
    /// Entries of all chains in order of their id (chain by chain, in order of `seq`), after the id `after`, at most `limit`. Finds also what no head names.
    async fn entries(&self, after: Option<&str>, limit: usize) -> Result<Vec<Stored<AuditEntry>>>;
    /// Clients in order of their id, after the id `after`, at most `limit`: to be compared with what the heads say of them.
    async fn stored_clients(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Stored<ClientDoc>>>;
    /// Whether the store answers at all; for readiness.
    async fn ping(&self) -> Result<()>;
}

/// Everything a backend provides.
pub trait Store: SecretStore + Registry + AuditTrail + DeviceStore {}
impl<T: SecretStore + Registry + AuditTrail + DeviceStore> Store for T {}
