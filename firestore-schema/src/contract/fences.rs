//! An instance whose lease was taken changes nothing that its successor has changed since.

use keyturn_proto::UnixMs;
use keyturn_proto::notify::Outcome;

use super::World;
use super::fixture::{
    DELAY, FENCE, GRACE, NOW, RETENTION, SECOND, THIRD, ack, at, audit, cancel, client_id,
    operation, prepare, reserve, revoke, rollback, version_id, withdraw,
};
use crate::documents::{ActiveRotation, ClientStatus, VersionState};
use crate::store::{Cancel, RecordAck, Reserve, Reserved, Revoke, Rollback, StoreError};

super::case_list![
    the_highest_fence_of_a_client_is_remembered,
    a_stale_holder_reserves_nothing,
    a_stale_holder_records_no_ack_and_promotes_nothing,
    a_stale_holder_withdraws_nothing,
    a_stale_holder_prepares_nothing,
    a_stale_holder_retires_nothing,
    a_stale_holder_rolls_nothing_back_and_revokes_nothing,
    a_stale_holder_takes_nothing_over,
    a_takeover_fences_the_client_before_anything_else_is_done,
    what_was_done_before_is_still_told_to_a_stale_holder,
    the_operator_needs_no_fence,
];

const SUCCESSOR: u64 = FENCE + 1;

/// The successor has acked for THIRD, which changes the client.
async fn touched(w: &World, n: u32, now: UnixMs) {
    let theirs = RecordAck {
        fence: SUCCESSOR,
        ..ack(&operation(n), n, THIRD, true, now)
    };
    w.store.record_ack(theirs).await.unwrap();
    assert_eq!(w.client().await.fence, SUCCESSOR);
}

async fn the_highest_fence_of_a_client_is_remembered(w: World) {
    w.settle().await;
    assert_eq!(w.client().await.fence, 0);
    w.prepared(2, NOW).await;
    assert_eq!(w.client().await.fence, FENCE);
    touched(&w, 2, at(1)).await;
    let higher = Cancel {
        fence: Some(SUCCESSOR + 5),
        ..cancel(&operation(2), Outcome::Canceled, at(2))
    };
    w.store.cancel(higher).await.unwrap();
    assert_eq!(w.client().await.fence, SUCCESSOR + 5);
}

async fn a_stale_holder_reserves_nothing(w: World) {
    w.settle().await;
    w.prepared(2, NOW).await;
    touched(&w, 2, at(1)).await;
    let ended = Cancel {
        fence: Some(SUCCESSOR),
        ..cancel(&operation(2), Outcome::Canceled, at(2))
    };
    w.store.cancel(ended).await.unwrap();
    let before = w.picture().await;
    let stale = w.store.reserve(reserve(&operation(3), at(3))).await;
    assert_eq!(stale, Err(StoreError::Fenced));
    let emergency = super::fixture::emergency(&operation(3), at(3));
    assert_eq!(w.store.reserve(emergency).await, Err(StoreError::Fenced));
    assert_eq!(w.picture().await, before);
    let mut ours = reserve(&operation(3), at(3));
    ours.rotation.fence = SUCCESSOR;
    w.reserved(ours).await;
}

async fn a_stale_holder_records_no_ack_and_promotes_nothing(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    touched(&w, 2, at(1)).await;
    let before = w.picture().await;
    let stale = w.store.record_ack(ack(&id, 2, SECOND, true, at(2))).await;
    assert_eq!(stale, Err(StoreError::Fenced));
    assert_eq!(w.picture().await, before);
    let ours = RecordAck {
        fence: SUCCESSOR,
        ..ack(&id, 2, SECOND, true, at(2))
    };
    assert!(w.store.record_ack(ours).await.unwrap().counted);
    let promote = |fence| {
        let audit = audit("rotation.promoted", at(DELAY));
        w.store.promote(&id, RETENTION, fence, at(DELAY), audit)
    };
    let before = w.picture().await;
    assert_eq!(promote(FENCE).await, Err(StoreError::Fenced));
    assert_eq!(w.picture().await, before);
    promote(SUCCESSOR).await.unwrap();
}

async fn a_stale_holder_withdraws_nothing(w: World) {
    w.settle().await;
    let (id, active) = w.prepared(2, NOW).await;
    touched(&w, 2, at(1)).await;
    let before = w.picture().await;
    let stale = cancel(&id, Outcome::Canceled, at(2));
    assert_eq!(w.store.cancel(stale).await, Err(StoreError::Fenced));
    let own_attempt = Cancel {
        only_if: Some(active),
        ..cancel(&id, Outcome::Canceled, at(2))
    };
    assert_eq!(w.store.cancel(own_attempt).await, Err(StoreError::Fenced));
    for target in [Some(&id), None] {
        let stale = w.store.withdraw(withdraw(&operation(90), target, at(2)));
        assert_eq!(stale.await, Err(StoreError::Fenced));
    }
    assert_eq!(w.picture().await, before);
}

