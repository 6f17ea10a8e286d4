//! What a stream is believed for, by what it proves, under clocks that differ.

use super::*;

#[tokio::test]
async fn in_steady_state_an_hour_of_verifications_reads_nothing() {
    let stand = Stand::new(3, WatchSettings::default()).await;
    for n in 0..3 {
        stand.at(n).await.unwrap();
    }
    assert_eq!(stand.reads(), 3);
    for _ in 0..3_600 {
        stand.pass(SECOND).await;
        for n in 0..3 {
            stand.at(n).await.unwrap();
        }
    }
    assert_eq!(stand.reads(), 0);
    assert_eq!(stand.world.probes.load(Ordering::SeqCst), 0);
    let standing = stand.standing();
    assert!(standing.live && standing.targets == 3, "{standing:?}");
}

#[tokio::test]
async fn a_change_is_seen_at_once_without_a_read_and_announced() {
    let mut stand = Stand::new(1, WatchSettings::default()).await;
    let version = stand.at(0).await.unwrap().version_id;
    stand.pass(10 * SECOND).await;
    stand.news();
    stand.reads();
    stand.set(0, 2, ClientStatus::Suspended).await;
    assert_eq!(stand.at(0).await, REFUSED);
    stand.set(0, 3, ClientStatus::Active).await;
    assert!(stand.at(0).await.is_ok());
    assert_eq!(stand.reads(), 0);
    let told = |versions: &[VersionId]| Living {
        client_id: client(0),
        versions: versions.to_vec(),
    };
    assert_eq!(stand.news(), [told(&[]), told(&[version])]);
}

#[tokio::test]
async fn a_frozen_stream_is_believed_for_the_limit_then_read_through_and_replaced() {
    let stand = Stand::new(1, WatchSettings::default()).await;
    stand.at(0).await.unwrap();
    stand.pass(10 * SECOND).await;
    stand.reads();
    stand.world.frozen.store(true, Ordering::SeqCst);
    stand.set(0, 2, ClientStatus::Suspended).await;
    stand.pass(14 * SECOND).await;
    assert!(stand.at(0).await.is_ok(), "nobody can know yet");
    assert_eq!(stand.reads(), 0);
    stand.pass(SECOND).await;
    assert_eq!(stand.at(0).await, REFUSED, "read through");
    assert_eq!(stand.reads(), 1);
    // The heartbeat goes on, the stream does not tell: it is deaf.
    assert_eq!(*stand.world.lost.lock().unwrap(), [Lost::Deaf]);
    stand.world.frozen.store(false, Ordering::SeqCst);
    stand.pass(15 * SECOND).await;
    assert!(stand.standing().live);
    stand.at(0).await.unwrap_err();
    stand.reads();
    stand.pass(60 * SECOND).await;
    assert_eq!(stand.at(0).await, REFUSED);
    assert_eq!(stand.reads(), 0, "covered again");
}

#[tokio::test]
async fn without_a_heartbeat_clients_are_read_through_and_the_stream_is_left_alone() {
    let stand = Stand::new(1, WatchSettings::default()).await;
    stand.at(0).await.unwrap();
    stand.world.no_heartbeat.store(true, Ordering::SeqCst);
    stand.pass(20 * SECOND).await;
    stand.reads();
    for _ in 0..60 {
        stand.at(0).await.unwrap();
        stand.pass(SECOND).await;
    }
    // Once in `snapshot_ttl`, which is 5 s.
    assert!((10..=13).contains(&stand.reads()));
    assert!(stand.world.lost.lock().unwrap().is_empty());
    assert!(!stand.standing().live);
    assert!(stand.world.probes.load(Ordering::SeqCst) >= 10);
    stand.world.no_heartbeat.store(false, Ordering::SeqCst);
    stand.pass(10 * SECOND).await;
    stand.reads();
    stand.at(0).await.unwrap();
    assert_eq!(stand.reads(), 0);
}

