//! The verifier against the rules of protocol.md §7.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mac.rs"]
mod mac;
mod slow;
mod stand;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use keyturn_proto::{PresentedSecret, UnixMs};
use keyturn_store::documents::{ClientStatus, VersionState};
use keyturn_store::verifier::{Rate, Settings, VerifyError, Which};

use stand::{CLIENT, HERE, NOW, REFUSED, Stand, after, fresh, live, ok, snapshot};

#[tokio::test]
async fn current_and_previous_verify_and_nothing_else() {
    let s = Stand::new(Settings::default());
    let (new, old, pending) = (fresh(), fresh(), fresh());
    let mut grace = s.entry(1, VersionState::Grace, &old).await;
    grace.not_after = Some(after(10_000));
    s.set(
        ClientStatus::Active,
        vec![
            s.entry(2, VersionState::Current, &new).await,
            grace,
            s.entry(3, VersionState::Pending, &pending).await,
        ],
    );
    // Cold, then warm: the same answers.
    for _ in 0..2 {
        assert_eq!(s.at(&new, NOW).await, ok(2, Which::Current));
        assert_eq!(s.at(&old, NOW).await, ok(1, Which::Previous));
        for wrong in [&pending, &fresh(), "", "guess", &"x".repeat(100_000)] {
            assert_eq!(s.at(wrong, NOW).await, REFUSED);
        }
        for nobody in ["nobody", "", "a/b", "..", "__x__", "\u{0}"] {
            assert_eq!(s.try_at(nobody, &new, NOW).await, REFUSED);
        }
    }
}

#[tokio::test]
async fn suspended_and_revoked_clients_do_not_verify_even_when_remembered() {
    let s = Stand::new(Settings::default());
    let secret = fresh();
    let entry = s.entry(1, VersionState::Current, &secret).await;
    s.set(ClientStatus::Active, vec![entry.clone()]);
    assert_eq!(s.at(&secret, NOW).await, ok(1, Which::Current));
    for status in [ClientStatus::Suspended, ClientStatus::Revoked] {
        s.set(status, vec![entry.clone()]);
        assert_eq!(s.at(&secret, NOW).await, REFUSED);
        assert_eq!(live(&s, 1, NOW).await, Ok(false));
    }
}

#[tokio::test]
async fn windows_have_two_seconds_of_tolerance_and_are_judged_on_every_call() {
    // Whoever waits for nobody is judged by the very time it brings, so both are asked for long before.
    let s = Stand::new(Settings {
        snapshot_ttl: Duration::from_secs(60),
        ..Settings::default()
    });
    let (new, old) = (fresh(), fresh());
    let mut current = s.entry(2, VersionState::Current, &new).await;
    let mut grace = s.entry(1, VersionState::Grace, &old).await;
    s.set(ClientStatus::Active, vec![current.clone(), grace.clone()]);
    s.at(&new, NOW).await.unwrap();
    s.at(&old, NOW).await.unwrap();
    current.not_before = after(2_000);
    grace.not_after = Some(NOW);
    s.set(ClientStatus::Active, vec![current, grace]);
    assert_eq!(s.at(&fresh(), NOW).await, REFUSED);

    let early = UnixMs(NOW.0 - 1);
    assert_eq!(s.at(&new, early).await, REFUSED);
    assert_eq!(s.at(&new, NOW).await, ok(2, Which::Current));
    assert_eq!(s.at(&old, after(1_999)).await, ok(1, Which::Previous));
    assert_eq!(live(&s, 1, after(1_999)).await, Ok(true));
    // Remembered, and yet over.
    assert_eq!(s.at(&old, after(2_000)).await, REFUSED);
    assert_eq!(live(&s, 1, after(2_000)).await, Ok(false));
    assert_eq!(s.at(&new, early).await, REFUSED);
    assert_eq!(s.mac.calls(), 2);
    assert_eq!(s.reads(), 2);
}

#[tokio::test]
async fn the_tolerance_never_revives_a_retired_version() {
    let s = Stand::new(Settings::default());
    let (new, old) = (fresh(), fresh());
    let current = s.entry(2, VersionState::Current, &new).await;
    let mut grace = s.entry(1, VersionState::Grace, &old).await;
    grace.not_after = Some(after(60_000));
    s.set(ClientStatus::Active, vec![current.clone(), grace.clone()]);
    assert_eq!(s.at(&old, NOW).await, ok(1, Which::Previous));
    // A retired entry, even if a snapshot should still carry it inside its window.
    for state in [VersionState::Retired, VersionState::Cancelled] {
        grace.state = state;
        s.set(ClientStatus::Active, vec![current.clone(), grace.clone()]);
        assert_eq!(s.at(&old, NOW).await, REFUSED);
    }
    s.set(ClientStatus::Active, vec![current]);
    assert_eq!(s.at(&old, NOW).await, REFUSED);
}

