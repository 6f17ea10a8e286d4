//! One relay's device flow: SQLite store, an issuer that keeps count, a broker that is a channel, a clock that is set by hand.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use keyturn_proto::UnixMs;
use keyturn_proto::device::{DeviceId, DeviceNonce, proof};
use keyturn_store::contract::counting::Counting;
use keyturn_store::devices::{Change, DeviceDoc, DeviceOptions, DeviceStore};
use keyturn_store::documents::AuditRecord;
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::AuditTrail as _;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::devices::flow::{Devices, Handled, Parts};
use crate::devices::intake::{Carriage, Incoming};
use crate::devices::issuer::{
    Accessor, Credential, CredentialText, Destroyed, Found, Intent, IssueRequest, Issued,
    IssuerError, NonceHash, Reason, RoleName, SecretIdIssuer,
};
use crate::devices::outgoing::{NotSent, Outgoing, Outlet};
use crate::devices::settings::Settings;
use crate::rotation::ports::Clock;

/// Longer than anything here takes on a busy machine.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

/// Calls that pass at once while the gate is open.
const GATE: usize = 1000;

pub(in crate::devices) struct TestClock(pub(super) AtomicU64);

impl TestClock {
    pub(super) fn later(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap();
        self.0.fetch_add(by, Ordering::SeqCst);
    }
}

#[async_trait]
impl Clock for TestClock {
    fn now(&self) -> UnixMs {
        UnixMs(self.0.load(Ordering::SeqCst))
    }
    async fn sleep_until(&self, _: UnixMs) {
        unreachable!("the flow sleeps by the runtime's clock");
    }
}

/// What the issuer does next.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Works,
    Sealed,
    /// Makes the secret_id and loses the answer.
    LosesAnswers,
    /// Loses the request or the answer, and makes nothing, or not yet.
    Silent,
    Panics,
}

pub(super) struct TestIssuer {
    pub(super) mood: Mutex<Mood>,
    /// Living secret_ids by accessor: nonce hash and text.
    pub(super) living: Mutex<BTreeMap<String, (NonceHash, String)>>,
    made: AtomicUsize,
    under_way: AtomicUsize,
    pub(super) most_at_once: AtomicUsize,
    /// Calls to `issue` wait for a place here.
    gate: Semaphore,
    pub(super) order: Mutex<Vec<String>>,
    pub(super) searches: AtomicUsize,
    /// Calls that have panicked.
    pub(super) panics: Mutex<Vec<&'static str>>,
}

impl TestIssuer {
    fn new() -> Self {
        Self {
            mood: Mutex::new(Mood::Works),
            living: Mutex::default(),
            made: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            gate: Semaphore::new(GATE),
            order: Mutex::default(),
            searches: AtomicUsize::new(0),
            panics: Mutex::default(),
        }
    }
    pub(super) fn accessors(&self) -> Vec<String> {
        self.living.lock().unwrap().keys().cloned().collect()
    }
    pub(super) fn close_gate(&self) {
        assert_eq!(self.gate.forget_permits(GATE), GATE, "a call is under way");
    }
    pub(super) fn open_gate(&self) {
        self.gate.add_permits(GATE);
    }
    /// Makes what it was asked for with `nonce`, on its own time.
    pub(super) fn makes(&self, accessor: &str, nonce: &DeviceNonce) {
        let made = (
            NonceHash::of(nonce.as_str()),
            format!("secret of {accessor}"),
        );
        self.living
            .lock()
            .unwrap()
            .insert(accessor.to_owned(), made);
    }
    fn lost() -> IssuerError {
        IssuerError::InDoubt {
            why: Reason::Timeout,
            after: Duration::from_secs(1),
        }
    }
    fn mood(&self, call: &'static str) -> Result<(), IssuerError> {
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Works | Mood::LosesAnswers | Mood::Silent => Ok(()),
            Mood::Panics => {
                self.panics.lock().unwrap().push(call);
                panic!("a mistake of ours");
            }
            Mood::Sealed => Err(IssuerError::Retryable {
                why: Reason::Sealed,
                after: Duration::from_secs(30),
            }),
        }
    }
}

#[async_trait]
impl SecretIdIssuer for TestIssuer {
    fn name(&self) -> &str {
        "test"
    }

    async fn issue(&self, request: IssueRequest<'_>) -> Result<Issued, IssuerError> {
        let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(now, Ordering::SeqCst);
        self.order.lock().unwrap().push(request.device.to_owned());
        self.gate.acquire().await.unwrap().forget();
        self.gate.add_permits(1);
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        self.mood("issue")?;
        if *self.mood.lock().unwrap() == Mood::Silent {
            return Err(Self::lost());
        }
        let n = self.made.fetch_add(1, Ordering::SeqCst);
        let (accessor, text) = (format!("acc-{n}"), format!("secret-{n}"));
        self.living
            .lock()
            .unwrap()
            .insert(accessor.clone(), (request.nonce.clone(), text.clone()));
        if *self.mood.lock().unwrap() == Mood::LosesAnswers {
            return Err(Self::lost());
        }
        Ok(Issued {
            role_id: format!("role-id-of-{}", request.role),
            credential: Credential::SecretId(CredentialText::new(Zeroizing::new(text))),
            accessor: accessor.parse().unwrap(),
            ttl: request.ttl,
        })
    }

