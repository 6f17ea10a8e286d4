//! A store that counts its write commits: what an operation costs is asserted, not estimated. Its methods can be made to fail or to hang.
//!
//! Every method of the port that writes is one commit (see [`crate::store`]), so counting calls counts commits. Renewals of leases have nothing to
//! do with any one operation and are counted apart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use keyturn_proto::device::DeviceId;
use keyturn_proto::{ClientId, Npub, RotationId, UnixMs, VersionId};
use tokio::sync::watch;

use crate::devices::documents::DeviceDoc;
use crate::devices::store::{Answer, Change, DeviceStore, Mint};
use crate::documents::{
    ActiveRotation, AdminDoc, AdminGroupDoc, AuditChainDoc, AuditEntry, AuditRecord, ClientDoc,
    ClientStatus, GroupState, OutboxDoc, PolicyOverrides, ProvenKey, RotationDoc, VersionDoc,
};
use crate::store::{
    AckResult, ActionResult, Asked, AuditTrail, BurnNonce, Burned, Cancel, Decided, Decision, Due,
    Early, Lease, Prepare, RecordAck, Refuse, Registry, Reserve, Reserved, Result, Revoke,
    Rollback, SecretStore, Store, StoreError, Stored, Withdraw, Withdrawn, WithdrawnAfter,
};

/// See the module.
#[derive(Clone)]
pub struct Counting {
    store: Arc<dyn Store>,
    commits: Arc<Mutex<BTreeMap<&'static str, u32>>>,
    calls: Arc<Mutex<BTreeMap<&'static str, u32>>>,
    failing: Arc<Mutex<BTreeSet<&'static str>>>,
    doubting: Arc<Mutex<BTreeSet<&'static str>>>,
    held: Arc<Mutex<BTreeMap<&'static str, watch::Receiver<()>>>>,
}

