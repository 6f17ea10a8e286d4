//! Preparing and taking over: only the attempt that holds the client records a version, and only one.

use super::World;
use super::fixture::{
    DELAY, NOW, SECOND, ack, at, audit, client_id, event_id, operation, prepare, reserve,
    version_id,
};
use super::world::conflict;
use crate::documents::{ActiveRotation, RotationState, VersionState};
use crate::store::{RecordAck, StoreError};

super::case_list![
    a_prepared_version_is_pending_and_the_old_one_stays_current,
    a_repeated_prepare_changes_nothing,
    another_version_under_the_same_attempt_is_refused,
    a_stale_attempt_or_fence_is_fenced_off,
    documents_that_do_not_belong_together_are_refused,
    one_of_many_racing_prepares_is_recorded,
    taking_over_voids_the_old_attempt,
    taking_over_twice_is_one_takeover,
    an_older_fence_takes_nothing_over,
    one_of_many_racing_takeovers_wins,
];

async fn a_prepared_version_is_pending_and_the_old_one_stays_current(w: World) {
    w.settle().await;
    let (id, active) = w.prepared(2, NOW).await;
    let client = w.client().await;
    assert_eq!(client.current_version, Some(version_id(1)));
    assert_eq!(client.active_rotation, Some(active));
    assert_eq!(w.state(2).await, VersionState::Pending);
    let rotation = w.rotation(&id).await;
    assert_eq!(rotation.state, RotationState::Prepared);
    assert_eq!(rotation.new_version, Some(version_id(2)));
    assert_eq!(rotation.readers.len(), 3);
    assert_eq!(
        rotation.distribution_message_id.as_deref(),
        Some("message-2")
    );
    assert_eq!(w.store.outbox(&id).await.unwrap().len(), 1);
    assert_eq!(w.events().await.last().unwrap(), "rotation.prepared");
    w.check_snapshot().await;
}

async fn a_repeated_prepare_changes_nothing(w: World) {
    w.settle().await;
    let (id, active) = w.prepared(2, NOW).await;
    let before = w.picture().await;
    let again = w.store.prepare(prepare(&active, 2, at(DELAY), at(5)));
    assert_eq!(again.await.unwrap(), w.rotation(&id).await);
    assert_eq!(w.picture().await, before);
}

async fn another_version_under_the_same_attempt_is_refused(w: World) {
    w.settle().await;
    let (_, active) = w.prepared(2, NOW).await;
    let before = w.picture().await;
    let second = w.store.prepare(prepare(&active, 3, at(DELAY), NOW)).await;
    conflict(second, "prepare.recorded");
    assert_eq!(w.picture().await, before);
}

async fn a_stale_attempt_or_fence_is_fenced_off(w: World) {
    w.settle().await;
    let first = w.reserved(reserve(&operation(2), NOW)).await;
    let taken = w
        .store
        .take_over(&first, 5, NOW, audit("rotation.taken_over", NOW))
        .await
        .unwrap();
    assert_eq!((taken.attempt, taken.fence), (2, 5));
    let before = w.picture().await;
    let strange = [
        first.clone(),
        ActiveRotation {
            fence: 4,
            ..taken.clone()
        },
        ActiveRotation {
            attempt: 3,
            ..taken.clone()
        },
    ];
    for stale in strange {
        let late = w.store.prepare(prepare(&stale, 2, at(DELAY), NOW)).await;
        assert_eq!(late, Err(StoreError::Fenced), "{stale:?}");
    }
    assert_eq!(w.picture().await, before);
    let ours = w.store.prepare(prepare(&taken, 2, at(DELAY), NOW)).await;
    ours.unwrap();
}

async fn documents_that_do_not_belong_together_are_refused(w: World) {
    w.settle().await;
    let active = w.reserved(reserve(&operation(2), NOW)).await;
    let before = w.picture().await;
    let good = || prepare(&active, 2, at(DELAY), NOW);

    let mut other_client = good();
    other_client.version.client_id = "other".parse().unwrap();
    let mut other_rotation = good();
    other_rotation.version.rotation_id = Some(operation(7));
    let mut valid_at_once = good();
    valid_at_once.version.state = VersionState::Current;
    for wrong in [other_client, other_rotation, valid_at_once] {
        conflict(w.store.prepare(wrong).await, "version.mismatch");
    }
    let early = prepare(&active, 2, at(DELAY - 1), NOW);
    conflict(w.store.prepare(early).await, "version.too_early");
    let mut taken = good();
    taken.version.version_id = version_id(1);
    conflict(w.store.prepare(taken).await, "version.exists");
    let mut padded = good();
    padded.version.secret_hash.push('=');
    let mut algorithm = good();
    algorithm.version.algo = "MD5".to_owned();
    let mut prefilter = good();
    prefilter.version.prefilter = Some("ABCDEF01".to_owned());
    for wrong in [padded, algorithm, prefilter] {
        conflict(w.store.prepare(wrong).await, "version.malformed");
    }
    let mut event = good();
    event.outbox[0].attempt = 2;
    conflict(w.store.prepare(event).await, "outbox.mismatch");
    assert_eq!(w.picture().await, before);
}