#[tokio::test]
async fn in_steady_state_neither_the_store_nor_the_mac_key_is_asked() {
    let s = Stand::new(Settings::default());
    let (new, old) = (fresh(), fresh());
    s.set(
        ClientStatus::Active,
        vec![
            s.entry(2, VersionState::Current, &new).await,
            s.entry(1, VersionState::Grace, &old).await,
        ],
    );
    for _ in 0..100 {
        s.at(&new, NOW).await.unwrap();
        s.at(&old, NOW).await.unwrap();
    }
    // The previous one's prefilter misses the current entry, so it cost one call as well.
    assert_eq!(s.mac.calls(), 2);
    assert_eq!(s.reads(), 1);
}

#[tokio::test]
async fn a_guess_that_misses_the_prefilter_costs_no_mac_call_and_is_not_remembered() {
    let s = Stand::new(Settings::default());
    let secret = fresh();
    s.set(
        ClientStatus::Active,
        vec![s.entry(1, VersionState::Current, &secret).await],
    );
    for _ in 0..50 {
        assert_eq!(s.at(&fresh(), NOW).await, REFUSED);
        assert_eq!(s.at("not even generated", NOW).await, REFUSED);
    }
    assert_eq!(s.mac.calls(), 0);
}

#[tokio::test]
async fn a_remembered_mac_is_asked_for_again_after_its_lifetime() {
    let s = Stand::new(Settings {
        memo_ttl: Duration::from_secs(10),
        ..Settings::default()
    });
    let secret = fresh();
    s.set(
        ClientStatus::Active,
        vec![s.entry(1, VersionState::Current, &secret).await],
    );
    // Far from its end: what a check itself takes counts as well.
    for (now, calls) in [(0, 1), (5_000, 1), (15_000, 2), (20_000, 2)] {
        s.at(&secret, after(now)).await.unwrap();
        assert_eq!(s.mac.calls(), calls, "at {now}");
    }
}

