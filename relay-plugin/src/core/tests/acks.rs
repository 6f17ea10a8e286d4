//! Acks are proofs.

use keyturn_proto::notify::Outcome;
use keyturn_store::documents::RotationState;

use super::world::World;

#[tokio::test]
async fn the_requesters_own_ack_does_not_complete_the_quorum() {
    let mut world = World::new().await;
    let id = world.rotate();
    let version = world.delivered(&id).await;
    let (group, now) = (world.group.clone(), world.now());
    let ack = world.alice.proven_ack(&group, &version, now);
    world.alice.ack(&group, &ack, now);
    world.wait_audit("ack.recorded", "proven").await;
    assert_eq!(
        world.rotation(&id).await.unwrap().state,
        RotationState::Prepared
    );
    world.bob_acks(&version).await;
    assert_eq!(world.over(&id).await.outcome, Some(Outcome::Promoted));
}

#[tokio::test]
async fn an_ack_without_the_secret_does_not_suffice() {
    let mut world = World::new().await;
    let id = world.rotate();
    let version = world.delivered(&id).await;
    let (group, now) = (world.group.clone(), world.now());
    let mut unproven = world.bob.proven_ack(&group, &version, now);
    unproven.proof = None;
    world.bob.ack(&group, &unproven, now);
    world.wait_audit("ack.recorded", "unproven").await;
    let rotation = world.rotation(&id).await.unwrap();
    assert_eq!(rotation.state, RotationState::Prepared);
    assert!(rotation.quorum.acks.iter().all(|ack| !ack.proven));
    world.bob_acks(&version).await;
    assert_eq!(world.over(&id).await.outcome, Some(Outcome::Promoted));
}

#[tokio::test]
async fn a_copied_or_forged_ack_is_refused_and_audited() {
    let mut world = World::new().await;
    let id = world.rotate();
    let version = world.delivered(&id).await;
    let (group, now) = (world.group.clone(), world.now());
    let alices = world.alice.proven_ack(&group, &version, now);

    // Alice's ack in Bob's mouth; then her proof under his name; then his own proof for another group.
    world.bob.ack(&group, &alices, now);
    world.wait_audit("ack.refused", "ack.not_the_sender").await;
    let mut copied = alices.clone();
    copied.ack_by = world.bob.npub();
    world.bob.ack(&group, &copied, now);
    world.wait_audit("ack.refused", "ack.proof_wrong").await;
    let elsewhere = keyturn_mls::MlsGroupId::from_bytes(b"another group").unwrap();
    let other = world.bob.proven_ack(&elsewhere, &version, now);
    world.bob.ack(&group, &other, now);
    world
        .until("three refusals", async || {
            use keyturn_store::store::AuditTrail;
            let records = world.store.read(None, 1000).await.unwrap();
            records
                .iter()
                .filter(|record| record.event == "ack.refused")
                .count()
                == 3
        })
        .await;
    let rotation = world.rotation(&id).await.unwrap();
    assert!(rotation.quorum.acks.is_empty());
    assert_eq!(world.client().await.current_version, Some(world.first));
}

#[tokio::test]
async fn a_flood_of_worthless_acks_fills_neither_the_group_nor_the_audit_trail() {
    use keyturn_proto::notify::NotifyState;
    use keyturn_store::store::AuditTrail;

    use crate::trail::FIRST;

    const FLOOD: usize = FIRST as usize + 20;
    let mut world = World::new().await;
    let id = world.rotate();
    let version = world.delivered(&id).await;
    let (group, now) = (world.group.clone(), world.now());
    let mut forged = world.alice.proven_ack(&group, &version, now);
    forged.ack_by = world.bob.npub();
    // Not faster than the test's relay hands over: its channel holds 64.
    for sent in 1..=FLOOD {
        world.bob.ack(&group, &forged, now);
        if sent % 30 != 0 {
            continue;
        }
        let seen = sent.min(FIRST as usize);
        world
            .until("the relay keeps up", async || {
                let records = world.store.read(None, 1000).await.unwrap();
                let refused = records.iter().filter(|r| r.event == "ack.refused");
                refused.count() == seen
            })
            .await;
    }
    // What comes after the flood is not lost in it.
    world.bob_acks(&version).await;
    assert_eq!(world.over(&id).await.outcome, Some(Outcome::Promoted));

    let records = world.store.read(None, 1000).await.unwrap();
    let refused = records.iter().filter(|r| r.event == "ack.refused").count();
    assert_eq!(refused, FIRST as usize);
    let now = world.now();
    world.alice.sync(now);
    let refusals =
        |told: &&keyturn_proto::ServiceNotify| matches!(told.body, NotifyState::Refused { .. });
    let told = world.alice.told.iter().filter(refusals).count();
    assert!(told <= crate::core::answers::ACKS as usize, "{told}");
}

