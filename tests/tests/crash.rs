//! Kills the relay at every numbered step and at random moments, starts it again over the same files, and asks what is left
//! (docs: "Crash safety"). The admins know nothing of it: their apps reconnect and repeat what had no answer under the same id.
//!
//! What must hold after every kill: the old secret is current and verifies, or the new one is and an admin has opened it; a rotation never
//! records two versions; what was prepared is delivered; nothing stays under way that recovery should have finished.
// A failed run has to say at which step, and under which seed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keyturn::crash::Point;
use keyturn_admin::{AdminSession, NewGroup};
use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_proto::{Action, MlsGroupId, Params, VersionId};
use keyturn_store::documents::{ClientStatus, RotationState, VersionState};
use keyturn_store::verifier::Which;
use keyturn_tests::steady::{self, Wish, carry_through, crashed, done, insist};
use keyturn_tests::verdict::{Held, Judge};
use keyturn_tests::wire::Wire;
use keyturn_tests::world::{CLIENT, deadline, epoch, now, reason};
use keyturn_tests::{Relay, World, eventually};
use serde_json::json;
use tokio::join;

const PROGRAM: &str = env!("CARGO_BIN_EXE_keyturn-under-test");
/// In how many rotations the relay is killed at random moments, twice each.
const RANDOM_ROUNDS: u32 = 6;

fn policy(config: &mut toml::Table, key: &str, value: impl Into<toml::Value>) {
    let policy = config["policy"].as_table_mut().unwrap();
    policy.insert(key.to_owned(), value.into());
}

/// Many rotations of one client within a minute.
fn unlimited(config: &mut toml::Table) {
    policy(config, "client_requests_per_hour", 100_000);
    policy(config, "admin_requests_per_hour", 100_000);
}

/// A world in which a first full rotation has been: there is an old secret, and an admin holds it.
struct Stage {
    world: World,
    judge: Judge,
    held: Held,
    alice: AdminSession,
    bob: AdminSession,
    group: MlsGroupId,
    current: VersionId,
}

impl Stage {
    async fn set() -> (Self, Relay) {
        let mut world = World::new(PROGRAM, unlimited).await;
        let (relay, mut alice, mut bob, group) = world.with_group().await;
        let (_, first) = world.rotate(&mut alice, &mut bob, &group).await;
        let held = Held::default();
        held.note(&first);
        let stage = Self {
            judge: Judge::of(&world, CLIENT),
            current: first.notify.header.version_id,
            world,
            held,
            alice,
            bob,
            group,
        };
        (stage, relay)
    }

    fn rotation(&self, params: Params) -> Wish {
        Wish::new(Action::Rotation, &self.group, params)
    }

    /// What must hold while the relay is dead, and then the relay again.
    async fn after_death(&self, wish: &Wish, at: &str) -> Relay {
        let Self {
            judge,
            held,
            current,
            ..
        } = self;
        judge.consistent(*current, &wish.id, held, at).await;
        self.world.relay().await
    }

    /// The rotation has ended well although the relay died; a repeat reports the same.
    async fn well(&mut self, relay: &Relay, wish: &Wish, at: &str) {
        let mut wire = Wire::connect(&relay.url).await;
        let old = self.current;
        let judge = &self.judge;
        let new = judge
            .promoted(&mut wire, old, &wish.id, &self.held, at)
            .await;
        let repeated = insist(self.world.issuer.signer(), &mut self.alice, wish).await;
        assert!(
            matches!(
                repeated.answer.body,
                NotifyState::Done { outcome: Outcome::Promoted, current_version: Some(current), .. } if current == new
            ),
            "{at}: {:?}",
            repeated.answer
        );
        judge.consistent(old, &wish.id, &self.held, at).await;
        self.current = new;
    }

