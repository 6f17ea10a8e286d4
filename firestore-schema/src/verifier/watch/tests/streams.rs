//! Targets that come and go, and streams that end.

use super::*;

#[tokio::test]
async fn clients_beyond_the_targets_are_read_through_and_idle_ones_make_room() {
    let settings = WatchSettings {
        max_targets: 2,
        ..WatchSettings::default()
    };
    let stand = Stand::new(4, settings).await;
    for n in 0..3 {
        stand.at(n).await.unwrap();
    }
    assert_eq!(stand.standing().targets, 2);
    stand.pass(10 * SECOND).await;
    stand.reads();
    for n in 0..3 {
        stand.at(n).await.unwrap();
    }
    assert_eq!(stand.reads(), 1, "the third is read");
    // Client 1 is not asked about any more; within two sweeps the third has its place.
    for _ in 0..10 {
        stand.pass(10 * SECOND).await;
        stand.at(0).await.unwrap();
        stand.at(2).await.unwrap();
    }
    stand.reads();
    stand.pass(20 * SECOND).await;
    stand.at(0).await.unwrap();
    stand.at(2).await.unwrap();
    assert_eq!(stand.reads(), 0);
    assert_eq!(stand.standing().targets, 2);
    // What the first one lost is not believed on the word of a stream that does not tell of it.
    stand.set(1, 2, ClientStatus::Suspended).await;
    assert_eq!(stand.at(1).await, REFUSED);
}

#[tokio::test]
async fn a_reset_or_removed_target_covers_nothing() {
    let stand = Stand::new(2, WatchSettings::default()).await;
    for (n, heard) in [
        (0, Heard::Reset as fn(Vec<TargetId>) -> Heard),
        (1, Heard::Removed),
    ] {
        stand.at(n).await.unwrap();
        stand.pass(10 * SECOND).await;
        stand.reads();
        stand.at(n).await.unwrap();
        assert_eq!(stand.reads(), 0);
        let target = {
            let stream = stand.world.stream.lock().unwrap();
            let targets = &stream.as_ref().unwrap().1;
            targets.iter().find(|(_, id)| *id == client(n)).unwrap().0
        };
        stand.world.hear(heard(vec![target]));
        stand.pass(6 * SECOND).await;
        stand.at(n).await.unwrap();
        assert_eq!(stand.reads(), 1, "client {n}");
    }
    // The server took one away: it is not asked for more at once.
    let todo = stand.world.with(|watch, now| watch.wanted(&client(1), now));
    assert!(todo.is_empty());
}

#[tokio::test]
async fn a_stream_that_never_proves_itself_is_given_up_with_growing_pauses() {
    let mut watch = Watch::new(WatchSettings::default());
    let mut now = START;
    let mut opened = Vec::new();
    while now.0 < START.0 + 120 * SECOND {
        for what in watch.tick(now) {
            if let Do::Open(number) = what {
                opened.push(now.0 - START.0);
                // Without its heartbeat a stream proves nothing, whatever it says.
                watch.heard(number, Heard::Consistent(now), now);
            }
        }
        assert!(!watch.standing(now).live);
        now = watch.wake_at().max(UnixMs(now.0 + 1));
    }
    let pauses: Vec<u64> = opened.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(pauses.is_sorted() && pauses.len() >= 5, "{pauses:?}");
    assert!(
        pauses.iter().all(|pause| *pause <= 20 * SECOND),
        "{pauses:?}"
    );
    // What an old stream says late counts for nothing.
    watch.heard(1, Heard::Current(vec![HEARTBEAT]), now);
    watch.heard(1, Heard::Consistent(now), now);
    assert!(!watch.standing(now).live);
}

#[tokio::test]
async fn a_stream_that_proves_itself_and_ends_at_once_is_not_opened_in_a_rush() {
    let mut watch = Watch::new(WatchSettings::default());
    let mut now = START;
    let mut opened = 0;
    while now.0 < START.0 + 600 * SECOND {
        for what in watch.tick(now) {
            if let Do::Open(number) = what {
                opened += 1;
                watch.heard(number, Heard::Current(vec![HEARTBEAT]), now);
                watch.heard(number, Heard::Consistent(now), now);
                assert!(watch.standing(now).live);
                watch.ended(number, now);
            }
        }
        now = watch.wake_at().max(UnixMs(now.0 + 1));
    }
    assert!((60..80).contains(&opened), "{opened}");
}

#[tokio::test]
async fn a_document_that_cannot_be_read_or_is_gone_is_not_served_from_memory() {
    let stand = Stand::new(2, WatchSettings::default()).await;
    for n in 0..2 {
        stand.at(n).await.unwrap();
    }
    stand.pass(10 * SECOND).await;
    stand.reads();
    let targets = stand
        .world
        .stream
        .lock()
        .unwrap()
        .as_ref()
        .unwrap()
        .1
        .clone();
    let of = |n| vec![targets.iter().find(|(_, id)| *id == client(n)).unwrap().0];
    stand.world.hear(Heard::Changed {
        targets: of(0),
        snapshot: None,
    });
    stand
        .world
        .documents
        .lock()
        .unwrap()
        .retain(|(id, _)| *id != client(1));
    stand.world.hear(Heard::Gone { targets: of(1) });
    stand.at(0).await.unwrap();
    assert_eq!(stand.at(1).await, REFUSED);
    assert_eq!(stand.reads(), 2);
}
