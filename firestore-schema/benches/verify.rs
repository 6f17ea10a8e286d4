//! What a verification costs, beside bcrypt cost 10 in the same run: `cargo bench -p keyturn-store`.
//!
//! Ratios are what counts; absolute numbers belong to the machine. Everything runs on one thread and is
//! counted in processor time. The targets are those of the architecture page; the
//! program exits with 1 when one is missed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use keyturn_proto::{ClientId, PresentedSecret, Secret, UnixMs};
use keyturn_store::documents::{ClientStatus, SnapshotEntry, VersionState};
use keyturn_store::mac::{LocalMacKey, MacKey as _};
use keyturn_store::verifier::{
    ClientSnapshot, Rate, Settings, SnapshotSource, SourceError, Verifier,
};

const NOW: UnixMs = UnixMs(1_760_000_000_000);
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// How long each measurement runs.
const TIME: Duration = Duration::from_secs(1);

/// Answers for one client, from memory: the store's own cost is measured elsewhere.
struct Fixed(ClientId, ClientSnapshot);

#[async_trait]
impl SnapshotSource for Fixed {
    async fn snapshot(&self, client: &ClientId) -> Result<Option<ClientSnapshot>, SourceError> {
        Ok((*client == self.0).then(|| self.1.clone()))
    }
}

/// Processor time that this thread has used, so that a busy machine does not count against it; the wall clock where Linux's `/proc` is missing.
fn used(since: Instant) -> Duration {
    std::fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split(' ').next()?.parse().ok())
        .map_or_else(|| since.elapsed(), Duration::from_nanos)
}

/// Runs `work` in batches for [`TIME`], three times, and returns the best rate per second of processor time.
async fn rate(name: &str, batch: u32, mut work: impl AsyncFnMut()) -> f64 {
    let start = Instant::now();
    let mut best = 0f64;
    for _ in 0..3 {
        let (begun, mut done) = (used(start), 0u64);
        let spent = loop {
            for _ in 0..batch {
                work().await;
            }
            done += u64::from(batch);
            let spent = used(start) - begun;
            if spent >= TIME {
                break spent;
            }
        };
        best = best.max(done as f64 / spent.as_secs_f64());
    }
    println!("{name:<34} {best:>14.0} /s  {:>12.3} µs", 1e6 / best);
    best
}

fn main() -> ExitCode {
    // `cargo test --all-targets` runs this as well, without the flag.
    if !std::env::args().any(|arg| arg == "--bench") {
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(measure())
}

async fn measure() -> ExitCode {
    let client: ClientId = "ext-totp-svc".parse().unwrap();
    let key = || LocalMacKey::from_keys(&[7; 32], &[]);
    let (current, previous) = (Secret::generate().unwrap(), Secret::generate().unwrap());
    let mut entries = Vec::new();
    for (n, state, secret) in [
        (2, VersionState::Current, &current),
        (1, VersionState::Grace, &previous),
    ] {
        let version_id = format!("{n:026}").parse().unwrap();
        let made = key().sign(&client, &version_id, secret.expose()).await;
        let made = made.unwrap_or_else(|_| unreachable!("a local key signs"));
        entries.push(SnapshotEntry {
            version_id,
            state,
            not_before: UnixMs(0),
            not_after: None,
            secret_hash: made.hash.as_str().to_owned(),
            mac_key_ref: made.key_ref,
            prefilter: Some(hex::encode(keyturn_proto::derive::prefilter(
                secret.expose(),
            ))),
            prehash: None,
        });
    }
    let verifier = |memo_ttl| {
        let snapshot = ClientSnapshot {
            status: ClientStatus::Active,
            entries: entries.clone(),
            revision: 0,
            coverage: None,
        };
        let unlimited = Rate {
            per_second: u32::MAX,
            burst: u32::MAX,
        };
        let settings = Settings {
            memo_ttl,
            mac_per_client: unlimited,
            mac_per_source: unlimited,
            ..Settings::default()
        };
        Verifier::new(Fixed(client.clone(), snapshot), key(), settings).unwrap()
    };
    let current: PresentedSecret = current.into();
    let previous: PresentedSecret = previous.into();
    let wrong: PresentedSecret = Secret::generate().unwrap().into();
    let id = client.as_str();

    let warm_verifier = verifier(Duration::from_secs(3600));
    for secret in [&current, &previous] {
        warm_verifier.verify(id, secret, HERE, NOW).await.unwrap();
    }
    let warm = rate("verify, warm, current", 10_000, async || {
        black_box(warm_verifier.verify(id, &current, HERE, NOW).await).unwrap();
    })
    .await;
    let warm_previous = rate("verify, warm, previous", 10_000, async || {
        black_box(warm_verifier.verify(id, &previous, HERE, NOW).await).unwrap();
    })
    .await;
    let refuse = rate("refuse, wrong secret", 10_000, async || {
        black_box(warm_verifier.verify(id, &wrong, HERE, NOW).await).unwrap_err();
    })
    .await;
    let unknown = rate("refuse, unknown client", 10_000, async || {
        black_box(warm_verifier.verify("nobody", &wrong, HERE, NOW).await).unwrap_err();
    })
    .await;
    // Nothing is remembered and nothing is cached: every call reads the source and asks the MAC key.
    let cold_verifier = verifier(Duration::ZERO);
    let cold = rate("verify, cold (local key)", 100, async || {
        cold_verifier.invalidate(&client);
        black_box(cold_verifier.verify(id, &current, HERE, NOW).await).unwrap();
    })
    .await;
    let bcrypt_hash = bcrypt::hash(current.expose(), 10).unwrap();
    let bcrypt = rate("bcrypt, cost 10", 1, async || {
        assert!(black_box(bcrypt::verify(current.expose(), &bcrypt_hash)).unwrap());
    })
    .await;

    println!();
    let mut met = true;
    let mut target = |name: &str, found: f64, wanted: f64| {
        let verdict = if found >= wanted { "met" } else { "MISSED" };
        met &= found >= wanted;
        println!("{name:<34} {found:>14.1}   target {wanted:>12.1}   {verdict}");
    };
    target("warm ÷ bcrypt", warm / bcrypt, 10_000.0);
    target("warm, per second on one core", warm, 1_000_000.0);
    println!(
        "{:<34} {:>14.1}",
        "warm previous ÷ bcrypt",
        warm_previous / bcrypt
    );
    println!("{:<34} {:>14.1}", "cold ÷ bcrypt", cold / bcrypt);
    println!(
        "{:<34} {:>14.3}",
        "unknown client ÷ wrong secret",
        unknown / refuse
    );
    if met {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