    /// A whole rotation while the relay dies at `point` and comes back.
    async fn rotate_through(&mut self, mut relay: Relay, wish: &Wish, point: Point) -> Relay {
        let at = point.name();
        relay.arm(point);
        let Self {
            world,
            judge,
            held,
            alice,
            bob,
            current,
            ..
        } = self;
        let admins = carry_through(world.issuer.signer(), alice, bob, wish, held);
        let operator = async {
            crashed(relay).await;
            judge.consistent(*current, &wish.id, held, at).await;
            world.relay().await
        };
        let (_, relay) = join!(admins, operator);
        self.well(&relay, wish, at).await;
        relay
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_survives_a_kill_at_every_step() {
    let (mut stage, mut relay) = Stage::set().await;
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
        println!("kill at {}", point.name());
        let wish = stage.rotation(reason(point.name()));
        relay = stage.rotate_through(relay, &wish, point).await;
    }
    // Nobody dies in this one.
    let wish = stage.rotation(reason("nobody dies"));
    let (signer, held) = (stage.world.issuer.signer(), &stage.held);
    carry_through(signer, &mut stage.alice, &mut stage.bob, &wish, held).await;
    stage.well(&relay, &wish, "after all").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_that_dies_one_step_further_each_time_ends_well() {
    let (mut stage, mut relay) = Stage::set().await;
    let wish = stage.rotation(reason("again and again"));
    relay.arm(Point::AfterReserve);
    let Stage {
        world,
        judge,
        held,
        alice,
        bob,
        current,
        ..
    } = &mut stage;
    let admins = carry_through(world.issuer.signer(), alice, bob, &wish, held);
    let operator = async {
        crashed(relay).await;
        // With one group, what comes after its one event is delivered leaves nothing to a recovery: its relay holds everything.
        for point in [
            Point::AfterSeal,
            Point::AfterPrepare,
            Point::AfterOnePublish,
        ] {
            let at = format!("recovery, {}", point.name());
            println!("{at}");
            match world.try_relay(Some(point)).await {
                Ok(relay) => crashed(relay).await,
                Err(status) => assert_eq!(status.signal(), Some(9), "{at}: {status}"),
            }
            judge.consistent(*current, &wish.id, held, &at).await;
        }
        world.relay().await
    };
    let (_, relay) = join!(admins, operator);
    stage.well(&relay, &wish, "at last").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_survives_a_kill_around_the_times_that_it_waits_for() {
    let (mut stage, mut relay) = Stage::set().await;

    // Promoted by the clock, and killed before anybody was told; then the grace of the first secret ends: retired, and killed again.
    let later = |seconds| Params {
        not_before: Some(now().plus(Duration::from_secs(seconds))),
        grace_duration_ms: Some(1_000),
        ..reason("not before")
    };
    let wish = stage.rotation(later(5));
    relay.arm(Point::AfterPromote);
    let Stage {
        world,
        judge,
        held,
        alice,
        bob,
        current,
        ..
    } = &mut stage;
    let admins = carry_through(world.issuer.signer(), alice, bob, &wish, held);
    let operator = async {
        crashed(relay).await;
        judge.consistent(*current, &wish.id, held, "promoted").await;
        // Armed from its start on, so that it cannot miss the moment; it may come before the relay is ready.
        if let Ok(relay) = world.try_relay(Some(Point::AfterRetire)).await {
            crashed(relay).await;
        }
        judge.consistent(*current, &wish.id, held, "retired").await;
        world.relay().await
    };
    let (_, relay) = join!(admins, operator);
    let retired = stage.current;
    stage.well(&relay, &wish, "promoted and retired").await;
    let versions = stage.judge.store.versions(&wish.client).await.unwrap();
    let old = versions
        .iter()
        .find(|version| version.version_id == retired);
    assert_eq!(old.unwrap().state, VersionState::Retired);
    assert_eq!(stage.judge.client().await.previous_version, None);

    // Killed while the quorum waits for its time, and away when the time comes.
    let wish = stage.rotation(later(20));
    let proof = stage.world.issuer.signer();
    insist(proof, &mut stage.alice, &wish).await;
    for admin in [&mut stage.alice, &mut stage.bob] {
        let opened = steady::open(admin, &wish.id, &stage.held).await;
        steady::ack(admin, &opened).await;
    }
    let waiting = eventually("the quorum is met", async || {
        let rotation = stage.judge.rotation(&wish.id).await?;
        (rotation.state == RotationState::QuorumMet).then_some(rotation)
    })
    .await;
    relay.kill();
    let old = stage.held.secret(stage.current);
    let verified = stage.judge.verify(&old).await;
    assert_eq!(verified, Some((stage.current, Which::Current)));
    eventually("its time comes", async || {
        (now() >= waiting.not_before).then_some(())
    })
    .await;
    let relay = stage.after_death(&wish, "quorum met").await;
    done(&mut stage.alice, &wish.id).await;
    stage.well(&relay, &wish, "quorum met").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_that_runs_out_of_time_while_the_relay_is_dead_expires_at_its_start() {
    let (mut stage, relay) = Stage::set().await;
    relay.terminate();
    stage
        .world
        .configure(|config| policy(config, "ack_deadline", "10s"));
    let relay = stage.world.try_relay(Some(Point::AfterPublish)).await;
    let wish = stage.rotation(reason("too late"));
    let (world, judge) = (&stage.world, &stage.judge);
    let operator = async {
        crashed(relay.unwrap()).await;
        let prepared = judge.rotation(&wish.id).await.unwrap();
        assert_eq!(prepared.state, RotationState::Prepared);
        eventually("the deadline passes", async || {
            (now() >= prepared.ack_deadline).then_some(())
        })
        .await;
        world.configure(|config| policy(config, "ack_deadline", "30m"));
        world.relay().await
    };
    let asked = insist(world.issuer.signer(), &mut stage.alice, &wish);
    let (reply, relay) = join!(asked, operator);
    assert!(
        matches!(
            reply.answer.body,
            NotifyState::Done {
                outcome: Outcome::Expired,
                ..
            }
        ),
        "{:?}",
        reply.answer
    );
    let over = eventually("it is over", async || {
        let rotation = stage.judge.rotation(&wish.id).await?;
        (rotation.state == RotationState::Done).then_some(rotation)
    })
    .await;
    assert_eq!(over.outcome, Some(Outcome::Expired));
    let versions = stage.judge.versions_of(&wish.id).await;
    assert_eq!(versions.len(), 1);
    assert_eq!(versions[0].state, VersionState::Cancelled);
    let client = stage.judge.client().await;
    assert_eq!(client.active_rotation, None);
    let old = stage.held.secret(stage.current);
    let verified = stage.judge.verify(&old).await;
    assert_eq!(verified, Some((stage.current, Which::Current)));

    let wish = stage.rotation(reason("in time"));
    let (signer, held) = (stage.world.issuer.signer(), &stage.held);
    carry_through(signer, &mut stage.alice, &mut stage.bob, &wish, held).await;
    stage.well(&relay, &wish, "after an expired one").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_revoke_and_emergency_survive_a_kill() {
    let (mut stage, mut relay) = Stage::set().await;
    let points = [Point::AfterInbox, Point::AfterAdmit, Point::AfterAction];

    for point in points {
        let at = format!("rollback, {}", point.name());
        println!("{at}");
        let first = stage.current;
        let wish = stage.rotation(reason("to be rolled back"));
        let (signer, held) = (stage.world.issuer.signer(), &stage.held);
        carry_through(signer, &mut stage.alice, &mut stage.bob, &wish, held).await;
        stage.well(&relay, &wish, &at).await;
        let second = stage.current;

        relay.arm(point);
        let undo = Wish::new(Action::Rollback, &stage.group, reason("it breaks things"));
        let signer = stage.world.issuer.signer();
        let operator = async {
            crashed(relay).await;
            let current = stage.judge.client().await.current_version.unwrap();
            assert!([first, second].contains(&current), "{at}");
            let verified = stage.judge.verify(&stage.held.secret(current)).await;
            assert_eq!(verified, Some((current, Which::Current)), "{at}");
            stage.world.relay().await
        };
        let (reply, again) = join!(insist(signer, &mut stage.bob, &undo), operator);
        relay = again;
        let repeated = insist(signer, &mut stage.bob, &undo).await;
        for answer in [&reply.answer.body, &repeated.answer.body] {
            assert!(
                matches!(answer, NotifyState::Done { outcome: Outcome::RolledBack, current_version: Some(current), .. } if *current == first),
                "{at}: {answer:?}"
            );
        }
        let judge = &stage.judge;
        let records = judge.audited(&undo.id, "rotation.rolled_back").await;
        assert_eq!(records.len(), 1, "{at}: {records:?}");
        let verified = judge.verify(&stage.held.secret(first)).await;
        assert_eq!(verified, Some((first, Which::Current)), "{at}");
        let refused = judge.verify(&stage.held.secret(second)).await;
        assert_eq!(refused, None, "{at}");
        stage.current = first;
    }

    for point in points {
        let at = format!("revoke, {}", point.name());
        println!("{at}");
        relay.arm(point);
        let gone = stage.current;
        let all = Wish::new(Action::Revoke, &stage.group, reason("leaked"));
        let signer = stage.world.issuer.signer();
        let operator = async {
            crashed(relay).await;
            stage.world.relay().await
        };
        let (reply, again) = join!(insist(signer, &mut stage.bob, &all), operator);
        relay = again;
        assert!(
            matches!(
                reply.answer.body,
                NotifyState::Done {
                    outcome: Outcome::Revoked,
                    current_version: None,
                    ..
                }
            ),
            "{at}: {:?}",
            reply.answer
        );
        let judge = &stage.judge;
        assert_eq!(judge.client().await.status, ClientStatus::Suspended, "{at}");
        assert_eq!(judge.verify(&stage.held.secret(gone)).await, None, "{at}");

        // A rotation brings it back.
        let wish = stage.rotation(reason("after a revocation"));
        let (signer, held) = (stage.world.issuer.signer(), &stage.held);
        carry_through(signer, &mut stage.alice, &mut stage.bob, &wish, held).await;
        let new = judge.client().await.current_version.unwrap();
        let verified = judge.verify(&held.secret(new)).await;
        assert_eq!(verified, Some((new, Which::Current)), "{at}");
        stage.current = new;
    }

    for point in [Point::AfterReserve, Point::AfterPrepare] {
        let at = format!("emergency, {}", point.name());
        println!("{at}");
        relay.arm(point);
        let gone = stage.current;
        let wish = Wish::new(Action::Emergency, &stage.group, reason("leaked"));
        let (signer, held) = (stage.world.issuer.signer(), &stage.held);
        let judge = &stage.judge;
        let operator = async {
            crashed(relay).await;
            judge.recorded_once(&wish.id, &at).await;
            // Dead from the reservation on, whatever becomes of the rotation.
            assert_eq!(judge.verify(&held.secret(gone)).await, None, "{at}");
            stage.world.relay().await
        };
        let admins = carry_through(signer, &mut stage.alice, &mut stage.bob, &wish, held);
        let (_, again) = join!(admins, operator);
        relay = again;
        let mut wire = Wire::connect(&relay.url).await;
        let new = judge.promoted(&mut wire, gone, &wish.id, held, &at).await;
        assert_eq!(judge.verify(&held.secret(gone)).await, None, "{at}");
        stage.current = new;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joining_a_group_survives_a_kill_at_every_step() {
    let mut world = World::new(PROGRAM, unlimited).await;
    world.enrol("alice").await;
    world.enrol("bob").await;
    let mut relay = world.relay().await;
    let mut alice = world.admin("alice", &relay).await;
    let mut bob = world.admin("bob", &relay).await;
    alice.publish_key_package(deadline()).await.unwrap();
    bob.publish_key_package(deadline()).await.unwrap();
    let held = Held::default();
    for point in [
        Point::AfterWelcome,
        Point::AfterBind,
        Point::AfterLeafStaged,
        Point::AfterLeafPublished,
    ] {
        let at = point.name();
        println!("kill at {at}");
        let client = format!("client-{}", at.replace('_', "-"));
        world.bind(at, "alice").await;
        world.client(&client, &[at]).await;
        relay.arm(point);
        let founding = found(&world, at, &mut alice, &mut bob);
        let operator = async {
            crashed(relay).await;
            world.relay().await
        };
        let (group, again) = join!(founding, operator);
        relay = again;

        let judge = Judge::of(&world, &client);
        let groups = judge.store.groups().await.unwrap();
        let bound = groups.iter().find(|group| group.alias == at).unwrap();
        assert_eq!(bound.mls_group_id.as_ref(), Some(&group), "{at}");
        let mut wire = Wire::connect(&relay.url).await;
        let wraps = json!({ "kinds": [1059], "#p": [world.service().to_hex()], "limit": 100 });
        eventually("the Welcome was deleted", async || {
            wire.find(wraps.clone()).await.is_empty().then_some(())
        })
        .await;

        let wish = Wish {
            client: client.parse().unwrap(),
            ..Wish::new(Action::Rotation, &group, reason(at))
        };
        let signer = world.issuer.signer();
        carry_through(signer, &mut alice, &mut bob, &wish, &held).await;
        let version = judge.client().await.current_version.unwrap();
        judge
            .promoted(&mut wire, version, &wish.id, &held, at)
            .await;
    }
}

/// Alice founds a group of herself, bob and the service; both have followed the service's self-update when this returns.
async fn found(
    world: &World,
    name: &str,
    alice: &mut AdminSession,
    bob: &mut AdminSession,
) -> MlsGroupId {
    let new = NewGroup {
        name: name.to_owned(),
        admins: vec![bob.npub()],
        members: vec![world.service()],
    };
    // The Welcome goes out with the next sync if the relay dies before it has stored it.
    if let Err(error) = alice.create_group(new, deadline()).await {
        assert!(steady::group_passes(&error), "{error}");
    }
    let group = alice.find_group(Some(name)).unwrap();
    // Epoch 1 is the creation; bob and the service renew their leaves.
    eventually("everybody joined and renewed their leaf", async || {
        for session in [&mut *alice, &mut *bob] {
            steady::listen(session).await;
        }
        (epoch(alice, &group) >= 3 && epoch(bob, &group) >= 3).then_some(())
    })
    .await;
    group
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_survives_kills_at_random_moments() {
    let (mut stage, mut relay) = Stage::set().await;
    let began = tokio::time::Instant::now();
    let wish = stage.rotation(reason("how long it takes"));
    let (signer, held) = (stage.world.issuer.signer(), &stage.held);
    carry_through(signer, &mut stage.alice, &mut stage.bob, &wish, held).await;
    let usual = began.elapsed();
    stage.well(&relay, &wish, "undisturbed").await;

    let seed = std::env::var("KEYTURN_TEST_SEED").map_or_else(
        |_| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            since.as_secs() ^ u64::from(since.subsec_nanos()) << 32
        },
        |seed| seed.parse().unwrap(),
    );
    println!("KEYTURN_TEST_SEED={seed}; one rotation takes {usual:?}");
    let mut random = SplitMix(seed);
    for round in 0..RANDOM_ROUNDS {
        let delays = [(); 2].map(|()| usual.mul_f64(random.fraction()));
        let at = format!("seed {seed}, round {round}, killed after {delays:?}");
        println!("{at}");
        let wish = stage.rotation(reason("random"));
        let Stage {
            world,
            judge,
            held,
            alice,
            bob,
            current,
            ..
        } = &mut stage;
        let admins = carry_through(world.issuer.signer(), alice, bob, &wish, held);
        let operator = async {
            for delay in delays {
                tokio::time::sleep(delay).await;
                relay.kill();
                judge.consistent(*current, &wish.id, held, &at).await;
                relay = world.relay().await;
            }
            relay
        };
        let (_, again) = join!(admins, operator);
        relay = again;
        stage.well(&relay, &wish, &at).await;
    }
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014: enough to choose moments, and a seed repeats them.
struct SplitMix(u64);

impl SplitMix {
    /// Evenly in 0 … 1.
    fn fraction(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        f64::from((mixed >> 32) as u32) / f64::from(u32::MAX)
    }
}