async fn a_stale_holder_prepares_nothing(w: World) {
    w.settle().await;
    let first = w.promoted(2, NOW).await;
    let active = w.reserved(reserve(&operation(3), first)).await;
    let theirs = Rollback {
        fence: SUCCESSOR,
        ..rollback(&operation(90), first)
    };
    w.store.rollback(theirs).await.unwrap();
    let before = w.picture().await;
    let late = prepare(&active, 3, UnixMs(first.0 + DELAY), first);
    assert_eq!(w.store.prepare(late).await, Err(StoreError::Fenced));
    assert_eq!(w.picture().await, before);
}

async fn a_stale_holder_retires_nothing(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    let mut theirs = reserve(&operation(3), then);
    theirs.rotation.fence = SUCCESSOR;
    w.reserved(theirs).await;
    let end = UnixMs(then.0 + GRACE);
    let retire = |fence| {
        let (client, version) = (client_id(), version_id(1));
        let store = w.store.clone();
        async move {
            let audit = audit("version.retired", end);
            store.retire(&client, &version, fence, end, audit).await
        }
    };
    let before = w.picture().await;
    assert_eq!(retire(FENCE).await, Err(StoreError::Fenced));
    assert_eq!(w.picture().await, before);
    retire(SUCCESSOR).await.unwrap();
    assert_eq!(w.state(1).await, VersionState::Retired);
}

async fn a_stale_holder_rolls_nothing_back_and_revokes_nothing(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    let theirs = Reserve {
        rotation: crate::documents::RotationDoc {
            fence: SUCCESSOR,
            ..reserve(&operation(3), then).rotation
        },
        ..reserve(&operation(3), then)
    };
    w.reserved(theirs).await;
    let before = w.picture().await;
    let back = w.store.rollback(rollback(&operation(90), then)).await;
    assert_eq!(back, Err(StoreError::Fenced));
    let gone = w.store.revoke(revoke(&operation(91), None, then)).await;
    assert_eq!(gone, Err(StoreError::Fenced));
    assert_eq!(w.picture().await, before);
    let ours = Revoke {
        fence: SUCCESSOR,
        ..revoke(&operation(91), None, then)
    };
    w.store.revoke(ours).await.unwrap();
}

/// Neither what the successor holds now nor, with a number of its own, what it has let go.
async fn a_stale_holder_takes_nothing_over(w: World) {
    w.settle().await;
    let (_, active) = w.prepared(2, NOW).await;
    let take_over = |active: ActiveRotation, fence| {
        let store = w.store.clone();
        async move {
            let audit = audit("rotation.taken_over", at(1));
            store.take_over(&active, fence, at(1), audit).await
        }
    };
    // Somebody has acked under the higher number: the rotation itself still bears ours.
    touched(&w, 2, at(1)).await;
    let before = w.picture().await;
    let stale = take_over(active.clone(), FENCE).await;
    assert_eq!(stale, Err(StoreError::Fenced));
    assert_eq!(w.picture().await, before);
    let taken = take_over(active.clone(), SUCCESSOR).await.unwrap();
    let before = w.picture().await;
    for (active, fence) in [(active.clone(), FENCE), (active, SUCCESSOR), (taken, FENCE)] {
        let stale = take_over(active, fence).await;
        assert!(
            stale == Err(StoreError::Fenced) || w.picture().await == before,
            "{stale:?}"
        );
        assert_eq!(w.picture().await, before);
    }
}

/// Whoever takes the lease takes up everything under way: from then on nobody before it can write to any of these clients, whatever it does.
async fn a_takeover_fences_the_client_before_anything_else_is_done(w: World) {
    w.settle().await;
    let (id, active) = w.prepared(2, NOW).await;
    let audit = audit("rotation.taken_over", at(1));
    let taken = w.store.take_over(&active, SUCCESSOR, at(1), audit).await;
    taken.unwrap();
    assert_eq!(w.client().await.fence, SUCCESSOR);
    let before = w.picture().await;
    let stale = cancel(&id, Outcome::Canceled, at(2));
    assert_eq!(w.store.cancel(stale).await, Err(StoreError::Fenced));
    let stale = w.store.revoke(revoke(&operation(91), None, at(2))).await;
    assert_eq!(stale, Err(StoreError::Fenced));
    let stale = prepare(&active, 2, at(DELAY), at(2));
    assert_eq!(w.store.prepare(stale).await, Err(StoreError::Fenced));
    assert_eq!(w.picture().await, before);
}

async fn what_was_done_before_is_still_told_to_a_stale_holder(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    touched(&w, 2, at(1)).await;
    let before = w.picture().await;
    let repeat = w.store.reserve(reserve(&id, at(2))).await.unwrap();
    assert!(matches!(repeat, Reserved::Repeat(_)));
    assert_eq!(w.picture().await, before);
}

async fn the_operator_needs_no_fence(w: World) {
    w.settle().await;
    w.prepared(2, NOW).await;
    touched(&w, 2, at(1)).await;
    let id = client_id();
    let held = w.store.update_client(
        &id,
        Some(ClientStatus::Suspended),
        None,
        None,
        at(2),
        audit("client.suspended", at(2)),
    );
    let client = held.await.unwrap();
    assert_eq!(
        (client.status, client.fence),
        (ClientStatus::Suspended, SUCCESSOR)
    );
}
