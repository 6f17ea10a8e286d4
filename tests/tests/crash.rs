//! Kills the relay at every numbered step and at random moments, starts it again over the same files, and asks what is left
//! (docs: "Crash safety"). The admins know nothing of it: their apps reconnect and repeat what had no answer under the same id.
//!
//! What must hold after every kill: the old secret is current and verifies, or the new one is and an admin has opened it; a rotation never
//! records two versions; what was prepared is delivered; nothing stays under way that recovery should have finished.
// A failed run has to say at which step, and under which seed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

#[path = "crash/actions.rs"]
mod actions;
#[path = "crash/random.rs"]
mod random;
#[path = "crash/rotations.rs"]
mod rotations;

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
