//! Reserving: one rotation per client, the idempotency key, TOTP steps, the minimum interval, emergencies.

use keyturn_proto::notify::Outcome;

use super::World;
use super::fixture::{
    NOW, REQUESTER, admin, at, audit, client_id, emergency, npub, operation, reserve, version_id,
};
use super::world::conflict;
use crate::documents::{ClientStatus, RotationState, VersionState};
use crate::store::{Reserve, Reserved, StoreError};

super::case_list![
    a_reservation_takes_the_client,
    the_same_id_and_content_is_a_repeat,
    the_same_id_with_another_content_is_refused,
    a_second_rotation_is_refused,
    one_of_many_racing_reservations_wins,
    the_minimum_interval_counts_from_the_promotion,
    an_unknown_client_does_not_exist,
    a_totp_step_is_accepted_once,
    a_repeat_needs_no_second_totp_step,
    wrong_codes_lock_and_a_right_one_resets,
    a_revoked_admin_reserves_nothing,
    an_emergency_retires_everything_and_ends_the_rotation_under_way,
    a_revoked_client_never_rotates_and_a_held_one_waits_for_the_operator,
];

async fn a_reservation_takes_the_client(w: World) {
    w.settle().await;
    let active = w.reserved(reserve(&operation(2), NOW)).await;
    assert_eq!((active.attempt, active.fence), (1, 1));
    let client = w.client().await;
    assert_eq!(client.active_rotation, Some(active));
    assert_eq!(client.current_version, Some(version_id(1)));
    let rotation = w.rotation(&operation(2)).await;
    assert_eq!(rotation.state, RotationState::Reserved);
    assert_eq!(rotation.old_version, Some(version_id(1)));
    assert_eq!(w.store.active_rotations().await.unwrap(), [rotation]);
    assert_eq!(w.events().await.last().unwrap(), "rotation.reserved");
    w.check_snapshot().await;
}

async fn the_same_id_and_content_is_a_repeat(w: World) {
    w.settle().await;
    w.reserved(reserve(&operation(2), NOW)).await;
    let before = w.picture().await;
    for now in [NOW, at(10_000)] {
        let again = w.store.reserve(reserve(&operation(2), now)).await.unwrap();
        let expected = w.rotation(&operation(2)).await;
        assert_eq!(again, Reserved::Repeat(Box::new(expected)));
    }
    assert_eq!(w.picture().await, before);
}

async fn the_same_id_with_another_content_is_refused(w: World) {
    w.settle().await;
    w.reserved(reserve(&operation(2), NOW)).await;
    let before = w.picture().await;
    let mut other = reserve(&operation(2), NOW);
    other.rotation.request_digest = "another".to_owned();
    assert_eq!(w.store.reserve(other).await.unwrap(), Reserved::IdReused);
    assert_eq!(w.picture().await, before);
}

async fn a_second_rotation_is_refused(w: World) {
    w.settle().await;
    w.reserved(reserve(&operation(2), NOW)).await;
    let before = w.picture().await;
    let second = w.store.reserve(reserve(&operation(3), NOW)).await.unwrap();
    assert_eq!(second, Reserved::Busy(operation(2)));
    assert_eq!(w.picture().await, before);
    assert!(w.store.rotation(&operation(3)).await.unwrap().is_none());
}

