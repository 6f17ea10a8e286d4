//! The `cancel` action: one request is decided once, whatever it named.

use keyturn_proto::UnixMs;
use keyturn_proto::notify::Outcome;

use super::World;
use super::fixture::{
    FENCE, NOW, REQUESTER, at, audit, client, emergency, npub, operation, reserve, withdraw,
};
use super::world::conflict;
use crate::documents::{ActionDoc, VersionState};
use crate::store::{Reserved, StoreError, Withdraw, Withdrawn};

super::case_list![
    what_is_under_way_ends_with_the_record_of_the_request,
    a_repeat_ends_nothing_that_began_since,
    a_withdrawal_of_nothing_stays_one_of_nothing,
    a_rotation_that_is_named_is_ended_and_no_other,
    what_was_withdrawn_before_is_recorded_as_asked_for_again,
    what_ended_otherwise_is_a_conflict_and_is_not_recorded,
    an_id_means_one_withdrawal,
    a_stale_holder_decides_nothing,
    a_withdrawal_spends_its_totp_step_also_for_nothing,
    one_of_many_racing_repeats_ends_it,
];

async fn done(w: &World, command: Withdraw) -> crate::documents::RotationDoc {
    match w.store.withdraw(command).await.unwrap() {
        Withdrawn::Done(rotation) => *rotation,
        other => panic!("not done: {other:?}"),
    }
}

async fn repeated(w: &World, command: Withdraw) -> ActionDoc {
    match w.store.withdraw(command).await.unwrap() {
        Withdrawn::Repeat(action) => *action,
        other => panic!("no repeat: {other:?}"),
    }
}

async fn what_is_under_way_ends_with_the_record_of_the_request(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    let ended = done(&w, withdraw(&operation(9), None, at(1))).await;
    assert_eq!(ended, w.rotation(&id).await);
    assert_eq!(ended.outcome, Some(Outcome::Canceled));
    assert_eq!(w.state(2).await, VersionState::Cancelled);
    assert_eq!(w.client().await.active_rotation, None);
    let records = w.picture().await.audit;
    let last = records.last().unwrap();
    assert_eq!(
        (last.event.as_str(), last.rotation_id.as_ref()),
        ("rotation.canceled", Some(&id))
    );
    let recorded = repeated(&w, withdraw(&operation(9), None, at(2))).await;
    assert_eq!(recorded.target_rotation_id, Some(id));
    assert_eq!(recorded.outcome, Some(Outcome::Canceled));
    w.check_snapshot().await;
}

/// The relay died after the commit and before its answer; meanwhile somebody began another rotation.
async fn a_repeat_ends_nothing_that_began_since(w: World) {
    w.settle().await;
    let (first, _) = w.prepared(2, NOW).await;
    done(&w, withdraw(&operation(9), None, at(1))).await;
    let (second, active) = w.prepared(3, at(2)).await;
    let before = w.picture().await;
    for _ in 0..2 {
        let recorded = repeated(&w, withdraw(&operation(9), None, at(3))).await;
        assert_eq!(recorded.target_rotation_id.as_ref(), Some(&first));
    }
    assert_eq!(w.picture().await, before);
    assert_eq!(w.client().await.active_rotation, Some(active));
    assert_eq!(w.rotation(&second).await.outcome, None);
    // A request of its own ends it.
    let ended = done(&w, withdraw(&operation(10), None, at(4))).await;
    assert_eq!(ended.rotation_id, second);
}

async fn a_withdrawal_of_nothing_stays_one_of_nothing(w: World) {
    w.settle().await;
    let client = w.client().await;
    for (n, target) in [(8, None), (9, Some(operation(2)))] {
        let nothing = withdraw(&operation(n), target.as_ref(), NOW);
        assert_eq!(w.store.withdraw(nothing).await.unwrap(), Withdrawn::Nothing);
        let records = w.picture().await.audit;
        let last = records.last().unwrap();
        assert_eq!(
            (last.event.as_str(), last.reason.as_str()),
            ("request.refused", "rotation.none_active")
        );
    }
    assert_eq!(w.client().await, client);
    let (id, _) = w.prepared(2, at(1)).await;
    let before = w.picture().await;
    for (n, target) in [(8, None), (9, Some(operation(2)))] {
        let again = withdraw(&operation(n), target.as_ref(), at(2));
        let recorded = repeated(&w, again).await;
        assert_eq!(
            (recorded.target_rotation_id, recorded.outcome),
            (None, None)
        );
    }
    assert_eq!(w.picture().await, before);
    assert_eq!(w.rotation(&id).await.outcome, None);
}