/// While it lives, the method that it was got for does not go on.
pub struct Held(#[expect(dead_code, reason = "its end is what is waited for")] watch::Sender<()>);

impl Counting {
    /// Counts what goes to `store`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            commits: Arc::default(),
            calls: Arc::default(),
            failing: Arc::default(),
            doubting: Arc::default(),
            held: Arc::default(),
        }
    }

    /// From now on this method fails and does nothing.
    pub fn fail(&self, method: &'static str) {
        lock(&self.failing).insert(method);
    }

    /// From now on this method does what it is asked, and says that nobody knows.
    pub fn doubt(&self, method: &'static str) {
        lock(&self.doubting).insert(method);
    }

    /// Nothing fails any more.
    pub fn mend(&self) {
        lock(&self.failing).clear();
        lock(&self.doubting).clear();
    }

    /// This method does not go on before what is returned is dropped.
    #[must_use]
    pub fn hold(&self, method: &'static str) -> Held {
        let (sender, receiver) = watch::channel(());
        lock(&self.held).insert(method, receiver);
        Held(sender)
    }

    /// How often a method was called, whether it reads or writes and however it ended.
    #[must_use]
    pub fn calls(&self, method: &str) -> u32 {
        lock(&self.calls).get(method).copied().unwrap_or_default()
    }

    async fn enter(&self, method: &'static str) -> Result<()> {
        *lock(&self.calls).entry(method).or_default() += 1;
        let held = lock(&self.held).get(method).cloned();
        if let Some(mut held) = held {
            // Ends with an error, when the sender is dropped.
            let _dropped = held.changed().await;
        }
        if lock(&self.failing).contains(method) {
            return Err(StoreError::Unavailable {
                cause: "the test said so",
            });
        }
        Ok(())
    }

    fn leave<T>(&self, method: &'static str, done: Result<T>) -> Result<T> {
        if lock(&self.doubting).contains(method) {
            return Err(StoreError::Unknown {
                cause: "the test said so",
            });
        }
        done
    }

    /// Write commits since the last call, by method; without those of leases.
    #[must_use]
    pub fn take(&self) -> BTreeMap<&'static str, u32> {
        let mut commits = std::mem::take(&mut *lock(&self.commits));
        commits.remove("lease");
        commits
    }

    fn wrote(&self, what: &'static str) {
        *lock(&self.commits).entry(what).or_default() += 1;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

macro_rules! counted {
    ($port:ident { $($kind:ident $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $out:ty;)* }) => {
        #[async_trait]
        impl $port for Counting {
            $(async fn $name(&self, $($arg: $ty),*) -> Result<$out> {
                self.enter(stringify!($name)).await?;
                counted!(@$kind self $name);
                let done = self.store.$name($($arg),*).await;
                self.leave(stringify!($name), done)
            })*
        }
    };
    (@read $self:ident $name:ident) => {};
    (@write $self:ident $name:ident) => { $self.wrote(stringify!($name)); };
}

counted!(SecretStore {
    write burn_nonce(burn: BurnNonce) -> Burned;
    write totp_failed(npub: Npub, max_failures: u32, lock_ms: u64, now: UnixMs, audit: AuditRecord, refuses: Option<Refuse>) -> AdminDoc;
    write record(decisions: Vec<Decision>) -> ();
    read decided(asked: &[Asked]) -> Vec<Decided>;
    write reserve(reserve: Reserve) -> Reserved;
    write prepare(prepare: Prepare) -> RotationDoc;
    write record_ack(ack: RecordAck) -> AckResult;
    write promote(rotation_id: &RotationId, retention_ms: u64, fence: u64, now: UnixMs, audit: AuditRecord) -> RotationDoc;
    write cancel(cancel: Cancel) -> RotationDoc;
    write withdraw(withdraw: Withdraw) -> Withdrawn;
    write mark_announced(rotation_id: &RotationId, now: UnixMs) -> ();
    write retire(client: &ClientId, version: &VersionId, fence: u64, now: UnixMs, audit: AuditRecord) -> ClientDoc;
    write rollback(rollback: Rollback) -> ActionResult;
    write revoke(revoke: Revoke) -> ActionResult;
    write take_over(active: &ActiveRotation, fence: u64, now: UnixMs, audit: AuditRecord) -> ActiveRotation;
    read rotation(id: &RotationId) -> Option<RotationDoc>;
    read active_rotations() -> Vec<RotationDoc>;
    read due(now: UnixMs, limit: usize) -> Vec<Due>;
    read next_due() -> Option<UnixMs>;
    read outbox(rotation: &RotationId) -> Vec<OutboxDoc>;
    read outbox_page(after: Option<&str>, limit: usize) -> Vec<OutboxDoc>;
    write purge(event_ids: &[String], keep_until: Option<UnixMs>, now: UnixMs) -> ();
    write forget_nonces(now: UnixMs, limit: usize) -> u64;
    read withdrawn(after: &WithdrawnAfter, limit: usize) -> Vec<OutboxDoc>;
    write lease(name: &str, owner: &str, ttl_ms: u64, now: UnixMs) -> Lease;
});

counted!(Registry {
    write create_client(client: ClientDoc, first: Option<VersionDoc>, audit: AuditRecord) -> ();
    read client(id: &ClientId) -> Option<ClientDoc>;
    read clients(after: Option<&ClientId>, limit: usize) -> Vec<ClientDoc>;
    read versions(id: &ClientId) -> Vec<VersionDoc>;
    write update_client(
        id: &ClientId,
        status: Option<ClientStatus>,
        admin_groups: Option<Vec<String>>,
        policy: Option<PolicyOverrides>,
        now: UnixMs,
        audit: AuditRecord,
    ) -> ClientDoc;
    write put_admin(admin: AdminDoc, audit: AuditRecord) -> ();
    read admin(npub: &Npub) -> Option<AdminDoc>;
    read admins() -> Vec<AdminDoc>;
    read admins_revision() -> u64;
    write prove_key(npub: &Npub, key: ProvenKey, audit: AuditRecord) -> AdminDoc;
    write put_group(group: AdminGroupDoc, audit: AuditRecord) -> ();
    read groups() -> Vec<AdminGroupDoc>;
    write set_group_state(alias: &str, state: GroupState, now: UnixMs, audit: AuditRecord) -> AdminGroupDoc;
});

counted!(AuditTrail {
    write append(record: AuditRecord) -> ();
    read read(client: Option<&ClientId>, limit: usize) -> Vec<AuditRecord>;
    read chains(after: Option<&str>, limit: usize) -> Vec<Stored<AuditChainDoc>>;
    read chain_head(id: &str) -> Option<Stored<AuditChainDoc>>;
    read chain(id: &str, from_seq: u64, limit: usize) -> Vec<Stored<AuditEntry>>;
    read entries(after: Option<&str>, limit: usize) -> Vec<Stored<AuditEntry>>;
    read stored_clients(after: Option<&str>, limit: usize) -> Vec<Stored<ClientDoc>>;
    read ping() -> ();
});

counted!(DeviceStore {
    write change_device(id: &DeviceId, change: Change, now: UnixMs) -> Answer;
    write issue_at_once(id: &DeviceId, ask: Change, confirm: Duration, mint: Mint, now: UnixMs) -> Early<Answer>;
    read device(id: &DeviceId) -> Option<DeviceDoc>;
    read devices(after: Option<&DeviceId>, limit: usize) -> Vec<DeviceDoc>;
    read devices_due(now: UnixMs, limit: usize) -> Vec<DeviceDoc>;
    read devices_of(owner: &str, limit: usize) -> Vec<DeviceDoc>;
});
