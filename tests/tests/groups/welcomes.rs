//! Invitations that the operator did not ask for, and addresses that change.

use std::time::Duration;

use keyturn::operator::groups::{self, Binding};
use keyturn_mls::{GroupChange, NostrGroupId};
use keyturn_proto::Action;
use keyturn_store::documents::{Actor, GroupState};
use keyturn_store::store::Registry as _;
use keyturn_tests::rogue::Rogue;
use keyturn_tests::world::{deadline, now};

use tokio::time::Instant;

use super::{Scene, Stage};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_operator_decides_which_group_is_which() {
    let (mut stage, mut mallory, mut bob) = Stage::new().await;
    a_welcome_that_nobody_expects(&mut stage).await;
    welcomes_for_a_served_group(&mut stage, &mut mallory, &mut bob).await;
    a_changed_address(&mut stage, &mut mallory, &mut bob).await;
    an_alias_that_means_another_group(&mut stage, &mut mallory, &mut bob).await;
}

/// From somebody who is no welcomer of any group, while an alias still waits for its group.
async fn a_welcome_that_nobody_expects(stage: &mut Stage) {
    stage.world.bind("open", "mallory").await;
    let mut sam = stage.person("sam").await;
    let documents = stage.trail.documents();
    let service = sam.key_package_of(&stage.world.service()).await;
    let group = sam.found("open", &[service], &[]).await;
    let record = stage
        .trail
        .wait("welcome.refused", "welcome.not_expected")
        .await;
    assert_eq!(record.actor, Actor::Admin { npub: sam.npub() });
    assert_eq!(record.group, Some(group.to_string()));
    assert_eq!(stage.trail.documents(), documents);
    assert_eq!(stage.binding("open").await.mls_group_id, None);
    // Not a member: nothing renews the leaf that Sam made for it.
    sam.hear_waiting().await;
    assert_eq!(sam.epoch(&group), 1);

    // Out of the way of the groups to come.
    let elsewhere = Binding {
        alias: "open".to_owned(),
        mls_group_id: None,
        nostr_group_id: None,
        welcomers: vec![stage.world.npub("nobody")],
    };
    groups::bind(&stage.trail.store, elsewhere, now())
        .await
        .unwrap();
}

/// A branch that only its maker knows: the service goes out and comes in again, so that a Welcome can be made for a group it is in.
async fn welcome_again(stage: &Stage, scene: &Scene, rogue: &mut Rogue) {
    let service = rogue.key_package_of(&stage.world.service()).await;
    let (group, key) = (&scene.group, service.npub());
    let out = rogue.member.remove(group, &[key], now()).unwrap();
    rogue.member.commit_published(out.event.id, now()).unwrap();
    let back = rogue.member.invite(group, &[service], now()).unwrap();
    rogue.member.commit_published(back.event.id, now()).unwrap();
    rogue.send_welcomes().await;
}

async fn welcomes_for_a_served_group(stage: &mut Stage, mallory: &mut Rogue, bob: &mut Rogue) {
    // Bob is an admin inside the group; whom the operator lets in through is Mallory.
    let scene = stage.scene("wrong", "mallory", mallory, &mut [bob]).await;
    welcome_again(stage, &scene, bob).await;
    let reason = "welcome.by_the_wrong_person";
    stage.suspended(&scene.alias, reason).await;
    let record = stage.trail.wait("welcome.refused", reason).await;
    assert_eq!(record.actor, Actor::Admin { npub: bob.npub() });
    stage
        .nothing_is_sealed(&scene, mallory, "group.suspended")
        .await;
    // The group that was served is the one that is served again.
    groups::approve(&stage.trail.store, &scene.alias, now())
        .await
        .unwrap();
    assert_eq!(
        stage.binding(&scene.alias).await.mls_group_id,
        Some(scene.group.clone())
    );
    stage.rotates(&scene, mallory).await;
    assert!(bob.secrets.is_empty());

    let scene = stage.scene("twice", "mallory", mallory, &mut [bob]).await;
    welcome_again(stage, &scene, mallory).await;
    stage
        .suspended(&scene.alias, "welcome.for_a_served_group")
        .await;
    stage
        .nothing_is_sealed(&scene, bob, "group.suspended")
        .await;
}

