//! The whole way, and what happens when the relay does not play along.

use std::collections::BTreeMap;
use std::time::Duration;

use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_proto::{Action, Params, UnixMs};
use keyturn_store::documents::{RotationState, VersionState};
use keyturn_store::store::{AuditTrail as _, Registry, SecretStore};

use super::relay::Mood;
use super::world::{GRACE, World, because};
use crate::delivery::port::RelayPort;
use crate::rotation::ports::Clock;

#[tokio::test]
async fn a_rotation_goes_all_the_way_and_the_old_secret_retires() {
    let mut world = World::new().await;
    let id = world.rotate();
    let version = world.delivered(&id).await;
    assert_eq!(world.client().await.current_version, Some(world.first));
    world.opens_as_recorded(&version).await;

    world.bob_acks(&version).await;
    let ended = world.over(&id).await;
    assert_eq!(ended.outcome, Some(Outcome::Promoted));
    let client = world.client().await;
    assert_eq!(client.current_version, Some(version));
    assert_eq!(client.previous_version, Some(world.first));

    let now = world.now();
    world.alice.sync(now);
    let done: Vec<_> = world.alice.told.iter().filter(|told| {
        told.action_id.as_ref() == Some(&id)
            && matches!(told.body, NotifyState::Done { outcome: Outcome::Promoted, grace_until, .. } if grace_until == ended.grace_until)
    }).collect();
    assert_eq!(
        done.len(),
        1,
        "told once that it is promoted, with the final grace_until"
    );
    assert!(ended.grace_until.is_some());

    world.clock.forward(GRACE + Duration::from_secs(1));
    world
        .until("the old version retires", async || {
            world.client().await.previous_version.is_none()
        })
        .await;
    let versions = world.store.versions(&world.client).await.unwrap();
    let old = versions
        .iter()
        .find(|v| v.version_id == world.first)
        .unwrap();
    assert_eq!(old.state, VersionState::Retired);
}

#[tokio::test]
async fn request_to_promoted_with_a_quorum_of_one_takes_four_commits() {
    let mut world = World::new().await;
    // The group's own record of how it came about, the last thing before the first request.
    world
        .until("the commit of the joining is recorded", async || {
            let records = world.store.read(None, usize::MAX).await.unwrap();
            records
                .iter()
                .any(|record| record.event == "group.commit_followed")
        })
        .await;
    let _before = world.counted.take();
    let id = world.rotate();
    let version = world.delivered(&id).await;
    world.bob_acks(&version).await;
    world.over(&id).await;
    let mut commits = world.counted.take();
    // Afterwards, when the admins were told.
    assert_eq!(commits.remove("mark_announced"), Some(1));
    let expected = ["burn_nonce", "reserve", "prepare", "record_ack"].map(|step| (step, 1));
    assert_eq!(commits, BTreeMap::from(expected));
}

#[tokio::test]
async fn ciphertext_past_its_retention_is_not_published_again_by_a_start() {
    let mut world = World::new().await;
    let id = world.rotate();
    let version = world.delivered(&id).await;
    world.bob_acks(&version).await;
    world.over(&id).await;
    let sealed = world.store.outbox(&id).await.unwrap();
    // Killed in the middle of the purge: deleted from the relay, still in the outbox.
    world.kill().await;
    world
        .clock
        .forward(world.settings.retention + Duration::from_secs(1));
    let ids = sealed.iter().map(|event| event.event_id.parse().unwrap());
    world.relay.delete(ids.collect()).await.unwrap();
    let deleted = world.relay.deleted().len();
    world.start().await;
    world
        .until("the outbox is empty", async || {
            world.store.outbox(&id).await.unwrap().is_empty()
        })
        .await;
    assert_eq!(world.relay.deleted().len(), deleted, "nothing came back");
}

