//! What must hold of one client at every moment, whoever was killed: read from the store, and asked of the verifier.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keyturn_admin::OpenedSecret;
use keyturn_proto::notify::Outcome;
use keyturn_proto::{ClientId, PresentedSecret, RotationId, VersionId};
use keyturn_store::documents::{AuditRecord, ClientDoc, RotationDoc, RotationState, VersionDoc};
use keyturn_store::mac::{LocalMacKey, MacKey};
use keyturn_store::store::Store;
use keyturn_store::verifier::{Rate, Settings, Verifier, VerifyError, Which};

use crate::wire::Wire;
use crate::world::{World, eventually, now};

/// More than any test writes.
const WHOLE_TRAIL: usize = 100_000;

/// The plaintexts that admins have opened, by version.
#[derive(Default)]
pub struct Held(Mutex<BTreeMap<VersionId, String>>);

impl Held {
    /// To be called before the ack: whatever is promoted was held by somebody.
    pub fn note(&self, opened: &OpenedSecret) {
        let secret = opened.notify.secret.expose().to_owned();
        let version = opened.notify.header.version_id;
        let before = self.0.lock().unwrap().insert(version, secret.clone());
        assert!(
            before.is_none_or(|before| before == secret),
            "one version, two secrets"
        );
    }

    pub fn secret(&self, version: VersionId) -> String {
        let held = self.0.lock().unwrap();
        held.get(&version)
            .unwrap_or_else(|| panic!("nobody has opened {version}"))
            .clone()
    }
}

/// The store and the verifier as another process sees them.
pub struct Judge {
    pub store: Arc<dyn Store>,
    client: ClientId,
    verifier: Verifier<Arc<dyn Store>, Arc<dyn MacKey>>,
}

impl Judge {
    /// With the key file of the world.
    pub fn of(world: &World, client: &str) -> Self {
        let mac = LocalMacKey::open(&[world.layout.mac_key()]).unwrap();
        Self::with(world, client, mac)
    }

    /// With another MAC key.
    pub fn with(world: &World, client: &str, mac: impl MacKey + 'static) -> Self {
        Self::over(Arc::new(world.store()), client, mac)
    }

    /// Over whatever store the configuration of the world names.
    pub async fn as_configured(world: &World, client: &str) -> Self {
        let mac = LocalMacKey::open(&[world.layout.mac_key()]).unwrap();
        Self::over(world.operator().await, client, mac)
    }

    fn over(store: Arc<dyn Store>, client: &str, mac: impl MacKey + 'static) -> Self {
        let mac: Arc<dyn MacKey> = Arc::new(mac);
        let plenty = Rate {
            per_second: 10_000,
            burst: 10_000,
        };
        let settings = Settings {
            // What the store says now, not what it said a moment ago.
            snapshot_ttl: Duration::ZERO,
            mac_per_client: plenty,
            mac_per_source: plenty,
            ..Settings::default()
        };
        Self {
            verifier: Verifier::new(Arc::clone(&store), mac, settings).unwrap(),
            client: client.parse().unwrap(),
            store,
        }
    }

    /// The version that a secret matches now, and its place; `None` when it is refused.
    pub async fn verify(&self, secret: &str) -> Option<(VersionId, Which)> {
        let source = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let presented = PresentedSecret::new(secret);
        let id = self.client.as_str();
        match self.verifier.verify(id, &presented, source, now()).await {
            Ok(verified) => Some((verified.version_id, verified.which)),
            Err(VerifyError::Refused) => None,
            Err(error) => panic!("{error}"),
        }
    }

    pub async fn client(&self) -> ClientDoc {
        self.store.client(&self.client).await.unwrap().unwrap()
    }

    pub async fn rotation(&self, id: &RotationId) -> Option<RotationDoc> {
        self.store.rotation(id).await.unwrap()
    }

    /// Every version ever recorded for a rotation, whatever became of it.
    pub async fn versions_of(&self, id: &RotationId) -> Vec<VersionDoc> {
        let mut versions = self.store.versions(&self.client).await.unwrap();
        versions.retain(|version| version.rotation_id.as_ref() == Some(id));
        versions
    }

