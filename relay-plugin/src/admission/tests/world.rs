//! A world to ask in: two clients with a group each, four senders, an issuer in a file, a store on disk.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use keyturn_proto::{Action, ClientId, ErrorClass, MlsGroupId, Npub, UnixMs};
use keyturn_store::contract::counting::Counting;
use keyturn_store::documents::{
    Actor, AdminDoc, AdminGroupDoc, AuditRecord, ClientDoc, ClientScope, ClientStatus, GroupState,
    PolicyOverrides, ProvenKey, Quorum, RotationDoc, RotationState, TotpState,
};
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::{AuditTrail as _, Registry as _, SecretStore as _};
use zeroize::Zeroizing;

use crate::admission::scenarios::{Attempt, Facts, LOCKOUT_AFTER, Memory, Sender, TestIssuer};
use crate::admission::settings::{
    IssuerSettings, JwksSource, LimitSettings, PolicySettings, ProofAlgorithm, TotpPolicy,
    TotpSettings,
};
use crate::admission::totp_seed::Seed;
use crate::admission::{
    Admission, ChallengeKey, GroupContext, Keys, NotAdmitted, Opened, Permit, Refusal, SeedKey,
    Settings,
};

/// Begins a TOTP step.
pub(super) const T0: UnixMs = UnixMs(1_760_000_010_000);

/// Making an RSA key is slow; the keys are the same for every test of this process.
pub(super) static ISSUER: LazyLock<TestIssuer> = LazyLock::new(TestIssuer::new);

pub(super) const ALICE: Npub = Npub::from_bytes([0xa1; 32]);
pub(super) const BOB: Npub = Npub::from_bytes([0xb0; 32]);
pub(super) const CAROL: Npub = Npub::from_bytes([0xca; 32]);
const STRANGER: Npub = Npub::from_bytes([0x57; 32]);

/// One world; `now` moves only when told to.
pub(super) struct World {
    pub(super) store: Arc<SqliteStore>,
    /// The same store as admission reaches it.
    pub(super) counted: Counting,
    pub(super) admission: Admission,
    pub(super) client: ClientId,
    pub(super) now: UnixMs,
    seed: Seed,
    events: u64,
    memory: Memory,
    dir: tempfile::TempDir,
}

