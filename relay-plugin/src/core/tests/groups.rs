//! Who is in the group is proven, not claimed.

use keyturn_mls::{GroupSpec, verify_key_package};
use keyturn_proto::notify::NotifyState;
use keyturn_proto::{Action, kinds};
use keyturn_store::documents::{
    AdminGroupDoc, ClientScope, ClientStatus, GroupState, VersionState,
};
use keyturn_store::store::{Registry, SecretStore};
use nostr::Kind;

use super::admin::{Admin, RELAY};
use super::relay::Mood;
use super::world::{World, because};

fn sealed_so_far(world: &World) -> usize {
    let group_events = |event: &&nostr::Event| event.kind == Kind::Custom(kinds::GROUP_EVENT);
    world.relay.events().iter().filter(group_events).count()
}

/// Alice brings somebody in.
fn invite(world: &mut World, newcomer: &mut Admin) {
    let (group, now) = (world.group.clone(), world.now());
    let package = newcomer.publish_key_package(now);
    let invited = [verify_key_package(&package, now).unwrap()];
    let staged = world.alice.member.invite(&group, &invited, now).unwrap();
    world.alice.publish_commit(&staged, now);
    world.bob.sync(now);
}

#[tokio::test]
async fn nothing_is_sealed_for_a_stranger() {
    let mut world = World::new().await;
    let mut mallory = Admin::new(&world.relay);
    invite(&mut world, &mut mallory);
    world
        .wait_audit("group.suspended", "admin.not_enrolled")
        .await;
    let before = sealed_so_far(&world);
    let id = world.rotate();
    world.wait_audit("request.refused", "group.suspended").await;
    assert_eq!(world.rotation(&id).await, None);
    assert_eq!(
        sealed_so_far(&world),
        before + 1,
        "nothing but the request itself"
    );
    // The operator lifting the suspension does not make a stranger a reader.
    let lifted = world.entry("group.approved");
    world
        .store
        .set_group_state("ops", GroupState::Active, world.now(), lifted)
        .await
        .unwrap();
    world.rotate();
    world
        .wait_audit("roster.refused", "admin.not_enrolled")
        .await;
    assert_eq!(sealed_so_far(&world), before + 2);
}

#[tokio::test]
async fn an_emergency_revokes_even_while_a_stranger_keeps_anything_from_being_sealed() {
    let mut world = World::new().await;
    let mut mallory = Admin::new(&world.relay);
    invite(&mut world, &mut mallory);
    world
        .wait_audit("group.suspended", "admin.not_enrolled")
        .await;
    let lifted = world.entry("group.approved");
    world
        .store
        .set_group_state("ops", GroupState::Active, world.now(), lifted)
        .await
        .unwrap();
    world.ask(Action::Emergency, because("leaked"));
    world.wait_audit("emergency.reserved", "leaked").await;
    let versions = world.store.versions(&world.client).await.unwrap();
    assert!(
        versions.iter().all(|v| v.state == VersionState::Retired),
        "{versions:?}"
    );
    assert_eq!(world.client().await.status, ClientStatus::Suspended);
    world
        .wait_audit("roster.refused", "admin.not_enrolled")
        .await;
}

#[tokio::test]
async fn an_enrolled_newcomer_reads_what_is_sealed_afterwards() {
    let mut world = World::new().await;
    let mut carol = Admin::new(&world.relay);
    world.enrol_admin(carol.npub(), ClientScope::All).await;
    invite(&mut world, &mut carol);
    world.caught_up().await;
    let id = world.rotate();
    world.delivered(&id).await;
    assert!(
        world
            .rotation(&id)
            .await
            .unwrap()
            .readers
            .contains(&carol.npub())
    );
}

#[tokio::test]
async fn a_member_whose_scope_ends_elsewhere_stops_the_sealing() {
    let mut world = World::new().await;
    let scope = ClientScope::Only(vec!["another".parse().unwrap()]);
    let mut bob = world.store.admin(&world.bob.npub()).await.unwrap().unwrap();
    bob.scope = scope;
    world
        .store
        .put_admin(bob, world.entry("admin.changed"))
        .await
        .unwrap();
    let before = sealed_so_far(&world);
    let id = world.rotate();
    world
        .wait_audit("roster.refused", "admin.out_of_scope")
        .await;
    assert_eq!(world.rotation(&id).await, None);
    assert_eq!(sealed_so_far(&world), before + 1);
}

