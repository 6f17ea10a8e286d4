//! The verifier against the rules of protocol.md §7.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use keyturn_proto::{ClientId, PresentedSecret, Secret, UnixMs, VersionId};
use keyturn_store::documents::{ClientStatus, SnapshotEntry, VersionState};
use keyturn_store::mac::{LocalMacKey, MacError, MacKey, Maced, SecretHash};
use keyturn_store::verifier::{
    ClientSnapshot, Rate, Settings, SnapshotSource, SourceError, Verified, Verifier, VerifyError,
    Which,
};
use tokio::sync::RwLock;

const NOW: UnixMs = UnixMs(1_760_000_000_000);
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const CLIENT: &str = "ext-totp-svc";

fn after(ms: u64) -> UnixMs {
    UnixMs(NOW.0 + ms)
}

/// A source whose answer and failures the test sets.
#[derive(Clone, Default)]
struct Source(Arc<SourceState>);

#[derive(Default)]
struct SourceState {
    snapshot: Mutex<Option<ClientSnapshot>>,
    reads: AtomicU32,
    down: AtomicBool,
}

#[async_trait]
impl SnapshotSource for Source {
    async fn snapshot(&self, client: &ClientId) -> Result<Option<ClientSnapshot>, SourceError> {
        self.0.reads.fetch_add(1, Ordering::SeqCst);
        if self.0.down.load(Ordering::SeqCst) {
            return Err(SourceError { cause: "down" });
        }
        let snapshot = self.0.snapshot.lock().unwrap().clone();
        Ok(snapshot.filter(|_| client.as_str() == CLIENT))
    }
}

/// A MAC key that counts, and waits while its gate is shut.
#[derive(Clone)]
struct Counting(Arc<CountingState>);

struct CountingState {
    key: LocalMacKey,
    calls: AtomicU32,
    /// Held for writing by a test that wants calls to wait.
    gate: RwLock<()>,
    down: AtomicBool,
}

