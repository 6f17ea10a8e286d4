//! Deadlines are found again from the store.

use keyturn_proto::UnixMs;

use super::World;
use super::fixture::{
    ACK_TIME, DELAY, FENCE, GRACE, NOW, PROOF_TIME, RETENTION, at, client_id, event_id, operation,
    reserve, version_id,
};
use super::world::conflict;
use crate::store::{Due, StoreError};

super::case_list![
    nothing_is_due_in_an_empty_store,
    a_bare_reservation_is_due_when_its_proof_expires,
    a_prepared_rotation_is_due_at_its_ack_deadline,
    a_quorum_is_due_at_not_before,
    the_end_is_due_until_it_was_announced,
    grace_and_ciphertext_are_due_at_their_ends,
    the_oldest_comes_first_and_the_limit_holds,
];

async fn nothing_is_due_in_an_empty_store(w: World) {
    assert_eq!(w.store.next_due().await.unwrap(), None);
    assert!(w.store.due(UnixMs(u64::MAX), 10).await.unwrap().is_empty());
}

/// Checks that exactly `expected` becomes due at `when`, and not a millisecond before.
async fn due_at(w: &World, when: UnixMs, expected: fn(&Due) -> bool) {
    assert_eq!(w.store.next_due().await.unwrap(), Some(when));
    let early = w.store.due(UnixMs(when.0 - 1), 10).await.unwrap();
    assert!(early.is_empty(), "{early:?}");
    let due = w.store.due(when, 10).await.unwrap();
    assert!(due.len() == 1 && expected(&due[0]), "{due:?}");
}

async fn a_bare_reservation_is_due_when_its_proof_expires(w: World) {
    w.settle().await;
    w.reserved(reserve(&operation(2), NOW)).await;
    due_at(&w, at(PROOF_TIME), |due| {
        matches!(due, Due::StaleReservation(_))
    })
    .await;
}

async fn a_prepared_rotation_is_due_at_its_ack_deadline(w: World) {
    w.settle().await;
    w.prepared(2, NOW).await;
    due_at(&w, at(ACK_TIME), |due| matches!(due, Due::Expire(_))).await;
}

async fn a_quorum_is_due_at_not_before(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    w.acked(&id, 2, at(1)).await;
    due_at(&w, at(DELAY), |due| matches!(due, Due::Promote(_))).await;
}

async fn the_end_is_due_until_it_was_announced(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    conflict(w.store.mark_announced(&id, NOW).await, "rotation.under_way");
    w.acked(&id, 2, at(DELAY)).await;
    due_at(&w, at(DELAY), |due| matches!(due, Due::Announce(_))).await;
    w.store.mark_announced(&id, at(DELAY + 1)).await.unwrap();
    w.store.mark_announced(&id, at(DELAY + 2)).await.unwrap();
    assert_eq!(w.rotation(&id).await.announced_at, Some(at(DELAY + 1)));
    assert!(w.store.due(at(DELAY + 2), 10).await.unwrap().is_empty());
    assert_eq!(
        w.store.mark_announced(&operation(9), NOW).await,
        Err(StoreError::NotFound { what: "rotation" })
    );
}

async fn grace_and_ciphertext_are_due_at_their_ends(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    w.store.mark_announced(&operation(2), then).await.unwrap();
    let end = UnixMs(then.0 + GRACE);
    due_at(&w, end, |due| {
        *due == Due::Retire {
            client_id: client_id(),
            version_id: version_id(1),
        }
    })
    .await;
    let audit = super::fixture::audit("version.retired", end);
    w.store
        .retire(&client_id(), &version_id(1), FENCE, end, audit)
        .await
        .unwrap();
    let kept = UnixMs(then.0 + RETENTION);
    due_at(&w, kept, |due| matches!(due, Due::Purge(_))).await;
    w.store.purge(&[event_id(2)], None, kept).await.unwrap();
    assert_eq!(w.store.next_due().await.unwrap(), None);
}

async fn the_oldest_comes_first_and_the_limit_holds(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    let late = UnixMs(then.0 + RETENTION);
    let all = w.store.due(late, 10).await.unwrap();
    assert!(
        matches!(
            all[..],
            [Due::Announce(_), Due::Retire { .. }, Due::Purge(_)]
        ),
        "{all:?}"
    );
    assert_eq!(w.store.due(late, 1).await.unwrap(), all[..1]);
}