#[tokio::test]
async fn an_imported_secret_of_any_shape_verifies_and_its_guesses_are_limited() {
    let s = Stand::new(Settings {
        mac_per_source: Rate {
            per_second: 1,
            burst: 3,
        },
        ..Settings::default()
    });
    let entry = s.entry(1, VersionState::Current, "hunter2 from 2009").await;
    assert!(entry.prefilter.is_none());
    s.set(ClientStatus::Active, vec![entry]);
    assert_eq!(s.at("hunter2 from 2009", NOW).await, ok(1, Which::Current));
    for n in 0..50 {
        assert_eq!(s.at(&format!("guess {n}"), NOW).await, REFUSED);
    }
    // The burst, and at most what refilled while the test ran on a slow machine.
    assert!(s.mac.calls() <= 10, "{} calls", s.mac.calls());
    // What is remembered is not limited.
    assert_eq!(s.at("hunter2 from 2009", NOW).await, ok(1, Which::Current));
    // Another source has its own budget.
    let secret = PresentedSecret::new("guess from elsewhere");
    let elsewhere = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let before = s.mac.calls();
    let refused = s.verifier.verify(CLIENT, &secret, elsewhere, NOW).await;
    assert_eq!((refused, s.mac.calls()), (REFUSED, before + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_with_the_same_cold_secret_share_one_mac_call() {
    let s = Stand::new(Settings::default());
    let secret = fresh();
    s.set(
        ClientStatus::Active,
        vec![s.entry(1, VersionState::Current, &secret).await],
    );
    let shut = s.mac.shut().await;
    let tasks: Vec<_> = (0..32)
        .map(|_| {
            let (verifier, secret) = (Arc::clone(&s.verifier), secret.clone());
            tokio::spawn(async move {
                let secret = PresentedSecret::new(secret);
                verifier.verify(CLIENT, &secret, HERE, NOW).await
            })
        })
        .collect();
    s.mac.asked().await;
    // The first one goes away half-way; another takes over.
    tasks[0].abort();
    drop(shut);
    let mut verified = 0;
    for task in tasks {
        if let Ok(result) = task.await {
            assert_eq!(result, ok(1, Which::Current));
            verified += 1;
        }
    }
    assert!(verified >= 31);
    assert!(s.mac.calls() <= 2, "{} calls", s.mac.calls());
}

#[tokio::test]
async fn a_change_is_seen_at_once_after_invalidate_and_after_the_lifetime_without() {
    let s = Stand::new(Settings::default());
    let secret = fresh();
    let entry = s.entry(1, VersionState::Current, &secret).await;
    s.set(ClientStatus::Active, vec![entry.clone()]);
    s.at(&secret, NOW).await.unwrap();
    let suspended = snapshot(ClientStatus::Suspended, vec![entry.clone()]);
    s.source.set(Some(suspended));
    // Not to the millisecond: what the read itself took counts as well.
    s.at(&secret, after(4_500)).await.unwrap();
    assert_eq!(s.at(&secret, after(5_500)).await, REFUSED);
    s.set(ClientStatus::Active, vec![entry]);
    assert_eq!(s.at(&secret, after(5_500)).await, ok(1, Which::Current));
}

#[tokio::test]
async fn a_promotion_that_nobody_told_of_is_seen_by_who_presents_the_new_secret() {
    let s = Stand::new(Settings::default());
    let (old, new) = (fresh(), fresh());
    let mut was = s.entry(1, VersionState::Current, &old).await;
    let mut is = s.entry(2, VersionState::Pending, &new).await;
    s.set(ClientStatus::Active, vec![was.clone(), is.clone()]);
    s.at(&old, NOW).await.unwrap();
    // Too early, however often it is tried, costs one read a second, and a guess none at all.
    for (ms, reads) in [
        (0, 1),
        (500, 1),
        (900, 1),
        (1_500, 2),
        (2_400, 2),
        (3_000, 3),
    ] {
        for _ in 0..3 {
            assert_eq!(s.at(&new, after(ms)).await, REFUSED);
            assert_eq!(s.at(&fresh(), after(ms)).await, REFUSED);
            assert_eq!(s.at(&old, after(ms)).await, ok(1, Which::Current));
        }
        assert_eq!(s.reads(), reads, "at {ms}");
    }
    was.state = VersionState::Grace;
    is.state = VersionState::Current;
    s.source
        .set(Some(snapshot(ClientStatus::Active, vec![is, was])));
    assert_eq!(s.at(&new, after(3_900)).await, REFUSED);
    // Before what is known would have been read again.
    assert_eq!(s.at(&new, after(4_500)).await, ok(2, Which::Current));
    assert_eq!(s.at(&old, after(4_500)).await, ok(1, Which::Previous));
    assert_eq!(s.reads(), 4);
}

#[tokio::test]
async fn without_its_source_it_serves_what_it_has_until_the_stated_staleness() {
    let s = Stand::new(Settings::default());
    let secret = fresh();
    s.set(
        ClientStatus::Active,
        vec![s.entry(1, VersionState::Current, &secret).await],
    );
    s.at(&secret, NOW).await.unwrap();
    s.source.fails(true);
    assert_eq!(s.at(&secret, after(40_000)).await, ok(1, Which::Current));
    let unavailable = |result| matches!(result, Err(VerifyError::Unavailable { .. }));
    assert!(unavailable(s.at(&secret, after(60_000)).await));
    assert!(unavailable(s.try_at("nobody", &secret, NOW).await));
    assert!(live(&s, 1, after(60_000)).await.is_err());
    // What was declared changed is not served at all.
    s.verifier.invalidate(&CLIENT.parse().unwrap());
    assert!(unavailable(s.at(&secret, NOW).await));
    s.source.fails(false);
    assert_eq!(s.at(&secret, after(60_000)).await, ok(1, Which::Current));
    s.source.fails(true);
    s.verifier.invalidate_all();
    assert!(unavailable(s.at(&secret, after(60_000)).await));
}

#[tokio::test]
async fn without_its_mac_key_it_says_neither_yes_nor_no_to_what_it_does_not_remember() {
    let s = Stand::new(Settings::default());
    let (new, old) = (fresh(), fresh());
    let current = s.entry(2, VersionState::Current, &new).await;
    let mut grace = s.entry(1, VersionState::Grace, &old).await;
    s.set(ClientStatus::Active, vec![current.clone(), grace.clone()]);
    s.at(&new, NOW).await.unwrap();
    s.mac.fails(true);
    assert_eq!(s.at(&new, NOW).await, ok(2, Which::Current));
    assert!(matches!(
        s.at(&old, NOW).await,
        Err(VerifyError::Unavailable { .. })
    ));
    assert_eq!(s.at(&fresh(), NOW).await, REFUSED);
    s.mac.fails(false);
    assert_eq!(s.at(&old, NOW).await, ok(1, Which::Previous));
    // A key version that is not here, and a damaged entry: the other version still verifies.
    grace.mac_key_ref = "gone".to_owned();
    s.set(ClientStatus::Active, vec![current.clone(), grace.clone()]);
    assert!(matches!(
        s.at(&old, NOW).await,
        Err(VerifyError::Unavailable { .. })
    ));
    assert_eq!(s.at(&new, NOW).await, ok(2, Which::Current));
    grace.secret_hash.push('=');
    s.set(ClientStatus::Active, vec![current, grace]);
    assert_eq!(s.at(&old, NOW).await, REFUSED);
    assert_eq!(s.at(&new, NOW).await, ok(2, Which::Current));
}
