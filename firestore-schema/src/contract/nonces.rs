//! Nonces are used once; the event that used one finds it again after a crash.

use super::World;
use keyturn_proto::UnixMs;

use super::fixture::{NOW, at, audit, operation, reserve};
use crate::store::{BurnNonce, Burned, StoreError};

super::case_list![
    a_nonce_is_used_once,
    the_same_event_finds_its_own_nonce_again,
    one_of_many_racing_events_gets_the_nonce,
    an_expired_record_is_forgotten_only_when_that_is_asked_for,
    as_many_are_forgotten_as_were_asked_for_and_no_record_is_made,
    what_no_backend_can_hold_is_refused_by_all,
    only_the_first_use_is_recorded,
];

fn burn(event: &str) -> BurnNonce {
    BurnNonce {
        nonce_hash: "ab".repeat(32),
        owner_event: event.to_owned(),
        expires_at: at(1000),
        now: NOW,
        audit: audit("nonce.burnt", NOW),
    }
}

async fn a_nonce_is_used_once(w: World) {
    assert_eq!(
        w.store.burn_nonce(burn("one")).await.unwrap(),
        Burned::Fresh
    );
    assert_eq!(
        w.store.burn_nonce(burn("two")).await.unwrap(),
        Burned::Reused
    );
}

async fn the_same_event_finds_its_own_nonce_again(w: World) {
    for _ in 0..3 {
        assert_eq!(
            w.store.burn_nonce(burn("one")).await.unwrap(),
            Burned::Fresh
        );
    }
}

async fn one_of_many_racing_events_gets_the_nonce(w: World) {
    let tasks: Vec<_> = (0..16)
        .map(|n| {
            let store = w.store.clone();
            tokio::spawn(async move { store.burn_nonce(burn(&format!("event {n}"))).await })
        })
        .collect();
    let mut fresh = 0;
    for task in tasks {
        if task.await.unwrap().unwrap() == Burned::Fresh {
            fresh += 1;
        }
    }
    assert_eq!(fresh, 1);
}

async fn an_expired_record_is_forgotten_only_when_that_is_asked_for(w: World) {
    w.store.burn_nonce(burn("one")).await.unwrap();
    let later = BurnNonce {
        now: at(5000),
        ..burn("two")
    };
    assert_eq!(w.store.burn_nonce(later).await.unwrap(), Burned::Reused);
    assert_eq!(w.store.forget_nonces(at(999), 10).await, Ok(0));
    // Ciphertext has a timer of its own.
    w.store.purge(&[], None, at(1000)).await.unwrap();
    assert_eq!(
        w.store.burn_nonce(burn("two")).await.unwrap(),
        Burned::Reused
    );
    assert_eq!(w.store.forget_nonces(at(1000), 10).await, Ok(1));
    assert_eq!(
        w.store.burn_nonce(burn("two")).await.unwrap(),
        Burned::Fresh
    );
}

async fn as_many_are_forgotten_as_were_asked_for_and_no_record_is_made(w: World) {
    for n in 0..5u8 {
        let one = BurnNonce {
            nonce_hash: hex::encode([n; 32]),
            expires_at: at(u64::from(n)),
            ..burn("one")
        };
        w.store.burn_nonce(one).await.unwrap();
    }
    let before = w.events().await;
    assert_eq!(w.store.forget_nonces(at(3), 3).await, Ok(3));
    assert_eq!(w.store.forget_nonces(at(3), 3).await, Ok(1));
    assert_eq!(w.store.forget_nonces(at(3), 3).await, Ok(0));
    assert_eq!(w.events().await, before);
    let last = BurnNonce {
        nonce_hash: hex::encode([4; 32]),
        ..burn("two")
    };
    assert_eq!(w.store.burn_nonce(last).await, Ok(Burned::Reused));
}

/// A time past the year 9999 is no time in Firestore; it is refused everywhere, so that every store can be copied.
async fn what_no_backend_can_hold_is_refused_by_all(w: World) {
    const LAST: u64 = 253_402_300_799_999;
    let until = |end| BurnNonce {
        expires_at: UnixMs(end),
        ..burn("one")
    };
    let refused = w.store.burn_nonce(until(LAST + 1)).await;
    assert_eq!(refused, Err(StoreError::Unrepresentable { what: "nonce" }));
    assert!(w.events().await.is_empty());
    assert_eq!(w.store.burn_nonce(until(LAST)).await, Ok(Burned::Fresh));
    assert_eq!(w.store.forget_nonces(UnixMs(LAST - 1), 1).await, Ok(0));
    assert_eq!(w.store.forget_nonces(UnixMs(u64::MAX), 1).await, Ok(1));

    w.settle().await;
    let before = w.picture().await;
    let mut late = reserve(&operation(2), NOW);
    late.rotation.not_before = UnixMs(LAST + 1);
    let refused = w.store.reserve(late).await;
    let what = "rotation";
    assert_eq!(refused, Err(StoreError::Unrepresentable { what }));
    assert_eq!(w.picture().await, before);
}

async fn only_the_first_use_is_recorded(w: World) {
    for event in ["one", "one", "two"] {
        w.store.burn_nonce(burn(event)).await.unwrap();
    }
    assert_eq!(w.events().await, ["nonce.burnt"]);
}