#[tokio::test]
async fn a_start_brings_back_what_its_relay_does_not_hold() {
    let mut world = World::new().await;
    let waits = world.rotate();
    world.delivered(&waits).await;
    world.kill().await;
    let sealed = world.store.outbox(&waits).await.unwrap();
    let ids = sealed.iter().map(|event| event.event_id.parse().unwrap());
    world.relay.delete(ids.collect()).await.unwrap();
    world.start().await;
    world
        .until("it is published again", async || {
            sealed.iter().all(|event| world.is_out(event))
        })
        .await;
    assert_eq!(world.store.outbox(&waits).await.unwrap(), sealed);
    assert_eq!(world.versions_of(&waits).await.len(), 1);
}

#[tokio::test]
async fn ciphertext_is_deleted_after_its_retention() {
    let mut world = World::new().await;
    let id = world.rotate();
    let version = world.delivered(&id).await;
    let sealed = world.store.outbox(&id).await.unwrap();
    world.bob_acks(&version).await;
    world.over(&id).await;
    let stored = |world: &World| {
        let ids: Vec<String> = world.relay.events().iter().map(|e| e.id.to_hex()).collect();
        sealed.iter().all(|event| ids.contains(&event.event_id))
    };
    assert!(stored(&world), "before the retention is over it stays");
    world
        .clock
        .forward(world.settings.retention + Duration::from_secs(1));
    world
        .until("the outbox is empty", async || {
            world.store.outbox(&id).await.unwrap().is_empty()
        })
        .await;
    assert!(!stored(&world), "and the relay has forgotten it as well");
}

#[tokio::test]
async fn promotion_waits_for_not_before() {
    let mut world = World::new().await;
    let not_before = world.now().plus(Duration::from_secs(600));
    let params = Params {
        not_before: Some(not_before),
        ..because("later")
    };
    let id = world.ask(Action::Rotation, params);
    let version = world.delivered(&id).await;
    world.bob_acks(&version).await;
    world
        .until("the quorum is met", async || {
            world.rotation(&id).await.unwrap().state == RotationState::QuorumMet
        })
        .await;
    assert_eq!(world.client().await.current_version, Some(world.first));
    world.clock.forward(Duration::from_secs(601));
    let ended = world.over(&id).await;
    assert_eq!(ended.outcome, Some(Outcome::Promoted));
    assert!(ended.completed_at.unwrap() >= not_before);
}

#[tokio::test]
async fn without_a_quorum_it_expires_and_the_old_secret_stays() {
    let mut world = World::new().await;
    let id = world.rotate();
    world.delivered(&id).await;
    world
        .clock
        .forward(world.settings.ack_deadline + Duration::from_secs(1));
    let ended = world.over(&id).await;
    assert_eq!(ended.outcome, Some(Outcome::Expired));
    let client = world.client().await;
    assert_eq!(
        (client.current_version, client.active_rotation),
        (Some(world.first), None)
    );
}

#[tokio::test]
async fn a_silent_relay_delays_delivery_and_loses_nothing() {
    for mood in [Mood::Silent, Mood::Forgetful, Mood::StoresInSilence] {
        let mut world = World::new().await;
        world.relay.set_mood(mood);
        let id = world.rotate();
        world
            .until("it is prepared", async || {
                world
                    .rotation(&id)
                    .await
                    .is_some_and(|r| r.state == RotationState::Prepared)
            })
            .await;
        let version = world.rotation(&id).await.unwrap().new_version.unwrap();
        world.relay.set_mood(Mood::Well);
        assert_eq!(
            world.delivered(&id).await,
            version,
            "{mood:?}: the same version is delivered"
        );
        assert_eq!(world.versions_of(&id).await.len(), 1);
    }
}

