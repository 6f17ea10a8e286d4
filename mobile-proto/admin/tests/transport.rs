//! The relay connection against a relay with the host's habits.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use keyturn_admin::clock::SystemClock;
use keyturn_admin::transport::{Connection, Heard, RelayError};
use nostr::{Event, EventBuilder, Filter, Keys, Kind, Timestamp};
use support::relay::TestRelay;
use support::{LONG, eventually, run, soon};
use tokio::time::Instant;

async fn connect(relay: &TestRelay) -> Connection {
    Connection::open(&relay.url(), &Keys::generate(), LONG, Arc::new(SystemClock))
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
