//! Nonces are used once; the event that used one finds it again after a crash.

use super::World;
use super::fixture::{NOW, at, audit};
use crate::store::{BurnNonce, Burned};

super::case_list![
    a_nonce_is_used_once,
    the_same_event_finds_its_own_nonce_again,
    one_of_many_racing_events_gets_the_nonce,
    an_expired_record_is_forgotten_only_by_purging,
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

async fn an_expired_record_is_forgotten_only_by_purging(w: World) {
    w.store.burn_nonce(burn("one")).await.unwrap();
    let later = BurnNonce {
        now: at(5000),
        ..burn("two")
    };
    assert_eq!(w.store.burn_nonce(later).await.unwrap(), Burned::Reused);
    w.store.purge(&[], None, at(999)).await.unwrap();
    assert_eq!(
        w.store.burn_nonce(burn("two")).await.unwrap(),
        Burned::Reused
    );
    w.store.purge(&[], None, at(1000)).await.unwrap();
    assert_eq!(
        w.store.burn_nonce(burn("two")).await.unwrap(),
        Burned::Fresh
    );
}

async fn only_the_first_use_is_recorded(w: World) {
    for event in ["one", "one", "two"] {
        w.store.burn_nonce(burn(event)).await.unwrap();
    }
    assert_eq!(w.events().await, ["nonce.burnt"]);
}
