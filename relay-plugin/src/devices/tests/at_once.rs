//! The embedded issuer: what is asked, made and answered with one commit, and what is not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use ed25519_dalek::{Signer as _, SigningKey};
use keyturn_proto::device::{DeviceId, IdentityKey, Statement};
use keyturn_proto::encoding::b64url;
use keyturn_store::approle::AppRoleStore as _;
use keyturn_store::contract::counting::Counting;
use keyturn_store::devices::{
    Change, DeviceDoc, DeviceOptions, DeviceState, DeviceStore as _, Stage,
};
use keyturn_store::mac::{LocalMacKey, MacKey};
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::AuditTrail as _;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::world::{Channel, DEADLINE, TestClock, id, nonce, ok, request, settings};
use crate::devices::flow::{Devices, Handled, Parts};
use crate::devices::intake::{Carriage, Incoming};
use crate::devices::issuer::embedded::{EmbeddedIssuer, Parts as IssuerParts};
use crate::devices::outgoing::Outgoing;
use crate::devices::settings::Settings;
use crate::rotation::ports::Clock as _;
use crate::web::deliver;

struct Site {
    devices: Arc<Devices>,
    store: Arc<SqliteStore>,
    commits: Counting,
    clock: Arc<TestClock>,
    sent: mpsc::UnboundedReceiver<Outgoing>,
    running: (CancellationToken, JoinHandle<()>),
    _dir: tempfile::TempDir,
}

impl Site {
    /// A flow at work that has served a device, so that the role is there.
    async fn new(settings: Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(&dir.path().join("store.db")).unwrap());
        let commits = Counting::new(store.clone());
        let clock = Arc::new(TestClock(AtomicU64::new(1_739_750_000_000)));
        let issuer = EmbeddedIssuer::start(IssuerParts {
            store: store.clone(),
            mac: Arc::new(LocalMacKey::from_keys(&[7; 32], &[])) as Arc<dyn MacKey>,
            clock: clock.clone(),
        });
        let (send, sent) = mpsc::unbounded_channel();
        let devices = Devices::new(Parts {
            devices: Arc::new(commits.clone()),
            store: Arc::new(commits.clone()),
            issuer: Arc::new(issuer),
            outlet: Arc::new(Channel(send, Arc::default())),
            clock: clock.clone(),
            settings,
        });
        let stop = CancellationToken::new();
        let task = tokio::spawn(Arc::clone(&devices).run(stop.clone()));
        Self {
            devices,
            store,
            commits,
            clock,
            sent,
            running: (stop, task),
            _dir: dir,
        }
    }

    /// A device that has been served, in steps: so the role is there.
    async fn with_role() -> Self {
        let mut site = Self::new(settings()).await;
        let first = id(0);
        site.allow(&first, DeviceOptions::default()).await;
        assert_eq!(site.ask(&first, 0).await, Handled::Asked);
        site.answer(&first).await;
        let _ = site.commits.take();
        site
    }

    async fn allow(&self, device: &DeviceId, options: DeviceOptions) {
        let change = Change::Allow {
            role: "river-iot".to_owned(),
            options,
        };
        let store = &self.store;
        store
            .change_device(device, change, self.clock.now())
            .await
            .unwrap();
    }

    async fn publish(&self, device: &DeviceId, message: &Value) -> Handled {
        self.devices
            .handle(Incoming {
                carriage: Carriage::Mqtt,
                topic: &format!("iot/{device}/status"),
                payload: message.to_string().as_bytes(),
                retained: false,
                arrived: std::time::Instant::now(),
            })
            .await
    }

    async fn ask(&self, device: &DeviceId, n: usize) -> Handled {
        self.publish(device, &request(device, &nonce(n))).await
    }

    /// The same, signed now.
    fn signed(&self, key: &SigningKey, device: &DeviceId, n: usize) -> Value {
        let (now, nonce) = (self.clock.now(), nonce(n));
        let signature = key.sign(&Statement::Request.bytes(device, &nonce, now));
        let mut message = request(device, &nonce);
        message["ts"] = json!(now.0);
        message["sig"] = json!(b64url(&signature.to_bytes()));
        message
    }

    async fn answer(&mut self, device: &DeviceId) -> Value {
        let message = tokio::time::timeout(DEADLINE, self.sent.recv()).await;
        let message = message.expect("no answer came").unwrap();
        assert_eq!(message.device, *device);
        serde_json::from_slice(&message.payload).unwrap()
    }

    async fn doc(&self, device: &DeviceId) -> DeviceDoc {
        self.store.device(device).await.unwrap().unwrap()
    }

    async fn stop(self) {
        self.running.0.cancel();
        let ended = tokio::time::timeout(DEADLINE, self.running.1).await;
        ended.expect("it did not stop").unwrap();
    }
}

