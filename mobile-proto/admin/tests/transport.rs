//! The relay connection against a relay with the host's habits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use keyturn_admin::clock::SystemClock;
use keyturn_admin::transport::{Connection, Heard, Limits, RelayError, Relays};
use nostr::{Event, EventBuilder, Filter, Keys, Kind, RelayUrl, Tag, Timestamp};
use support::relay::TestRelay;
use support::{LONG, eventually, run, soon};
use tokio::time::Instant;

async fn connect(relay: &TestRelay) -> Connection {
    Connection::open(&relay.url(), &Keys::generate(), LONG, Arc::new(SystemClock))
        .await
        .unwrap()
}

async fn within(relay: &TestRelay, limits: Limits) -> Connection {
    let (url, keys, clock) = (relay.url(), Keys::generate(), Arc::new(SystemClock));
    Connection::open_within(&url, &keys, LONG, clock, limits)
        .await
        .unwrap()
}

fn event(content: String, at: u64) -> Event {
    EventBuilder::new(Kind::TextNote, content)
        .custom_created_at(Timestamp::from_secs(at))
        .sign_with_keys(&Keys::generate())
        .unwrap()
}

#[test]
fn a_fetch_has_no_holes_however_the_relay_pages() {
    run(async {
        let relay = TestRelay::start().await;
        // More than a page in all, and more than one in each of many seconds.
        let events: Vec<Event> = (0..900u64)
            .map(|n| event(n.to_string(), 1_000 + n / 40))
            .collect();
        relay.preload(&events);
        let connection = connect(&relay).await;
        let filter = Filter::new().kind(Kind::TextNote);
        let found = connection.fetch_all(&filter, soon()).await.unwrap();
        assert_eq!(found.len(), events.len());
        assert!(found.is_sorted_by_key(|event| (event.created_at, event.id)));
    });
}

/// What the client library drops in silence: an event that has expired, and one that it cannot read.
fn unseen(n: u64, at: u64) -> Event {
    EventBuilder::new(Kind::TextNote, n.to_string())
        .tag(Tag::expiration(Timestamp::from_secs(1)))
        .custom_created_at(Timestamp::from_secs(at))
        .sign_with_keys(&Keys::generate())
        .unwrap()
}

#[test]
fn a_page_of_what_the_library_drops_hides_nothing() {
    run(async {
        let relay = TestRelay::start().await;
        let behind = event("behind".to_owned(), 1_000);
        relay.preload(std::slice::from_ref(&behind));
        let connection = connect(&relay).await;
        let filter = Filter::new().kind(Kind::TextNote);
        // A few of them are stepped over.
        let few: Vec<Event> = (0..20).map(|n| unseen(n, 1_001)).collect();
        relay.preload(&few);
        let found = connection.fetch_all(&filter, soon()).await.unwrap();
        assert_eq!(found, std::slice::from_ref(&behind));
        let many: Vec<Event> = (0..600).map(|n| unseen(n, 1_002 + n / 200)).collect();
        relay.preload(&many);
        let found = connection.fetch_all(&filter, soon()).await.unwrap();
        assert_eq!(found, std::slice::from_ref(&behind));
        // With a second full of them nobody can say what else is in it: that is no shorter list.
        let crowd: Vec<Event> = (0..300).map(|n| unseen(n, 1_010)).collect();
        relay.preload(&crowd);
        let cut = connection.fetch_all(&filter, soon()).await;
        assert!(matches!(cut, Err(RelayError::TooMany)), "{cut:?}");
        // Who knows what to do about it gets the rest, and the name of the second.
        let fetched = connection.fetch_past_crowds(&filter, soon()).await.unwrap();
        assert_eq!(fetched.events, [behind]);
        assert_eq!(Vec::from_iter(fetched.crowded), [1_010]);
    });
}

