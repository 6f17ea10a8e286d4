//! The embedded issuer and its logins over a real store.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use keyturn_proto::UnixMs;
use keyturn_store::mac::{LocalMacKey, Maced, SecretHash};
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::AuditTrail as _;

use super::super::NonceHash;
use super::login::{AppRoleLogin, LoginError, LoginLimits};
use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const HERE: &str = "10.1.2.3";

/// Time as a test tells it.
struct Told(AtomicU64);

#[async_trait]
impl Clock for Told {
    fn now(&self) -> UnixMs {
        UnixMs(self.0.load(Ordering::Relaxed))
    }

    async fn sleep_until(&self, _: UnixMs) {
        std::future::pending().await
    }
}

fn intent(device: &str, nonce: &str) -> Intent {
    Intent {
        device: device.to_owned(),
        nonce: NonceHash::of(nonce),
    }
}

/// A fleet behind one address after everything it held has died: each device tries with what is dead, and with what it was given.
#[test]
fn the_limits_that_ship_let_a_fleet_behind_one_address_in() {
    use crate::config::{LOGINS_PER_MINUTE, LOGINS_PER_SECOND};
    let tries = 2 * 10_000;
    let minutes = |per_minute: u32| f64::from(tries) / f64::from(per_minute);
    assert!(minutes(LOGINS_PER_MINUTE) <= 10.0);
    assert!(minutes(LOGINS_PER_SECOND * 60) <= 10.0);
    // And still leave three quarters to everybody else.
    const { assert!(LOGINS_PER_MINUTE <= LOGINS_PER_SECOND * 60 / 4) };
}

/// No source takes at once what all have in a second twice over.
#[test]
fn a_source_gets_its_share_evenly() {
    for (per_minute, burst) in [(1, 1), (5, 5), (60, 60), (61, 60), (3000, 300)] {
        let quota = login::source_quota(NonZeroU32::new(per_minute).unwrap());
        assert_eq!(quota.burst_size().get(), burst, "{per_minute}");
        let each = Duration::from_secs(60) / per_minute;
        assert_eq!(quota.replenish_interval(), each, "{per_minute}");
    }
}

/// Counts what a guess costs.
struct Counting(LocalMacKey, AtomicU64);

#[async_trait]
impl MacKey for Counting {
    async fn sign(
        &self,
        client: &ClientId,
        version: &VersionId,
        secret: &str,
    ) -> Result<Maced, MacError> {
        self.0.sign(client, version, secret).await
    }

    async fn verify(
        &self,
        key_ref: &str,
        client: &ClientId,
        version: &VersionId,
        secret: &str,
        hash: &SecretHash,
    ) -> Result<bool, MacError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.verify(key_ref, client, version, secret, hash).await
    }

    fn primary_ref(&self) -> String {
        self.0.primary_ref()
    }
}

struct World {
    _folder: tempfile::TempDir,
    path: std::path::PathBuf,
    store: SqliteStore,
    clock: Arc<Told>,
    mac: Arc<Counting>,
    issuer: EmbeddedIssuer,
    login: AppRoleLogin,
    role: RoleName,
    nonce: NonceHash,
    blocks: [crate::devices::issuer::Cidr; 1],
}

fn world_with(limits: LoginLimits) -> World {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let store = SqliteStore::open(&path).unwrap();
    let clock = Arc::new(Told(AtomicU64::new(1_760_000_000_000)));
    let mac = Arc::new(Counting(
        LocalMacKey::from_keys(&[7; 32], &[]),
        AtomicU64::new(0),
    ));
    let parts = Parts {
        store: Arc::new(store.clone()),
        mac: mac.clone(),
        clock: clock.clone(),
    };
    World {
        issuer: EmbeddedIssuer::start(parts.clone()),
        login: AppRoleLogin::new(parts, Arc::new(store.clone()), limits),
        _folder: folder,
        path,
        store,
        clock,
        mac,
        role: "river-iot".parse().unwrap(),
        nonce: NonceHash::of("nonce"),
        blocks: ["10.1.0.0/16".parse().unwrap()],
    }
}