/// What a refusal must leave alone.
#[derive(Debug, PartialEq)]
pub(super) struct Untouched {
    clients: Vec<ClientDoc>,
    versions: usize,
    admins: Vec<AdminDoc>,
    groups: Vec<AdminGroupDoc>,
    rotations: Vec<RotationDoc>,
    outbox: usize,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// A world with other settings.
    pub(super) async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let jwks = dir.path().join("jwks.json");
        std::fs::write(&jwks, ISSUER.jwks().to_string()).unwrap();
        let store = Arc::new(SqliteStore::open(&dir.path().join("store.db")).unwrap());
        let mut settings = settings(JwksSource::File(jwks));
        change(&mut settings);
        let seed_key = SeedKey::new(&[2; 32]);
        let seed = Seed::generate().unwrap();
        let stored = seed_key.seal(&seed, &ALICE).unwrap();
        let keys = Keys {
            challenge: ChallengeKey::new(&[1; 32]),
            totp_seed: seed_key,
        };
        let counted = Counting::new(store.clone());
        let admission = Admission::new(Arc::new(counted.clone()), settings, keys).unwrap();
        let world = Self {
            store,
            counted,
            admission,
            client: "ext-totp-svc".parse().unwrap(),
            now: T0,
            seed,
            events: 0,
            memory: Memory::default(),
            dir,
        };
        world.populate(stored).await;
        world
    }

    async fn populate(&self, seed_ciphertext: String) {
        for (alias, id) in [("ops", 1), ("other", 2)] {
            self.store
                .put_group(group_doc(alias, id), audit())
                .await
                .unwrap();
        }
        for (id, group) in [("ext-totp-svc", "ops"), ("other-client", "other")] {
            self.store
                .create_client(client_doc(id, group), None, audit())
                .await
                .unwrap();
        }
        let totp = TotpState {
            seed_ciphertext,
            last_step: None,
            failures: 0,
            locked_until: None,
        };
        let only_other = ClientScope::Only(vec!["other-client".parse().unwrap()]);
        for (npub, scope, totp) in [
            (ALICE, ClientScope::All, Some(totp)),
            (BOB, ClientScope::All, None),
            (CAROL, only_other, None),
        ] {
            self.store
                .put_admin(admin_doc(npub, scope, totp), audit())
                .await
                .unwrap();
        }
    }

    /// Time goes on.
    pub(super) fn wait(&mut self, by: Duration) {
        self.now = self.now.plus(by);
    }

    /// The JSON of an attempt, as it came out of a group event just now.
    pub(super) fn opened(&mut self, attempt: &Attempt) -> Opened {
        let challenge = self.admission.challenge(self.now).unwrap();
        let (npub, leaf_signature_key, alias, group) = sender(attempt.sender);
        let facts = Facts {
            client: &self.client,
            npub,
            leaf_signature_key: &leaf_signature_key,
            mls_group_id: &group,
            challenge: &challenge.challenge,
            seed: (npub == ALICE).then_some(&self.seed),
            now: self.now,
        };
        let json = Zeroizing::new(attempt.compose(&ISSUER, &facts, &mut self.memory));
        self.events += 1;
        Opened {
            event_id: format!("{:e>64x}", self.events),
            received_at: self.now,
            group: GroupContext {
                alias: alias.to_owned(),
                mls_group_id: group,
                epoch: 7,
                roster_hash: "00".repeat(32),
            },
            sender: npub,
            leaf_signature_key,
            json,
        }
    }

    /// Sends an attempt.
    pub(super) async fn send(&mut self, attempt: &Attempt) -> Result<Permit, Refusal> {
        let opened = self.opened(attempt);
        self.admit(&opened, self.now).await
    }

    /// Judges an event; the store takes every record.
    pub(super) async fn admit(&self, opened: &Opened, now: UnixMs) -> Result<Permit, Refusal> {
        match self.admission.admit(opened, now).await {
            Ok(permit) => Ok(permit),
            Err(NotAdmitted::Refused(refusal) | NotAdmitted::Counted(refusal)) => Err(refusal),
            Err(NotAdmitted::Unrecorded) => panic!("not recorded"),
        }
    }

    /// The reason for which an attempt is refused; "" when it is not.
    pub(super) async fn reason(&mut self, attempt: &Attempt) -> &'static str {
        self.send(attempt)
            .await
            .err()
            .map_or("", |refusal| refusal.reason)
    }

    /// Changes an admin's document behind admission's back.
    pub(super) async fn change_admin(&self, npub: Npub, change: impl FnOnce(&mut AdminDoc)) {
        let mut admin = self.store.admin(&npub).await.unwrap().unwrap();
        change(&mut admin);
        self.store.put_admin(admin, audit()).await.unwrap();
    }

    /// The refusals in the audit trail, oldest first.
    pub(super) async fn refusals(&self) -> Vec<AuditRecord> {
        let mut records = self.store.read(None, 10_000).await.unwrap();
        records.retain(|record| record.event.starts_with("request.refused"));
        records
    }

    /// Everything but nonces, TOTP failures and the audit trail.
    pub(super) async fn untouched(&self) -> Untouched {
        let clients = self.store.clients(None, 100).await.unwrap();
        let mut versions = 0;
        for client in &clients {
            versions += self.store.versions(&client.client_id).await.unwrap().len();
        }
        let mut admins = self.store.admins().await.unwrap();
        for admin in &mut admins {
            admin.updated_at = T0;
            if let Some(totp) = admin.totp.as_mut() {
                (totp.failures, totp.locked_until) = (0, None);
            }
        }
        Untouched {
            clients,
            versions,
            admins,
            groups: self.store.groups().await.unwrap(),
            rotations: self.store.active_rotations().await.unwrap(),
            outbox: self.store.outbox_page(None, 1000).await.unwrap().len(),
        }
    }

    /// A reservation that [`ALICE`] got through "ops".
    pub(super) fn rotation(&self) -> RotationDoc {
        RotationDoc {
            rotation_id: "01JM8VEZAMG2DK6T4S9N7TT1C8".parse().unwrap(),
            client_id: self.client.clone(),
            action: Action::Rotation,
            requested_by: ALICE,
            reason: "test".to_owned(),
            mls_group: "ops".to_owned(),
            request_digest: "00".repeat(32),
            new_version: None,
            old_version: None,
            not_before: T0,
            grace_duration_ms: 1000,
            grace_until: None,
            distribution_message_id: None,
            readers: vec![],
            quorum: Quorum {
                required: 1,
                require_proven: true,
                requester_counts: false,
                acks: vec![],
            },
            state: RotationState::Reserved,
            outcome: None,
            attempt: 1,
            fence: 1,
            created_at: T0,
            proof_expires_at: T0,
            ack_deadline: UnixMs(T0.0 + 1),
            completed_at: None,
            announced_at: None,
        }
    }

    /// The issuer's JWKS is gone.
    pub(super) fn remove_issuer(&self) {
        std::fs::remove_file(self.dir.path().join("jwks.json")).unwrap();
    }
}

