//! The outbox: what is still to be published, what may be deleted.

use keyturn_proto::notify::Outcome;

use super::World;
use super::fixture::{DELAY, NOW, RETENTION, at, cancel, event_id};
use crate::store::Due;

super::case_list![
    an_event_waits_until_it_was_read_back,
    a_promoted_rotation_still_publishes_and_a_cancelled_one_does_not,
    ciphertext_goes_after_its_retention_and_not_before,
];

async fn an_event_waits_until_it_was_read_back(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    let waiting = w.store.unpublished().await.unwrap();
    assert_eq!(waiting, w.store.outbox(&id).await.unwrap());
    assert_eq!(waiting.len(), 1);
    let ids = [event_id(2), "unknown".to_owned()];
    w.store.mark_published(&ids, at(5)).await.unwrap();
    w.store.mark_published(&ids, at(9)).await.unwrap();
    assert!(w.store.unpublished().await.unwrap().is_empty());
    let published = w.store.outbox(&id).await.unwrap();
    assert_eq!(published[0].published_at, Some(at(5)));
}

async fn a_promoted_rotation_still_publishes_and_a_cancelled_one_does_not(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    assert_eq!(w.store.unpublished().await.unwrap().len(), 1);
    let (id, _) = w.prepared(3, then).await;
    assert_eq!(w.store.unpublished().await.unwrap().len(), 2);
    let withdraw = cancel(&id, Outcome::Canceled, then);
    w.store.cancel(withdraw).await.unwrap();
    let waiting = w.store.unpublished().await.unwrap();
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].event_id, event_id(2));
}

async fn ciphertext_goes_after_its_retention_and_not_before(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    // Not yet over: nobody may delete it.
    w.store
        .purge(&[event_id(2)], at(10 * RETENTION))
        .await
        .unwrap();
    assert_eq!(w.store.outbox(&id).await.unwrap().len(), 1);
    w.acked(&id, 2, at(DELAY)).await;
    let end = at(DELAY + RETENTION);
    assert_eq!(
        w.store.outbox(&id).await.unwrap()[0].delete_after,
        Some(end)
    );
    let early = keyturn_proto::UnixMs(end.0 - 1);
    w.store.purge(&[event_id(2)], early).await.unwrap();
    assert_eq!(w.store.outbox(&id).await.unwrap().len(), 1);
    let due = w.store.due(end, 100).await.unwrap();
    let purge = due.iter().find_map(|due| match due {
        Due::Purge(events) => Some(events),
        _ => None,
    });
    assert_eq!(purge.unwrap()[0].event_id, event_id(2));
    w.store.purge(&[event_id(2)], end).await.unwrap();
    assert!(w.store.outbox(&id).await.unwrap().is_empty());
}