fn world() -> World {
    let many = NonZeroU32::new(10_000).unwrap();
    world_with(LoginLimits {
        per_source: many,
        in_all: many,
    })
}

impl World {
    async fn issue<'a>(&'a self, change: impl FnOnce(&mut IssueRequest<'a>)) -> Issued {
        let mut request = IssueRequest {
            role: &self.role,
            device: "pump-7",
            nonce: &self.nonce,
            ttl: HOUR,
            num_uses: 0,
            cidrs: &[],
            wrap_ttl: None,
        };
        change(&mut request);
        self.issuer.issue(request).await.ok().unwrap()
    }

    async fn log_in(&self, role_id: &str, secret_id: &str) -> Result<login::LoggedIn, LoginError> {
        let secret_id = Zeroizing::new(secret_id.to_owned());
        self.login
            .log_in(role_id, &secret_id, HERE.parse().unwrap())
            .await
    }

    fn later(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap();
        self.clock.0.fetch_add(by, Ordering::Relaxed);
    }

    async fn trail(&self) -> Vec<(String, String)> {
        let records = self.store.read(None, usize::MAX).await.unwrap();
        records
            .into_iter()
            .map(|it| (it.event, it.reason))
            .collect()
    }
}

#[tokio::test]
async fn a_secret_id_logs_in_until_it_is_destroyed() {
    let w = world();
    let issued = w.issue(|_| {}).await;
    let secret_id = issued.credential.text().expose();
    let good = w.log_in(&issued.role_id, secret_id).await.unwrap();
    assert_eq!(
        (good.role.as_str(), good.device.as_str()),
        ("river-iot", "pump-7")
    );
    assert_eq!((good.ttl, good.uses_left), (HOUR, None));
    assert_eq!(good.accessor.to_string(), issued.accessor.as_str());
    for expected in [Destroyed::Now, Destroyed::AlreadyGone] {
        let destroyed = w.issuer.destroy(&w.role, &issued.accessor).await;
        assert_eq!(destroyed, Ok(expected));
    }
    assert_eq!(
        w.log_in(&issued.role_id, secret_id).await,
        Err(LoginError::Invalid)
    );
}

#[tokio::test]
async fn a_role_keeps_its_id() {
    let w = world();
    let first = w.issue(|_| {}).await.role_id;
    let again = EmbeddedIssuer::start(w.issuer.parts.clone());
    assert_eq!(again.role_id(&w.role).await.ok(), Some(first.clone()));
    let other: RoleName = "other".parse().unwrap();
    assert_ne!(w.issuer.role_id(&other).await.ok(), Some(first));
}

/// Neither what is wrong nor how much of it is right can be told from the answer, and no guess costs an operation of the key.
#[tokio::test]
async fn guesses_are_refused_alike_and_cost_nothing() {
    let w = world();
    let issued = w.issue(|_| {}).await;
    let good = issued.credential.text().expose();
    let (accessor, secret) = good.split_once('.').unwrap();
    let (other, swapped) = (
        format!("{accessor}.{}", "A".repeat(43)),
        format!("{}.{secret}", "0".repeat(26)),
    );
    for guess in ["", ".", accessor, secret, &other, &swapped] {
        assert_eq!(
            w.log_in(&issued.role_id, guess).await,
            Err(LoginError::Invalid),
            "{guess}"
        );
    }
    assert_eq!(w.mac.1.load(Ordering::Relaxed), 0);
    // Only the guess at a living secret_id is written down.
    let refused = (
        "approle.login_refused".to_owned(),
        "secret_id.wrong".to_owned(),
    );
    let trail = w.trail().await;
    let found = trail.iter().filter(|it| **it == refused).count();
    assert_eq!((found, trail.len()), (1, 2), "{trail:?}");
}