pub(super) fn refused(class: ErrorClass, reason: &'static str) -> Option<Refusal> {
    Some(Refusal {
        class,
        reason,
        retry_after_ms: None,
    })
}

/// Npub, leaf key, group alias and id.
fn sender(sender: Sender) -> (Npub, Vec<u8>, &'static str, MlsGroupId) {
    let (npub, key, alias, group) = match sender {
        Sender::Admin => (ALICE, key_of(ALICE), "ops", 1),
        Sender::Stranger => (STRANGER, key_of(STRANGER), "ops", 1),
        Sender::UnprovenLeaf => (ALICE, vec![0xee; 32], "ops", 1),
        Sender::OtherGroup => (BOB, key_of(BOB), "other", 2),
        Sender::OutOfScope => (CAROL, key_of(CAROL), "ops", 1),
    };
    (npub, key, alias, group_id(group))
}

pub(super) fn key_of(npub: Npub) -> Vec<u8> {
    npub.as_bytes().iter().map(|byte| byte ^ 0xff).collect()
}

pub(super) fn group_id(id: u8) -> MlsGroupId {
    MlsGroupId::from_bytes(&[id; 16]).unwrap()
}

pub(super) fn group_doc(alias: &str, id: u8) -> AdminGroupDoc {
    AdminGroupDoc {
        alias: alias.to_owned(),
        mls_group_id: Some(group_id(id)),
        nostr_group_id: Some(hex::encode([id; 32])),
        welcomers: vec![ALICE],
        status: GroupState::Active,
        updated_at: T0,
    }
}

fn client_doc(id: &str, group: &str) -> ClientDoc {
    ClientDoc {
        client_id: id.parse().unwrap(),
        current_version: None,
        previous_version: None,
        status: ClientStatus::Active,
        admin_groups: vec![group.to_owned()],
        updated_at: T0,
        last_rotation_at: None,
        policy: PolicyOverrides::default(),
        active_rotation: None,
        fence: 0,
        snapshot: vec![],
    }
}

pub(super) fn admin_doc(npub: Npub, scope: ClientScope, totp: Option<TotpState>) -> AdminDoc {
    let key = ProvenKey {
        key: hex::encode(key_of(npub)),
        proof_event: "00".repeat(32),
        at: T0,
    };
    AdminDoc {
        npub,
        active: true,
        scope,
        signature_keys: vec![key],
        totp,
        created_at: T0,
        updated_at: T0,
    }
}

pub(super) fn audit() -> AuditRecord {
    AuditRecord {
        at: T0,
        actor: Actor::Operator,
        event: "test.setup".to_owned(),
        reason: "test".to_owned(),
        client_id: None,
        rotation_id: None,
        version_id: None,
        group: None,
        nostr_event: None,
        device: None,
    }
}

fn settings(jwks: JwksSource) -> Settings {
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    Settings {
        issuer: IssuerSettings {
            jwks,
            audience: "rust-nostr-relay".to_owned(),
            issuer: Some("test-issuer".to_owned()),
            algorithms: vec![
                ProofAlgorithm::Rs256,
                ProofAlgorithm::Es256,
                ProofAlgorithm::EdDsa,
            ],
            leeway: Duration::from_secs(5),
            max_lifetime: minutes(5),
            cache_ttl: minutes(10),
            stale_for: minutes(60),
            refresh_min_interval: Duration::from_secs(30),
            fetch_timeout: Duration::from_secs(5),
        },
        totp: TotpSettings {
            policy: TotpPolicy::Either,
            max_failures: LOCKOUT_AFTER,
            lock: minutes(15),
        },
        challenge_ttl: minutes(5),
        policy: PolicySettings {
            default_grace: minutes(7 * 24 * 60),
            max_grace: minutes(30 * 24 * 60),
            min_delay: minutes(10),
            min_interval: minutes(60),
            denylist: vec![],
        },
        limits: LimitSettings {
            client_per_hour: 1000,
            admin_per_hour: 1000,
            breaker_refusals: 1000,
            global_breaker_refusals: 10_000,
            breaker_window: minutes(5),
            breaker_pause: minutes(15),
        },
    }
}