/// Of a device with this key.
fn with(key: &SigningKey) -> DeviceOptions {
    let identity_key = Some(IdentityKey::from_bytes(key.verifying_key().to_bytes()).unwrap());
    DeviceOptions {
        identity_key,
        ..DeviceOptions::default()
    }
}

fn once() -> BTreeMap<&'static str, u32> {
    BTreeMap::from([("issue_at_once", 1)])
}

#[tokio::test]
async fn one_commit_asks_issues_and_answers() {
    let mut site = Site::with_role().await;
    let device = id(1);
    site.allow(&device, DeviceOptions::default()).await;
    assert_eq!(site.ask(&device, 1).await, Handled::Asked);
    let command = site.answer(&device).await;
    assert_eq!(site.commits.take(), once());

    let issue = site.doc(&device).await.outstanding.unwrap();
    assert_eq!(issue.stage, Stage::Issued);
    let accessor = issue.held.unwrap().accessor;
    let secret_id = command["secret_id"].as_str().unwrap();
    assert!(secret_id.starts_with(&format!("{accessor}.")));
    let stored = site.store.secret_id(&accessor.parse().unwrap()).await;
    let stored = stored.unwrap().unwrap();
    assert_eq!(stored.device, device.as_str());
    assert_eq!(stored.expires_at.since(site.clock.now()).as_secs(), 43_200);
    assert_eq!(command["ttl_sec"], 43_200);

    // A duplicate delivery is no second request.
    assert_eq!(site.ask(&device, 1).await, Handled::Ignored);
    assert_eq!(
        site.publish(&device, &ok(&command)).await,
        Handled::Reported
    );
    let doc = site.doc(&device).await;
    assert!(doc.current.is_some_and(|held| held.proven));
    assert_eq!(doc.attempts, 1);

    let mut trail = site.store.read(None, usize::MAX).await.unwrap();
    trail.retain(|record| {
        let named = record.device.as_ref();
        named.is_some_and(|named| named.device_id == device)
    });
    let told: Vec<_> = trail.iter().map(|record| record.event.as_str()).collect();
    assert_eq!(
        told,
        [
            "device.allowed",
            "device.asked",
            "device.issued",
            "device.confirmed"
        ]
    );
    assert!(site.sent.try_recv().is_err(), "more than one answer");
    site.stop().await;
}

#[tokio::test]
async fn a_signed_request_takes_one_commit_as_well_and_an_unsigned_one_none() {
    let mut site = Site::with_role().await;
    let device = id(1);
    let key = SigningKey::from_bytes(&[3; 32]);
    site.allow(&device, with(&key)).await;
    assert_eq!(
        site.ask(&device, 1).await,
        Handled::Refused("signature.missing")
    );
    assert_eq!(site.answer(&device).await["error"], "unauthorized");
    assert!(site.doc(&device).await.outstanding.is_none());
    let _ = site.commits.take();

    let message = site.signed(&key, &device, 1);
    assert_eq!(site.publish(&device, &message).await, Handled::Asked);
    assert!(site.answer(&device).await["secret_id"].is_string());
    assert_eq!(site.commits.take().get("issue_at_once"), Some(&1));
    site.stop().await;
}