#[tokio::test]
async fn a_repeat_reports_the_first_result_and_other_content_is_a_conflict() {
    let mut world = World::new().await;
    let id = world.rotate();
    let version = world.delivered(&id).await;
    let (group, client, now) = (world.group.clone(), world.client.clone(), world.now());
    world
        .alice
        .ask_as(&group, &id, &client, Action::Rotation, because("test"), now);
    world.alice.ask_as(
        &group,
        &id,
        &client,
        Action::Rotation,
        because("another reason"),
        now,
    );
    world
        .wait_audit("request.refused", "request.id_reused")
        .await;
    assert_eq!(world.versions_of(&id).await.len(), 1);
    assert_eq!(
        world.rotation(&id).await.unwrap().new_version,
        Some(version)
    );
    let other = world.rotate();
    world.wait_audit("request.refused", "rotation.active").await;
    assert_eq!(world.rotation(&other).await, None);
}

#[tokio::test]
async fn a_panic_ends_one_request_and_not_the_loop() {
    let mut world = World::new().await;
    world.ask(Action::Rotation, because("panic"));
    world.wait_audit("request.failed", "internal.panic").await;
    let id = world.rotate();
    world.delivered(&id).await;
}

#[tokio::test]
async fn events_in_reverse_order_are_worked_off_all_the_same() {
    let mut world = World::new().await;
    let group = world.group.clone();
    world.relay.gather();
    // A commit and a request in the epoch after it, in one write batch.
    world.alice.renew_leaf(&group, world.clock.now());
    let id = world.rotate();
    world.relay.flush_reversed(world.now().0);
    world.bob.sync(world.clock.now());
    world.delivered(&id).await;
}

#[tokio::test]
async fn a_quorum_that_nobody_could_meet_is_refused() {
    let mut world = World::with(|settings| settings.quorum = 2).await;
    let id = world.rotate();
    world
        .wait_audit("request.refused", "policy.quorum_unreachable")
        .await;
    assert_eq!(world.rotation(&id).await, None);
    let _: UnixMs = world.clock.now();
}

#[tokio::test]
async fn an_answer_waits_for_the_relay_to_come_back() {
    use keyturn_store::store::AuditTrail;
    let mut world = World::new().await;
    let id = world.rotate();
    let version = world.delivered(&id).await;
    world.relay.set_mood(Mood::Silent);
    world.bob_acks(&version).await;
    world.wait_audit("rotation.promoted", "").await;
    assert_eq!(world.rotation(&id).await.unwrap().announced_at, None);
    world.relay.set_mood(Mood::Well);
    world.over(&id).await;
    let bob = world.bob.npub();
    super::actions::told(&mut world, |body| {
        matches!(body, NotifyState::Acked { proven: true, .. })
    })
    .await;
    let records = world.store.read(None, 1000).await.unwrap();
    let acks = records.iter().filter(|r| {
        r.event == "ack.recorded" && r.actor == keyturn_store::documents::Actor::Admin { npub: bob }
    });
    assert_eq!(acks.count(), 1);
}

#[tokio::test]
async fn a_key_service_that_is_away_is_told_as_the_refusal_and_then_as_the_end() {
    use std::sync::atomic::Ordering;

    let mut world = World::new().await;
    world.mac_of_core.away.store(true, Ordering::SeqCst);
    let id = world.rotate();
    let ended = world.over(&id).await;
    assert_eq!(ended.outcome, Some(Outcome::Canceled));
    let now = world.now();
    world.alice.sync(now);
    let told = world.alice.told.iter();
    let told: Vec<_> = told
        .filter(|told| told.action_id.as_ref() == Some(&id))
        .map(|told| (told.in_reply_to.is_some(), &told.body))
        .collect();
    // The requester's answer says why, and comes before what everybody is told.
    assert!(
        matches!(
            told[..],
            [
                (
                    true,
                    NotifyState::Refused {
                        error: keyturn_proto::ErrorClass::InternalError,
                        ..
                    }
                ),
                (
                    false,
                    NotifyState::Done {
                        outcome: Outcome::Canceled,
                        ..
                    }
                )
            ]
        ),
        "{told:?}"
    );
    assert_eq!(world.client().await.active_rotation, None);
    world.mac_of_core.away.store(false, Ordering::SeqCst);
    let id = world.rotate();
    world.delivered(&id).await;
}