#[test]
fn a_fetch_ends_at_its_limits_and_says_so() {
    run(async {
        let relay = TestRelay::start().await;
        let events: Vec<Event> = (0..60).map(|n| event("x".repeat(1_000), n)).collect();
        relay.preload(&events);
        relay.preload(&[event("y".repeat(20_000), 70)]);
        let limits = Limits {
            message_bytes: 10_000,
            fetch_bytes: 100_000,
            ..Limits::default()
        };
        let connection = within(&relay, limits).await;
        let filter = Filter::new().kind(Kind::TextNote);
        let below = filter.clone().until(Timestamp::from_secs(69));
        let all = connection.fetch(&below, 100, soon()).await.unwrap();
        assert!(all.is_whole() && all.events.len() == 60);
        let few = connection.fetch(&below, 59, soon()).await.unwrap();
        assert!(few.cut, "more events than wanted");
        let large = connection.fetch(&filter, 100, soon()).await.unwrap();
        assert!(large.cut, "one is larger than we take");
        assert!(
            large
                .events
                .iter()
                .all(|event| event.content.len() < 10_000)
        );
        let limits = Limits {
            fetch_bytes: 20_000,
            ..limits
        };
        let connection = within(&relay, limits).await;
        let heavy = connection.fetch(&below, 100, soon()).await.unwrap();
        assert!(heavy.cut && heavy.events.len() < 20, "heavier than wanted");
    });
}

#[test]
fn whoever_is_too_busy_to_listen_is_told_that_something_was_missed() {
    run(async {
        let relay = TestRelay::start().await;
        let limits = Limits {
            waiting: 64,
            waiting_bytes: 40_000,
            ..Limits::default()
        };
        let mut connection = within(&relay, limits).await;
        let filter = Filter::new().kind(Kind::TextNote);
        connection.listen(vec![filter.clone()]).await.unwrap();
        let sender = connect(&relay).await;
        // Until the subscription has begun nothing is heard, so it is tried again. Few enough for the queue, and too heavy for it.
        let mut missed = false;
        for _ in 0..50 {
            let heavy: Vec<Event> = (0..40)
                .map(|n| event("x".repeat(2_000), 1_000 + n))
                .collect();
            for event in &heavy {
                sender.publish_stored(event, soon()).await.unwrap();
            }
            let shortly = || Instant::now() + Duration::from_millis(200);
            while let Some(heard) = connection.next(shortly()).await.unwrap() {
                missed |= matches!(heard, Heard::Resync);
            }
            if missed {
                let all = connection.fetch_all(&filter, soon()).await.unwrap();
                assert!(heavy.iter().all(|event| all.contains(event)));
                return;
            }
        }
        panic!("nobody said that something was missed");
    });
}

