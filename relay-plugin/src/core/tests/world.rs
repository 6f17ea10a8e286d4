//! Store, MLS members and relay of one test; the core on top of them can be killed and started again.

mod fakes;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use keyturn_mls::{GroupSpec, MlsGroupId, verify_key_package};
use keyturn_proto::{
    Action, ClientId, ErrorClass, Npub, Params, RotationId, Secret, ServiceRequest, UnixMs,
    VersionId, kinds,
};
use keyturn_store::contract::counting::Counting;
use keyturn_store::documents::{
    AdminDoc, AdminGroupDoc, ClientDoc, ClientScope, ClientStatus, GroupState, Origin, OutboxDoc,
    RotationDoc, VersionDoc, VersionState,
};
use keyturn_store::mac::{LocalMacKey, MacError, MacKey, Maced, SecretHash};
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::{AuditTrail, BurnNonce, Registry, SecretStore, Store};
use nostr::{Keys, Kind};
use tempfile::TempDir;
use tokio::sync::Notify;

use super::admin::{Admin, RELAY, open_member};
use super::relay::FakeRelay;
use crate::admission::settings::{
    IssuerSettings, JwksSource, LimitSettings, PolicySettings, ProofAlgorithm, TotpPolicy,
    TotpSettings,
};
use crate::admission::{
    self, Admission, ChallengeKey, Keys as AdmissionKeys, Leaf, NotAdmitted, Opened, Permit,
    Refusal, SeedKey,
};
use crate::core::{CoreHandle, Deps, start};
use crate::delivery::member_thread::MemberThread;
use crate::delivery::service_member::{Parts, ServiceMember};
use crate::rotation::Settings;
use crate::rotation::audit::Entry;
use crate::rotation::ports::{Clock, Gate};
use crate::service::ServedSet;

use fakes::admission_settings;
pub(super) use fakes::{COUNTED, MoodyKey, OpenGate, TestClock};

pub(super) const DEADLINE: Duration = Duration::from_secs(60);

pub(super) const GRACE: Duration = Duration::from_secs(3600);

pub(super) struct World {
    pub(super) relay: FakeRelay,
    pub(super) clock: Arc<TestClock>,
    pub(super) store: SqliteStore,
    /// The same store as the core reaches it.
    pub(super) counted: Counting,
    pub(super) mac: Arc<LocalMacKey>,
    /// The same key as the core reaches it.
    pub(super) mac_of_core: Arc<MoodyKey>,
    /// The service members of other instances, from the next start on.
    pub(super) siblings: HashSet<Npub>,
    pub(super) service_keys: Keys,
    pub(super) served: ServedSet,
    pub(super) core: Option<CoreHandle>,
    pub(super) settings: Settings,
    pub(super) client: ClientId,
    pub(super) first: VersionId,
    pub(super) group: MlsGroupId,
    pub(super) alice: Admin,
    pub(super) bob: Admin,
    dir: TempDir,
}