#[tokio::test]
async fn a_leaf_under_somebody_elses_npub_gets_nothing() {
    let mut world = World::new().await;
    // Carol is enrolled; the leaf in the group bears her npub and a key that nothing she signed carries any more.
    let mut carol = Admin::new(&world.relay);
    world.enrol_admin(carol.npub(), ClientScope::All).await;
    let (group, now) = (world.group.clone(), world.now());
    let package = {
        let events = carol
            .member
            .publish_key_package(&["ws://x".to_owned()], now)
            .unwrap();
        events.addressable
    };
    let invited = [verify_key_package(&package, now).unwrap()];
    let staged = world.alice.member.invite(&group, &invited, now).unwrap();
    world.alice.publish_commit(&staged, now);
    world
        .wait_audit("group.suspended", "admin.key_not_proven")
        .await;
}

#[tokio::test]
async fn a_changed_address_suspends_the_group() {
    let mut world = World::new().await;
    let (group, now) = (world.group.clone(), world.now());
    let change = keyturn_mls::GroupChange {
        nostr_group_id: Some(keyturn_mls::NostrGroupId::new([9; 32])),
        ..Default::default()
    };
    let staged = world
        .alice
        .member
        .update_group(&group, change, now)
        .unwrap();
    world.alice.publish_commit(&staged, now);
    world
        .wait_audit("group.suspended", "group.address_changed")
        .await;
    let refused = world.rotate();
    world.wait_audit("request.refused", "group.suspended").await;
    assert_eq!(world.rotation(&refused).await, None);

    // Once the operator and the other admin have approved it, the group is served under its new address.
    let approved = world.entry("group.approved");
    world
        .store
        .set_group_state("ops", GroupState::Active, world.now(), approved)
        .await
        .unwrap();
    world
        .wait_audit("group.readdressed", "group.address_changed")
        .await;
    world.bob.sync(world.now());
    world.bob.member.approve(&group).unwrap();
    let bound = world.store.groups().await.unwrap()[0]
        .nostr_group_id
        .clone();
    assert_eq!(bound, Some("09".repeat(32)));
    let id = world.rotate();
    world.delivered(&id).await;
}

#[tokio::test]
async fn somebody_removed_between_sealing_and_publishing_gets_nothing() {
    let mut world = World::new().await;
    let mut carol = Admin::new(&world.relay);
    world.enrol_admin(carol.npub(), ClientScope::All).await;
    invite(&mut world, &mut carol);
    world.caught_up().await;

    world.relay.set_mood(Mood::Silent);
    let id = world.rotate();
    world
        .until("prepared", async || {
            world
                .rotation(&id)
                .await
                .is_some_and(|r| r.new_version.is_some())
        })
        .await;
    let void = world.rotation(&id).await.unwrap().new_version.unwrap();
    let sealed = world.store.outbox(&id).await.unwrap();
    let (group, now) = (world.group.clone(), world.now());
    let staged = world
        .alice
        .member
        .remove(&group, &[carol.keys.public_key()], now)
        .unwrap();
    world.alice.publish_commit(&staged, now);
    world.caught_up().await;
    world.relay.set_mood(Mood::Well);

    let version = world.delivered(&id).await;
    assert_ne!(version, void);
    let versions = world.versions_of(&id).await;
    assert_eq!(
        versions.len(),
        1,
        "the void version is not recorded any more"
    );
    assert!(
        !world
            .rotation(&id)
            .await
            .unwrap()
            .readers
            .contains(&carol.npub())
    );
    let published: Vec<String> = world.relay.events().iter().map(|e| e.id.to_hex()).collect();
    assert!(
        sealed
            .iter()
            .all(|event| !published.contains(&event.event_id))
    );
}

