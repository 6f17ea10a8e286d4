//! Promotion, withdrawal, and the end of grace.

use keyturn_proto::UnixMs;
use keyturn_proto::notify::Outcome;

use super::World;
use super::fixture::{
    ACK_TIME, DELAY, FENCE, GRACE, NOW, RETENTION, SECOND, THIRD, ack, at, audit, cancel,
    client_id, operation, prepare, reserve, version_id,
};
use super::world::conflict;
use crate::documents::{ActiveRotation, RotationState, VersionState};
use crate::store::{Cancel, StoreError};

super::case_list![
    a_promotion_needs_its_quorum_and_its_time,
    the_old_version_enters_grace_counted_from_the_promotion,
    without_grace_the_old_version_is_retired_at_once,
    a_second_promotion_retires_what_was_in_grace,
    a_cancelled_rotation_leaves_the_old_secret_current,
    a_rotation_expires_only_after_its_deadline_and_never_with_a_quorum,
    a_withdrawal_can_be_fenced,
    what_is_over_stays_over,
    grace_ends_at_its_end_and_not_before,
];

async fn a_promotion_needs_its_quorum_and_its_time(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    let promote = |now| {
        w.store
            .promote(&id, RETENTION, FENCE, now, audit("rotation.promoted", now))
    };
    let before = w.picture().await;
    conflict(promote(at(DELAY)).await, "promote.no_quorum");
    assert_eq!(w.picture().await, before);
    w.acked(&id, 2, at(1)).await;
    let before = w.picture().await;
    conflict(promote(at(DELAY - 1)).await, "promote.too_early");
    assert_eq!(w.picture().await, before);
    let promoted = promote(at(DELAY)).await.unwrap();
    assert_eq!(promoted.outcome, Some(Outcome::Promoted));
    assert_eq!(w.events().await.last().unwrap(), "rotation.promoted");
    let before = w.picture().await;
    assert_eq!(promote(at(DELAY + 9)).await.unwrap(), promoted);
    assert_eq!(w.picture().await, before);
}

async fn the_old_version_enters_grace_counted_from_the_promotion(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    let then = at(DELAY + 4_000);
    w.acked(&id, 2, then).await;
    let client = w.client().await;
    assert_eq!(client.current_version, Some(version_id(2)));
    assert_eq!(client.previous_version, Some(version_id(1)));
    assert_eq!(client.last_rotation_at, Some(then));
    assert_eq!(client.active_rotation, None);
    let old = w.version(version_id(1)).await;
    let end = UnixMs(then.0 + GRACE);
    assert_eq!((old.state, old.not_after), (VersionState::Grace, Some(end)));
    let rotation = w.rotation(&id).await;
    assert_eq!(rotation.state, RotationState::Done);
    assert_eq!(rotation.grace_until, Some(end));
    assert_eq!(rotation.completed_at, Some(then));
    w.check_snapshot().await;
}

async fn without_grace_the_old_version_is_retired_at_once(w: World) {
    w.settle().await;
    let mut command = reserve(&operation(2), NOW);
    command.rotation.grace_duration_ms = 0;
    let active = w.reserved(command).await;
    let prepare = prepare(&active, 2, at(DELAY), NOW);
    let prepared = w.store.prepare(prepare).await.unwrap();
    assert_eq!(prepared.grace_until, None);
    w.acked(&operation(2), 2, at(DELAY)).await;
    assert_eq!(w.state(1).await, VersionState::Retired);
    let client = w.client().await;
    assert_eq!(client.previous_version, None);
    assert_eq!(client.snapshot.len(), 1);
}

async fn a_second_promotion_retires_what_was_in_grace(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    w.promoted(3, then).await;
    assert_eq!(w.state(1).await, VersionState::Retired);
    assert_eq!(w.state(2).await, VersionState::Grace);
    assert_eq!(w.client().await.previous_version, Some(version_id(2)));
    w.check_snapshot().await;
}

