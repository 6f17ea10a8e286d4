//! Whom a rogue admin brings in, and who should not be there any more.

use keyturn::operator::{admins, groups};
use keyturn_proto::Action;
use keyturn_store::documents::{Actor, ClientScope};
use keyturn_tests::rogue::Rogue;
use keyturn_tests::world::{eventually, now};

use super::{Scene, Stage, bring_in};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sealed_while_somebody_is_not_proven_to_be_an_admin_of_the_client() {
    let (mut stage, mut mallory, mut bob) = Stage::new().await;
    a_stranger(&mut stage, &mut mallory, &mut bob).await;
    a_leaf_under_somebody_elses_npub(&mut stage, &mut mallory, &mut bob).await;
    an_admin_of_other_clients(&mut stage, &mut mallory, &mut bob).await;
    an_admin_whom_the_operator_has_revoked(&mut stage, &mut mallory, &mut bob).await;
}

async fn a_stranger(stage: &mut Stage, mallory: &mut Rogue, bob: &mut Rogue) {
    let scene = stage.scene("strange", "mallory", mallory, &mut [bob]).await;
    let mut sam = stage.person("sam").await;
    bring_in(&scene, mallory, &mut sam, &mut [bob]).await;
    stage.suspended(&scene.alias, "admin.not_enrolled").await;
    whose_leaf(stage, "admin.not_enrolled", &sam).await;
    stage
        .nothing_is_sealed(&scene, mallory, "group.suspended")
        .await;
    stage
        .nothing_is_sealed(&scene, bob, "group.suspended")
        .await;
    stage
        .nothing_is_sealed(&scene, &mut sam, "admin.not_enrolled")
        .await;

    // An operator who approves without looking does not make a stranger a reader.
    approve(stage, &scene).await;
    stage
        .nothing_is_sealed(&scene, bob, "admin.not_enrolled")
        .await;
    stage
        .trail
        .wait("roster.refused", "admin.not_enrolled")
        .await;

    // Without him the group works again, and what is sealed from then on is not for him.
    let gone = [sam.public_key()];
    bob.commit(|member, now| member.remove(&scene.group, &gone, now))
        .await;
    stage.rotates(&scene, bob).await;
    sam.hear_waiting().await;
    assert!(sam.secrets.is_empty());
}

/// The key package that Mallory adds bears Alice's npub and Mallory's friend's key; Alice has signed no event that carries it.
async fn a_leaf_under_somebody_elses_npub(stage: &mut Stage, mallory: &mut Rogue, bob: &mut Rogue) {
    let scene = stage.scene("posing", "mallory", mallory, &mut [bob]).await;
    stage.world.enrol("alice").await;
    drop(stage.person("alice").await);
    let mut not_alice = Rogue::posing_as(&mut stage.world, "alice", &stage.relay).await;
    bring_in(&scene, mallory, &mut not_alice, &mut [bob]).await;
    stage.suspended(&scene.alias, "admin.key_not_proven").await;
    whose_leaf(stage, "admin.key_not_proven", &not_alice).await;
    stage
        .nothing_is_sealed(&scene, bob, "group.suspended")
        .await;
    stage
        .nothing_is_sealed(&scene, &mut not_alice, "admin.key_not_proven")
        .await;
    approve(stage, &scene).await;
    stage
        .nothing_is_sealed(&scene, bob, "admin.key_not_proven")
        .await;
    stage
        .nothing_is_sealed(&scene, &mut not_alice, "admin.key_not_proven")
        .await;
    assert!(not_alice.secrets.is_empty());
}

async fn an_admin_of_other_clients(stage: &mut Stage, mallory: &mut Rogue, bob: &mut Rogue) {
    let scene = stage.scene("scoped", "mallory", mallory, &mut [bob]).await;
    stage.world.enrol("carol").await;
    let mut carol = stage.person("carol").await;
    stage
        .trail
        .change_admin(&carol.npub(), |enrolled| {
            enrolled.scope = ClientScope::Only(vec!["strange-svc".parse().unwrap()]);
        })
        .await;
    bring_in(&scene, mallory, &mut carol, &mut [bob]).await;
    for sender in [&mut carol, bob] {
        stage
            .nothing_is_sealed(&scene, sender, "admin.out_of_scope")
            .await;
    }
    let record = stage
        .trail
        .wait("roster.refused", "admin.out_of_scope")
        .await;
    assert_eq!(record.actor, Actor::Admin { npub: carol.npub() });
}

async fn an_admin_whom_the_operator_has_revoked(
    stage: &mut Stage,
    mallory: &mut Rogue,
    bob: &mut Rogue,
) {
    stage.world.enrol("dave").await;
    let mut dave = stage.person("dave").await;
    let scene = stage
        .scene("revoked", "mallory", mallory, &mut [bob, &mut dave])
        .await;
    let id = stage.rotates(&scene, &mut dave).await;
    dave.ask(&stage.world, &scene.group, &scene.client, Action::Cancel)
        .await;
    dave.over(&id).await;
    eventually("the end is announced", async || {
        stage.trail.rotation(&id).await.announced_at
    })
    .await;

    admins::revoke(&stage.trail.store, &dave.npub(), now())
        .await
        .unwrap();
    for sender in [&mut dave, mallory] {
        stage
            .nothing_is_sealed(&scene, sender, "admin.revoked")
            .await;
    }
}

async fn approve(stage: &Stage, scene: &Scene) {
    groups::approve(&stage.trail.store, &scene.alias, now())
        .await
        .unwrap();
}

/// The audit trail names the npub on the leaf.
async fn whose_leaf(stage: &Stage, reason: &str, who: &Rogue) {
    let record = stage.trail.wait("roster.stranger", reason).await;
    assert_eq!(record.actor, Actor::Admin { npub: who.npub() });
}