#[test]
fn one_of_several_relays_is_enough() {
    run(async {
        let (a, b) = (TestRelay::start().await, TestRelay::start().await);
        let keys = Keys::generate();
        let away = RelayUrl::parse("ws://127.0.0.1:1").unwrap();
        let urls = [away.clone(), a.url(), b.url()];
        let clock = || Arc::new(SystemClock);
        let none = Relays::open(std::slice::from_ref(&away), &keys, LONG, clock()).await;
        assert!(matches!(none, Err(RelayError::Connect { .. })));
        let mut relays = Relays::open(&urls, &keys, LONG, clock()).await.unwrap();
        let filter = Filter::new().kind(Kind::TextNote);
        relays.listen(vec![filter.clone()]).await.unwrap();

        // Both get it, and it is heard once.
        let mut number = 1_000;
        loop {
            number += 1;
            let sent = event("both".to_owned(), number);
            relays.publish_stored(&sent, soon()).await.unwrap();
            // One is enough; the other may need a moment longer.
            let both = || [&a, &b].iter().all(|relay| relay.events().contains(&sent));
            let until = soon();
            while !both() {
                assert!(Instant::now() < until, "one of them did not get it");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let mut heard = 0;
            while let Some(one) = relays
                .next(Instant::now() + Duration::from_millis(300))
                .await
                .unwrap()
            {
                heard +=
                    usize::from(matches!(&one, Heard::Live { event, .. } if event.id == sent.id));
            }
            assert!(heard <= 1, "heard {heard} times");
            // Until the subscriptions have begun nothing is heard.
            if heard == 1 {
                break;
            }
            assert!(number < 1_100, "nothing was heard");
        }

        // What either holds is found.
        let (only_a, only_b) = (event("a".to_owned(), 10), event("b".to_owned(), 20));
        a.preload(std::slice::from_ref(&only_a));
        b.preload(std::slice::from_ref(&only_b));
        let until = soon();
        loop {
            let found = relays.fetch_all(&filter, soon()).await.unwrap();
            if found.starts_with(&[only_a.clone(), only_b.clone()]) {
                break;
            }
            assert!(Instant::now() < until, "{found:?}");
        }

        // One hangs, the other goes on.
        a.stall();
        let found = relays.fetch_all(&filter, soon()).await.unwrap();
        assert!(found.contains(&only_b));
        a.mute(1);
        let sent = event("b alone".to_owned(), 30);
        relays.publish_stored(&sent, soon()).await.unwrap();
        assert!(b.events().contains(&sent) && !a.events().contains(&sent));
        // What one refuses counts as taken if the other has it; what both refuse does not.
        a.heal();
        a.refuse(1, "blocked: no");
        let sent = event("refused by one".to_owned(), 40);
        relays.publish_stored(&sent, soon()).await.unwrap();
        b.refuse(1, "blocked: no");
        let refused = relays
            .publish(&event("by both".to_owned(), 50), soon())
            .await;
        assert!(
            matches!(refused, Err(RelayError::Refused(_))),
            "{refused:?}"
        );

        // A connection that was lost is told of when it is there again.
        a.heal();
        b.heal();
        a.hang_up();
        loop {
            match relays.next(soon()).await.unwrap() {
                Some(Heard::Resync) => break,
                Some(_) => {}
                None => panic!("it never came back"),
            }
        }
        relays.close().await;
    });
}

#[test]
fn stored_means_that_it_can_be_read_back() {
    run(async {
        let relay = TestRelay::start().await;
        let connection = connect(&relay).await;
        for n in 0..5 {
            let event = event(n.to_string(), 1_000);
            connection.publish_stored(&event, soon()).await.unwrap();
            assert!(relay.events().iter().any(|stored| stored.id == event.id));
        }
    });
}

#[test]
fn a_notice_in_place_of_an_ok_ends_the_wait() {
    run(async {
        let relay = TestRelay::start().await;
        let connection = connect(&relay).await;
        // An OK is waited for up to ten seconds; a machine that loses as many by itself has several tries.
        let mut took = Vec::new();
        while took.len() < 5 {
            let started = Instant::now();
            let refused = connection
                .publish(&event("x".repeat(600_000), 1_000), soon())
                .await;
            assert!(
                matches!(&refused, Err(RelayError::Notice(text)) if text.contains("too large")),
                "{refused:?}"
            );
            took.push(started.elapsed());
            if took.last() < Some(&Duration::from_secs(8)) {
                return;
            }
        }
        panic!("it waited for the OK: {took:?}");
    });
}

#[test]
fn a_fetch_that_is_cut_short_is_an_error() {
    run(async {
        let relay = TestRelay::start().await;
        let connection = connect(&relay).await;
        let filter = Filter::new().kind(Kind::TextNote);
        relay.stall();
        let shortly = Instant::now() + Duration::from_millis(300);
        let cut = connection.fetch_all(&filter, shortly).await;
        assert!(matches!(cut, Err(RelayError::Timeout(_))), "{cut:?}");

        let asked = relay.requests();
        let hanging = connection.fetch_all(&filter, soon());
        let hang_up = async {
            eventually("the relay was asked", || relay.requests() > asked).await;
            relay.hang_up();
        };
        let (cut, ()) = tokio::join!(hanging, hang_up);
        assert!(matches!(cut, Err(RelayError::Lost)), "{cut:?}");
    });
}

#[test]
fn live_events_carry_the_time_of_their_arrival() {
    run(async {
        let relay = TestRelay::start().await;
        relay.preload(&[event("old".to_owned(), 1_000)]);
        let mut connection = connect(&relay).await;
        connection
            .listen(vec![Filter::new().kind(Kind::TextNote)])
            .await
            .unwrap();
        let sender = connect(&relay).await;
        // Until it is heard live, the subscription may not have begun.
        let before = keyturn_admin::clock::Clock::now(&SystemClock);
        let mut number = 1_000;
        let (event, at) = loop {
            number += 1;
            sender
                .publish_stored(&self::event("new".to_owned(), number), soon())
                .await
                .unwrap();
            let shortly = Instant::now() + Duration::from_millis(200);
            match connection.next(shortly).await.unwrap() {
                Some(Heard::Live { event, at }) => break (event, at),
                _ => assert!(number < 1_100, "nothing was heard"),
            }
        };
        assert_eq!(event.content, "new");
        assert!(at >= before);
    });
}