#[tokio::test]
async fn with_everything_away_answers_last_as_long_as_stated_and_then_are_refused() {
    let stand = Stand::new(2, WatchSettings::default()).await;
    stand.at(0).await.unwrap();
    // An hour after the read: what counts is the last proof, not the read.
    stand.pass(3_600 * SECOND).await;
    stand.reads();
    let cut = |away| {
        stand.world.closed.store(away, Ordering::SeqCst);
        stand.world.frozen.store(away, Ordering::SeqCst);
        stand.world.reads_fail.store(away, Ordering::SeqCst);
    };
    cut(true);
    let number = stand.world.stream.lock().unwrap().as_ref().unwrap().0;
    let todo = stand.world.with(|watch, now| watch.ended(number, now));
    stand.world.carry_out(todo);
    stand.pass(55 * SECOND).await;
    assert!(stand.at(0).await.is_ok());
    assert!(unavailable(stand.at(1).await), "never seen");
    stand.pass(5 * SECOND).await;
    assert!(unavailable(stand.at(0).await));
    assert!(stand.world.lost.lock().unwrap().len() > 5, "tried again");
    assert!(!stand.standing().live);

    cut(false);
    stand.pass(15 * SECOND).await;
    stand.at(0).await.unwrap();
    stand.pass(SECOND).await;
    stand.reads();
    stand.pass(60 * SECOND).await;
    stand.at(0).await.unwrap();
    assert_eq!(stand.reads(), 0);
}

#[tokio::test]
async fn a_slow_line_is_believed_no_longer_than_what_it_proves() {
    let stand = Stand::new(1, WatchSettings::default()).await;
    stand.at(0).await.unwrap();
    // Words come regularly, each twenty seconds old.
    stand.world.no_heartbeat.store(true, Ordering::SeqCst);
    for _ in 0..60 {
        stand.pass(SECOND).await;
        let old = UnixMs(stand.world.now().0 - 20 * SECOND);
        stand.world.hear(Heard::Consistent(old));
    }
    stand.reads();
    stand.at(0).await.unwrap();
    assert_eq!(stand.reads(), 1);
    // And what it tells late does not undo what was read.
    let late = stand.world.document(&client(0));
    stand.world.frozen.store(true, Ordering::SeqCst);
    stand.set(0, 2, ClientStatus::Revoked).await;
    stand.pass(6 * SECOND).await;
    assert_eq!(stand.at(0).await, REFUSED);
    stand.world.frozen.store(false, Ordering::SeqCst);
    let target = stand.world.stream.lock().unwrap().as_ref().unwrap().1[0].0;
    stand.world.hear(Heard::Changed {
        targets: vec![target],
        snapshot: late,
    });
    assert_eq!(stand.at(0).await, REFUSED);
}

#[tokio::test]
async fn a_server_clock_ahead_of_ours_buys_no_trust() {
    let stand = Stand::new(1, WatchSettings::default()).await;
    stand.at(0).await.unwrap();
    stand.world.no_heartbeat.store(true, Ordering::SeqCst);
    let ahead = UnixMs(stand.world.now().0 + 3_600 * SECOND);
    stand.world.hear(Heard::Consistent(ahead));
    stand.reads();
    stand.pass(16 * SECOND).await;
    stand.at(0).await.unwrap();
    assert_eq!(stand.reads(), 1);
}

#[tokio::test]
async fn a_clock_that_differs_and_a_renewal_that_fails_to_come_cost_no_read() {
    let every = u64::try_from(HEARTBEAT_EVERY.as_millis()).unwrap();
    // How far Firestore's clock is ahead of ours, in seconds. The relay's own is in nothing that is heard.
    for ahead in [-4_i64, -2, 0, 2, 4, 3_600] {
        let stand = Stand::new(1, WatchSettings::default()).await;
        stand.world.no_heartbeat.store(true, Ordering::SeqCst);
        let beat = || {
            let at = stand.world.now().0.saturating_add_signed(ahead * 1_000);
            stand.world.hear(Heard::Consistent(UnixMs(at)));
        };
        stand.at(0).await.unwrap();
        beat();
        stand.reads();
        for n in 0..60 {
            for _ in 0..every / SECOND {
                stand.pass(SECOND).await;
                stand.at(0).await.unwrap();
                assert!(stand.standing().live, "{ahead} s ahead, renewal {n}");
            }
            // Every other one is lost.
            if n % 2 == 1 {
                beat();
            }
        }
        assert_eq!(stand.reads(), 0, "{ahead} s ahead");
        assert!(stand.world.lost.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_makes_nothing_younger() {
    let stand = Stand::new(1, WatchSettings::default()).await;
    stand.pass(3_600 * SECOND).await;
    stand.at(0).await.unwrap();
    stand.pass(10 * SECOND).await;
    *stand.world.now.lock().unwrap() -= 1_800 * SECOND;
    stand.reads();
    stand.at(0).await.unwrap();
    assert_eq!(stand.reads(), 1);
    stand.world.reads_fail.store(true, Ordering::SeqCst);
    *stand.world.now.lock().unwrap() -= 1_000 * SECOND;
    assert!(unavailable(stand.at(0).await));
}