#[tokio::test]
async fn a_login_needs_the_right_role_time_and_network() {
    let w = world();
    let issued = w.issue(|it| it.cidrs = &w.blocks).await;
    let secret_id = Zeroizing::new(issued.credential.text().expose().to_owned());
    let other: RoleName = "other".parse().unwrap();
    let wrong_role = w.issuer.role_id(&other).await.ok().unwrap();
    for role_id in [wrong_role.as_str(), "", "unknown"] {
        let refused = w.log_in(role_id, &secret_id).await;
        assert_eq!(refused, Err(LoginError::Invalid));
    }
    let elsewhere: IpAddr = "10.2.0.1".parse().unwrap();
    let refused = w.login.log_in(&issued.role_id, &secret_id, elsewhere).await;
    assert_eq!(refused, Err(LoginError::Invalid));
    w.log_in(&issued.role_id, &secret_id).await.unwrap();
    w.later(HOUR - Duration::from_millis(1));
    w.log_in(&issued.role_id, &secret_id).await.unwrap();
    w.later(Duration::from_millis(1));
    let refused = w.log_in(&issued.role_id, &secret_id).await;
    assert_eq!(refused, Err(LoginError::Invalid));
    let reasons: Vec<String> = w.trail().await.into_iter().map(|it| it.1).collect();
    assert_eq!(
        reasons[2..],
        [
            "role_id.wrong",
            "role_id.wrong",
            "role_id.wrong",
            "secret_id.network",
            "secret_id.good",
            "secret_id.good",
            "secret_id.ended"
        ]
    );
}

#[tokio::test]
async fn uses_are_counted() {
    let w = world();
    let issued = w.issue(|it| it.num_uses = 2).await;
    let secret_id = issued.credential.text().expose();
    for left in [1, 0] {
        let good = w.log_in(&issued.role_id, secret_id).await.unwrap();
        assert_eq!(good.uses_left, Some(left));
    }
    let refused = w.log_in(&issued.role_id, secret_id).await;
    assert_eq!(refused, Err(LoginError::Invalid));
}

#[tokio::test]
async fn many_tries_are_slowed_down() {
    let w = world_with(LoginLimits {
        per_source: NonZeroU32::new(5).unwrap(),
        in_all: NonZeroU32::new(1000).unwrap(),
    });
    let issued = w.issue(|_| {}).await;
    let secret_id = Zeroizing::new(issued.credential.text().expose().to_owned());
    let mut last = Ok(());
    for _ in 0..6 {
        last = w.log_in(&issued.role_id, "x.y").await.map(drop);
    }
    assert!(
        matches!(last, Err(LoginError::TooMany { retry_after }) if retry_after >= Duration::from_secs(1)),
        "{last:?}"
    );
    // Others are not held up, and an IPv6 neighbour is the same one.
    let logins = ["192.0.2.9", "2001:db8::1"];
    for source in logins {
        let good = w
            .login
            .log_in(&issued.role_id, &secret_id, source.parse().unwrap());
        good.await.unwrap();
    }
    for _ in 0..4 {
        let neighbour = "2001:db8::2".parse().unwrap();
        w.login
            .log_in(&issued.role_id, &secret_id, neighbour)
            .await
            .unwrap();
    }
    let full = w
        .login
        .log_in(&issued.role_id, &secret_id, "2001:db8::3".parse().unwrap());
    assert!(matches!(full.await, Err(LoginError::TooMany { .. })));
}

/// More devices behind one address than may log in at once: those that are held back lose nothing by it, and get in.
#[tokio::test]
async fn a_fleet_behind_one_address_gets_in() {
    const FLEET: usize = 90;
    let w = world_with(LoginLimits {
        per_source: NonZeroU32::new(600).unwrap(),
        in_all: NonZeroU32::new(1000).unwrap(),
    });
    let mut fleet = Vec::new();
    for _ in 0..FLEET {
        // Each is good for one login: a try that was held back must not use it up.
        let issued = w.issue(|it| it.num_uses = 1).await;
        fleet.push((issued.role_id, issued.credential.text().expose().to_owned()));
    }
    let held_back = AtomicU64::new(0);
    let one = async |(role_id, secret_id): &(String, String)| loop {
        match w.log_in(role_id, secret_id).await {
            Err(LoginError::TooMany { retry_after }) => {
                held_back.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(retry_after).await;
            }
            ended => return ended.map(drop),
        }
    };
    let all = futures::future::join_all(fleet.iter().map(one));
    let all = tokio::time::timeout(Duration::from_secs(120), all).await;
    assert!(all.unwrap().iter().all(Result::is_ok));
    // All try before the first is through; sixty may at once.
    assert!(held_back.into_inner() > 0, "nobody was held back");
}

