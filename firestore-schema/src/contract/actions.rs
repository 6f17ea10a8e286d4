//! Rollback and revoke.

use keyturn_proto::UnixMs;
use keyturn_proto::notify::Outcome;

use super::World;
use super::fixture::{
    DELAY, GRACE, NOW, REQUESTER, at, emergency, npub, operation, prepare, reserve, revoke,
    rollback, version_id, withdraw,
};
use super::world::conflict;
use crate::documents::{ClientStatus, VersionState};
use crate::store::{ActionResult, Reserved, Revoke, Rollback, StoreError, Withdraw, Withdrawn};

super::case_list![
    a_rollback_makes_the_previous_version_current_and_the_withdrawn_one_dies,
    a_rollback_is_done_once_per_id,
    a_rollback_outside_grace_is_refused,
    a_rollback_names_the_latest_rotation_or_none,
    revoking_the_current_version_suspends_and_a_rotation_brings_the_client_back,
    revoking_the_previous_version_leaves_the_client_active,
    revoking_the_pending_version_ends_its_rotation,
    revoking_everything_ends_even_a_bare_reservation,
    a_revoke_is_done_once_per_id,
    a_revoke_of_a_version_that_never_was_is_refused,
    an_id_means_one_thing,
    an_action_spends_its_totp_step,
    an_emergency_brings_a_client_back_without_grace,
];

async fn a_rollback_makes_the_previous_version_current_and_the_withdrawn_one_dies(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    let last = UnixMs(then.0 + GRACE - 1);
    let done = w.store.rollback(rollback(&operation(9), last)).await;
    let ActionResult::Done(client) = done.unwrap() else {
        panic!("not done")
    };
    assert_eq!(*client, w.client().await);
    assert_eq!(client.current_version, Some(version_id(1)));
    assert_eq!(client.previous_version, None);
    let old = w.version(version_id(1)).await;
    assert_eq!((old.state, old.not_after), (VersionState::Current, None));
    assert_eq!(w.state(2).await, VersionState::Retired);
    let rotation = w.rotation(&operation(2)).await;
    assert_eq!(rotation.outcome, Some(Outcome::RolledBack));
    assert_eq!(w.events().await.last().unwrap(), "rotation.rolled_back");
    w.check_snapshot().await;
}

async fn a_rollback_is_done_once_per_id(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    let command = || rollback(&operation(9), then);
    w.store.rollback(command()).await.unwrap();
    let before = w.picture().await;
    let again = w.store.rollback(command()).await.unwrap();
    assert_eq!(again, ActionResult::Repeat(Box::new(w.client().await)));
    let other = Rollback {
        request_digest: "another".to_owned(),
        ..command()
    };
    assert_eq!(
        w.store.rollback(other).await.unwrap(),
        ActionResult::IdReused
    );
    assert_eq!(w.picture().await, before);
}

async fn a_rollback_outside_grace_is_refused(w: World) {
    w.settle().await;
    let nothing = w.store.rollback(rollback(&operation(9), NOW)).await;
    conflict(nothing, "rollback.no_previous");
    let then = w.promoted(2, NOW).await;
    let before = w.picture().await;
    // Over by the clock, although nobody has retired the version yet.
    let late = rollback(&operation(9), UnixMs(then.0 + GRACE));
    conflict(w.store.rollback(late).await, "rollback.grace_over");
    assert_eq!(w.picture().await, before);
}

async fn a_rollback_names_the_latest_rotation_or_none(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    let then = w.promoted(3, then).await;
    let target = |n| Rollback {
        target: Some(operation(n)),
        ..rollback(&operation(9), then)
    };
    let before = w.picture().await;
    conflict(w.store.rollback(target(2)).await, "rollback.not_latest");
    assert_eq!(w.picture().await, before);
    w.store.rollback(target(3)).await.unwrap();
    assert_eq!(w.client().await.current_version, Some(version_id(2)));
}

async fn revoking_the_current_version_suspends_and_a_rotation_brings_the_client_back(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    let command = revoke(&operation(9), Some(version_id(2)), then);
    w.store.revoke(command).await.unwrap();
    assert_eq!(w.state(2).await, VersionState::Retired);
    let client = w.client().await;
    assert_eq!(client.status, ClientStatus::Suspended);
    assert_eq!(client.current_version, None);
    let events = w.events().await;
    assert_eq!(
        events[events.len() - 2..],
        ["client.revoke", "version.revoked"]
    );
    w.check_snapshot().await;
    w.promoted(3, then).await;
    let client = w.client().await;
    assert_eq!(client.status, ClientStatus::Active);
    // The revoked one is not put into grace, and the one before it does not come back to life.
    assert_eq!(client.previous_version, None);
    assert_eq!(client.snapshot.len(), 1);
}

async fn revoking_the_previous_version_leaves_the_client_active(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    let command = revoke(&operation(9), Some(version_id(1)), then);
    w.store.revoke(command).await.unwrap();
    let client = w.client().await;
    assert_eq!(client.status, ClientStatus::Active);
    assert_eq!(client.current_version, Some(version_id(2)));
    assert_eq!(client.previous_version, None);
    assert_eq!(w.state(1).await, VersionState::Retired);
}