    /// The audit records about one operation whose event is `event`.
    pub async fn audited(&self, id: &RotationId, event: &str) -> Vec<AuditRecord> {
        let mut trail = self
            .store
            .read(Some(&self.client), WHOLE_TRAIL)
            .await
            .unwrap();
        trail.retain(|record| record.rotation_id.as_ref() == Some(id) && record.event == event);
        trail
    }

    /// Holds at every moment: `old` is still current and verifies, or the version of `id` is, and an admin has opened it; and neither the
    /// versions nor the audit trail know of two values for `id`.
    pub async fn consistent(&self, old: VersionId, id: &RotationId, held: &Held, at: &str) {
        self.recorded_once(id, at).await;
        let client = self.client().await;
        let current = client.current_version.unwrap();
        let verified = self.verify(&held.secret(current)).await;
        assert_eq!(verified, Some((current, Which::Current)), "{at}");
        if current == old {
            return;
        }
        let rotation = self.rotation(id).await.unwrap();
        assert_eq!(rotation.new_version, Some(current), "{at}");
        assert!(
            rotation.quorum.acks.iter().any(|ack| ack.proven),
            "{at}: promoted without a proven ack"
        );
        match self.verify(&held.secret(old)).await {
            Some(verified) => assert_eq!(verified, (old, Which::Previous), "{at}"),
            // An emergency, or the end of its grace, whether or not a relay has lived to retire it.
            None => {
                let kept = self.client().await.previous_version == Some(old);
                assert!(!kept || self.grace_is_over(old).await, "{at}");
            }
        }
    }

    async fn grace_is_over(&self, version: VersionId) -> bool {
        let versions = self.store.versions(&self.client).await.unwrap();
        let found = versions.iter().find(|found| found.version_id == version);
        let end = found.and_then(|found| found.not_after);
        end.is_some_and(|end| end <= now())
    }

    /// No rotation ever records two versions, is reserved twice or is promoted twice.
    pub async fn recorded_once(&self, id: &RotationId, at: &str) {
        let versions = self.versions_of(id).await;
        assert!(versions.len() <= 1, "{at}: two versions: {versions:?}");
        let prepared = self.audited(id, "rotation.prepared").await;
        let named: BTreeSet<_> = prepared.iter().map(|record| record.version_id).collect();
        assert!(named.len() <= 1, "{at}: two versions audited: {prepared:?}");
        for event in ["rotation.reserved", "rotation.promoted"] {
            let records = self.audited(id, event).await;
            assert!(records.len() <= 1, "{at}: {records:?}");
        }
    }

    /// Waits until `id` is promoted and its end announced, then checks that nothing is left over: delivered, read back from the relay, no
    /// rotation active, the secrets verified.
    pub async fn promoted(
        &self,
        wire: &mut Wire,
        old: VersionId,
        id: &RotationId,
        held: &Held,
        at: &str,
    ) -> VersionId {
        let rotation = eventually("the end was announced", async || {
            let rotation = self.rotation(id).await?;
            rotation.announced_at.is_some().then_some(rotation)
        })
        .await;
        assert_eq!(rotation.state, RotationState::Done, "{at}");
        assert_eq!(rotation.outcome, Some(Outcome::Promoted), "{at}");
        let new = rotation.new_version.unwrap();
        let client = self.client().await;
        assert_eq!(client.active_rotation, None, "{at}");
        assert_eq!(client.current_version, Some(new), "{at}");
        self.consistent(old, id, held, at).await;
        self.delivered(wire, id, at).await;
        let wrong = keyturn_proto::Secret::generate().unwrap();
        assert_eq!(self.verify(wrong.expose()).await, None, "{at}");
        new
    }

    /// Every sealed event of `id` is out, and can be read back from the relay.
    pub async fn delivered(&self, wire: &mut Wire, id: &RotationId, at: &str) {
        let outbox = self.store.outbox(id).await.unwrap();
        assert!(!outbox.is_empty(), "{at}: nothing was sealed");
        let ids: BTreeSet<String> = outbox.iter().map(|event| event.event_id.clone()).collect();
        assert_eq!(wire.stored(ids.clone()).await, ids, "{at}: not delivered");
    }
}