/// Nothing makes another instance refuse what bears no mark: so nobody is told that it was refused.
#[tokio::test]
async fn nobody_is_told_of_a_refusal_that_bears_no_mark() {
    use keyturn_proto::Action;
    use keyturn_proto::notify::NotifyState;

    use super::world::{COUNTED, because};

    let mut world = World::new().await;
    let id = world.rotate();
    let version = world.delivered(&id).await;
    let (group, now) = (world.group.clone(), world.now());
    let mut forged = world.alice.proven_ack(&group, &version, now);
    forged.ack_by = world.bob.npub();
    // One that is only counted, one whose record cannot be written, and one that can.
    let counted = world.ask(Action::Rotation, because(COUNTED));
    world.counted.fail("record");
    let before = world.counted.calls("record");
    world.bob.ack(&group, &forged, now);
    world
        .until("it is tried", async || {
            world.counted.calls("record") > before
        })
        .await;
    world.counted.mend();
    world.bob.ack(&group, &forged, now);
    world.wait_audit("ack.refused", "ack.proof_wrong").await;
    world.bob_acks(&version).await;
    assert_eq!(world.over(&id).await.outcome, Some(Outcome::Promoted));
    world
        .until("all three are done with", async || {
            let service = world.core.as_ref().unwrap().service.clone();
            service.inbox(0, 10).await.unwrap().is_empty()
        })
        .await;

    world.alice.sync(world.now());
    let told = world.alice.told.iter();
    let refused: Vec<_> = told
        .filter(|told| matches!(told.body, NotifyState::Refused { .. }))
        .collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_ne!(refused[0].action_id, Some(counted));
}

/// Bob was sealed the secret and has acked; then the operator revokes him.
#[tokio::test]
async fn an_admin_revoked_during_a_rotation_takes_its_secret_along() {
    use keyturn_store::documents::VersionState;

    let mut world = World::new().await;
    let id = world.rotate();
    let version = world.delivered(&id).await;
    let (group, now) = (world.group.clone(), world.now());
    let ack = world.alice.proven_ack(&group, &version, now);
    world.alice.ack(&group, &ack, now);
    world.wait_audit("ack.recorded", "proven").await;

    let bob = world.bob.npub();
    let withdrawn = crate::operator::admins::revoke(&world.store, &bob, world.now());
    let withdrawn = withdrawn.await.unwrap();
    assert_eq!(withdrawn.len(), 1);
    assert_eq!(
        (&withdrawn[0].rotation_id, &withdrawn[0].client_id),
        (&id, &world.client)
    );
    world
        .wait_audit("rotation.canceled", "reader.revoked")
        .await;
    assert_eq!(world.over(&id).await.outcome, Some(Outcome::Canceled));
    assert_eq!(world.client().await.current_version, Some(world.first));
    let versions = world.versions_of(&id).await;
    assert!(versions.iter().all(|v| v.state == VersionState::Cancelled));

    // What Bob still sends is worth nothing.
    let ack = world.bob.proven_ack(&group, &version, world.now());
    world.bob.ack(&group, &ack, world.now());
    world.wait_audit("ack.refused", "admin.revoked").await;
    let again = crate::operator::admins::revoke(&world.store, &bob, world.now());
    assert_eq!(again.await.unwrap(), []);
}

/// The operator's command may die between the revocation and the withdrawal; then the next ack finds out.
#[tokio::test]
async fn a_reader_revoked_behind_our_back_ends_the_rotation_at_the_next_ack() {
    use keyturn_store::store::Registry;

    let mut world = World::new().await;
    let id = world.rotate();
    let version = world.delivered(&id).await;
    let mut alice = world
        .store
        .admin(&world.alice.npub())
        .await
        .unwrap()
        .unwrap();
    alice.active = false;
    let audit = world.entry("admin.revoked");
    world.store.put_admin(alice, audit).await.unwrap();
    world.bob_acks(&version).await;
    assert_eq!(world.over(&id).await.outcome, Some(Outcome::Canceled));
    world
        .wait_audit("rotation.canceled", "reader.revoked")
        .await;
    assert_eq!(world.client().await.current_version, Some(world.first));
}
