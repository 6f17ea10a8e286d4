//! The port: one method per transaction. Each takes everything it needs to decide and writes its audit record in the same transaction.
//!
//! A backend reads the documents, asks [`crate::lifecycle`] for the change, and writes it conditionally. Every method is safe to repeat: the
//! repeat of something done reports what was done.

mod commands;
mod decisions;
mod error;
mod timed;

use async_trait::async_trait;
use futures::future::BoxFuture;
use keyturn_proto::{ClientId, Npub, RotationId, UnixMs, VersionId};

use crate::devices::DeviceStore;
use crate::documents::{
    ActiveRotation, AdminDoc, AdminGroupDoc, AuditChainDoc, AuditEntry, AuditRecord, ClientDoc,
    ClientStatus, GroupState, OutboxDoc, RotationDoc, VersionDoc,
};

pub use commands::{
    AckResult, ActionResult, Cancel, Prepare, RecordAck, Reserve, Reserved, Revoke, Rollback,
    Withdraw, Withdrawn,
};
pub use decisions::{Asked, BurnNonce, Burned, Decided, Decision, MAX_DECISIONS, Refuse};
pub use error::StoreError;
pub use timed::{Due, Lease, WithdrawnAfter};

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