async fn revoking_the_pending_version_ends_its_rotation(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    let command = revoke(&operation(9), Some(version_id(2)), NOW);
    w.store.revoke(command).await.unwrap();
    assert_eq!(w.rotation(&id).await.outcome, Some(Outcome::Revoked));
    assert_eq!(w.state(2).await, VersionState::Cancelled);
    let client = w.client().await;
    assert_eq!(client.status, ClientStatus::Active);
    assert_eq!(client.current_version, Some(version_id(1)));
    assert_eq!(client.active_rotation, None);
}

async fn revoking_everything_ends_even_a_bare_reservation(w: World) {
    w.settle().await;
    let active = w.reserved(reserve(&operation(2), NOW)).await;
    w.store
        .revoke(revoke(&operation(9), None, NOW))
        .await
        .unwrap();
    let rotation = w.rotation(&operation(2)).await;
    assert_eq!(rotation.outcome, Some(Outcome::Revoked));
    let late = w.store.prepare(prepare(&active, 2, at(DELAY), NOW)).await;
    assert_eq!(late, Err(StoreError::Fenced));
    let client = w.client().await;
    assert_eq!(client.status, ClientStatus::Suspended);
    assert!(client.snapshot.is_empty());
}

async fn a_revoke_is_done_once_per_id(w: World) {
    w.settle().await;
    let command = || revoke(&operation(9), None, NOW);
    w.store.revoke(command()).await.unwrap();
    let before = w.picture().await;
    let again = w.store.revoke(command()).await.unwrap();
    assert_eq!(again, ActionResult::Repeat(Box::new(w.client().await)));
    let other = Revoke {
        request_digest: "another".to_owned(),
        ..command()
    };
    assert_eq!(w.store.revoke(other).await.unwrap(), ActionResult::IdReused);
    assert_eq!(w.picture().await, before);
}

async fn a_revoke_of_a_version_that_never_was_is_refused(w: World) {
    w.settle().await;
    let before = w.picture().await;
    let command = revoke(&operation(9), Some(version_id(7)), NOW);
    assert_eq!(
        w.store.revoke(command).await,
        Err(StoreError::NotFound { what: "version" })
    );
    assert_eq!(w.picture().await, before);
}

async fn an_id_means_one_thing(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    w.store
        .revoke(revoke(&operation(9), Some(version_id(1)), then))
        .await
        .unwrap();
    let before = w.picture().await;
    // A rotation's id, an action's id: neither is free for another operation.
    let as_revoke = w.store.revoke(revoke(&operation(2), None, then)).await;
    assert_eq!(as_revoke.unwrap(), ActionResult::IdReused);
    let as_rollback = w.store.rollback(rollback(&operation(9), then)).await;
    assert_eq!(as_rollback.unwrap(), ActionResult::IdReused);
    let as_rotation = w.store.reserve(reserve(&operation(9), then)).await;
    assert_eq!(as_rotation.unwrap(), Reserved::IdReused);
    assert_eq!(w.picture().await, before);
}

async fn an_action_spends_its_totp_step(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    let with_step = |n, step| Rollback {
        totp_step: Some((npub(REQUESTER), step)),
        ..rollback(&operation(n), then)
    };
    w.store.rollback(with_step(8, 50)).await.unwrap();
    let before = w.picture().await;
    let replay = Revoke {
        totp_step: Some((npub(REQUESTER), 50)),
        ..revoke(&operation(9), None, then)
    };
    assert_eq!(
        w.store.revoke(replay).await.unwrap(),
        ActionResult::TotpReplayed
    );
    assert_eq!(w.picture().await, before);
    let (id, _) = w.prepared(3, then).await;
    let before = w.picture().await;
    let withdrawal = Withdraw {
        totp_step: Some((npub(REQUESTER), 50)),
        ..withdraw(&operation(9), Some(&id), then)
    };
    let spent = w.store.withdraw(withdrawal).await.unwrap();
    assert_eq!(spent, Withdrawn::TotpReplayed);
    assert_eq!(w.picture().await, before);
}

async fn an_emergency_brings_a_client_back_without_grace(w: World) {
    w.settle().await;
    let active = w.reserved(emergency(&operation(2), NOW)).await;
    assert_eq!(w.client().await.status, ClientStatus::Suspended);
    w.store
        .prepare(prepare(&active, 2, NOW, NOW))
        .await
        .unwrap();
    w.acked(&operation(2), 2, NOW).await;
    let client = w.client().await;
    assert_eq!(client.status, ClientStatus::Active);
    assert_eq!(client.current_version, Some(version_id(2)));
    assert_eq!(client.previous_version, None);
    assert_eq!(w.state(1).await, VersionState::Retired);
    let rotation = w.rotation(&operation(2)).await;
    assert_eq!(rotation.old_version, Some(version_id(1)));
    assert_eq!(rotation.grace_until, None);
}
