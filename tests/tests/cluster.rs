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
async fn the_other_relay_finishes_whatever_the_step_at_which_one_is_killed() {
    killed_at_each_step(|_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_firestore_too_the_other_relay_finishes_whatever_the_step() {
    let store = firestore().await;
    killed_at_each_step(|config| config["store"] = store.into()).await;
}

/// Waits until the relay has `come` to its armed point, or the rotation is over without that.
async fn came_or_over(mut come: impl FnMut() -> bool, judge: &Judge, wish: &Wish) -> bool {
    eventually("the relay comes to its point", async || {
        if come() {
            return Some(true);
        }
        let over = judge.rotation(&wish.id).await?.announced_at.is_some();
        // Looked at again: the last of the points comes right before that.
        over.then(&mut come)
    })
    .await
}

async fn killed_at_each_step(tune: impl FnOnce(&mut toml::Table)) {
    let (mut stage, mut first, mut second) = Stage::set(tune).await;
    for point in [
        Point::AfterInbox,
        Point::AfterAdmit,
        Point::AfterReserve,
        Point::AfterSeal,
        Point::AfterPrepare,
        Point::AfterOnePublish,
        Point::AfterPublish,
        Point::AfterAck,
        Point::AfterPromote,
    ] {
        let at = point.name();
        let mut tries = 0;
        let wish = loop {
            tries += 1;
            println!("kill at {at}, try {tries}");
            first.arm(point);
            let wish = stage.wish(at);
            let judge = Arc::clone(&stage.judge);
            let died = stage
                .rotate(&wish, came_or_over(|| first.has_crashed(), &judge, &wish))
                .await;
            stage.well(&wish, &second, at).await;
            // It comes back while the other acts, takes in what it missed, and repeats nothing.
            first.kill();
            first = stage.world.relay().await;
            if died {
                break wish;
            }
            // On a machine that stood still for longer than the lease, the other acted already.
            assert!(tries < 3, "{at}: the first relay never got there");
            second = stage.hand_back(second).await;
        };
        second = stage.hand_back(second).await;
        stage.judge.recorded_once(&wish.id, at).await;
        let mut wire = Wire::connect(&first.url).await;
        let outbox = stage.judge.store.outbox(&wish.id).await.unwrap();
        let ids: BTreeSet<String> = outbox.iter().map(|event| event.event_id.clone()).collect();
        eventually("the first relay has the events too", async || {
            (wire.stored(ids.clone()).await == ids).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_was_stopped_at_a_step_and_wakes_up_does_nothing_twice() {
    let points = [
        Point::AfterAdmit,
        Point::AfterReserve,
        Point::AfterSeal,
        Point::AfterPrepare,
        Point::AfterAck,
    ];
    stopped_at_each(&points, |_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_firestore_too_the_commit_of_a_holder_that_wakes_up_is_refused() {
    let store = firestore().await;
    stopped_at_each(&[Point::AfterSeal], |config| config["store"] = store.into()).await;
}

/// The holder stands still at a step, the other relay finishes, and then the holder goes on from where it stood. At [`Point::AfterSeal`] the
/// very next thing it does is the commit of a step that is long over: that it was tried and refused is counted.
async fn stopped_at_each(points: &[Point], tune: impl FnOnce(&mut toml::Table)) {
    let (mut stage, mut first, mut second) = Stage::set(tune).await;
    let file = stage.world.layout.store();
    for &point in points {
        let at = point.name();
        let mut tries = 0..5;
        let (wish, fenced) = loop {
            tries.next().expect("it never stands still at its point");
            println!("stop at {at}");
            let fenced = counter(&first, FENCED, "").await;
            first.arm_stop(point);
            let wish = stage.wish(at);
            let judge = Arc::clone(&stage.judge);
            let stands_still = async {
                let stopped = came_or_over(|| first.is_stopped(), &judge, &wish).await;
                // Another thread of it may be writing the embedded store, which nobody else can then.
                let still = stopped && !is_locked(&file).await;
                if !still {
                    first.go_on();
                }
                still
            };
            let stands_still = stage.rotate(&wish, stands_still).await;
            stage.well(&wish, &second, at).await;
            if stands_still {
                break (wish, fenced);
            }
            // Nobody had to take over, or it was late for that: this shows nothing. Once more.
            first.kill();
            first = stage.world.relay().await;
            second = stage.hand_back(second).await;
        };
        assert!(first.is_stopped(), "control: it has not helped");
        let acts = stage.holder().await;
        assert_eq!(acts, Some(stage.sibling.npub.to_string()), "{at}");
        first.go_on();
        eventually("it knows that another acts", async || {
            (counter(&first, LEASE_HELD, "").await == 0).then_some(())
        })
        .await;
        if point == Point::AfterSeal {
            eventually("its commit was tried and refused", async || {
                (counter(&first, FENCED, "").await > fenced).then_some(())
            })
            .await;
        }
        stage.judge.recorded_once(&wish.id, at).await;
        // It follows, and when it acts again, it repeats nothing.
        second = stage.hand_back(second).await;
        stage.judge.recorded_once(&wish.id, at).await;
    }
    let wish = stage.wish("after all");
    stage.rotate(&wish, async {}).await;
    stage.well(&wish, &second, "after all").await;
}

/// Whether somebody holds the embedded store's lock, and goes on holding it. A store on no disk has none.
async fn is_locked(file: &Path) -> bool {
    if !file.exists() {
        return false;
    }
    let file = file.to_owned();
    let tried = tokio::task::spawn_blocking(move || {
        let db = rusqlite::Connection::open(file).unwrap();
        db.busy_timeout(Duration::from_secs(5)).unwrap();
        db.execute_batch("BEGIN IMMEDIATE; ROLLBACK;").is_err()
    });
    tried.await.unwrap()
}

/// An event of its own, also within a second.
fn event(keys: &Keys, kind: u16, tags: Vec<Tag>, at: Timestamp) -> nostr::Event {
    let content = Keys::generate().public_key().to_hex();
    let builder = EventBuilder::new(Kind::from_u16(kind), content).tags(tags);
    let builder = builder.custom_created_at(at);
    builder.sign_with_keys(keys).unwrap()
}

fn h(group: &str) -> Vec<Tag> {
    vec![Tag::parse(["h", group]).unwrap()]
}

/// Events of the kinds that are mirrored, of people and groups that concern nobody here.
fn strangers(count: usize, at: Timestamp) -> Vec<nostr::Event> {
    let one = |n: usize| {
        let somebody = vec![Tag::public_key(Keys::generate().public_key())];
        let (kind, tags) = match n % 3 {
            0 => (445, h(&"ab".repeat(32))),
            1 => (1059, somebody),
            _ => (40913, Vec::new()),
        };
        event(&Keys::generate(), kind, tags, at)
    };
    (0..count).map(one).collect()
}

async fn send(relay: &Relay, events: &[nostr::Event]) -> BTreeSet<String> {
    let mut wire = Wire::connect(&relay.url).await;
    for event in events {
        wire.send(json!(["EVENT", event])).await;
    }
    for _ in events {
        let (_, accepted, why) = wire.next_ok().await;
        assert!(accepted, "{why}");
    }
    events.iter().map(|event| event.id.to_hex()).collect()
}

/// Waits until something was counted: that comes a moment after what is counted.
async fn counted(relay: &Relay, name: &str, label: &str) {
    eventually(&format!("{name} {label}"), async || {
        (counter(relay, name, label).await > 0).then_some(())
    })
    .await;
}

async fn has_all(relay: &Relay, ids: &BTreeSet<String>) {
    let mut wire = Wire::connect(&relay.url).await;
    eventually("everything is mirrored", async || {
        (wire.stored(ids.clone()).await == *ids).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mirror_catches_up_after_an_outage_of_either() {
    let (stage, first, second) = Stage::set(|_| {}).await;
    let live = send(&first, &strangers(20, Timestamp::now())).await;
    has_all(&second, &live).await;
    second.kill();
    let missed = send(&first, &strangers(40, Timestamp::now())).await;
    let second = stage.sibling.relay().await;
    has_all(&second, &missed).await;
    first.kill();
    let missed = send(&second, &strangers(40, Timestamp::now())).await;
    let first = stage.world.relay().await;
    has_all(&first, &missed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_who_fills_a_second_hides_nothing_from_the_mirror() {
    // More than a relay shows of one second at once.
    const CROWD: usize = 330;
    let (mut stage, first, second) = Stage::set(|_| {}).await;
    let us = PublicKey::from_slice(stage.sibling.npub.as_bytes()).unwrap();
    let alice = stage.world.keys("alice");
    let groups = stage.alice.groups().unwrap();
    let group = groups.into_iter().find(|group| group.id == stage.group);
    let group = group.unwrap().nostr_group_id.to_hex();
    second.kill();
    let crowded = Timestamp::now() - 60;
    // What the other relay has to have lies before, under and behind what strangers have piled up.
    let mut ours = strangers(5, crowded - 1);
    ours.push(event(&alice, 40913, Vec::new(), crowded));
    ours.push(event(&Keys::generate(), 445, h(&group), crowded));
    ours.push(event(
        &Keys::generate(),
        1059,
        vec![Tag::public_key(us)],
        crowded,
    ));
    ours.extend(strangers(5, crowded + 1));
    let ours = send(&first, &ours).await;
    send(&first, &strangers(3 * CROWD, crowded)).await;
    let second = stage.sibling.relay().await;
    has_all(&second, &ours).await;
    counted(&second, MIRROR_SKIPPED, "others").await;
    assert_eq!(counter(&second, MIRROR_SKIPPED, "ours").await, 0);

    // Whoever knows a group's address can fill that, too: then some of it is given up, aloud, and the rest is had.
    second.kill();
    let crowd = (0..CROWD).map(|_| event(&Keys::generate(), 445, h(&group), crowded + 20));
    send(&first, &crowd.collect::<Vec<_>>()).await;
    let behind = send(&first, &strangers(5, crowded + 21)).await;
    let second = stage.sibling.relay().await;
    has_all(&second, &behind).await;
    counted(&second, MIRROR_SKIPPED, "ours").await;
    counted(&second, ALARMS, "mirror.skipped").await;
    // The groups go on.
    let wish = stage.wish("after the flood");
    stage.rotate(&wish, async {}).await;
    stage.well(&wish, &second, "after the flood").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_withdrawn_goes_from_both_relays_and_does_not_come_back() {
    let short = |config: &mut toml::Table| set(config, "outbox", "retention", "1s");
    let (mut stage, first, second) = Stage::set(short).await;
    let wish = stage.wish("to be withdrawn");
    let mut ids = BTreeSet::new();
    let watch = async {};
    stage.rotate(&wish, watch).await;
    let withdrawn = eventually("the store lists it", async || {
        let all = stage
            .judge
            .store
            .withdrawn(&Default::default(), 1000)
            .await
            .unwrap();
        let of_wish = all.into_iter().filter(|e| e.rotation_id == wish.id);
        let found: BTreeSet<String> = of_wish.map(|event| event.event_id).collect();
        (!found.is_empty()).then_some(found)
    })
    .await;
    ids.extend(withdrawn);
    for relay in [&first, &second] {
        let mut wire = Wire::connect(&relay.url).await;
        eventually("it is gone", async || {
            wire.stored(ids.clone()).await.is_empty().then_some(())
        })
        .await;
    }
}

/// Half a secret is enough: the other half may stand on another page.
fn holds(bytes: &[u8], secret: &[u8]) -> bool {
    let (front, back) = secret.split_at(secret.len() / 2);
    let halves = [front, back].into_iter();
    halves
        .flat_map(spellings)
        .any(|needle| contains(bytes, &needle))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_files_and_keys_of_a_standby_open_no_notify_that_it_has_taken_in() {
    let (mut stage, _first, second) = Stage::set(|_| {}).await;
    let root = stage.sibling.root().to_owned();
    let wire = Subscriber::everything(&second.url).await;
    let before = frozen(&second, || Stolen::from_relay(&root));
    let Stage {
        world,
        alice,
        bob,
        group,
        ..
    } = &mut stage;
    let (_, delivered) = world.rotate(alice, bob, group).await;
    let secret = delivered.notify.secret.expose();

    // The control: the standby is a member, and could have read it. That also finds it among all events.
    let candidates = Candidates::of(&before);
    let (notify, trail) = eventually(
        "control: files from before it came open the notify",
        async || {
            let events = wire.events().into_iter();
            let group_events = events.filter(|e| e.kind == Kind::from(445));
            group_events
                .filter_map(|event| match candidates.open(&event) {
                    Reached::Content(opened) => Some((event, opened)),
                    _ => None,
                })
                .find(|(_, opened)| contains(&opened.plaintext, secret.as_bytes()))
                .map(|(event, opened)| (event, opened.trail))
        },
    )
    .await;
    let pages = before.clear_bytes();
    assert!(
        trail.iter().any(|key| holds(&pages, key)),
        "control: the search finds what opens it"
    );
    eventually("the standby has taken it in", async || {
        let now = frozen(&second, || Stolen::from_relay(&root));
        (!matches!(Candidates::of(&now).open(&notify), Reached::Content(_))).then_some(())
    })
    .await;

    second.kill();
    let killed = Stolen::from_relay(&root);
    stage.sibling.relay().await.terminate();
    let ended = Stolen::from_relay(&root);
    for (name, stolen) in [("killed", &killed), ("ended", &ended)] {
        let reached = Candidates::of(stolen).open(&notify);
        assert!(
            matches!(reached, Reached::Sender { leaf, .. } if leaf != stolen.own_leaf()),
            "{name}: {reached:?}"
        );
        let opened = stolen.replay(None, std::slice::from_ref(&notify));
        assert!(
            !opened.iter().any(|text| contains(text, secret.as_bytes())),
            "{name}: OpenMLS opened it"
        );
        let (pages, files) = (stolen.clear_bytes(), stolen.files());
        assert!(
            contains(&pages, b"openmls_group_data"),
            "{name}: open pages"
        );
        for bytes in files.iter().chain([&pages]) {
            assert!(
                !Needles::of(secret).in_bytes(bytes),
                "{name}: the plaintext"
            );
            assert!(
                !trail.iter().any(|key| holds(bytes, key)),
                "{name}: what opens it is left"
            );
        }
    }
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