impl Counting {
    fn new() -> Self {
        Self(Arc::new(CountingState {
            key: LocalMacKey::from_keys(&[7; 32], &[]),
            calls: AtomicU32::new(0),
            gate: RwLock::new(()),
            down: AtomicBool::new(false),
        }))
    }
    fn calls(&self) -> u32 {
        self.0.calls.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl MacKey for Counting {
    async fn sign(
        &self,
        client: &ClientId,
        version: &VersionId,
        secret: &str,
    ) -> Result<Maced, MacError> {
        self.0.key.sign(client, version, secret).await
    }
    async fn verify(
        &self,
        key_ref: &str,
        client: &ClientId,
        version: &VersionId,
        secret: &str,
        hash: &SecretHash,
    ) -> Result<bool, MacError> {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        let _open = self.0.gate.read().await;
        if self.0.down.load(Ordering::SeqCst) {
            return Err(MacError::Unavailable {
                cause: "down",
                retryable: true,
            });
        }
        self.0
            .key
            .verify(key_ref, client, version, secret, hash)
            .await
    }
    fn primary_ref(&self) -> String {
        self.0.key.primary_ref()
    }
}

/// A verifier with everything it asks.
struct Stand {
    source: Source,
    mac: Counting,
    verifier: Arc<Verifier<Source, Counting>>,
}

impl Stand {
    fn new(settings: Settings) -> Self {
        let (source, mac) = (Source::default(), Counting::new());
        let verifier = Verifier::new(source.clone(), mac.clone(), settings).unwrap();
        Self {
            source,
            mac,
            verifier: Arc::new(verifier),
        }
    }

    fn set(&self, status: ClientStatus, entries: Vec<SnapshotEntry>) {
        let snapshot = snapshot(status, entries);
        *self.source.0.snapshot.lock().unwrap() = Some(snapshot);
        self.verifier.invalidate(&CLIENT.parse().unwrap());
    }

    async fn entry(&self, n: u32, state: VersionState, secret: &str) -> SnapshotEntry {
        let version_id = version(n);
        let client = CLIENT.parse().unwrap();
        let made = self.mac.sign(&client, &version_id, secret).await.unwrap();
        let generated = keyturn_proto::encoding::from_b64url_array::<32>("secret", secret).is_ok();
        SnapshotEntry {
            version_id,
            state,
            not_before: UnixMs(0),
            not_after: None,
            secret_hash: made.hash.as_str().to_owned(),
            mac_key_ref: made.key_ref,
            prefilter: generated.then(|| hex::encode(keyturn_proto::derive::prefilter(secret))),
            prehash: None,
        }
    }

    async fn try_at(
        &self,
        client: &str,
        secret: &str,
        now: UnixMs,
    ) -> Result<Verified, VerifyError> {
        let secret = PresentedSecret::new(secret);
        self.verifier.verify(client, &secret, HERE, now).await
    }

    async fn at(&self, secret: &str, now: UnixMs) -> Result<Verified, VerifyError> {
        self.try_at(CLIENT, secret, now).await
    }
}

fn snapshot(status: ClientStatus, entries: Vec<SnapshotEntry>) -> ClientSnapshot {
    ClientSnapshot {
        status,
        entries,
        revision: 0,
        coverage: None,
    }
}

fn version(n: u32) -> VersionId {
    format!("{n:026}").parse().unwrap()
}

fn fresh() -> String {
    Secret::generate().unwrap().expose().to_owned()
}

fn ok(n: u32, which: Which) -> Result<Verified, VerifyError> {
    Ok(Verified {
        version_id: version(n),
        which,
    })
}

const REFUSED: Result<Verified, VerifyError> = Err(VerifyError::Refused);

#[tokio::test]
async fn current_and_previous_verify_and_nothing_else() {
    let s = Stand::new(Settings::default());
    let (new, old, pending) = (fresh(), fresh(), fresh());
    let mut grace = s.entry(1, VersionState::Grace, &old).await;
    grace.not_after = Some(after(10_000));
    s.set(
        ClientStatus::Active,
        vec![
            s.entry(2, VersionState::Current, &new).await,
            grace,
            s.entry(3, VersionState::Pending, &pending).await,
        ],
    );
    // Cold, then warm: the same answers.
    for _ in 0..2 {
        assert_eq!(s.at(&new, NOW).await, ok(2, Which::Current));
        assert_eq!(s.at(&old, NOW).await, ok(1, Which::Previous));
        for wrong in [&pending, &fresh(), "", "guess", &"x".repeat(100_000)] {
            assert_eq!(s.at(wrong, NOW).await, REFUSED);
        }
        for nobody in ["nobody", "", "a/b", "..", "__x__", "\u{0}"] {
            assert_eq!(s.try_at(nobody, &new, NOW).await, REFUSED);
        }
    }
}

#[tokio::test]
async fn suspended_and_revoked_clients_do_not_verify_even_when_remembered() {
    let s = Stand::new(Settings::default());
    let secret = fresh();
    let entry = s.entry(1, VersionState::Current, &secret).await;
    s.set(ClientStatus::Active, vec![entry.clone()]);
    assert_eq!(s.at(&secret, NOW).await, ok(1, Which::Current));
    for status in [ClientStatus::Suspended, ClientStatus::Revoked] {
        s.set(status, vec![entry.clone()]);
        assert_eq!(s.at(&secret, NOW).await, REFUSED);
        assert_eq!(live(&s, 1, NOW).await, Ok(false));
    }
}

async fn live(s: &Stand, n: u32, now: UnixMs) -> Result<bool, VerifyError> {
    let client = CLIENT.parse().unwrap();
    s.verifier.is_version_live(&client, &version(n), now).await
}

#[tokio::test]
async fn windows_have_two_seconds_of_tolerance_and_are_judged_on_every_call() {
    let s = Stand::new(Settings::default());
    let (new, old) = (fresh(), fresh());
    let mut current = s.entry(2, VersionState::Current, &new).await;
    current.not_before = after(2_000);
    let mut grace = s.entry(1, VersionState::Grace, &old).await;
    grace.not_after = Some(NOW);
    s.set(ClientStatus::Active, vec![current, grace]);
    let early = UnixMs(NOW.0 - 1);
    assert_eq!(s.at(&new, early).await, REFUSED);
    assert_eq!(s.at(&new, NOW).await, ok(2, Which::Current));
    assert_eq!(s.at(&old, after(1_999)).await, ok(1, Which::Previous));
    assert_eq!(live(&s, 1, after(1_999)).await, Ok(true));
    // Remembered, and yet over.
    assert_eq!(s.at(&old, after(2_000)).await, REFUSED);
    assert_eq!(live(&s, 1, after(2_000)).await, Ok(false));
    assert_eq!(s.at(&new, early).await, REFUSED);
}

#[tokio::test]
async fn the_tolerance_never_revives_a_retired_version() {
    let s = Stand::new(Settings::default());
    let (new, old) = (fresh(), fresh());
    let current = s.entry(2, VersionState::Current, &new).await;
    let mut grace = s.entry(1, VersionState::Grace, &old).await;
    grace.not_after = Some(after(1_000));
    s.set(ClientStatus::Active, vec![current.clone(), grace.clone()]);
    assert_eq!(s.at(&old, NOW).await, ok(1, Which::Previous));
    // A retired entry, even if a snapshot should still carry it inside its window.
    for state in [VersionState::Retired, VersionState::Cancelled] {
        grace.state = state;
        s.set(ClientStatus::Active, vec![current.clone(), grace.clone()]);
        assert_eq!(s.at(&old, NOW).await, REFUSED);
    }
    s.set(ClientStatus::Active, vec![current]);
    assert_eq!(s.at(&old, NOW).await, REFUSED);
}

#[tokio::test]
async fn in_steady_state_neither_the_store_nor_the_mac_key_is_asked() {
    let s = Stand::new(Settings::default());
    let (new, old) = (fresh(), fresh());
    s.set(
        ClientStatus::Active,
        vec![
            s.entry(2, VersionState::Current, &new).await,
            s.entry(1, VersionState::Grace, &old).await,
        ],
    );
    for _ in 0..100 {
        s.at(&new, NOW).await.unwrap();
        s.at(&old, NOW).await.unwrap();
    }
    // The previous one's prefilter misses the current entry, so it cost one call as well.
    assert_eq!(s.mac.calls(), 2);
    assert_eq!(s.source.0.reads.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_guess_that_misses_the_prefilter_costs_no_mac_call_and_is_not_remembered() {
    let s = Stand::new(Settings::default());
    let secret = fresh();
    s.set(
        ClientStatus::Active,
        vec![s.entry(1, VersionState::Current, &secret).await],
    );
    for _ in 0..50 {
        assert_eq!(s.at(&fresh(), NOW).await, REFUSED);
        assert_eq!(s.at("not even generated", NOW).await, REFUSED);
    }
    assert_eq!(s.mac.calls(), 0);
}

#[tokio::test]
async fn a_remembered_mac_is_asked_for_again_after_its_lifetime() {
    let s = Stand::new(Settings {
        memo_ttl: Duration::from_secs(10),
        ..Settings::default()
    });
    let secret = fresh();
    s.set(
        ClientStatus::Active,
        vec![s.entry(1, VersionState::Current, &secret).await],
    );
    for (now, calls) in [(0, 1), (9_999, 1), (10_000, 2), (19_000, 2)] {
        s.at(&secret, after(now)).await.unwrap();
        assert_eq!(s.mac.calls(), calls, "at {now}");
    }
}

#[tokio::test]
async fn an_imported_secret_of_any_shape_verifies_and_its_guesses_are_limited() {
    let s = Stand::new(Settings {
        mac_per_source: Rate {
            per_second: 1,
            burst: 3,
        },
        ..Settings::default()
    });
    let entry = s.entry(1, VersionState::Current, "hunter2 from 2009").await;
    assert!(entry.prefilter.is_none());
    s.set(ClientStatus::Active, vec![entry]);
    assert_eq!(s.at("hunter2 from 2009", NOW).await, ok(1, Which::Current));
    for n in 0..50 {
        assert_eq!(s.at(&format!("guess {n}"), NOW).await, REFUSED);
    }
    // The burst, and at most what refilled while the test ran on a slow machine.
    assert!(s.mac.calls() <= 10, "{} calls", s.mac.calls());
    // What is remembered is not limited.
    assert_eq!(s.at("hunter2 from 2009", NOW).await, ok(1, Which::Current));
    // Another source has its own budget.
    let secret = PresentedSecret::new("guess from elsewhere");
    let elsewhere = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let before = s.mac.calls();
    let refused = s.verifier.verify(CLIENT, &secret, elsewhere, NOW).await;
    assert_eq!((refused, s.mac.calls()), (REFUSED, before + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_with_the_same_cold_secret_share_one_mac_call() {
    let s = Stand::new(Settings::default());
    let secret = fresh();
    s.set(
        ClientStatus::Active,
        vec![s.entry(1, VersionState::Current, &secret).await],
    );
    let shut = s.mac.0.gate.write().await;
    let tasks: Vec<_> = (0..32)
        .map(|_| {
            let (verifier, secret) = (Arc::clone(&s.verifier), secret.clone());
            tokio::spawn(async move {
                let secret = PresentedSecret::new(secret);
                verifier.verify(CLIENT, &secret, HERE, NOW).await
            })
        })
        .collect();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while s.mac.calls() == 0 {
        assert!(tokio::time::Instant::now() < deadline, "nobody asked");
        tokio::task::yield_now().await;
    }
    // The first one goes away half-way; another takes over.
    tasks[0].abort();
    drop(shut);
    let mut verified = 0;
    for task in tasks {
        if let Ok(result) = task.await {
            assert_eq!(result, ok(1, Which::Current));
            verified += 1;
        }
    }
    assert!(verified >= 31);
    assert!(s.mac.calls() <= 2, "{} calls", s.mac.calls());
}

#[tokio::test]
async fn a_change_is_seen_at_once_after_invalidate_and_after_the_lifetime_without() {
    let s = Stand::new(Settings::default());
    let secret = fresh();
    let entry = s.entry(1, VersionState::Current, &secret).await;
    s.set(ClientStatus::Active, vec![entry.clone()]);
    s.at(&secret, NOW).await.unwrap();
    let suspended = snapshot(ClientStatus::Suspended, vec![entry.clone()]);
    *s.source.0.snapshot.lock().unwrap() = Some(suspended);
    s.at(&secret, after(4_999)).await.unwrap();
    assert_eq!(s.at(&secret, after(5_000)).await, REFUSED);
    s.set(ClientStatus::Active, vec![entry]);
    assert_eq!(s.at(&secret, after(5_000)).await, ok(1, Which::Current));
}

#[tokio::test]
async fn without_its_source_it_serves_what_it_has_until_the_stated_staleness() {
    let s = Stand::new(Settings::default());
    let secret = fresh();
    s.set(
        ClientStatus::Active,
        vec![s.entry(1, VersionState::Current, &secret).await],
    );
    s.at(&secret, NOW).await.unwrap();
    s.source.0.down.store(true, Ordering::SeqCst);
    assert_eq!(s.at(&secret, after(59_999)).await, ok(1, Which::Current));
    let unavailable = |result| matches!(result, Err(VerifyError::Unavailable { .. }));
    assert!(unavailable(s.at(&secret, after(60_000)).await));
    assert!(unavailable(s.try_at("nobody", &secret, NOW).await));
    assert!(live(&s, 1, after(60_000)).await.is_err());
    // What was declared changed is not served at all.
    s.verifier.invalidate(&CLIENT.parse().unwrap());
    assert!(unavailable(s.at(&secret, NOW).await));
    s.source.0.down.store(false, Ordering::SeqCst);
    assert_eq!(s.at(&secret, after(60_000)).await, ok(1, Which::Current));
    s.source.0.down.store(true, Ordering::SeqCst);
    s.verifier.invalidate_all();
    assert!(unavailable(s.at(&secret, after(60_000)).await));
}

#[tokio::test]
async fn without_its_mac_key_it_says_neither_yes_nor_no_to_what_it_does_not_remember() {
    let s = Stand::new(Settings::default());
    let (new, old) = (fresh(), fresh());
    let current = s.entry(2, VersionState::Current, &new).await;
    let mut grace = s.entry(1, VersionState::Grace, &old).await;
    s.set(ClientStatus::Active, vec![current.clone(), grace.clone()]);
    s.at(&new, NOW).await.unwrap();
    s.mac.0.down.store(true, Ordering::SeqCst);
    assert_eq!(s.at(&new, NOW).await, ok(2, Which::Current));
    assert!(matches!(
        s.at(&old, NOW).await,
        Err(VerifyError::Unavailable { .. })
    ));
    assert_eq!(s.at(&fresh(), NOW).await, REFUSED);
    s.mac.0.down.store(false, Ordering::SeqCst);
    assert_eq!(s.at(&old, NOW).await, ok(1, Which::Previous));
    // A key version that is not here, and a damaged entry: the other version still verifies.
    grace.mac_key_ref = "gone".to_owned();
    s.set(ClientStatus::Active, vec![current.clone(), grace.clone()]);
    assert!(matches!(
        s.at(&old, NOW).await,
        Err(VerifyError::Unavailable { .. })
    ));
    assert_eq!(s.at(&new, NOW).await, ok(2, Which::Current));
    grace.secret_hash.push('=');
    s.set(ClientStatus::Active, vec![current, grace]);
    assert_eq!(s.at(&old, NOW).await, REFUSED);
    assert_eq!(s.at(&new, NOW).await, ok(2, Which::Current));
}
