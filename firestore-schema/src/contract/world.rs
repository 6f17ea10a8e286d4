//! A store with one client and three admins, and the usual way to a promotion.

use std::sync::Arc;

use keyturn_proto::{RotationId, UnixMs, VersionId};

use super::fixture::{
    self, DELAY, NOW, REQUESTER, SECOND, THIRD, ack, admin, audit, client, client_id, operation,
    prepare, reserve, version,
};
use crate::documents::{
    ActiveRotation, AdminDoc, AuditRecord, ClientDoc, RotationDoc, SnapshotEntry, VersionDoc,
    VersionState,
};
use crate::lifecycle::snapshot_of;
use crate::store::{Reserve, Reserved, Store, StoreError};

/// The store under test.
#[derive(Clone)]
pub struct World {
    /// The backend.
    pub store: Arc<dyn Store>,
}

/// Everything that a refusal must leave alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Picture {
    pub(super) client: Option<ClientDoc>,
    versions: Vec<VersionDoc>,
    active: Vec<RotationDoc>,
    admins: Vec<AdminDoc>,
    pub(super) audit: Vec<AuditRecord>,
}

impl World {
    /// Wraps an empty store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Registers the client with version 1 and enrols three admins.
    pub async fn settle(&self) {
        let first = version(1, None, VersionState::Current, NOW);
        self.store
            .create_client(
                client(client_id()),
                Some(first),
                audit("client.created", NOW),
            )
            .await
            .unwrap();
        for n in [REQUESTER, SECOND, THIRD] {
            self.store
                .put_admin(admin(n, n == REQUESTER), audit("admin.enrolled", NOW))
                .await
                .unwrap();
        }
    }

    pub(super) async fn reserved(&self, command: Reserve) -> ActiveRotation {
        match self.store.reserve(command).await.unwrap() {
            Reserved::New(active) => active,
            other => panic!("not reserved: {other:?}"),
        }
    }

    /// Operation `n` prepares version `n` at `now`.
    pub(super) async fn prepared(&self, n: u32, now: UnixMs) -> (RotationId, ActiveRotation) {
        let id = operation(n);
        let active = self.reserved(reserve(&id, now)).await;
        let not_before = UnixMs(now.0 + DELAY);
        self.store
            .prepare(prepare(&active, n, not_before, now))
            .await
            .unwrap();
        (id, active)
    }

    /// Operation `n` makes version `n` current; prepared at `now`, promoted [`DELAY`] later. Returns that time.
    pub(super) async fn promoted(&self, n: u32, now: UnixMs) -> UnixMs {
        let (id, _) = self.prepared(n, now).await;
        let then = UnixMs(now.0 + DELAY);
        self.acked(&id, n, then).await;
        assert_eq!(
            self.client().await.current_version,
            Some(fixture::version_id(n))
        );
        then
    }

    /// Whoever holds the lease now takes `active` over.
    pub(super) async fn taken_over(&self, active: &ActiveRotation, now: UnixMs) -> ActiveRotation {
        let audit = audit("rotation.taken_over", now);
        let taken = self.store.take_over(active, active.fence, now, audit);
        taken.await.unwrap()
    }

    /// Version `n` under the attempt of `active`.
    pub(super) async fn prepare_again(&self, active: &ActiveRotation, n: u32, now: UnixMs) {
        let not_before = UnixMs(now.0 + DELAY);
        let prepared = self.store.prepare(prepare(active, n, not_before, now));
        prepared.await.unwrap();
    }

    pub(super) async fn acked(&self, id: &RotationId, n: u32, now: UnixMs) {
        for by in [REQUESTER, SECOND] {
            let result = self.store.record_ack(ack(id, n, by, true, now)).await;
            assert!(result.unwrap().counted);
        }
    }

    pub(super) async fn client(&self) -> ClientDoc {
        self.store.client(&client_id()).await.unwrap().unwrap()
    }

    pub(super) async fn rotation(&self, id: &RotationId) -> RotationDoc {
        self.store.rotation(id).await.unwrap().unwrap()
    }

    pub(super) async fn version(&self, id: VersionId) -> VersionDoc {
        let mut all = self.store.versions(&client_id()).await.unwrap();
        all.retain(|doc| doc.version_id == id);
        all.pop().unwrap()
    }

    pub(super) async fn state(&self, n: u32) -> VersionState {
        self.version(fixture::version_id(n)).await.state
    }

    pub(super) async fn picture(&self) -> Picture {
        Picture {
            client: self.store.client(&client_id()).await.unwrap(),
            versions: self.store.versions(&client_id()).await.unwrap(),
            active: self.store.active_rotations().await.unwrap(),
            admins: self.store.admins().await.unwrap(),
            audit: self.store.read(None, usize::MAX).await.unwrap(),
        }
    }

    /// Ids of everything in the outbox that was not withdrawn.
    pub(super) async fn outbox_page(&self) -> Vec<String> {
        let page = self.store.outbox_page(None, usize::MAX).await.unwrap();
        page.into_iter().map(|event| event.event_id).collect()
    }

    /// Events of the audit trail, oldest first.
    pub(super) async fn events(&self) -> Vec<String> {
        let records = self.store.read(None, usize::MAX).await.unwrap();
        records.into_iter().map(|record| record.event).collect()
    }

    /// The snapshot says what the versions say.
    pub(super) async fn check_snapshot(&self) {
        let versions = self.store.versions(&client_id()).await.unwrap();
        let snapshot: Vec<SnapshotEntry> = self.client().await.snapshot;
        assert_eq!(snapshot, snapshot_of(&versions));
    }
}

/// Asserts a conflict of this kind.
pub(super) fn conflict<T: std::fmt::Debug>(result: Result<T, StoreError>, expected: &str) {
    match result {
        Err(StoreError::Conflict { why }) if why == expected => {}
        other => panic!("expected conflict {expected}, got {other:?}"),
    }
}