#[tokio::test]
async fn what_is_refused_is_refused_by_its_own_word_and_nothing_is_made() {
    let mut site = Site::with_role().await;
    let (stranger, denied, device) = (id(1), id(2), id(3));
    site.allow(&denied, DeviceOptions::default()).await;
    site.store
        .change_device(&denied, Change::Deny, site.clock.now())
        .await
        .unwrap();
    for refused in [&stranger, &denied] {
        assert_eq!(site.ask(refused, 1).await, Handled::Refused("not_allowed"));
        assert_eq!(site.answer(refused).await["error"], "unauthorized");
    }
    assert_eq!(site.doc(&denied).await.state, DeviceState::Denied);
    site.allow(&device, DeviceOptions::default()).await;
    for n in [1, 2] {
        assert_eq!(site.ask(&device, n).await, Handled::Asked);
        assert!(site.answer(&device).await["secret_id"].is_string());
    }
    assert_eq!(site.ask(&device, 1).await, Handled::Refused("nonce.used"));
    assert_eq!(site.answer(&device).await["error"], "nonce_used");
    assert_eq!(site.doc(&device).await.attempts, 2);
    site.stop().await;

    let mut site = Site::new(Settings {
        require_sealed: true,
        ..settings()
    })
    .await;
    site.allow(&device, DeviceOptions::default()).await;
    assert_eq!(
        site.ask(&device, 1).await,
        Handled::Refused("policy.not_sealed")
    );
    site.answer(&device).await;
    assert_eq!(site.doc(&device).await.attempts, 0);
    site.stop().await;
}

#[tokio::test]
async fn where_it_cannot_be_done_at_once_it_is_done_in_steps() {
    let mut site = Site::with_role().await;
    let device = id(1);
    site.allow(&device, DeviceOptions::default()).await;
    site.commits.fail("issue_at_once");
    assert_eq!(site.ask(&device, 1).await, Handled::Asked);
    assert!(site.answer(&device).await["secret_id"].is_string());
    let commits = site.commits.take();
    assert!(commits.get("change_device") >= Some(&2), "{commits:?}");
    site.stop().await;
}

#[tokio::test]
async fn a_commit_that_nobody_knows_the_end_of_makes_nobody_flood_a_device_with_answers() {
    let mut site = Site::with_role().await;
    let device = id(1);
    let key = SigningKey::from_bytes(&[3; 32]);
    site.allow(&device, with(&key)).await;
    site.commits.doubt("issue_at_once");
    let message = site.signed(&key, &device, 1);
    let began = std::time::Instant::now();
    for _ in 0..40 {
        let handled = site.publish(&device, &message).await;
        assert_eq!(handled, Handled::Refused("store"));
    }
    // Twenty at once, and one more every three seconds.
    let most = 21 + began.elapsed().as_secs() / 3;
    let mut told = 0;
    while let Ok(message) = site.sent.try_recv() {
        let message: Value = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!(message["error"], "unavailable");
        told += 1;
    }
    assert!((1..=most).contains(&told), "{told} answers");
    site.stop().await;
}

#[tokio::test]
async fn a_webhooks_caller_that_hangs_up_leaves_nothing_half_done() {
    let mut site = Site::with_role().await;
    let device = id(1);
    site.allow(&device, DeviceOptions::default()).await;
    let before = site.commits.calls("issue_at_once");
    let held = site.commits.hold("issue_at_once");
    let payload = request(&device, &nonce(1)).to_string();
    let body = json!({ "topic": format!("iot/{device}/status"), "payload": payload }).to_string();
    {
        let call = deliver(&site.devices, body.as_bytes());
        tokio::pin!(call);
        while site.commits.calls("issue_at_once") == before {
            tokio::select! {
                _ = &mut call => panic!("it was answered while the store was held"),
                () = tokio::task::yield_now() => {}
            }
        }
    }
    drop(held);
    assert!(site.answer(&device).await["secret_id"].is_string());
    site.stop().await;
}