async fn one_of_many_racing_reservations_wins(w: World) {
    w.settle().await;
    let tasks: Vec<_> = (2..18)
        .map(|n| {
            let store = w.store.clone();
            tokio::spawn(async move { store.reserve(reserve(&operation(n), NOW)).await })
        })
        .collect();
    let (mut won, mut busy) = (Vec::new(), Vec::new());
    for task in tasks {
        match task.await.unwrap().unwrap() {
            Reserved::New(active) => won.push(active.rotation_id),
            Reserved::Busy(by) => busy.push(by),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((won.len(), busy.len()), (1, 15));
    assert!(busy.iter().all(|by| *by == won[0]));
    let active = w.store.active_rotations().await.unwrap();
    assert_eq!(active.len(), 1);
    let reserved = w.events().await;
    let reserved = reserved
        .iter()
        .filter(|event| *event == "rotation.reserved");
    assert_eq!(reserved.count(), 1);
}

async fn the_minimum_interval_counts_from_the_promotion(w: World) {
    w.settle().await;
    let promoted = w.promoted(2, NOW).await;
    let with_interval = |now| Reserve {
        min_interval_ms: 5_000,
        ..reserve(&operation(3), now)
    };
    let earliest = keyturn_proto::UnixMs(promoted.0 + 5_000);
    let before = w.picture().await;
    let early = keyturn_proto::UnixMs(earliest.0 - 1);
    assert_eq!(
        w.store.reserve(with_interval(early)).await.unwrap(),
        Reserved::TooSoon(earliest)
    );
    assert_eq!(w.picture().await, before);
    w.reserved(with_interval(earliest)).await;
}

async fn an_unknown_client_does_not_exist(w: World) {
    w.settle().await;
    let mut command = reserve(&operation(2), NOW);
    command.rotation.client_id = "nobody".parse().unwrap();
    assert_eq!(
        w.store.reserve(command).await,
        Err(StoreError::NotFound { what: "client" })
    );
}

fn with_totp(n: u32, step: u64) -> Reserve {
    Reserve {
        totp_step: Some(step),
        ..reserve(&operation(n), NOW)
    }
}

async fn a_totp_step_is_accepted_once(w: World) {
    w.settle().await;
    w.reserved(with_totp(2, 100)).await;
    let cancel = super::fixture::cancel(&operation(2), Outcome::Canceled, NOW);
    w.store.cancel(cancel).await.unwrap();
    let before = w.picture().await;
    for step in [100, 99] {
        let replay = w.store.reserve(with_totp(3, step)).await.unwrap();
        assert_eq!(replay, Reserved::TotpReplayed);
    }
    assert_eq!(w.picture().await, before);
    w.reserved(with_totp(3, 101)).await;
    let totp = w.store.admin(&npub(REQUESTER)).await.unwrap().unwrap().totp;
    assert_eq!(totp.unwrap().last_step, Some(101));
}

async fn a_repeat_needs_no_second_totp_step(w: World) {
    w.settle().await;
    w.reserved(with_totp(2, 100)).await;
    let before = w.picture().await;
    let resumed = w.store.reserve(with_totp(2, 100)).await.unwrap();
    assert!(matches!(resumed, Reserved::Repeat(_)));
    assert_eq!(w.picture().await, before);
    // A repeat with a fresh code spends that code.
    let again = w.store.reserve(with_totp(2, 101)).await.unwrap();
    assert!(matches!(again, Reserved::Repeat(_)));
    assert_eq!(w.events().await.last().unwrap(), "request.repeated");
    let mut revoke = super::fixture::revoke(&operation(9), None, NOW);
    revoke.totp_step = Some((npub(REQUESTER), 101));
    let replay = w.store.revoke(revoke).await.unwrap();
    assert_eq!(replay, crate::store::ActionResult::TotpReplayed);
}

async fn wrong_codes_lock_and_a_right_one_resets(w: World) {
    w.settle().await;
    let fail = |now| {
        w.store.totp_failed(
            npub(REQUESTER),
            3,
            60_000,
            now,
            audit("totp.wrong", now),
            None,
        )
    };
    assert_eq!(fail(NOW).await.unwrap().totp.unwrap().failures, 1);
    assert_eq!(fail(NOW).await.unwrap().totp.unwrap().locked_until, None);
    let locked = fail(NOW).await.unwrap().totp.unwrap();
    assert_eq!(locked.locked_until, Some(at(60_000)));
    let before = w.picture().await;
    conflict(w.store.reserve(with_totp(2, 100)).await, "totp.locked");
    assert_eq!(w.picture().await, before);
    let later = Reserve {
        totp_step: Some(100),
        ..reserve(&operation(2), at(60_000))
    };
    w.reserved(later).await;
    let totp = w.store.admin(&npub(REQUESTER)).await.unwrap().unwrap().totp;
    let totp = totp.unwrap();
    assert_eq!((totp.failures, totp.locked_until), (0, None));
    let stranger = w
        .store
        .totp_failed(npub(99), 3, 60_000, NOW, audit("totp.wrong", NOW), None);
    assert_eq!(stranger.await, Err(StoreError::NotFound { what: "admin" }));
}

async fn a_revoked_admin_reserves_nothing(w: World) {
    w.settle().await;
    let mut gone = admin(REQUESTER, true);
    gone.active = false;
    let audit = audit("admin.revoked", NOW);
    w.store.put_admin(gone, audit).await.unwrap();
    let before = w.picture().await;
    let refused = w.store.reserve(reserve(&operation(2), NOW)).await;
    conflict(refused, "admin.inactive");
    assert_eq!(w.picture().await, before);
}

async fn an_emergency_retires_everything_and_ends_the_rotation_under_way(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    w.prepared(3, then).await;
    w.reserved(emergency(&operation(4), then)).await;
    assert_eq!(w.state(1).await, VersionState::Retired);
    assert_eq!(w.state(2).await, VersionState::Retired);
    assert_eq!(w.state(3).await, VersionState::Cancelled);
    let ended = w.rotation(&operation(3)).await;
    assert_eq!(ended.outcome, Some(Outcome::Revoked));
    let client = w.client().await;
    assert_eq!(client.status, ClientStatus::Suspended);
    assert_eq!(client.current_version, None);
    assert!(client.snapshot.is_empty());
    assert_eq!(client.active_rotation.unwrap().rotation_id, operation(4));
    let events = w.events().await;
    let revoked = events.iter().filter(|event| *event == "version.revoked");
    assert_eq!(revoked.count(), 3);
    assert!(events.iter().any(|event| event == "rotation.revoked"));
}

async fn a_revoked_client_never_rotates_and_a_held_one_waits_for_the_operator(w: World) {
    w.settle().await;
    let client = client_id();
    let set = |status| {
        let audit = audit("client.updated", NOW);
        w.store
            .update_client(&client, Some(status), None, None, NOW, audit)
    };
    set(ClientStatus::Suspended).await.unwrap();
    // Not even losing its versions to a revoke makes a held client rotatable.
    let revoke = super::fixture::revoke(&operation(9), None, NOW);
    w.store.revoke(revoke).await.unwrap();
    let held = w.store.reserve(reserve(&operation(2), NOW)).await.unwrap();
    assert_eq!(held, Reserved::NotRotatable(ClientStatus::Suspended));
    set(ClientStatus::Revoked).await.unwrap();
    let gone = w.store.reserve(reserve(&operation(2), NOW)).await.unwrap();
    assert_eq!(gone, Reserved::NotRotatable(ClientStatus::Revoked));
    conflict(set(ClientStatus::Active).await, "client.no_current_version");
}