    async fn destroy(&self, _: &RoleName, accessor: &Accessor) -> Result<Destroyed, IssuerError> {
        self.mood("destroy")?;
        Ok(
            match self.living.lock().unwrap().remove(accessor.as_str()) {
                Some(_) => Destroyed::Now,
                None => Destroyed::AlreadyGone,
            },
        )
    }

    async fn find(
        &self,
        _: &RoleName,
        intents: &[Intent],
        known: &[Accessor],
    ) -> Result<Vec<Found>, IssuerError> {
        self.mood("find")?;
        self.searches.fetch_add(1, Ordering::SeqCst);
        let living = self.living.lock().unwrap();
        let unknown = living.iter().filter(|(accessor, _)| {
            !known
                .iter()
                .any(|known| known.as_str() == accessor.as_str())
        });
        let found = unknown.filter_map(|(accessor, (nonce, _))| {
            Some(Found {
                intent: intents.iter().find(|it| it.nonce == *nonce)?.clone(),
                accessor: accessor.parse().unwrap(),
            })
        });
        Ok(found.collect())
    }

    async fn health(&self) -> Result<(), IssuerError> {
        self.mood("health")
    }
}

pub(super) struct Channel(
    pub(super) mpsc::UnboundedSender<Outgoing>,
    /// Whether there is no room for what matters.
    pub(super) Arc<AtomicBool>,
);

#[async_trait]
impl Outlet for Channel {
    async fn send(&self, message: Outgoing) -> Result<(), NotSent> {
        if self.1.load(Ordering::SeqCst) {
            return Err(NotSent);
        }
        self.offer(message)
    }
    fn has_room(&self) -> bool {
        true
    }
    fn offer(&self, message: Outgoing) -> Result<(), NotSent> {
        self.0.send(message).map_err(|_| NotSent)
    }
}

pub(in crate::devices) struct World {
    pub(in crate::devices) devices: Arc<Devices>,
    pub(super) store: Arc<SqliteStore>,
    /// The same for the audit trail and the leases; can be made to fail.
    pub(super) trail: Counting,
    pub(super) issuer: Arc<TestIssuer>,
    pub(super) clock: Arc<TestClock>,
    sent: mpsc::UnboundedReceiver<Outgoing>,
    /// There is no room for what matters.
    pub(super) full: Arc<AtomicBool>,
    running: Option<(CancellationToken, JoinHandle<()>)>,
    settings: Settings,
    _dir: tempfile::TempDir,
}

pub(in crate::devices) fn settings() -> Settings {
    Settings {
        owner: "relay".to_owned(),
        secret_id_ttl: Duration::from_secs(12 * 3600),
        secret_id_uses: 0,
        cidrs: Vec::new(),
        wrap_ttl: None,
        require_signed: false,
        require_sealed: false,
        concurrency: 4,
        queue: 1000,
        issue_timeout: DEADLINE,
        step: Duration::from_secs(60),
        confirm: Duration::from_secs(300),
        answer_expiry: Duration::from_secs(60),
        per_hour: 12,
        per_minute: 60,
        per_second: 10_000,
        skew: Duration::from_secs(120),
        interval: Duration::from_secs(6 * 3600),
        ping_retry: Duration::from_secs(900),
        sweep: Duration::from_millis(20),
        orphan_wait: Duration::from_secs(90),
    }
}

pub(in crate::devices) fn id(n: usize) -> DeviceId {
    format!("river-{n}").parse().unwrap()
}

pub(in crate::devices) fn nonce(n: usize) -> DeviceNonce {
    format!("nonce-number-{n:06}").parse().unwrap()
}

pub(in crate::devices) fn request(device: &DeviceId, nonce: &DeviceNonce) -> Value {
    json!({ "nonce": nonce, "device_id": device, "auth_request": "secret_id", "reason": "invalid_secret" })
}

/// The proven ok that the receiver of `command` sends.
pub(super) fn ok(command: &Value) -> Value {
    let nonce: DeviceNonce = command["nonce"].as_str().unwrap().parse().unwrap();
    let proof = proof::proof(command["secret_id"].as_str().unwrap(), &nonce);
    json!({ "nonce": nonce, "auth_result": "ok", "proof": proof })
}

impl World {
    pub(in crate::devices) fn new() -> Self {
        Self::with(settings())
    }

    pub(super) fn with(settings: Settings) -> Self {
        Self::over(settings, |store, _| store)
    }

