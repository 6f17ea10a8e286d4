//! A peer whose line brings some of what was asked for, and not all of it in time.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use futures::{SinkExt as _, StreamExt as _};
use keyturn_admin::clock::SystemClock;
use keyturn_admin::transport::Limits;
use nostr::filter::MatchEventOptions;
use nostr::{EventId, JsonUtil as _, Keys, RelayUrl, Tag};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;

use super::super::lanes::tests::{Place, dated};
use super::*;

/// More events than this do not come through in time, however long one waits.
const THROUGH: usize = 10;
/// What comes of them.
const SOME: usize = 3;
const PATIENCE: Duration = Duration::from_secs(2);
const DEADLINE: Duration = Duration::from_secs(120);
const GROUP: [u8; 32] = [7; 32];

/// Serves stored events over a line that is too slow for many at once.
async fn peer(events: Vec<Event>) -> RelayUrl {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let events = Arc::new(events);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&events)));
        }
    });
    RelayUrl::parse(&format!("ws://{address}")).unwrap()
}

async fn serve(stream: TcpStream, events: Arc<Vec<Event>>) {
    let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
    while let Some(Ok(message)) = socket.next().await {
        let Ok(text) = message.to_text() else {
            continue;
        };
        let Ok(asked) = serde_json::from_str::<serde_json::Value>(text) else {
            continue;
        };
        if asked[0] != "REQ" {
            continue;
        }
        let filter = Filter::from_json(asked[2].to_string()).unwrap();
        let mut found: Vec<&Event> = events
            .iter()
            .filter(|event| filter.match_event(event, MatchEventOptions::new()))
            .collect();
        found.sort_by_key(|event| std::cmp::Reverse(event.created_at));
        found.truncate(filter.limit.unwrap_or(usize::MAX));
        let whole = found.len() <= THROUGH;
        if !whole {
            found.truncate(SOME);
        }
        let mut answer: Vec<String> = found
            .iter()
            .map(|event| format!(r#"["EVENT",{},{}]"#, asked[1], event.as_json()))
            .collect();
        if whole {
            answer.push(format!(r#"["EOSE",{}]"#, asked[1]));
        }
        for text in answer {
            if socket.send(Message::text(text)).await.is_err() {
                return;
            }
        }
    }
}

fn group_event(group: [u8; 32], at: u64) -> Event {
    let h = Tag::custom(
        nostr::TagKind::single_letter(Alphabet::H, false),
        [hex::encode(group)],
    );
    dated(&Keys::generate(), kinds::GROUP_EVENT, vec![h], at)
}

/// A flood over a slow line costs what cannot be had of it, and nothing else: neither what lies behind it nor the connection.
#[tokio::test]
async fn a_second_that_does_not_come_through_in_time_stops_nothing_behind_it() {
    let us = Keys::generate();
    let place = Place::new(&us.public_key());
    let served = crate::service::Served {
        groups: [GROUP].into_iter().collect(),
        ..crate::service::Served::default()
    };
    place.site.served.replace(served);
    let now = place.site.clock.now();
    let start = now.as_secs() - 300;
    let (strangers, ours) = (start + 1, start + 4);
    let many = |group: [u8; 32], at| (0..4 * THROUGH).map(move |_| group_event(group, at));
    let wanted = [
        group_event(GROUP, start),
        group_event(GROUP, strangers),
        group_event(GROUP, strangers + 1),
        group_event(GROUP, ours + 1),
    ];
    let mut events: Vec<Event> = wanted.to_vec();
    events.extend(many([9; 32], strangers));
    events.extend(many(GROUP, ours));
    let url = peer(events).await;

    let lanes = place.lanes();
    let mut reached = Reached {
        width: 2,
        ..Reached::default()
    };
    let fetched = tokio::time::timeout(DEADLINE, async {
        loop {
            let limits = Limits::default();
            let clock = Arc::new(SystemClock);
            let opened = Connection::open_within(&url, &us, DEADLINE, clock, limits).await;
            let connection = opened.unwrap();
            let work = CatchUp {
                site: &place.site,
                peer: "ws://peer",
                lanes: &lanes,
                connection: &connection,
                began: now,
                patience: PATIENCE,
            };
            let since = reached.from(
                Series::Others,
                UnixMs::from_secs(start).plus(OVERLAP),
                UnixMs(0),
            );
            match work.fetch(Series::Others, since, &mut reached).await {
                Ok(whole) => break whole,
                // On a machine that is so busy that no frame came in all that time.
                Err(RelayError::Timeout(_)) => connection.close().await,
                Err(other) => panic!("{other}"),
            }
        }
    });
    assert!(fetched.await.expect("it goes on"));
    let stored: Vec<EventId> = place.relay.events().iter().map(|event| event.id).collect();
    for event in &wanted {
        assert!(stored.contains(&event.id), "{event:?}");
    }
    // Of what floods us ourselves, as much as came through; of strangers' nothing.
    let more = stored.len() - wanted.len();
    assert!((1..=THROUGH).contains(&more), "{more}");
}
