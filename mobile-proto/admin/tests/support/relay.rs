//! A relay in a test: keeps events in memory, answers NIP-01, and has the host relay's habits that hurt (see the crate's `transport`):
//! a REQ without `limit` gets the oldest events, events are stored (and broadcast) only with the next tick, each batch in reverse order,
//! oversize is answered by a NOTICE without OK. Faults can be switched on.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use nostr::filter::MatchEventOptions;
use nostr::{
    ClientMessage, Event, EventId, Filter, JsonUtil as _, Kind, RelayMessage, RelayUrl,
    SubscriptionId,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

/// What an unlimited REQ, or any page, is cut to.
const MAX: usize = 300;
const TICK: Duration = Duration::from_millis(20);
const OVERSIZE: usize = 524_288;

type Sink = mpsc::UnboundedSender<String>;

#[derive(Default)]
struct State {
    stored: Vec<Event>,
    batch: Vec<Event>,
    subscriptions: HashMap<(u64, String), (Sink, Vec<Filter>)>,
    refuse: Option<(Kind, String)>,
    mute: Option<Kind>,
    stalled: bool,
    wordless: Option<Kind>,
    /// Events that were not answered, and REQs that were heard.
    unanswered: usize,
    requests: usize,
    connections: u64,
    open: Vec<tokio::task::AbortHandle>,
}

#[derive(Clone)]
pub struct TestRelay {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
}

impl TestRelay {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Self {
            state: Arc::default(),
            address: listener.local_addr().unwrap(),
        };
        let accepting = relay.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serving = tokio::spawn(accepting.clone().serve(stream));
                let mut state = accepting.state.lock().unwrap();
                state.open.push(serving.abort_handle());
            }
        });
        let ticking = relay.clone();
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(TICK);
            loop {
                tick.tick().await;
                ticking.flush();
            }
        });
        relay
    }

    pub fn url(&self) -> RelayUrl {
        RelayUrl::parse(&format!("ws://{}", self.address)).unwrap()
    }

    /// Everything that is stored.
    pub fn events(&self) -> Vec<Event> {
        self.state.lock().unwrap().stored.clone()
    }

    /// Answers events of this kind with `OK false`.
    pub fn refuse(&self, kind: u16, reason: &str) {
        self.state.lock().unwrap().refuse = Some((Kind::from(kind), reason.to_owned()));
    }

    /// Does not answer events of this kind at all.
    pub fn mute(&self, kind: u16) {
        self.state.lock().unwrap().mute = Some(Kind::from(kind));
    }

    /// Closes every connection; new ones are welcome.
    pub fn hang_up(&self) {
        for connection in self.state.lock().unwrap().open.drain(..) {
            connection.abort();
        }
    }

    /// Loses everything that `author` has published.
    pub fn forget(&self, author: nostr::PublicKey) {
        let mut state = self.state.lock().unwrap();
        state.stored.retain(|event| event.pubkey != author);
    }

    /// Takes events of this kind and never says so.
    pub fn swallow_ok(&self, kind: u16) {
        self.state.lock().unwrap().wordless = Some(Kind::from(kind));
    }

    /// How many events it has left without an answer so far.
    pub fn unanswered(&self) -> usize {
        self.state.lock().unwrap().unanswered
    }

    /// How many REQs it has heard so far.
    pub fn requests(&self) -> usize {
        self.state.lock().unwrap().requests
    }

    /// Answers no REQ any more.
    pub fn stall(&self) {
        self.state.lock().unwrap().stalled = true;
    }

    /// Has these events from the start.
    pub fn preload(&self, events: &[Event]) {
        self.state.lock().unwrap().stored.extend_from_slice(events);
    }

    pub fn heal(&self) {
        let mut state = self.state.lock().unwrap();
        state.stalled = false;
        state.wordless = None;
        state.refuse = None;
        state.mute = None;
    }

    fn flush(&self) {
        let mut state = self.state.lock().unwrap();
        let mut batch = std::mem::take(&mut state.batch);
        batch.reverse();
        for event in batch {
            if event.kind == Kind::EventDeletion {
                let gone: Vec<EventId> = event.tags.event_ids().copied().collect();
                state
                    .stored
                    .retain(|old| !(gone.contains(&old.id) && old.pubkey == event.pubkey));
            }
            if event.kind.is_addressable() {
                let d = event.tags.identifier().map(str::to_owned);
                state.stored.retain(|old| {
                    old.kind != event.kind
                        || old.pubkey != event.pubkey
                        || old.tags.identifier().map(str::to_owned) != d
                });
            }
            for ((_, id), (sink, filters)) in &state.subscriptions {
                if matches(filters, &event) {
                    let message = RelayMessage::event(SubscriptionId::new(id), event.clone());
                    let _ = sink.send(message.as_json());
                }
            }
            state.stored.push(event);
        }
    }

    async fn serve(self, stream: TcpStream) {
        let Ok(socket) = tokio_tungstenite::accept_async(stream).await else {
            return;
        };
        let connection = {
            let mut state = self.state.lock().unwrap();
            state.connections += 1;
            state.connections
        };
        let (mut write, mut read) = socket.split();
        let (sink, mut outgoing) = mpsc::unbounded_channel::<String>();
        // In one task with the reading, so that ending it closes the socket.
        loop {
            tokio::select! {
                Some(text) = outgoing.recv() => {
                    if write.send(Message::text(text)).await.is_err() {
                        break;
                    }
                }
                heard = read.next() => match heard {
                    Some(Ok(Message::Text(text))) => self.answer(connection, &sink, &text),
                    Some(Ok(_)) => {}
                    _ => break,
                },
            }
        }
        self.state
            .lock()
            .unwrap()
            .subscriptions
            .retain(|(owner, _), _| *owner != connection);
    }

    fn answer(&self, connection: u64, sink: &Sink, text: &str) {
        let say = |message: RelayMessage<'_>| {
            let _ = sink.send(message.as_json());
        };
        if text.len() > OVERSIZE {
            return say(RelayMessage::notice("invalid: message is too large"));
        }
        let mut state = self.state.lock().unwrap();
        match ClientMessage::from_json(text) {
            Ok(ClientMessage::Event(event)) => {
                if state.mute == Some(event.kind) {
                    state.unanswered += 1;
                    return;
                }
                if let Some((kind, reason)) = &state.refuse
                    && *kind == event.kind
                {
                    return say(RelayMessage::ok(event.id, false, reason.as_str()));
                }
                if event.verify().is_err() {
                    return say(RelayMessage::ok(event.id, false, "invalid: signature"));
                }
                let newer = state.stored.iter().chain(&state.batch).any(|old| {
                    event.kind.is_addressable()
                        && (old.kind, old.pubkey, old.tags.identifier())
                            == (event.kind, event.pubkey, event.tags.identifier())
                        && (old.created_at, std::cmp::Reverse(old.id))
                            > (event.created_at, std::cmp::Reverse(event.id))
                });
                if newer {
                    return say(RelayMessage::ok(
                        event.id,
                        false,
                        "replaced: have newer event",
                    ));
                }
                let known = state
                    .stored
                    .iter()
                    .chain(&state.batch)
                    .any(|old| old.id == event.id);
                let (id, wordless) = (event.id, state.wordless == Some(event.kind));
                if !known {
                    state.batch.push(event.into_owned());
                }
                if wordless {
                    state.unanswered += 1;
                } else {
                    say(RelayMessage::ok(id, true, ""));
                }
            }
            Ok(ClientMessage::Req {
                subscription_id,
                filters,
            }) => {
                state.requests += 1;
                if state.stalled {
                    return;
                }
                let filters: Vec<Filter> = filters.into_iter().map(|f| f.into_owned()).collect();
                for filter in &filters {
                    let mut found: Vec<&Event> = state
                        .stored
                        .iter()
                        .filter(|event| filter.match_event(event, MatchEventOptions::new()))
                        .collect();
                    found.sort_by_key(|event| event.created_at);
                    match filter.limit {
                        Some(limit) => {
                            found.reverse();
                            found.truncate(limit.min(MAX));
                        }
                        None => found.truncate(MAX),
                    }
                    for event in found {
                        say(RelayMessage::event(
                            subscription_id.as_ref().clone(),
                            event.clone(),
                        ));
                    }
                }
                say(RelayMessage::eose(subscription_id.as_ref().clone()));
                let key = (connection, subscription_id.to_string());
                state.subscriptions.insert(key, (sink.clone(), filters));
            }
            Ok(ClientMessage::Close(id)) => {
                state.subscriptions.remove(&(connection, id.to_string()));
            }
            _ => say(RelayMessage::notice("invalid: not understood")),
        }
    }
}

fn matches(filters: &[Filter], event: &Event) -> bool {
    filters
        .iter()
        .any(|filter| filter.match_event(event, MatchEventOptions::new()))
}