async fn a_changed_address(stage: &mut Stage, mallory: &mut Rogue, bob: &mut Rogue) {
    let scene = stage.scene("moved", "mallory", mallory, &mut [bob]).await;
    let address = NostrGroupId::new([0x5a; 32]);
    let change = GroupChange {
        nostr_group_id: Some(address),
        ..GroupChange::default()
    };
    mallory
        .commit(|member, now| member.update_group(&scene.group, change.clone(), now))
        .await;
    stage.suspended(&scene.alias, "group.address_changed").await;
    let epoch = mallory.epoch(&scene.group);
    while bob.epoch(&scene.group) < epoch {
        bob.hear(deadline()).await;
    }

    // Whatever is said at the new address does not concern the relay before the operator says so.
    mallory.member.approve(&scene.group).unwrap();
    bob.member.approve(&scene.group).unwrap();
    let documents = stage.trail.documents();
    let asked = mallory
        .ask(&stage.world, &scene.group, &scene.client, Action::Rotation)
        .await;
    let id = asked.event.to_hex();
    groups::approve(&stage.trail.store, &scene.alias, now())
        .await
        .unwrap();
    let record = stage
        .trail
        .wait("group.readdressed", "group.address_changed")
        .await;
    assert_eq!(record.group.as_ref(), Some(&scene.alias));
    let binding = stage.binding(&scene.alias).await;
    assert_eq!(
        (binding.status, binding.nostr_group_id),
        (GroupState::Active, Some(address.to_hex()))
    );
    let others = |documents: Vec<(String, String, String)>| -> Vec<_> {
        documents
            .into_iter()
            .filter(|(table, key, _)| (table.as_str(), key) != ("group", &scene.alias))
            .collect()
    };
    let records = stage.trail.records().await;
    assert!(
        records
            .iter()
            .all(|record| record.nostr_event.as_ref() != Some(&id))
    );
    assert_eq!(others(stage.trail.documents()), others(documents));

    // Bob listens at the new address, and so does the relay, a moment after it has recorded the approval.
    bob.listen().await;
    let until = deadline();
    loop {
        assert!(Instant::now() < until, "the relay does not listen there");
        let asked = bob
            .ask(&stage.world, &scene.group, &scene.client, Action::Status)
            .await;
        let patience = Instant::now() + Duration::from_secs(3);
        while Instant::now() < patience && !bob.was_answered(asked.event) {
            bob.hear(patience).await;
        }
        if bob.was_answered(asked.event) {
            break;
        }
    }
    stage.rotates(&scene, bob).await;
}

/// The operator gives the name to another group: requests of the first one reach nobody.
async fn an_alias_that_means_another_group(
    stage: &mut Stage,
    mallory: &mut Rogue,
    bob: &mut Rogue,
) {
    let scene = stage.scene("renamed", "mallory", mallory, &mut [bob]).await;
    let binding = Binding {
        alias: scene.alias.clone(),
        mls_group_id: Some("00ff".parse().unwrap()),
        nostr_group_id: Some([0xff; 32]),
        welcomers: vec![mallory.npub()],
    };
    groups::bind(&stage.trail.store, binding, now())
        .await
        .unwrap();
    let documents = stage.trail.documents();
    let asked = mallory
        .ask(&stage.world, &scene.group, &scene.client, Action::Rotation)
        .await;
    stage
        .trail
        .refused("message.dropped", asked.event, mallory, "group.not_bound")
        .await;
    assert_eq!(stage.trail.documents(), documents);
    let client = scene.client.parse().unwrap();
    let versions = stage.trail.store.versions(&client).await.unwrap();
    assert!(versions.is_empty());
    mallory.hear_waiting().await;
    assert!(!mallory.was_answered(asked.event));
}
