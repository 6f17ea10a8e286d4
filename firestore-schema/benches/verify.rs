//! What a verification costs, beside bcrypt cost 10 in the same run: `cargo bench -p keyturn-store`.
//!
//! Ratios are what counts; absolute numbers belong to the machine. Everything runs on one thread and is counted in processor time, in turns, so that what
//! else happens on the machine meets all of it alike; what is printed is the median of the rounds. That an unknown client and a wrong secret take the same time
//! is measured here; that they do the same work is a test (`verifier/tests.rs`). The targets are those of the architecture page; the program exits with 1 when
//! one is missed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod support;

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::time::Duration;

use async_trait::async_trait;
use keyturn_proto::{ClientId, PresentedSecret, Secret, UnixMs};
use keyturn_store::documents::{ClientStatus, SnapshotEntry, VersionState};
use keyturn_store::mac::{LocalMacKey, MacKey as _};
use keyturn_store::verifier::{
    ClientSnapshot, Rate, Settings, SnapshotSource, SourceError, Verifier,
};

use support::{median, rate};

const NOW: UnixMs = UnixMs(1_760_000_000_000);
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ROUNDS: usize = 9;
/// How long each measurement runs in each round.
const SLICE: Duration = Duration::from_millis(250);
/// How far refusals may lie apart that must look alike, as a ratio.
const ALIKE: f64 = 0.1;

/// Answers for one client, from memory: the store's own cost is measured elsewhere.
struct Fixed(ClientId, ClientSnapshot);

#[async_trait]
impl SnapshotSource for Fixed {
    async fn snapshot(&self, client: &ClientId) -> Result<Option<ClientSnapshot>, SourceError> {
        Ok((*client == self.0).then(|| self.1.clone()))
    }
}

/// Rates of one kind of call, a number for each round.
struct Rates {
    name: &'static str,
    per_second: Vec<f64>,
}

impl Rates {
    const fn of(name: &'static str) -> Self {
        let per_second = Vec::new();
        Self { name, per_second }
    }

    /// Runs `work` in batches for one [`SLICE`] of processor time.
    async fn round(&mut self, batch: u32, work: impl AsyncFnMut()) {
        self.per_second.push(rate(SLICE, batch, work).await);
    }

    fn median(&self) -> f64 {
        median(self.per_second.clone())
    }

    /// How many times faster than `other`, each round by itself.
    fn over(&self, other: &Self) -> f64 {
        let rounds = self.per_second.iter().zip(&other.per_second);
        median(rounds.map(|(this, that)| this / that).collect())
    }

    fn print(&self) {
        let (name, rate) = (self.name, self.median());
        println!("{name:<34} {rate:>14.0} /s  {:>12.3} µs", 1e6 / rate);
    }
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

    let known = verifier(Duration::from_secs(3600));
    for secret in [&current, &previous] {
        known.verify(id, secret, HERE, NOW).await.unwrap();
    }
    // Nothing is remembered and nothing is cached: every call reads the source and asks the MAC key.
    let forgetful = verifier(Duration::ZERO);
    let bcrypt_hash = bcrypt::hash(current.expose(), 10).unwrap();
    let refused = async |client: &str, secret| {
        black_box(known.verify(client, secret, HERE, NOW).await).unwrap_err();
    };
    let guess = PresentedSecret::new("guess");

    let mut warm = Rates::of("verify, warm, current");
    let mut warm_previous = Rates::of("verify, warm, previous");
    let mut wrong_secret = Rates::of("refuse, wrong secret");
    let mut unknown_client = Rates::of("refuse, unknown client");
    let mut wrong_guess = Rates::of("refuse, wrong secret, short");
    let mut unknown_guess = Rates::of("refuse, unknown client, short");
    let mut cold = Rates::of("verify, cold (local key)");
    let mut by_bcrypt = Rates::of("bcrypt, cost 10");
    for _ in 0..ROUNDS {
        let round = warm.round(10_000, async || {
            black_box(known.verify(id, &current, HERE, NOW).await).unwrap();
        });
        round.await;
        let round = warm_previous.round(10_000, async || {
            black_box(known.verify(id, &previous, HERE, NOW).await).unwrap();
        });
        round.await;
        let round = wrong_secret.round(10_000, async || refused(id, &wrong).await);
        round.await;
        let round = unknown_client.round(10_000, async || refused("nobody", &wrong).await);
        round.await;
        let round = wrong_guess.round(10_000, async || refused(id, &guess).await);
        round.await;
        let round = unknown_guess.round(10_000, async || refused("nobody", &guess).await);
        round.await;
        let round = cold.round(100, async || {
            forgetful.invalidate(&client);
            black_box(forgetful.verify(id, &current, HERE, NOW).await).unwrap();
        });
        round.await;
        let round = by_bcrypt.round(1, async || {
            assert!(black_box(bcrypt::verify(current.expose(), &bcrypt_hash)).unwrap());
        });
        round.await;
    }
    for rates in [
        &warm,
        &warm_previous,
        &wrong_secret,
        &unknown_client,
        &wrong_guess,
        &unknown_guess,
        &cold,
        &by_bcrypt,
    ] {
        rates.print();
    }

    println!();
    let mut met = true;
    let mut target = |name: &str, found: f64, wanted: &str, holds: bool| {
        let verdict = if holds { "met" } else { "MISSED" };
        met &= holds;
        println!("{name:<42} {found:>14.3}   target {wanted:>14}   {verdict}");
    };
    let times = warm.over(&by_bcrypt);
    target("warm ÷ bcrypt", times, "≥ 10,000", times >= 10_000.0);
    let warm_rate = warm.median();
    let fast = warm_rate >= 1_000_000.0;
    target(
        "warm, per second on one core",
        warm_rate,
        "≥ 1,000,000",
        fast,
    );
    for (name, unknown, wrong) in [
        (
            "unknown client ÷ wrong secret",
            &unknown_client,
            &wrong_secret,
        ),
        ("the same, short guesses", &unknown_guess, &wrong_guess),
    ] {
        let ratio = unknown.over(wrong);
        let alike = (ratio - 1.0).abs() <= ALIKE;
        target(name, ratio, "1 ± 0.1", alike);
    }
    println!(
        "{:<42} {:>14.0}",
        "warm previous ÷ bcrypt",
        warm_previous.over(&by_bcrypt)
    );
    println!("{:<42} {:>14.0}", "cold ÷ bcrypt", cold.over(&by_bcrypt));
    if met {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