#[tokio::test]
async fn the_store_never_holds_a_secret_id() {
    let w = world();
    let issued = w.issue(|_| {}).await;
    let good = issued.credential.text().expose().to_owned();
    w.log_in(&issued.role_id, &good).await.unwrap();
    let secret = good.split_once('.').unwrap().1;
    for suffix in ["", "-wal"] {
        let mut path = w.path.clone().into_os_string();
        path.push(suffix);
        let bytes = std::fs::read(path).unwrap_or_default();
        let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|it| it == needle);
        assert!(!holds(secret.as_bytes()), "{suffix}");
        // The search would have found it.
        assert!(suffix.is_empty() || holds(b"pump-7"), "{suffix}");
    }
}

#[tokio::test]
async fn lost_ones_are_found_and_wrapping_is_refused() {
    let w = world();
    let issued = w.issue(|_| {}).await;
    let intents = [intent("pump-7", "nonce"), intent("pump-7", "other")];
    let found = w.issuer.find(&w.role, &intents, &[]).await.unwrap();
    assert_eq!(found[0].accessor, issued.accessor);
    let known = [issued.accessor.clone()];
    assert_eq!(w.issuer.find(&w.role, &intents, &known).await, Ok(vec![]));
    let nonce = NonceHash::of("wrapped");
    let wrapping = IssueRequest {
        role: &w.role,
        device: "pump-7",
        nonce: &nonce,
        ttl: HOUR,
        num_uses: 0,
        cidrs: &[],
        wrap_ttl: Some(HOUR),
    };
    let error = w.issuer.issue(wrapping).await.err();
    let why = Reason::Unsupported;
    assert_eq!(error, Some(IssuerError::Permanent { why }));
    let intents = [intent("pump-7", "wrapped")];
    assert_eq!(w.issuer.find(&w.role, &intents, &[]).await, Ok(vec![]));
    w.issuer.health().await.unwrap();
}

/// A nonce is fresh to the device that chose it, and to no other.
#[tokio::test]
async fn of_two_devices_with_the_same_nonce_each_finds_its_own() {
    let w = world();
    let mine = w.issue(|it| it.device = "pump-7").await.accessor;
    let yours = w.issue(|it| it.device = "pump-8").await.accessor;
    for (device, accessor) in [("pump-7", &mine), ("pump-8", &yours)] {
        let intents = [intent(device, "nonce")];
        let found = w.issuer.find(&w.role, &intents, &[]).await.unwrap();
        let found: Vec<&Accessor> = found.iter().map(|it| &it.accessor).collect();
        assert_eq!(found, [accessor], "{device}");
    }
    let nobody = [intent("pump-9", "nonce")];
    assert_eq!(w.issuer.find(&w.role, &nobody, &[]).await, Ok(vec![]));
}

#[tokio::test]
async fn what_vault_made_is_not_called_gone() {
    let w = world();
    let accessor = "84896a0c-1347-aa90-a4f6-aca8b7558780".parse().unwrap();
    assert_eq!(
        w.issuer.destroy(&w.role, &accessor).await,
        Err(IssuerError::Permanent {
            why: Reason::AnotherIssuer
        })
    );
}

#[tokio::test]
async fn what_has_ended_is_removed_by_itself() {
    let w = world();
    let issued = w.issue(|it| it.ttl = Duration::from_secs(1)).await;
    w.later(HOUR);
    // A new issuer purges at its start.
    let _again = EmbeddedIssuer::start(w.issuer.parts.clone());
    let accessor = issued.accessor.as_str().parse().unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while w.store.secret_id(&accessor).await.unwrap().is_some() {
        assert!(tokio::time::Instant::now() < deadline, "it is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
