//! Two relays on one store: one acts, the other stands by, and takes over when the first is killed or stopped at any numbered step, or ended in
//! order (docs/architecture.md, "Many relays"). The admins are connected to the relay that lives; what they send and read travels by the mirror.
//!
//! What must hold: a rotation records one version, is reserved and promoted once, and every admin sees one secret, whoever carried it through; the
//! relay that comes back does nothing twice; what was withdrawn from one relay goes from the other and does not come back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

#[path = "cluster/mirror.rs"]
mod mirror;
#[path = "cluster/standby.rs"]
mod standby;
#[path = "cluster/takeover.rs"]
mod takeover;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keyturn::crash::Point;
use keyturn::metrics::{ALARMS, FENCED, LEASE_HELD, MIRROR_SKIPPED};
use keyturn::quickstart::leaks::Needles;
use keyturn_admin::AdminSession;
use keyturn_proto::{Action, MlsGroupId, VersionId};
use keyturn_store::emulator::Emulator;
use keyturn_tests::attack::{Candidates, Reached, Stolen, contains, frozen};
use keyturn_tests::cluster::{Sibling, key_package_of};
use keyturn_tests::member_file::spellings;
use keyturn_tests::steady::{Wish, carry_through};
use keyturn_tests::tap::Subscriber;
use keyturn_tests::trail::counter;
use keyturn_tests::verdict::{Held, Judge};
use keyturn_tests::wire::Wire;
use keyturn_tests::world::{CLIENT, GROUP, deadline, reason, set};
use keyturn_tests::{Relay, World, eventually};
use nostr::{EventBuilder, Keys, Kind, PublicKey, RelayUrl, Tag, Timestamp};
use serde_json::json;
use tokio::join;

const PROGRAM: &str = env!("CARGO_BIN_EXE_keyturn-under-test");

/// Two relays and a first full rotation behind them. The admins are connected to the second; the first acts.
struct Stage {
    world: World,
    sibling: Sibling,
    judge: Arc<Judge>,
    held: Held,
    alice: AdminSession,
    bob: AdminSession,
    group: MlsGroupId,
    current: VersionId,
}

impl Stage {
    async fn set(tune: impl FnOnce(&mut toml::Table)) -> (Self, Relay, Relay) {
        let mut world = World::new(PROGRAM, |config| {
            for key in ["client_requests_per_hour", "admin_requests_per_hour"] {
                set(config, "policy", key, 100_000);
            }
            tune(config);
        })
        .await;
        let sibling = Sibling::of(&mut world, PROGRAM);
        world.enrol("alice").await;
        world.enrol("bob").await;
        world.bind(GROUP, "alice").await;
        world.client(CLIENT, &[GROUP]).await;
        let first = world.relay().await;
        let second = sibling.relay().await;
        key_package_of(world.service(), &second).await;
        key_package_of(sibling.npub, &first).await;
        let mut alice = world.admin("alice", &second).await;
        let mut bob = world.admin("bob", &second).await;
        let group = world.found(GROUP, &mut alice, &mut [&mut bob]).await;
        let (_, opened) = world.rotate(&mut alice, &mut bob, &group).await;
        let held = Held::default();
        held.note(&opened);
        let stage = Self {
            judge: Arc::new(Judge::as_configured(&world, CLIENT).await),
            current: opened.notify.header.version_id,
            world,
            sibling,
            held,
            alice,
            bob,
            group,
        };
        (stage, first, second)
    }

    fn wish(&self, why: &str) -> Wish {
        Wish::new(Action::Rotation, &self.group, reason(why))
    }

    /// A whole rotation, while `meanwhile` happens to the relays.
    async fn rotate<T>(&mut self, wish: &Wish, meanwhile: impl Future<Output = T>) -> T {
        let Self {
            world,
            held,
            alice,
            bob,
            ..
        } = self;
        let admins = carry_through(world.issuer.signer(), alice, bob, wish, held);
        join!(admins, meanwhile).1
    }

    /// It ended well, once, and can be read from `relay`.
    async fn well(&mut self, wish: &Wish, relay: &Relay, at: &str) {
        let mut wire = Wire::connect(&relay.url).await;
        let (judge, old) = (&self.judge, self.current);
        let new = judge
            .promoted(&mut wire, old, &wish.id, &self.held, at)
            .await;
        judge.recorded_once(&wish.id, at).await;
        self.current = new;
    }

    /// The first relay acts again: the second ends in order, and comes back to stand by.
    async fn hand_back(&self, second: Relay) -> Relay {
        tokio::task::spawn_blocking(move || second.terminate())
            .await
            .unwrap();
        let first = self.world.service().to_string();
        eventually("the first relay holds the lease", async || {
            (self.holder().await? == first).then_some(())
        })
        .await;
        self.sibling.relay().await
    }

    /// Who holds the lease, by the audit trail: its last change of hands.
    async fn holder(&self) -> Option<String> {
        let trail = self.judge.store.read(None, usize::MAX).await.unwrap();
        let taken = trail.iter().rev().find(|r| r.event == "lease.taken")?;
        let words: Vec<&str> = taken.reason.split(' ').collect();
        words.get(2).map(|&owner| owner.to_owned())
    }
}

/// A database of its own on the emulator.
async fn firestore() -> toml::Table {
    let emulator = Emulator::shared().await;
    let mut store = toml::Table::new();
    store.insert("kind".to_owned(), "firestore".into());
    store.insert("project".to_owned(), emulator.fresh_project().into());
    store.insert("endpoint".to_owned(), emulator.endpoint().into());
    store
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_who_knows_both_relays_outlives_either() {
    let (stage, first, second) = Stage::set(|_| {}).await;
    let Stage {
        mut world,
        alice,
        bob,
        ..
    } = stage;
    // A member database has one owner at a time.
    alice.close().await;
    bob.close().await;
    let mut both = async |name: &str| {
        let mut config = world.session_config(name, &first);
        config.relays.push(RelayUrl::parse(&second.url).unwrap());
        config.service_urls.push(second.web.clone());
        AdminSession::open(config, deadline()).await.unwrap()
    };
    let (alice, bob) = (both("alice").await, both("bob").await);
    let mut stage = Stage {
        world,
        alice,
        bob,
        ..stage
    };

    let wish = stage.wish("both are there");
    stage.rotate(&wish, async {}).await;
    stage.well(&wish, &first, "both are there").await;
    second.kill();
    let wish = stage.wish("without the second");
    stage.rotate(&wish, async {}).await;
    stage.well(&wish, &first, "without the second").await;
    // The one that acts goes away in the middle, after the other is back.
    let second = stage.sibling.relay().await;
    let wish = stage.wish("without the first");
    stage.rotate(&wish, async { first.kill() }).await;
    stage.well(&wish, &second, "without the first").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_knows_the_siblings_and_finds_a_peer_that_is_away() {
    let (stage, _first, second) = Stage::set(|_| {}).await;
    let findings = || {
        let output = std::process::Command::new(PROGRAM)
            .args(["doctor", "--json", "--config"])
            .arg(stage.world.layout.config())
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let all = report["findings"].as_array().unwrap().clone();
        let mine = all.into_iter().filter(|found| found["check"] == "cluster");
        mine.map(|found| found["level"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        findings(),
        ["ok", "ok"],
        "the peer answers, the key is signed"
    );
    second.kill();
    assert_eq!(findings(), ["fail", "warn"]);
}
