//! A client that publishes as fast as the relay says OK.

use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::{SinkExt as _, StreamExt as _};
use nostr::{EventBuilder, JsonUtil as _, Keys, Kind, Tag};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

const CONNECTIONS: usize = 16;
/// Events on their way on one connection.
const WINDOW: usize = 256;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Open connections to one relay.
pub struct Connections(Vec<Socket>);

impl Connections {
    pub async fn open(url: &str) -> Self {
        let open = (0..CONNECTIONS).map(|_| connect_async(url));
        let opened = join_all(open).await.into_iter();
        Self(opened.map(|opened| opened.unwrap().0).collect())
    }

    /// Publishes `events`; how long it took until the last one was acknowledged.
    pub async fn send(&mut self, events: &[Utf8Bytes]) -> Duration {
        let begun = Instant::now();
        let shares = events.chunks(events.len().div_ceil(CONNECTIONS));
        join_all(
            self.0
                .iter_mut()
                .zip(shares)
                .map(|(socket, share)| publish(socket, share)),
        )
        .await;
        begun.elapsed()
    }
}

async fn publish(socket: &mut Socket, events: &[Utf8Bytes]) {
    let (mut sent, mut acknowledged) = (0, 0);
    while acknowledged < events.len() {
        let upto = events.len().min(acknowledged + WINDOW);
        for event in &events[sent..upto] {
            socket.feed(Message::Text(event.clone())).await.unwrap();
        }
        sent = upto;
        socket.flush().await.unwrap();
        let answer = socket.next().await.unwrap().unwrap();
        let Message::Text(answer) = answer else {
            continue;
        };
        let fields: (String, String, bool, String) = serde_json::from_str(&answer).unwrap();
        assert!(fields.0 == "OK" && fields.2, "{answer}");
        acknowledged += 1;
    }
}

/// `EVENT` messages, signed: half notes, half 445 events of groups that nobody serves.
pub fn events(count: usize) -> Vec<Utf8Bytes> {
    let keys = Keys::generate();
    let stranger = Keys::generate().public_key().to_hex();
    (0..count)
        .map(|nth| {
            let content = format!("{nth:0>200}");
            let event = if nth % 2 == 0 {
                EventBuilder::text_note(content)
            } else {
                let tag = Tag::parse(["h", stranger.as_str()]).unwrap();
                EventBuilder::new(Kind::MlsGroupMessage, content).tag(tag)
            };
            let event = event.sign_with_keys(&keys).unwrap();
            format!("[\"EVENT\",{}]", event.as_json()).into()
        })
        .collect()
}
