//! Bad input over the real relay: requests inside MLS, events of strangers, sizes, states, limits, noise; and what devices, or whoever speaks in their name, should not
//! send.
//!
//! Each case asserts the class that the sender is told (or the silence where the group may not hear of the client), the one audit record with
//! its reason, and that no client, rotation or version document has changed by a byte.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "bad_input/devices.rs"]
mod devices;
#[path = "bad_input/limits.rs"]
mod limits;
#[path = "bad_input/noise.rs"]
mod noise;
#[path = "bad_input/scenarios.rs"]
mod scenarios;
#[path = "bad_input/states.rs"]
mod states;

use keyturn_proto::{ErrorClass, MlsGroupId};
use keyturn_tests::rogue::{Rogue, found};
use keyturn_tests::world::{CLIENT, GROUP};
use keyturn_tests::{Relay, Trail, World};
use nostr::EventId;

const PROGRAM: &str = env!("CARGO_BIN_EXE_keyturn-under-test");

/// Alice and Bob, enrolled and proven, in the group `ops` of one client.
struct Table {
    world: World,
    trail: Trail,
    alice: Rogue,
    bob: Rogue,
    group: MlsGroupId,
    relay: Relay,
}

impl Table {
    async fn new(tune: impl FnOnce(&mut toml::Table)) -> Self {
        let mut world = World::new(PROGRAM, tune).await;
        world.enrol("alice").await;
        world.enrol("bob").await;
        let relay = world.relay().await;
        let mut alice = Rogue::open(&mut world, "alice", &relay).await;
        let mut bob = Rogue::open(&mut world, "bob", &relay).await;
        alice.publish_key_package().await;
        bob.publish_key_package().await;
        let group = found(&mut world, GROUP, "alice", &mut alice, &mut [&mut bob]).await;
        world.client(CLIENT, &[GROUP]).await;
        Self {
            trail: Trail::of(&world),
            world,
            alice,
            bob,
            group,
            relay,
        }
    }
}

/// A request was refused: told so, and recorded.
async fn refused(
    trail: &Trail,
    sender: &mut Rogue,
    event: EventId,
    class: ErrorClass,
    reason: &str,
) {
    trail
        .refused("request.refused", event, sender, reason)
        .await;
    assert_eq!(sender.refusal(event).await, class, "{reason}");
}
