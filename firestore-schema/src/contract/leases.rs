//! Leases: one holder, a higher fence with every change of hands.

use super::World;
use super::fixture::{NOW, at};
use super::world::conflict;
use crate::store::Lease;

super::case_list![
    the_holder_renews_under_the_same_fence,
    nobody_else_gets_a_lease_that_is_held,
    every_change_of_hands_raises_the_fence,
    every_change_of_hands_is_recorded,
    one_of_many_racing_owners_gets_the_lease,
    a_lease_that_is_given_up_is_free_at_once,
];

async fn the_holder_renews_under_the_same_fence(w: World) {
    let first = w.store.lease("timers", "a", 1000, NOW).await.unwrap();
    assert_eq!(first.until, at(1000));
    let renewed = w.store.lease("timers", "a", 1000, at(500)).await.unwrap();
    let expected = Lease {
        fence: first.fence,
        until: at(1500),
    };
    assert_eq!(renewed, expected);
}

async fn nobody_else_gets_a_lease_that_is_held(w: World) {
    w.store.lease("timers", "a", 1000, NOW).await.unwrap();
    let other = w.store.lease("timers", "b", 1000, at(999)).await;
    conflict(other, "lease.held");
    w.store.lease("other", "b", 1000, at(999)).await.unwrap();
}

async fn every_change_of_hands_raises_the_fence(w: World) {
    let a = w.store.lease("timers", "a", 1000, NOW).await.unwrap();
    let b = w.store.lease("timers", "b", 1000, at(1000)).await.unwrap();
    assert!(b.fence > a.fence);
    // The same owner after a lapse may be another process under the same name.
    let again = w.store.lease("timers", "b", 1000, at(5000)).await.unwrap();
    assert!(again.fence > b.fence);
}

async fn every_change_of_hands_is_recorded(w: World) {
    for (owner, now) in [("a", NOW), ("a", at(500)), ("b", at(2000)), ("b", at(9000))] {
        w.store.lease("timers", owner, 1000, now).await.unwrap();
    }
    assert!(w.store.lease("timers", "c", 1000, at(9001)).await.is_err());
    let records = w.store.read(None, 10).await.unwrap();
    let told: Vec<(&str, &str)> = records
        .iter()
        .map(|record| (record.event.as_str(), record.reason.as_str()))
        .collect();
    // A renewal is no change; a lapse is one, whoever takes it next.
    let expected = [
        "timers by a under 1",
        "timers by b under 2",
        "timers by b under 3",
    ];
    assert_eq!(told, expected.map(|reason| ("lease.taken", reason)));
}

async fn a_lease_that_is_given_up_is_free_at_once(w: World) {
    let a = w.store.lease("timers", "a", 1000, NOW).await.unwrap();
    let given_up = w.store.lease("timers", "a", 0, at(1)).await.unwrap();
    assert_eq!((given_up.fence, given_up.until), (a.fence, at(1)));
    let b = w.store.lease("timers", "b", 1000, at(1)).await.unwrap();
    assert!(b.fence > a.fence);
}

async fn one_of_many_racing_owners_gets_the_lease(w: World) {
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let store = w.store.clone();
            tokio::spawn(async move {
                store
                    .lease("timers", &format!("owner {n}"), 1000, NOW)
                    .await
            })
        })
        .collect();
    let mut held = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => held += 1,
            refused => conflict(refused, "lease.held"),
        }
    }
    assert_eq!(held, 1);
}