impl World {
    /// Two admins and the service in one settled group, one client with a first secret, the core at work.
    pub(super) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(super) async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let dir = TempDir::new().unwrap();
        let relay = FakeRelay::default();
        let clock = Arc::new(TestClock::default());
        let mut settings = Settings {
            instance: "test".to_owned(),
            ack_deadline: Duration::from_secs(1800),
            quorum: 1,
            require_proven: true,
            requester_counts: false,
            retention: Duration::from_secs(86_400),
            keep_withdrawn: None,
            lease: Duration::from_secs(30),
            sweep: Duration::from_millis(500),
            look: Duration::from_millis(500),
            retry: Duration::from_millis(20),
        };
        change(&mut settings);
        let store = SqliteStore::open(&dir.path().join("store.db")).unwrap();
        let now = clock.now();
        let mac = Arc::new(LocalMacKey::from_keys(&[7; 32], &[]));
        let mut world = Self {
            alice: Admin::new(&relay),
            bob: Admin::new(&relay),
            mac_of_core: Arc::new(MoodyKey {
                key: Arc::clone(&mac),
                away: AtomicBool::new(false),
            }),
            mac,
            siblings: HashSet::new(),
            service_keys: Keys::generate(),
            served: ServedSet::default(),
            core: None,
            client: "ext-totp-svc".parse().unwrap(),
            first: VersionId::generate(now).unwrap(),
            group: MlsGroupId::from_bytes(b"not yet").unwrap(),
            relay,
            clock,
            counted: Counting::new(Arc::new(store.clone())),
            store,
            settings,
            dir,
        };
        world.enrol().await;
        world.start().await;
        world.make_group().await;
        world
    }

    pub(super) fn now(&self) -> UnixMs {
        self.clock.now()
    }

    pub(super) fn entry(&self, event: &str) -> keyturn_store::documents::AuditRecord {
        Entry::by_relay(self.now(), event, "test").done()
    }

    pub(super) async fn enrol_admin(&self, npub: Npub, scope: ClientScope) {
        let now = self.now();
        let admin = AdminDoc {
            npub,
            active: true,
            scope,
            signature_keys: Vec::new(),
            totp: None,
            created_at: now,
            updated_at: now,
        };
        self.store
            .put_admin(admin, self.entry("admin.enrolled"))
            .await
            .unwrap();
    }

    async fn enrol(&self) {
        let now = self.now();
        for npub in [self.alice.npub(), self.bob.npub()] {
            self.enrol_admin(npub, ClientScope::All).await;
        }
        let group = AdminGroupDoc {
            alias: "ops".to_owned(),
            mls_group_id: None,
            nostr_group_id: None,
            welcomers: vec![self.alice.npub()],
            status: GroupState::Active,
            updated_at: now,
        };
        self.store
            .put_group(group, self.entry("group.added"))
            .await
            .unwrap();
        let secret = Secret::generate().unwrap();
        let maced = self
            .mac
            .sign(&self.client, &self.first, secret.expose())
            .await
            .unwrap();
        let first = VersionDoc {
            client_id: self.client.clone(),
            version_id: self.first,
            secret_hash: maced.hash.as_str().to_owned(),
            algo: "HMAC-SHA-256".to_owned(),
            mac_key_ref: maced.key_ref,
            created_at: now,
            not_before: now,
            not_after: None,
            state: VersionState::Current,
            rotated_by: None,
            rotation_reason: "first".to_owned(),
            rotation_id: None,
            origin: Origin::Generated,
            prefilter: None,
            prehash: None,
            ack_public_key: None,
        };
        let client = ClientDoc {
            client_id: self.client.clone(),
            current_version: Some(self.first),
            previous_version: None,
            status: ClientStatus::Active,
            admin_groups: vec!["ops".to_owned()],
            updated_at: now,
            last_rotation_at: None,
            policy: Default::default(),
            active_rotation: None,
            fence: 0,
            snapshot: Vec::new(),
        };
        let audit = self.entry("client.added");
        self.store
            .create_client(client, Some(first), audit)
            .await
            .unwrap();
    }

    async fn make_group(&mut self) {
        let service = self.service_keys.public_key();
        let package = self
            .wait_event(|event| {
                event.kind == Kind::Custom(kinds::KEY_PACKAGE) && event.pubkey == service
            })
            .await;
        let now = self.now();
        self.alice.publish_key_package(now);
        let bobs = self.bob.publish_key_package(now);
        let spec = GroupSpec {
            name: "ops".to_owned(),
            description: String::new(),
            admins: [self.alice.keys.public_key()].into(),
            relays: [RELAY.to_owned()].into(),
            nostr_group_id: None,
        };
        let invited = [
            verify_key_package(&bobs, now).unwrap(),
            verify_key_package(&package, now).unwrap(),
        ];
        let created = self.alice.member.create_group(spec, &invited, now).unwrap();
        self.group = created.group.id;
        for welcome in created.welcomes {
            self.relay.admin_sends(welcome.event.clone(), now.0);
            if welcome.recipient == self.bob.keys.public_key() {
                self.bob.join(&welcome.event, now);
            }
        }
        self.wait_bound().await;
        self.alice.sync(self.now());
        self.bob.sync(self.now());
        self.bob.renew_leaf(&self.group.clone(), self.now());
        self.alice.sync(self.now());
        self.caught_up().await;
    }

    async fn wait_bound(&self) {
        let store = self.store.clone();
        self.until("the service renews its leaf", async || {
            let bound = store.groups().await.unwrap()[0].mls_group_id.is_some();
            let commits = self.relay.events();
            let commits = commits
                .iter()
                .filter(|e| e.kind == Kind::Custom(kinds::GROUP_EVENT));
            bound && commits.count() >= 1
        })
        .await;
    }

    /// Waits until the service is in the epoch that Alice is in.
    pub(super) async fn caught_up(&self) {
        let epoch = self
            .alice
            .member
            .group_info(&self.group)
            .unwrap()
            .unwrap()
            .epoch;
        let service = self.core.as_ref().unwrap().service.clone();
        let group = self.group.clone();
        self.until("the service follows", async || {
            let group = group.clone();
            let info = service
                .member()
                .call(move |m| m.group_info(&group).unwrap());
            info.await.unwrap().is_some_and(|info| info.epoch == epoch)
        })
        .await;
    }

    /// Opens everything from disk and starts a core, as a process does.
    pub(super) async fn start(&mut self) {
        self.start_without_waiting().await;
        assert!(
            self.core.as_ref().unwrap().ready().await,
            "the core ended before it was ready"
        );
    }

    pub(super) async fn start_without_waiting(&mut self) {
        let path = self.dir.path().join("service.db");
        let deadline = tokio::time::Instant::now() + DEADLINE;
        let member = loop {
            match open_member(&path, &self.service_keys, self.relay.backlog()) {
                Some(member) => break member,
                None => assert!(
                    tokio::time::Instant::now() < deadline,
                    "the database stays locked"
                ),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let store: Arc<dyn Store> = Arc::new(self.counted.clone());
        let service = ServiceMember::new(Parts {
            member: MemberThread::spawn(member).unwrap(),
            identity: Npub::from_bytes(self.service_keys.public_key().to_bytes()),
            store: Arc::clone(&store),
            relay: Arc::new(self.relay.clone()),
            served: self.served.clone(),
            clock: self.clock.clone(),
            registry: Duration::ZERO,
            relays: vec![RELAY.to_owned()],
            siblings: self.siblings.clone(),
        });
        self.core = Some(start(Deps {
            gate: Arc::new(self.gate(Arc::clone(&store))),
            store,
            mac: self.mac_of_core.clone(),
            relay: Arc::new(self.relay.clone()),
            service,
            clock: self.clock.clone(),
            settings: self.settings.clone(),
            inbound: self.relay.attach(),
        }));
    }

    fn gate(&self, store: Arc<dyn Store>) -> OpenGate {
        let keys = AdmissionKeys {
            challenge: ChallengeKey::new(&[1; 32]),
            totp_seed: SeedKey::new(&[2; 32]),
        };
        OpenGate {
            admission: Admission::new(Arc::clone(&store), admission_settings(), keys).unwrap(),
            store,
        }
    }

    /// Ends the core where it stands, without letting it finish anything.
    pub(super) async fn kill(&mut self) {
        self.relay.detach();
        let core = self.core.take().unwrap();
        core.task.abort();
        let _ended = core.task.await;
    }

    /// Waits for a condition.
    pub(super) async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while !holds().await {
            if tokio::time::Instant::now() >= deadline {
                for record in self.store.read(None, 100).await.unwrap() {
                    eprintln!("{} {} {:?}", record.event, record.reason, record.actor);
                }
                panic!("not in time: {what}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) async fn wait_event(&self, wanted: impl Fn(&nostr::Event) -> bool) -> nostr::Event {
        self.until("an event", async || self.relay.events().iter().any(&wanted))
            .await;
        self.relay
            .events()
            .into_iter()
            .find(|event| wanted(event))
            .unwrap()
    }

    pub(super) async fn wait_audit(&self, event: &str, reason: &str) {
        self.until(&format!("audit record {event} {reason}"), async || {
            let records = self.store.read(None, 1000).await.unwrap();
            records
                .iter()
                .any(|r| r.event == event && (reason.is_empty() || r.reason == reason))
        })
        .await;
    }

    pub(super) async fn rotation(&self, id: &RotationId) -> Option<RotationDoc> {
        self.store.rotation(id).await.unwrap()
    }

    pub(super) async fn client(&self) -> ClientDoc {
        self.store.client(&self.client).await.unwrap().unwrap()
    }

    /// Versions that a rotation has recorded.
    pub(super) async fn versions_of(&self, id: &RotationId) -> Vec<VersionDoc> {
        let versions = self.store.versions(&self.client).await.unwrap();
        versions
            .into_iter()
            .filter(|v| v.rotation_id.as_ref() == Some(id))
            .collect()
    }

    /// Alice asks for a rotation.
    pub(super) fn ask(&mut self, action: Action, params: Params) -> RotationId {
        let (group, client, now) = (self.group.clone(), self.client.clone(), self.clock.now());
        self.alice.ask(&group, &client, action, params, now)
    }

    pub(super) fn rotate(&mut self) -> RotationId {
        self.ask(Action::Rotation, because("test"))
    }

    /// Waits until the notify is out, and opens it in both apps.
    pub(super) async fn delivered(&mut self, id: &RotationId) -> VersionId {
        self.until("the notify is published", async || {
            let prepared = self
                .rotation(id)
                .await
                .and_then(|r| r.new_version)
                .is_some();
            let outbox = self.store.outbox(id).await.unwrap_or_default();
            prepared && !outbox.is_empty() && outbox.iter().all(|event| self.is_out(event))
        })
        .await;
        let version = self.rotation(id).await.unwrap().new_version.unwrap();
        let now = self.now();
        for admin in [&mut self.alice, &mut self.bob] {
            admin.sync(now);
            assert!(admin.notify(&version).is_some(), "a published notify opens");
        }
        version
    }

    /// Whether the relay holds a sealed event.
    pub(super) fn is_out(&self, event: &OutboxDoc) -> bool {
        let id = event.event_id.as_str();
        self.relay
            .events()
            .iter()
            .any(|stored| stored.id.to_hex() == id)
    }

    /// Bob acks with a proof.
    pub(super) async fn bob_acks(&mut self, version: &VersionId) {
        let (group, now) = (self.group.clone(), self.now());
        let ack = self.bob.proven_ack(&group, version, now);
        self.bob.ack(&group, &ack, now);
    }

    pub(super) async fn over(&self, id: &RotationId) -> RotationDoc {
        self.until("the rotation ends and is announced", async || {
            self.rotation(id)
                .await
                .is_some_and(|r| r.announced_at.is_some())
        })
        .await;
        self.rotation(id).await.unwrap()
    }

    /// The secret that an admin opened is the one the store's hash is of.
    pub(super) async fn opens_as_recorded(&self, version: &VersionId) {
        let versions = self.store.versions(&self.client).await.unwrap();
        let recorded = versions.iter().find(|v| v.version_id == *version).unwrap();
        let hash = SecretHash::parse(&recorded.secret_hash).unwrap();
        for admin in [&self.alice, &self.bob] {
            let notify = admin.notify(version).unwrap();
            let secret = notify.secret.expose();
            let key_ref = &recorded.mac_key_ref;
            assert!(
                self.mac
                    .verify(key_ref, &self.client, version, secret, &hash)
                    .await
                    .unwrap()
            );
        }
    }
}

pub(super) fn because(reason: &str) -> Params {
    Params {
        rotation_reason: reason.to_owned(),
        ..Params::default()
    }
}