async fn a_rotation_that_is_named_is_ended_and_no_other(w: World) {
    w.settle().await;
    let other = "another-client".parse().unwrap();
    w.store
        .create_client(client(other), None, audit("client.created", NOW))
        .await
        .unwrap();
    let (id, _) = w.prepared(2, NOW).await;
    let theirs = Withdraw {
        client_id: "another-client".parse().unwrap(),
        ..withdraw(&operation(9), Some(&id), at(1))
    };
    assert_eq!(w.store.withdraw(theirs).await.unwrap(), Withdrawn::Nothing);
    assert_eq!(w.rotation(&id).await.outcome, None);
    let elsewhere = withdraw(&operation(10), Some(&operation(77)), at(1));
    assert_eq!(
        w.store.withdraw(elsewhere).await.unwrap(),
        Withdrawn::Nothing
    );
    assert_eq!(w.rotation(&id).await.outcome, None);
    let ended = done(&w, withdraw(&operation(11), Some(&id), at(2))).await;
    assert_eq!(ended.rotation_id, id);
}

async fn what_was_withdrawn_before_is_recorded_as_asked_for_again(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    let ended = done(&w, withdraw(&operation(9), Some(&id), at(1))).await;
    let second = w
        .store
        .withdraw(withdraw(&operation(10), Some(&id), at(2)))
        .await;
    assert_eq!(second.unwrap(), Withdrawn::Before(Box::new(ended)));
    let last = w.picture().await.audit.pop().unwrap();
    assert_eq!(last.event, "rotation.canceled_before");
    let recorded = repeated(&w, withdraw(&operation(10), Some(&id), at(3))).await;
    assert_eq!(recorded.target_rotation_id, Some(id));
}

async fn what_ended_otherwise_is_a_conflict_and_is_not_recorded(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    let before = w.picture().await;
    let late = withdraw(&operation(9), Some(&operation(2)), then);
    conflict(w.store.withdraw(late).await, "rotation.over");
    assert_eq!(w.picture().await, before);
}

async fn an_id_means_one_withdrawal(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    // A rotation's own id is not free.
    let own = w.store.withdraw(withdraw(&id, None, at(1))).await;
    assert_eq!(own.unwrap(), Withdrawn::IdReused);
    done(&w, withdraw(&operation(9), None, at(1))).await;
    let before = w.picture().await;
    let other = Withdraw {
        request_digest: "another".to_owned(),
        ..withdraw(&operation(9), Some(&id), at(2))
    };
    assert_eq!(w.store.withdraw(other).await.unwrap(), Withdrawn::IdReused);
    let as_rotation = w.store.reserve(reserve(&operation(9), at(2))).await;
    assert_eq!(as_rotation.unwrap(), Reserved::IdReused);
    assert_eq!(w.picture().await, before);
}

async fn a_stale_holder_decides_nothing(w: World) {
    w.settle().await;
    let mut theirs = emergency(&operation(2), NOW);
    theirs.rotation.fence = FENCE + 1;
    w.reserved(theirs).await;
    let before = w.picture().await;
    for target in [None, Some(operation(2)), Some(operation(77))] {
        let stale = w
            .store
            .withdraw(withdraw(&operation(9), target.as_ref(), at(1)))
            .await;
        assert_eq!(stale, Err(StoreError::Fenced));
    }
    assert_eq!(w.picture().await, before);
    let ours = Withdraw {
        fence: FENCE + 2,
        ..withdraw(&operation(9), None, at(1))
    };
    done(&w, ours).await;
    assert_eq!(w.client().await.fence, FENCE + 2);
}

async fn a_withdrawal_spends_its_totp_step_also_for_nothing(w: World) {
    w.settle().await;
    let with_step = |n, step| Withdraw {
        totp_step: Some((npub(REQUESTER), step)),
        ..withdraw(&operation(n), None, NOW)
    };
    let nothing = w.store.withdraw(with_step(8, 50)).await.unwrap();
    assert_eq!(nothing, Withdrawn::Nothing);
    let totp = w.store.admin(&npub(REQUESTER)).await.unwrap().unwrap().totp;
    assert_eq!(totp.unwrap().last_step, Some(50));
    let before = w.picture().await;
    let replayed = w.store.withdraw(with_step(9, 50)).await.unwrap();
    assert_eq!(replayed, Withdrawn::TotpReplayed);
    // The first one has its own step spent, and is no replay.
    repeated(&w, with_step(8, 50)).await;
    assert_eq!(w.picture().await, before);
}

async fn one_of_many_racing_repeats_ends_it(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let store = w.store.clone();
            let command = withdraw(&operation(9), None, UnixMs(NOW.0 + n));
            tokio::spawn(async move { store.withdraw(command).await })
        })
        .collect();
    let (mut ended, mut told) = (0, 0);
    for task in tasks {
        match task.await.unwrap().unwrap() {
            Withdrawn::Done(_) => ended += 1,
            Withdrawn::Repeat(action) => {
                assert_eq!(action.target_rotation_id.as_ref(), Some(&id));
                told += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((ended, told), (1, 7));
}