async fn one_of_many_racing_prepares_is_recorded(w: World) {
    w.settle().await;
    let active = w.reserved(reserve(&operation(2), NOW)).await;
    let tasks: Vec<_> = (2..10)
        .map(|n| {
            let (store, active) = (w.store.clone(), active.clone());
            tokio::spawn(async move { store.prepare(prepare(&active, n, at(DELAY), NOW)).await })
        })
        .collect();
    let mut recorded = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => recorded += 1,
            refused => conflict(refused, "prepare.recorded"),
        }
    }
    assert_eq!(recorded, 1);
    let versions = w.store.versions(&client_id()).await.unwrap();
    assert_eq!(versions.len(), 2);
}

async fn taking_over_voids_the_old_attempt(w: World) {
    w.settle().await;
    let (id, first) = w.prepared(2, NOW).await;
    w.store
        .record_ack(ack(&id, 2, SECOND, true, NOW))
        .await
        .unwrap();
    let taken = w
        .store
        .take_over(&first, 2, at(10), audit("rotation.taken_over", at(10)))
        .await
        .unwrap();
    assert_eq!(w.events().await.last().unwrap(), "rotation.taken_over");
    let rotation = w.rotation(&id).await;
    assert_eq!(rotation.state, RotationState::Reserved);
    assert_eq!(rotation.new_version, None);
    assert!(rotation.quorum.acks.is_empty());
    assert!(w.store.outbox(&id).await.unwrap().is_empty());
    let versions = w.store.versions(&client_id()).await.unwrap();
    assert!(versions.iter().all(|doc| doc.version_id != version_id(2)));
    w.check_snapshot().await;
    // The new attempt goes its own way; an ack for the void version counts nowhere.
    w.store
        .prepare(prepare(&taken, 3, at(DELAY), at(10)))
        .await
        .unwrap();
    let late = RecordAck {
        fence: 2,
        ..ack(&id, 2, SECOND, true, at(10))
    };
    let late = w.store.record_ack(late).await;
    conflict(late, "ack.wrong_version");
    let events = w.store.outbox(&id).await.unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].event_id, event_id(3));
    let recorded = w.store.versions(&client_id()).await.unwrap();
    let recorded = recorded
        .iter()
        .filter(|doc| doc.rotation_id.as_ref() == Some(&id));
    assert_eq!(recorded.count(), 1);
    // The void ciphertext is due to be deleted at once, and can be.
    assert!(w.outbox_page().await.contains(&event_id(2)));
    w.store.purge(&[event_id(2)], None, at(10)).await.unwrap();
    assert_eq!(w.outbox_page().await, [event_id(3)]);
}

async fn taking_over_twice_is_one_takeover(w: World) {
    w.settle().await;
    let first = w.reserved(reserve(&operation(2), NOW)).await;
    let take = || {
        w.store
            .take_over(&first, 2, NOW, audit("rotation.taken_over", NOW))
    };
    let taken = take().await.unwrap();
    let before = w.picture().await;
    assert_eq!(take().await.unwrap(), taken);
    assert_eq!(w.picture().await, before);
}

async fn an_older_fence_takes_nothing_over(w: World) {
    w.settle().await;
    let mut command = reserve(&operation(2), NOW);
    command.rotation.fence = 5;
    let active = w.reserved(command).await;
    let before = w.picture().await;
    let late = w
        .store
        .take_over(&active, 4, NOW, audit("rotation.taken_over", NOW));
    assert_eq!(late.await, Err(StoreError::Fenced));
    assert_eq!(w.picture().await, before);
}

async fn one_of_many_racing_takeovers_wins(w: World) {
    w.settle().await;
    let first = w.reserved(reserve(&operation(2), NOW)).await;
    let tasks: Vec<_> = (2..10)
        .map(|fence| {
            let (store, first) = (w.store.clone(), first.clone());
            let audit = audit("rotation.taken_over", NOW);
            tokio::spawn(async move { store.take_over(&first, fence, NOW, audit).await })
        })
        .collect();
    let mut won = Vec::new();
    for task in tasks {
        match task.await.unwrap() {
            Ok(active) => won.push(active),
            Err(error) => assert_eq!(error, StoreError::Fenced),
        }
    }
    assert_eq!(won.len(), 1);
    assert_eq!(w.client().await.active_rotation, won.pop());
}
