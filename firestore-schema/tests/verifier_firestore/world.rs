//! A relay's store, a heartbeat, and a verifier behind the proxy.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use keyturn_proto::{ClientId, PresentedSecret, RotationId, Secret, UnixMs, VersionId};
use keyturn_store::documents::{
    Actor, AuditRecord, ClientDoc, ClientStatus, Origin, VersionDoc, VersionState,
};
use keyturn_store::firestore::snapshots::FirestoreSnapshots;
use keyturn_store::firestore::{FirestoreSettings, FirestoreStore};
use keyturn_store::mac::{LocalMacKey, MacKey as _};
use keyturn_store::store::{Registry as _, Revoke, SecretStore as _};
use keyturn_store::verifier::watch::{Standing, WatchSettings};
use keyturn_store::verifier::{
    Book, ClientSnapshot, Settings, SnapshotSource, SourceError, Verified, Verifier, VerifyError,
};
use tokio::task::JoinHandle;

use super::mac::Counting;
use super::proxy::Proxy;

pub const CLIENT: &str = "ext-totp-svc";
/// Long enough for a machine with other work; no test waits for it when all is well.
pub const DEADLINE: Duration = Duration::from_secs(60);
pub const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const BEAT: Duration = Duration::from_millis(200);

/// Everything a little faster than in production, so that a test does not wait for minutes.
pub const WATCH: WatchSettings = WatchSettings {
    max_targets: 1_000,
    heartbeat_limit: Duration::from_millis(2_000),
    open_within: Duration::from_secs(5),
    probe_every: Duration::from_millis(300),
    retry_first: Duration::from_millis(50),
    retry_max: Duration::from_millis(500),
    idle_after: Duration::from_secs(600),
};
pub const MAX_STALE: Duration = Duration::from_millis(4_000);

pub fn now() -> UnixMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    UnixMs(u64::try_from(since.as_millis()).unwrap())
}

pub fn mac() -> LocalMacKey {
    LocalMacKey::from_keys(&[7; 32], &[])
}

/// Counts reads.
pub struct Counted(FirestoreSnapshots, Arc<AtomicU32>);

#[async_trait]
impl SnapshotSource for Counted {
    async fn snapshot(&self, client: &ClientId) -> Result<Option<ClientSnapshot>, SourceError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.snapshot(client).await
    }
    fn attach(&self, book: &Arc<Book>) {
        self.0.attach(book);
    }
}

/// A relay: writes documents, and renews the lease until dropped.
pub struct Relay {
    pub store: FirestoreStore,
    beat: Option<JoinHandle<()>>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop_beating();
    }
}

impl Relay {
    pub async fn at(endpoint: &str, project: &str) -> Self {
        let store = FirestoreStore::open(settings(endpoint, project))
            .await
            .unwrap();
        let mut relay = Self { store, beat: None };
        relay.start_beating().await;
        relay
    }

    pub async fn start_beating(&mut self) {
        let store = self.store.clone();
        let beat = async move || store.lease("rotation", "relay", 15_000, now()).await;
        beat().await.unwrap();
        self.beat = Some(tokio::spawn(async move {
            loop {
                tokio::time::sleep(BEAT).await;
                // A store that a test has killed.
                let _away = beat().await;
            }
        }));
    }

    pub fn stop_beating(&mut self) {
        if let Some(beat) = self.beat.take() {
            beat.abort();
        }
    }

    /// A client with one secret.
    pub async fn add(&self, client: &str) -> (Secret, VersionId) {
        let secret = Secret::generate().unwrap();
        let client_id: ClientId = client.parse().unwrap();
        let version_id = VersionId::generate(now()).unwrap();
        let made = mac().sign(&client_id, &version_id, secret.expose()).await;
        let made = made.unwrap_or_else(|_| unreachable!("a local key signs"));
        let version = VersionDoc {
            client_id: client_id.clone(),
            version_id,
            secret_hash: made.hash.as_str().to_owned(),
            algo: "HMAC-SHA-256".to_owned(),
            mac_key_ref: made.key_ref,
            created_at: now(),
            not_before: UnixMs(0),
            not_after: None,
            state: VersionState::Current,
            rotated_by: None,
            rotation_reason: "test".to_owned(),
            rotation_id: None,
            origin: Origin::Imported,
            prefilter: None,
            prehash: None,
            ack_public_key: None,
        };
        let doc = ClientDoc {
            client_id: client_id.clone(),
            current_version: None,
            previous_version: None,
            status: ClientStatus::Active,
            admin_groups: vec!["ops".to_owned()],
            updated_at: now(),
            last_rotation_at: None,
            policy: Default::default(),
            active_rotation: None,
            fence: 0,
            snapshot: Vec::new(),
        };
        let created = self
            .store
            .create_client(doc, Some(version), record(&client_id));
        created.await.unwrap();
        (secret, version_id)
    }

    pub async fn revoke(&self, client: &str) {
        let client_id: ClientId = client.parse().unwrap();
        let revoke = Revoke {
            client_id: client_id.clone(),
            version_id: None,
            action_id: RotationId::generate(now()).unwrap(),
            request_digest: "00".repeat(32),
            totp_step: None,
            retention_ms: 0,
            fence: 0,
            now: now(),
            audit: record(&client_id),
        };
        self.store.revoke(revoke).await.unwrap();
    }
}

fn record(client: &ClientId) -> AuditRecord {
    AuditRecord {
        at: now(),
        actor: Actor::Operator,
        event: "test".to_owned(),
        reason: "test".to_owned(),
        client_id: Some(client.clone()),
        rotation_id: None,
        version_id: None,
        group: None,
        device: None,
        nostr_event: None,
    }
}

pub fn settings(endpoint: &str, project: &str) -> FirestoreSettings {
    FirestoreSettings {
        project: project.to_owned(),
        database: "keyturn".to_owned(),
        endpoint: Some(endpoint.parse().unwrap()),
        timeout: Duration::from_secs(8),
    }
}

/// A verifying server.
pub struct Server {
    pub verifier: Verifier<Counted, Counting>,
    pub mac: Counting,
    reads: Arc<AtomicU32>,
}

impl Server {
    pub async fn behind(proxy: &Proxy, project: &str) -> Self {
        let settings = settings(&proxy.endpoint(), project);
        let source = FirestoreSnapshots::open(settings, WATCH, Arc::new(now)).await;
        let reads = Arc::new(AtomicU32::new(0));
        let source = Counted(source.unwrap(), Arc::clone(&reads));
        let settings = Settings {
            snapshot_ttl: Duration::from_millis(500),
            heartbeat_limit: WATCH.heartbeat_limit,
            max_stale: MAX_STALE,
            ..Settings::default()
        };
        let mac = Counting::new();
        Self {
            verifier: Verifier::new(source, mac.clone(), settings).unwrap(),
            mac,
            reads,
        }
    }

    pub async fn verify(&self, client: &str, secret: &Secret) -> Result<Verified, VerifyError> {
        let secret = PresentedSecret::new(secret.expose());
        self.verifier.verify(client, &secret, HERE, now()).await
    }

    /// Reads since the last call.
    pub fn reads(&self) -> u32 {
        self.reads.swap(0, Ordering::SeqCst)
    }

    pub fn standing(&self) -> Standing {
        self.verifier.source().0.standing()
    }

    /// Until the client needs no read.
    pub async fn settled(&self, targets: usize) {
        eventually("the listener is live", async || {
            let standing = self.standing();
            standing.live && standing.targets == targets
        })
        .await;
    }
}

/// Waits for a condition, looking often, for no longer than [`DEADLINE`].
pub async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
