//! Who is in a group is proven, not claimed: what a rogue admin, a removed one or a stranger does to a group makes the relay seal nothing in it.
//!
//! Mallory is enrolled, an admin of every group here, and the welcomer the operator named; Bob is an honest member. A request afterwards comes to
//! nothing: no document changes by a byte, and nothing but the request itself reaches the relay in that group.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "groups/branches.rs"]
mod branches;
#[path = "groups/crash.rs"]
mod crash;
#[path = "groups/people.rs"]
mod people;
#[path = "groups/welcomes.rs"]
mod welcomes;

use keyturn_mls::verify_key_package;
use keyturn_proto::notify::NotifyState;
use keyturn_proto::{Action, MlsGroupId, RotationId, kinds};
use keyturn_store::documents::{AdminGroupDoc, GroupState};
use keyturn_store::store::Registry as _;
use keyturn_tests::rogue::{Rogue, found};
use keyturn_tests::trail::counter;
use keyturn_tests::world::{deadline, eventually, now};
use keyturn_tests::{Relay, Trail, World};
use nostr::{Alphabet, Filter, Kind, SingleLetterTag};

const PROGRAM: &str = env!("CARGO_BIN_EXE_keyturn-under-test");

struct Stage {
    world: World,
    trail: Trail,
    relay: Relay,
}

/// A group with a client of its own.
struct Scene {
    alias: String,
    client: String,
    group: MlsGroupId,
}

impl Stage {
    /// The stage, Mallory and Bob.
    async fn new() -> (Self, Rogue, Rogue) {
        let mut world = World::new(PROGRAM, |_| {}).await;
        world.enrol("mallory").await;
        world.enrol("bob").await;
        let relay = world.relay().await;
        let mut stage = Self {
            trail: Trail::of(&world),
            world,
            relay,
        };
        let mallory = stage.person("mallory").await;
        let bob = stage.person("bob").await;
        (stage, mallory, bob)
    }

    /// Somebody with a published key package.
    async fn person(&mut self, name: &str) -> Rogue {
        let mut person = Rogue::open(&mut self.world, name, &self.relay).await;
        person.publish_key_package().await;
        person
    }

    /// A group of a founder, others and the service, bound to `alias`, with a client.
    async fn scene(
        &mut self,
        alias: &str,
        name: &str,
        founder: &mut Rogue,
        others: &mut [&mut Rogue],
    ) -> Scene {
        let group = found(&mut self.world, alias, name, founder, others).await;
        let client = format!("{alias}-svc");
        self.world.client(&client, &[alias]).await;
        Scene {
            alias: alias.to_owned(),
            client,
            group,
        }
    }

    async fn binding(&self, alias: &str) -> AdminGroupDoc {
        let groups = self.trail.store.groups().await.unwrap();
        let found = groups.into_iter().find(|group| group.alias == alias);
        found.unwrap()
    }

    /// Waits for the suspension: in the audit trail, in the registry, and as an alarm.
    async fn suspended(&self, alias: &str, reason: &str) {
        let what = format!("{alias} is suspended for {reason}");
        self.trail
            .wait_for(&what, |record| {
                (record.event.as_str(), record.reason.as_str()) == ("group.suspended", reason)
                    && record.group.as_deref() == Some(alias)
            })
            .await;
        let state = GroupState::Suspended {
            reason: reason.to_owned(),
        };
        assert_eq!(self.binding(alias).await.status, state);
        let label = format!("reason=\"{reason}\"");
        eventually("the alarm is counted", async || {
            let alarms = counter(&self.relay, "keyturn_alarms_total", &label).await;
            (alarms > 0).then_some(())
        })
        .await;
    }

    /// `sender` asks for a rotation, with nothing wrong about the request itself. It is refused for `reason`, and nobody is told or given anything.
    async fn nothing_is_sealed(&self, scene: &Scene, sender: &mut Rogue, reason: &str) {
        sender.ready(&scene.group).await;
        let documents = self.trail.documents();
        let before = events(scene, sender).await;
        let asked = sender
            .ask(&self.world, &scene.group, &scene.client, Action::Rotation)
            .await;
        self.trail
            .refused("request.refused", asked.event, sender, reason)
            .await;
        assert_eq!(self.trail.documents(), documents, "{reason}");
        eventually("the request is stored", async || {
            (events(scene, sender).await > before).then_some(())
        })
        .await;
        assert_eq!(
            events(scene, sender).await,
            before + 1,
            "{reason}: something was sealed"
        );
        sender.hear_waiting().await;
        assert!(!sender.was_answered(asked.event), "{reason}");
    }

    /// `sender` asks, and the secret comes.
    async fn rotates(&self, scene: &Scene, sender: &mut Rogue) -> RotationId {
        let asked = sender
            .ask(&self.world, &scene.group, &scene.client, Action::Rotation)
            .await;
        let answer = sender.answer(asked.event).await;
        assert!(matches!(answer, NotifyState::Accepted { .. }), "{answer:?}");
        sender.secret(&asked.id).await;
        asked.id
    }
}

/// `admin` brings somebody in, who joins; everybody follows.
async fn bring_in(
    scene: &Scene,
    admin: &mut Rogue,
    newcomer: &mut Rogue,
    others: &mut [&mut Rogue],
) {
    let package = newcomer.key_package().addressable;
    let invited = [verify_key_package(&package, now()).unwrap()];
    admin
        .commit(|member, now| member.invite(&scene.group, &invited, now))
        .await;
    newcomer.join(&scene.group).await;
    let epoch = newcomer.epoch(&scene.group);
    admin.ready_at(&scene.group, epoch).await;
    for other in others {
        other.ready_at(&scene.group, epoch).await;
    }
}

/// How many events the relay holds in a group.
async fn events(scene: &Scene, reader: &Rogue) -> usize {
    let info = reader.member.group_info(&scene.group).unwrap();
    let address = info.unwrap().nostr_group_id.to_hex();
    let filter = Filter::new()
        .kind(Kind::from(kinds::GROUP_EVENT))
        .custom_tag(SingleLetterTag::lowercase(Alphabet::H), address);
    let events = reader.relay.fetch_all(&filter, deadline()).await;
    events.unwrap().len()
}