async fn a_cancelled_rotation_leaves_the_old_secret_current(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    w.acked(&id, 2, at(1)).await;
    let ended = w
        .store
        .cancel(cancel(&id, Outcome::Canceled, at(2)))
        .await
        .unwrap();
    assert_eq!(ended.outcome, Some(Outcome::Canceled));
    assert_eq!(ended.completed_at, Some(at(2)));
    assert_eq!(w.state(2).await, VersionState::Cancelled);
    let client = w.client().await;
    assert_eq!(client.current_version, Some(version_id(1)));
    assert_eq!(client.active_rotation, None);
    assert_eq!(w.events().await.last().unwrap(), "rotation.ended");
    w.check_snapshot().await;
    let before = w.picture().await;
    let again = w.store.cancel(cancel(&id, Outcome::Canceled, at(3))).await;
    assert_eq!(again.unwrap(), ended);
    assert_eq!(w.picture().await, before);
    // The client is free again.
    w.prepared(3, at(4)).await;
}

async fn a_rotation_expires_only_after_its_deadline_and_never_with_a_quorum(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    let early = cancel(&id, Outcome::Expired, at(ACK_TIME - 1));
    conflict(w.store.cancel(early).await, "expire.too_early");
    let ended = w
        .store
        .cancel(cancel(&id, Outcome::Expired, at(ACK_TIME)))
        .await
        .unwrap();
    assert_eq!(ended.outcome, Some(Outcome::Expired));

    let now = at(ACK_TIME);
    let (id, _) = w.prepared(3, now).await;
    w.acked(&id, 3, now).await;
    let before = w.picture().await;
    let later = cancel(&id, Outcome::Expired, UnixMs(now.0 + ACK_TIME));
    conflict(w.store.cancel(later).await, "rotation.state");
    assert_eq!(w.picture().await, before);
}

async fn a_withdrawal_can_be_fenced(w: World) {
    w.settle().await;
    let (id, active) = w.prepared(2, NOW).await;
    let only_if = |ours: ActiveRotation| Cancel {
        only_if: Some(ours),
        ..cancel(&id, Outcome::Canceled, NOW)
    };
    let before = w.picture().await;
    let stale = ActiveRotation {
        attempt: 2,
        ..active.clone()
    };
    let fenced = w.store.cancel(only_if(stale)).await;
    assert_eq!(fenced, Err(StoreError::Fenced));
    assert_eq!(w.picture().await, before);
    w.store.cancel(only_if(active)).await.unwrap();
}

async fn what_is_over_stays_over(w: World) {
    w.settle().await;
    let (id, active) = w.prepared(2, NOW).await;
    w.store
        .cancel(cancel(&id, Outcome::Canceled, NOW))
        .await
        .unwrap();
    let before = w.picture().await;
    let promoted = w
        .store
        .promote(
            &id,
            RETENTION,
            FENCE,
            at(DELAY),
            audit("rotation.promoted", NOW),
        )
        .await;
    conflict(promoted, "rotation.over");
    let expired = cancel(&id, Outcome::Expired, at(ACK_TIME));
    conflict(w.store.cancel(expired).await, "rotation.over");
    let acked = w.store.record_ack(ack(&id, 2, SECOND, true, NOW)).await;
    assert!(!acked.unwrap().counted);
    let taken = w
        .store
        .take_over(&active, 9, NOW, audit("rotation.taken_over", NOW));
    assert_eq!(taken.await, Err(StoreError::Fenced));
    let third = w.store.record_ack(ack(&id, 2, THIRD, true, NOW)).await;
    assert!(!third.unwrap().promoted);
    assert_eq!(w.picture().await, before);
    let nothing = cancel(&operation(77), Outcome::Canceled, NOW);
    assert_eq!(
        w.store.cancel(nothing).await,
        Err(StoreError::NotFound { what: "rotation" })
    );
}

async fn grace_ends_at_its_end_and_not_before(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    let end = UnixMs(then.0 + GRACE);
    let id = client_id();
    let (old, new) = (version_id(1), version_id(2));
    let retire = |version, now| {
        w.store
            .retire(&id, version, FENCE, now, audit("version.retired", now))
    };
    let before = w.picture().await;
    conflict(retire(&old, UnixMs(end.0 - 1)).await, "retire.too_early");
    conflict(retire(&new, end).await, "retire.not_in_grace");
    assert_eq!(w.picture().await, before);
    let client = retire(&old, end).await.unwrap();
    assert_eq!(client.previous_version, None);
    assert_eq!(client.current_version, Some(new));
    assert_eq!(w.state(1).await, VersionState::Retired);
    assert_eq!(w.events().await.last().unwrap(), "version.retired");
    w.check_snapshot().await;
    let before = w.picture().await;
    assert_eq!(retire(&old, UnixMs(end.0 + 9)).await.unwrap(), client);
    assert_eq!(w.picture().await, before);
}