    /// A flow that sees the store through what `seen` makes of it.
    pub(in crate::devices) fn over(
        settings: Settings,
        seen: impl FnOnce(Arc<SqliteStore>, Arc<TestClock>) -> Arc<dyn DeviceStore>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("store.db")).unwrap();
        let (send, sent) = mpsc::unbounded_channel();
        let (store, issuer) = (Arc::new(store), Arc::new(TestIssuer::new()));
        let trail = Counting::new(store.clone());
        let clock = Arc::new(TestClock(AtomicU64::new(1_739_750_000_000)));
        let full = Arc::new(AtomicBool::new(false));
        let devices = Devices::new(Parts {
            devices: seen(store.clone(), clock.clone()),
            store: Arc::new(trail.clone()),
            issuer: issuer.clone(),
            outlet: Arc::new(Channel(send, full.clone())),
            clock: clock.clone(),
            settings: settings.clone(),
        });
        Self {
            devices,
            store,
            trail,
            issuer,
            clock,
            sent,
            full,
            running: None,
            settings,
            _dir: dir,
        }
    }

    /// The flow at work.
    pub(super) fn running() -> Self {
        let mut world = Self::new();
        world.start();
        world
    }

    pub(super) fn start(&mut self) {
        let stop = CancellationToken::new();
        let task = tokio::spawn(Arc::clone(&self.devices).run(stop.clone()));
        self.running = Some((stop, task));
    }

    /// The process dies where it stands.
    pub(super) fn kill(&mut self) {
        self.running.take().unwrap().1.abort();
    }

    pub(super) async fn stop(&mut self) {
        let (stop, task) = self.running.take().unwrap();
        stop.cancel();
        tokio::time::timeout(DEADLINE, task)
            .await
            .expect("it did not stop")
            .unwrap();
    }

    /// The same store, issuer and clock under a new process.
    pub(super) fn restarted(&mut self) {
        let (send, sent) = mpsc::unbounded_channel();
        self.sent = sent;
        self.devices = Devices::new(Parts {
            devices: self.store.clone(),
            store: Arc::new(self.trail.clone()),
            issuer: self.issuer.clone(),
            outlet: Arc::new(Channel(send, self.full.clone())),
            clock: self.clock.clone(),
            settings: self.settings.clone(),
        });
        self.start();
    }

    pub(in crate::devices) async fn allow(&self, device: &DeviceId, options: DeviceOptions) {
        let change = Change::Allow {
            role: "river-iot".to_owned(),
            options,
        };
        self.store
            .change_device(device, change, self.clock.now())
            .await
            .unwrap();
    }

    pub(super) fn clock_now(&self) -> UnixMs {
        self.clock.now()
    }

    pub(super) fn later(&self, by: Duration) {
        self.clock.later(by);
    }

    pub(super) async fn publish(&self, device: &DeviceId, message: &Value) -> Handled {
        self.raw(
            &format!("iot/{device}/status"),
            message.to_string().as_bytes(),
            false,
        )
        .await
    }

    pub(super) async fn raw(&self, topic: &str, payload: &[u8], retained: bool) -> Handled {
        self.devices
            .handle(Incoming {
                carriage: Carriage::Mqtt,
                topic,
                payload,
                retained,
                arrived: std::time::Instant::now(),
            })
            .await
    }

    /// The next message to any device.
    pub(super) async fn next(&mut self) -> Outgoing {
        tokio::time::timeout(DEADLINE, self.sent.recv())
            .await
            .expect("no answer came")
            .unwrap()
    }

    /// The next message to `device`, as JSON.
    pub(super) async fn answer(&mut self, device: &DeviceId) -> Value {
        let message = self.next().await;
        assert_eq!(message.device, *device);
        assert!(!message.retain, "a command in clear was retained");
        serde_json::from_slice(&message.payload).unwrap()
    }

    /// Nothing was sent so far.
    pub(super) fn is_silent(&mut self) -> bool {
        self.sent.try_recv().is_err()
    }

    pub(in crate::devices) async fn doc(&self, device: &DeviceId) -> DeviceDoc {
        self.store.device(device).await.unwrap().unwrap()
    }

    /// The records of refusals, oldest first.
    pub(super) async fn refusals(&self) -> Vec<AuditRecord> {
        let mut records = self.events().await;
        records.retain(|record| record.event.starts_with("device.refused"));
        records
    }

    pub(super) async fn events(&self) -> Vec<AuditRecord> {
        self.store.read(None, usize::MAX).await.unwrap()
    }

    /// Waits until `condition` holds.
    pub(in crate::devices) async fn until<F: AsyncFn(&Self) -> bool>(
        &self,
        what: &str,
        condition: F,
    ) {
        let waited = async {
            while !condition(self).await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(
            tokio::time::timeout(DEADLINE, waited).await.is_ok(),
            "never: {what}"
        );
    }
}
