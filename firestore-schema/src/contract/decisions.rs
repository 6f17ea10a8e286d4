//! Refusals: recorded with the event that they refuse, once, and found again by everybody.

use keyturn_proto::ErrorClass;

use super::World;
use super::fixture::{
    NOW, REQUESTER, RETENTION, at, audit, event_id, npub, operation, refusal, revoke,
};
use crate::documents::RefusalDoc;
use crate::store::{Asked, Decided, Decision, MAX_DECISIONS, Refuse};

super::case_list![
    a_refusal_is_recorded_and_found_again,
    an_event_is_refused_once,
    many_decisions_are_recorded_in_their_order,
    what_refuses_nothing_is_recorded_each_time,
    racing_instances_record_a_refusal_once,
    what_was_recorded_of_an_operation_is_found_with_it,
    a_refusal_is_forgotten_when_nobody_can_come_with_the_event,
    a_wrong_code_refuses_the_event_that_brought_it_and_counts_once,
];

async fn decided(w: &World, n: u32) -> Decided {
    let asked = Asked {
        event_id: event_id(n),
        operation: None,
    };
    w.store.decided(&[asked]).await.unwrap().pop().unwrap()
}

async fn a_refusal_is_recorded_and_found_again(w: World) {
    assert_eq!(decided(&w, 1).await.refused, None);
    w.store.record(vec![refusal(1, NOW)]).await.unwrap();
    assert_eq!(w.events().await, ["request.refused"]);
    let found = decided(&w, 1).await.refused;
    let expected = RefusalDoc {
        class: ErrorClass::PolicyViolation,
        reason: "test".to_owned(),
    };
    assert_eq!(found, Some(expected));
    assert_eq!(decided(&w, 2).await.refused, None);
}

/// After a commit in doubt, or by an instance that did not know: the first refusal stands.
async fn an_event_is_refused_once(w: World) {
    let other = |n| {
        let mut other = refusal(n, at(5));
        let refuses = other.refuses.take().unwrap();
        Decision {
            refuses: Some(Refuse {
                class: ErrorClass::Conflict,
                ..refuses
            }),
            ..other
        }
    };
    w.store.record(vec![refusal(1, NOW)]).await.unwrap();
    let again = vec![other(1), refusal(2, at(5)), other(2)];
    w.store.record(again).await.unwrap();
    assert_eq!(w.events().await, ["request.refused"; 2]);
    for n in [1, 2] {
        let class = decided(&w, n).await.refused.map(|doc| doc.class);
        assert_eq!(class, Some(ErrorClass::PolicyViolation));
    }
}

async fn many_decisions_are_recorded_in_their_order(w: World) {
    w.settle().await;
    let before = w.picture().await.audit.len();
    let many = |from: usize| {
        let numbers = from..from + MAX_DECISIONS;
        let decisions = numbers.map(|n| refusal(u32::try_from(n).unwrap(), at(n as u64)));
        decisions.collect::<Vec<_>>()
    };
    w.store.record(many(0)).await.unwrap();
    // Half of them are known already.
    w.store.record(many(MAX_DECISIONS / 2)).await.unwrap();
    let records = w.picture().await.audit.split_off(before);
    let times: Vec<u64> = records.iter().map(|record| record.at.0 - NOW.0).collect();
    let expected: Vec<u64> = (0..MAX_DECISIONS as u64 * 3 / 2).collect();
    assert_eq!(times, expected);
    let asked: Vec<Asked> = (0..200)
        .map(|n| Asked {
            event_id: event_id(n),
            operation: None,
        })
        .collect();
    let found = w.store.decided(&asked).await.unwrap();
    let refused: Vec<bool> = found.iter().map(|it| it.refused.is_some()).collect();
    let expected: Vec<bool> = (0..200).map(|n| n < MAX_DECISIONS * 3 / 2).collect();
    assert_eq!(refused, expected);
}

async fn what_refuses_nothing_is_recorded_each_time(w: World) {
    let mut elsewhere = audit("message.dropped", NOW);
    elsewhere.client_id = None;
    let of = |audit| Decision {
        audit,
        refuses: None,
    };
    // Two chains in one call.
    let mixed = vec![of(audit("ack.refused", NOW)), of(elsewhere)];
    for _ in 0..2 {
        w.store.record(mixed.clone()).await.unwrap();
    }
    assert_eq!(w.events().await.len(), 4);
    w.store.record(Vec::new()).await.unwrap();
    assert_eq!(w.events().await.len(), 4);
}

async fn racing_instances_record_a_refusal_once(w: World) {
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let store = w.store.clone();
            tokio::spawn(async move { store.record(vec![refusal(1, NOW), refusal(2, NOW)]).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(w.events().await, ["request.refused"; 2]);
}

async fn what_was_recorded_of_an_operation_is_found_with_it(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    let command = revoke(&operation(9), None, NOW);
    w.store.revoke(command).await.unwrap();
    let asked = |operation| Asked {
        event_id: event_id(1),
        operation,
    };
    let asked = [
        asked(Some(id.clone())),
        asked(Some(operation(9))),
        asked(Some(operation(77))),
        asked(None),
    ];
    let found = w.store.decided(&asked).await.unwrap();
    let known: Vec<_> = found
        .into_iter()
        .map(|it| {
            let rotation = it.known.rotation.map(|doc| doc.rotation_id);
            let action = it.known.action.map(|doc| doc.action_id);
            (rotation, action)
        })
        .collect();
    assert_eq!(known[0].0, Some(id));
    assert_eq!(known[1], (None, Some(operation(9))));
    assert_eq!(known[2..], [(None, None), (None, None)]);
    assert_eq!(w.store.decided(&[]).await.unwrap().len(), 0);
}

async fn a_refusal_is_forgotten_when_nobody_can_come_with_the_event(w: World) {
    w.store.record(vec![refusal(1, NOW)]).await.unwrap();
    assert_eq!(w.store.forget_nonces(at(RETENTION - 1), 10).await, Ok(0));
    assert!(decided(&w, 1).await.refused.is_some());
    assert_eq!(w.store.forget_nonces(at(RETENTION), 10).await, Ok(1));
    assert_eq!(decided(&w, 1).await.refused, None);
}

async fn a_wrong_code_refuses_the_event_that_brought_it_and_counts_once(w: World) {
    w.settle().await;
    for n in [1, 1, 2] {
        let Decision { audit, refuses } = refusal(n, NOW);
        let failed = w
            .store
            .totp_failed(npub(REQUESTER), 5, 60_000, NOW, audit, refuses);
        failed.await.unwrap();
    }
    let admin = w.store.admin(&npub(REQUESTER)).await.unwrap().unwrap();
    assert_eq!(admin.totp.unwrap().failures, 2);
    assert!(decided(&w, 1).await.refused.is_some());
    let events = w.events().await;
    let refusals = events.iter().filter(|event| *event == "request.refused");
    assert_eq!(refusals.count(), 2);
}
