//! A kill at any step leaves either the old secret current, or the new one current and held by an admin who acked; and the next start finishes
//! what was begun.

use std::time::Duration;

use keyturn_proto::RotationId;
use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_store::documents::RotationState;
use keyturn_store::store::SecretStore;

use super::world::{DEADLINE, GRACE, World};
use crate::crash::{Point, halt};

async fn reached(at: Point, hit: tokio::sync::oneshot::Receiver<()>) {
    match tokio::time::timeout(DEADLINE, hit).await {
        Ok(Ok(())) => {}
        other => panic!("{at:?} was not reached: {other:?}"),
    }
}

/// What must hold at every moment.
async fn invariants(world: &World, id: &RotationId, at: Point) {
    let versions = world.versions_of(id).await;
    assert!(
        versions.len() <= 1,
        "{at:?}: one rotation never records two versions"
    );
    let client = world.client().await;
    if client.current_version != Some(world.first) {
        let rotation = world.rotation(id).await.unwrap();
        assert_eq!(client.current_version, rotation.new_version, "{at:?}");
        assert!(
            rotation.quorum.acks.iter().any(|ack| ack.proven),
            "{at:?}: nobody holds it"
        );
    }
}

async fn finished(world: &mut World, id: &RotationId, at: Point) {
    let version = world.delivered(id).await;
    invariants(world, id, at).await;
    world.opens_as_recorded(&version).await;
    if world.rotation(id).await.unwrap().state != RotationState::Done {
        world.bob_acks(&version).await;
    }
    let ended = world.over(id).await;
    assert_eq!(ended.outcome, Some(Outcome::Promoted), "{at:?}");
    assert_eq!(
        world.client().await.current_version,
        Some(version),
        "{at:?}"
    );
    invariants(world, id, at).await;
    let sealed = world.store.outbox(id).await.unwrap();
    assert!(!sealed.is_empty(), "{at:?}");
    assert!(
        sealed.iter().all(|event| world.is_out(event)),
        "{at:?}: nothing prepared is left undelivered"
    );
    let now = world.now();
    world.alice.sync(now);
    let done = |body: &NotifyState| {
        matches!(
            body,
            NotifyState::Done {
                outcome: Outcome::Promoted,
                ..
            }
        )
    };
    assert!(
        world.alice.told.iter().any(|told| done(&told.body)),
        "{at:?}: told in the end"
    );
    let service = &world.core.as_ref().unwrap().service;
    world
        .until("the inbox is empty", async || {
            service.inbox(0, 10).await.unwrap().is_empty()
        })
        .await;
}

#[tokio::test]
async fn a_kill_at_every_step_before_the_ack_loses_nothing_and_doubles_nothing() {
    for at in [
        Point::AfterInbox,
        Point::AfterAdmit,
        Point::AfterReserve,
        Point::AfterSeal,
        Point::AfterPrepare,
        Point::AfterOnePublish,
        Point::AfterPublish,
    ] {
        let mut world = World::new().await;
        let hit = halt::at(at);
        let id = world.rotate();
        reached(at, hit).await;
        world.kill().await;
        invariants(&world, &id, at).await;
        assert_eq!(
            world.client().await.current_version,
            Some(world.first),
            "{at:?}"
        );
        world.start().await;
        finished(&mut world, &id, at).await;
    }
}

#[tokio::test]
async fn a_kill_around_the_promotion_promotes_once_and_the_admins_hear_of_it() {
    for at in [Point::AfterAck, Point::AfterPromote] {
        let mut world = World::new().await;
        let id = world.rotate();
        let version = world.delivered(&id).await;
        let hit = halt::at(at);
        world.bob_acks(&version).await;
        reached(at, hit).await;
        world.kill().await;
        invariants(&world, &id, at).await;
        world.start().await;
        finished(&mut world, &id, at).await;
    }
}

#[tokio::test]
async fn a_kill_after_a_timed_promotion_still_tells_the_admins() {
    let mut world = World::new().await;
    let params = keyturn_proto::Params {
        not_before: Some(world.now().plus(Duration::from_secs(600))),
        ..super::world::because("later")
    };
    let id = world.ask(keyturn_proto::Action::Rotation, params);
    let version = world.delivered(&id).await;
    world.bob_acks(&version).await;
    world
        .until("quorum", async || {
            world.rotation(&id).await.unwrap().state == RotationState::QuorumMet
        })
        .await;
    let hit = halt::at(Point::AfterPromote);
    world.clock.forward(Duration::from_secs(601));
    reached(Point::AfterPromote, hit).await;
    world.kill().await;
    world.start().await;
    finished(&mut world, &id, Point::AfterPromote).await;
}

#[tokio::test]
async fn a_kill_after_retirement_leaves_it_retired() {
    let mut world = World::new().await;
    let id = world.rotate();
    let version = world.delivered(&id).await;
    world.bob_acks(&version).await;
    world.over(&id).await;
    let hit = halt::at(Point::AfterRetire);
    world.clock.forward(GRACE + Duration::from_secs(1));
    reached(Point::AfterRetire, hit).await;
    world.kill().await;
    world.start().await;
    let client = world.client().await;
    assert_eq!(
        (client.current_version, client.previous_version),
        (Some(version), None)
    );
}