#[tokio::test]
async fn the_welcome_is_deleted_and_only_the_named_welcomer_gets_us_in() {
    let mut world = World::new().await;
    let wraps = world.relay.deleted();
    assert!(
        !wraps.is_empty(),
        "the gift wrap and the used key package are gone from the relay"
    );
    let service = world.service_keys.public_key();
    let package = world
        .wait_event(|e| e.kind == Kind::Custom(kinds::KEY_PACKAGE) && e.pubkey == service)
        .await;
    let mut mallory = Admin::new(&world.relay);
    let now = world.now();
    let spec = keyturn_mls::GroupSpec {
        name: "ops".to_owned(),
        description: String::new(),
        admins: [mallory.keys.public_key()].into(),
        relays: ["ws://127.0.0.1:1".to_owned()].into(),
        nostr_group_id: None,
    };
    let invited = [verify_key_package(&package, now).unwrap()];
    let created = mallory.member.create_group(spec, &invited, now).unwrap();
    for welcome in created.welcomes {
        world.relay.admin_sends(welcome.event, now.0);
    }
    world
        .wait_audit("welcome.refused", "welcome.not_expected")
        .await;
    assert_eq!(
        world.store.groups().await.unwrap()[0].mls_group_id,
        Some(world.group.clone())
    );
    let id = world.rotate();
    world.delivered(&id).await;
}

#[tokio::test]
async fn what_a_removed_admin_still_sends_is_dropped() {
    let mut world = World::new().await;
    let (group, client, now) = (world.group.clone(), world.client.clone(), world.now());
    // Bob seals in the epoch that Alice ends by removing him; the relay hands his message over afterwards.
    world.relay.gather();
    let id = world.bob.ask(
        &group,
        &client,
        keyturn_proto::Action::Rotation,
        super::world::because("late"),
        now,
    );
    let staged = world
        .alice
        .member
        .remove(&group, &[world.bob.keys.public_key()], now)
        .unwrap();
    world.alice.publish_commit(&staged, now);
    world.relay.flush_reversed(now.0);
    world
        .wait_audit("message.dropped", "sender.left_group")
        .await;
    assert_eq!(world.rotation(&id).await, None);
}

/// A mirror may bring a Welcome together with what was said since; and a relay hands over nothing of a group whose address it does not know.
#[tokio::test]
async fn what_was_said_before_the_welcome_was_taken_in_is_heard_after_it() {
    let mut world = World::new().await;
    let bound = AdminGroupDoc {
        alias: "later".to_owned(),
        mls_group_id: None,
        nostr_group_id: None,
        welcomers: vec![world.alice.npub()],
        status: GroupState::Active,
        updated_at: world.now(),
    };
    let audit = world.entry("group.added");
    world.store.put_group(bound, audit).await.unwrap();
    let now = world.now();
    let service = world.service_keys.public_key();
    let packages =
        world.relay.events().into_iter().filter(|event| {
            event.kind == Kind::Custom(kinds::KEY_PACKAGE) && event.pubkey == service
        });
    let package = packages.last().unwrap();
    let spec = GroupSpec {
        name: "later".to_owned(),
        description: String::new(),
        admins: [world.alice.keys.public_key()].into(),
        relays: [RELAY.to_owned()].into(),
        nostr_group_id: None,
    };
    let invited = [verify_key_package(&package, now).unwrap()];
    let created = world
        .alice
        .member
        .create_group(spec, &invited, now)
        .unwrap();
    let group = created.group.id;
    // Alice's leaf changes, and only then the Welcome arrives.
    let commit = world.alice.member.self_update(&group, now).unwrap();
    world.relay.stores_unheard(commit.event.clone());
    world
        .alice
        .member
        .commit_published(commit.event.id, now)
        .unwrap();
    world.alice.member.settle(now).unwrap();
    let epoch = world
        .alice
        .member
        .group_info(&group)
        .unwrap()
        .unwrap()
        .epoch;
    for welcome in created.welcomes {
        world.relay.admin_sends(welcome.event, now.0);
    }
    // It renews its leaf on top of what Alice has said: whoever missed that would do so in an epoch that is over, and Alice could not follow.
    let deadline = tokio::time::Instant::now() + super::world::DEADLINE;
    loop {
        let now = world.now();
        world.alice.sync(now);
        let info = world.alice.member.group_info(&group).unwrap().unwrap();
        if info.epoch > epoch {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "not followed");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    // And they understand each other: it opens what she asks, and she its answer.
    let (client, now) = (world.client.clone(), world.now());
    world
        .alice
        .ask(&group, &client, Action::Status, because(""), now);
    super::actions::told(&mut world, |body| {
        matches!(body, NotifyState::Refused { .. })
    })
    .await;
}
