//! The verifier on Firestore (the official emulator) beside the same verifier on a local source: `cargo bench -p keyturn-store --bench verify_firestore`.
//!
//! Prints how long a revocation takes from its commit until every verification is refused, the rate of warm verifications, and how often Firestore
//! is read for the first verification and for all that follow. The targets are those of the architecture page; the program exits with 1 when one is missed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

#[path = "../tests/support/mac.rs"]
mod mac;
#[path = "../tests/verifier_firestore/proxy.rs"]
#[allow(dead_code)]
mod proxy;
mod support;
#[path = "../tests/verifier_firestore/world.rs"]
#[allow(dead_code)]
mod world;

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use keyturn_proto::{ClientId, PresentedSecret, Secret, UnixMs, VersionId};
use keyturn_store::documents::{ClientStatus, SnapshotEntry, VersionState};
use keyturn_store::emulator::Emulator;
use keyturn_store::mac::{LocalMacKey, MacKey as _};
use keyturn_store::verifier::{
    ClientSnapshot, Settings, SnapshotSource, SourceError, Verified, Verifier, VerifyError,
};

use proxy::Proxy;
use support::{median, rate};
use world::{CLIENT, HERE, Relay, Server, mac, now};

const REVOCATIONS: usize = 300;
const THOUSAND: usize = 1_000;
const ROUNDS: usize = 9;
const SLICE: Duration = Duration::from_millis(250);

fn main() -> ExitCode {
    // `cargo test --all-targets` runs this as well, without the flag.
    if !std::env::args().any(|arg| arg == "--bench") {
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(measure())
}

async fn measure() -> ExitCode {
    let emulator = Emulator::shared().await;
    let project = emulator.fresh_project();
    let proxy = Proxy::before(&emulator.endpoint()).await;
    let relay = Relay::at(&emulator.endpoint(), &project).await;
    let server = Server::behind(&proxy, &project).await;
    let (secret, _) = relay.add(CLIENT).await;
    server.reads();
    server.verify(CLIENT, &secret).await.unwrap();
    let first = server.reads();
    server.settled(1).await;

    let local = local(CLIENT, &secret).await;
    local.verify(CLIENT, &secret).await.unwrap();
    // In turns and in this thread's processor time, so that what else happens on the machine meets both alike.
    let (mut warm, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        warm.push(
            rate(SLICE, 1_000, async || {
                black_box(server.verify(CLIENT, &secret).await).unwrap();
            })
            .await,
        );
        beside.push(
            rate(SLICE, 1_000, async || {
                black_box(local.verify(CLIENT, &secret).await).unwrap();
            })
            .await,
        );
    }
    let ratio = median(warm.iter().zip(&beside).map(|(on, off)| on / off).collect());
    for (name, rates) in [
        ("verify, warm, on Firestore", warm),
        ("verify, warm, on a local source", beside),
    ] {
        println!("{name:<44} {:>12.0} /s", median(rates));
    }
    println!(
        "{:<44} {first:>12}",
        "reads of Firestore, first verification"
    );
    println!(
        "{:<44} {:>12}",
        "reads of Firestore, all of the warm ones",
        server.reads()
    );
    per_thousand(
        &relay,
        &server,
        &secret,
        Server::behind(&proxy, &project).await,
    )
    .await;

    let mut took = Vec::with_capacity(REVOCATIONS);
    for n in 0..REVOCATIONS {
        let client = format!("{CLIENT}-{n}");
        let (secret, _) = relay.add(&client).await;
        server.verify(&client, &secret).await.unwrap();
        server.settled(n + 2).await;
        relay.revoke(&client).await;
        let committed = Instant::now();
        loop {
            match server.verify(&client, &secret).await {
                Err(VerifyError::Refused) => break,
                _ => tokio::task::yield_now().await,
            }
        }
        took.push(committed.elapsed());
    }
    took.sort();
    let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize];
    println!(
        "{:<44} p50 {:>8.2?}  p99 {:>8.2?}  worst {:>8.2?}",
        "revocation committed → refused",
        at(0.5),
        at(0.99),
        at(1.0)
    );

    let mut met = true;
    let mut target = |name: &str, holds: bool| {
        println!("{name:<44} {}", if holds { "met" } else { "MISSED" });
        met &= holds;
    };
    target(
        "p99 of a revocation at most 1 s",
        at(0.99) <= Duration::from_secs(1),
    );
    println!("{:<44} {ratio:>12.2}", "warm rate, Firestore ÷ local");
    if met {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What a thousand verifications read: of one client that is known, and of a thousand that `cold` has never heard of. The listener, which Google bills as well, is sent each
/// document once more.
async fn per_thousand(relay: &Relay, server: &Server, secret: &Secret, cold: Server) {
    server.reads();
    for _ in 0..THOUSAND {
        server.verify(CLIENT, secret).await.unwrap();
    }
    println!(
        "{:<44} {:>12}",
        "reads per 1,000 verifications, warm",
        server.reads()
    );
    let mut clients = Vec::with_capacity(THOUSAND);
    for n in 0..THOUSAND {
        let client = format!("cold-{n}");
        let (secret, _) = relay.add(&client).await;
        clients.push((client, secret));
    }
    for (n, (client, secret)) in clients.iter().enumerate() {
        // Each from a place of its own: one that asks for so many is taken for a guesser.
        let from = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + n as u32);
        let secret = PresentedSecret::new(secret.expose());
        let verified = cold.verifier.verify(client, &secret, from.into(), now());
        verified.await.unwrap();
    }
    println!(
        "{:<44} {:>12}",
        "reads per 1,000 verifications, cold",
        cold.reads()
    );
}

/// A verifier with the same key and a source that is in memory, to compare with.
async fn local(client: &str, secret: &Secret) -> Local {
    let client_id: ClientId = client.parse().unwrap();
    let version_id = VersionId::generate(now()).unwrap();
    let made = mac().sign(&client_id, &version_id, secret.expose()).await;
    let made = made.unwrap_or_else(|_| unreachable!("a local key signs"));
    let entry = SnapshotEntry {
        version_id,
        state: VersionState::Current,
        not_before: UnixMs(0),
        not_after: None,
        secret_hash: made.hash.as_str().to_owned(),
        mac_key_ref: made.key_ref,
        prefilter: None,
        prehash: None,
    };
    let snapshot = ClientSnapshot {
        status: ClientStatus::Active,
        entries: vec![entry],
        revision: 0,
        coverage: None,
    };
    let verifier = Verifier::new(Memory(client_id, snapshot), mac(), Settings::default());
    Local(verifier.unwrap())
}

/// See [`local`].
struct Local(Verifier<Memory, LocalMacKey>);

/// One client.
struct Memory(ClientId, ClientSnapshot);

#[async_trait]
impl SnapshotSource for Memory {
    async fn snapshot(&self, client: &ClientId) -> Result<Option<ClientSnapshot>, SourceError> {
        Ok((*client == self.0).then(|| self.1.clone()))
    }
}

impl Local {
    async fn verify(&self, client: &str, secret: &Secret) -> Result<Verified, VerifyError> {
        let secret = PresentedSecret::new(secret.expose());
        self.0.verify(client, &secret, HERE, now()).await
    }
}