#[tokio::test]
async fn a_reservation_older_than_its_proof_is_cancelled_at_the_start() {
    let mut world = World::new().await;
    let hit = halt::at(Point::AfterReserve);
    let id = world.rotate();
    reached(Point::AfterReserve, hit).await;
    world.kill().await;
    world.clock.forward(Duration::from_secs(301));
    world.start().await;
    assert_eq!(world.over(&id).await.outcome, Some(Outcome::Canceled));
    assert!(world.versions_of(&id).await.is_empty());
    assert_eq!(world.client().await.active_rotation, None);
}

#[tokio::test]
async fn a_requester_revoked_while_we_were_away_gets_nothing() {
    use keyturn_store::store::Registry;
    let mut world = World::new().await;
    let hit = halt::at(Point::AfterReserve);
    let id = world.rotate();
    reached(Point::AfterReserve, hit).await;
    world.kill().await;
    let mut alice = world
        .store
        .admin(&world.alice.npub())
        .await
        .unwrap()
        .unwrap();
    alice.active = false;
    world
        .store
        .put_admin(alice, world.entry("admin.revoked"))
        .await
        .unwrap();
    world.start().await;
    world
        .until("cancelled", async || {
            world.rotation(&id).await.unwrap().outcome == Some(Outcome::Canceled)
        })
        .await;
    assert!(world.versions_of(&id).await.is_empty());
}

#[tokio::test]
async fn what_was_said_while_we_were_away_is_taken_in_at_the_start() {
    let mut world = World::new().await;
    world.kill().await;
    let id = world.rotate();
    assert_eq!(world.rotation(&id).await, None);
    world.start().await;
    finished(&mut world, &id, Point::AfterInbox).await;
}

#[tokio::test]
async fn while_another_instance_holds_the_lease_nothing_is_done() {
    let mut world = World::new().await;
    world.kill().await;
    world
        .clock
        .forward(world.settings.lease + Duration::from_secs(1));
    let other = Duration::from_secs(60);
    let lease = crate::rotation::Settings::LEASE;
    let held = world
        .store
        .lease(lease, "another", other.as_millis() as u64, world.now())
        .await;
    let theirs = held.unwrap();
    world.start().await;
    let id = world.rotate();
    let service = world.core.as_ref().unwrap().service.clone();
    world
        .until("the request is opened and kept", async || {
            service.inbox(0, 10).await.unwrap().len() == 1
        })
        .await;
    assert!(!world.core.as_ref().unwrap().engine.acts(), "it stands by");
    assert_eq!(world.rotation(&id).await, None);

    world.clock.forward(other);
    finished(&mut world, &id, Point::AfterInbox).await;
    assert!(world.rotation(&id).await.unwrap().fence > theirs.fence);
}

/// Its proof has expired by then, and the old secret is gone with the reservation: there has to be a new one.
#[tokio::test]
async fn an_emergency_that_waited_for_the_store_brings_a_new_secret() {
    let mut world = World::new().await;
    world.counted.fail("reserve");
    let before = world.counted.calls("reserve");
    let id = world.ask(
        keyturn_proto::Action::Emergency,
        super::world::because("leaked"),
    );
    world
        .until("it was tried", async || {
            world.counted.calls("reserve") > before
        })
        .await;
    world.kill().await;
    world.counted.mend();
    world.clock.forward(Duration::from_secs(400));
    world.start().await;
    let version = world.delivered(&id).await;
    world.bob_acks(&version).await;
    world.over(&id).await;
    assert_eq!(world.client().await.current_version, Some(version));
}

/// A revocation that was asked for an hour ago would hit the secret of today.
#[tokio::test]
async fn what_waited_too_long_is_refused_and_what_was_granted_goes_on() {
    use crate::core::standby::OLDEST;
    use keyturn_proto::{Action, ErrorClass};

    let mut world = World::new().await;
    let hit = halt::at(Point::AfterReserve);
    let granted = world.rotate();
    reached(Point::AfterReserve, hit).await;
    world.kill().await;
    // Nobody can write to the store, so nothing is decided.
    world.counted.fail("burn_nonce");
    world.counted.fail("record");
    world.start().await;
    world.delivered(&granted).await;
    world.ask(Action::Revoke, super::world::because("leaked"));
    let service = world.core.as_ref().unwrap().service.clone();
    world
        .until("it waits", async || {
            service.inbox(0, 10).await.unwrap().len() == 1
        })
        .await;
    // It keeps the member's database open.
    drop(service);
    world.kill().await;
    world.counted.mend();
    world.clock.forward(OLDEST + Duration::from_secs(1));
    world.start().await;
    world
        .wait_audit("request.refused", "request.waited_too_long")
        .await;
    super::actions::told(&mut world, |body| {
        matches!(
            body,
            NotifyState::Refused {
                error: ErrorClass::InternalError,
                ..
            }
        )
    })
    .await;
    assert_eq!(world.client().await.current_version, Some(world.first));
}
