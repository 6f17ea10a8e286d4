//! A bare websocket to the relay: what a stranger sees, and what no library's patience hides.

use std::collections::BTreeSet;

use futures::{SinkExt as _, StreamExt as _};
use nostr::{Event, EventBuilder, Keys, Kind, Tag, Timestamp};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::world::PATIENCE;

pub struct Wire(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Wire {
    pub async fn connect(url: &str) -> Self {
        let connected = timeout(PATIENCE, connect_async(url)).await;
        Self(connected.unwrap().unwrap().0)
    }

    pub async fn send(&mut self, message: Value) {
        let text = Message::text(message.to_string());
        self.0.send(text).await.unwrap();
    }

    /// The next message whose first element is `command`.
    pub async fn next(&mut self, command: &str) -> Value {
        let next = async {
            loop {
                if let Message::Text(text) = self.0.next().await.unwrap().unwrap() {
                    let value: Value = serde_json::from_str(&text).unwrap();
                    if value[0] == command {
                        return value;
                    }
                }
            }
        };
        timeout(PATIENCE, next).await.unwrap()
    }

    /// What the relay says to one event, by id: accepted or not, and why.
    pub async fn next_ok(&mut self) -> (String, bool, String) {
        let ok = self.next("OK").await;
        let text = |at: usize| ok[at].as_str().unwrap().to_owned();
        (text(1), ok[2].as_bool().unwrap(), text(3))
    }

    /// The code of the close frame; `None` when the connection ends without one.
    pub async fn close_code(&mut self) -> Option<u16> {
        let close = async {
            loop {
                match self.0.next().await? {
                    Ok(Message::Close(frame)) => return frame.map(|frame| frame.code.into()),
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        };
        timeout(PATIENCE, close).await.unwrap()
    }

    /// The ids of the stored events that `filter` finds. The relay's own page size applies.
    pub async fn find(&mut self, filter: Value) -> BTreeSet<String> {
        self.send(json!(["REQ", "find", filter])).await;
        let mut found = BTreeSet::new();
        let answers = async {
            loop {
                let Message::Text(text) = self.0.next().await.unwrap().unwrap() else {
                    continue;
                };
                let value: Value = serde_json::from_str(&text).unwrap();
                if value[0] == "EOSE" {
                    return;
                }
                assert_eq!(value[0], "EVENT", "{value}");
                found.insert(value[2]["id"].as_str().unwrap().to_owned());
            }
        };
        timeout(PATIENCE, answers).await.unwrap();
        self.send(json!(["CLOSE", "find"])).await;
        found
    }

    /// Those of `ids` that are stored.
    pub async fn stored(&mut self, ids: impl IntoIterator<Item = String>) -> BTreeSet<String> {
        let ids: Vec<String> = ids.into_iter().collect();
        let mut found = BTreeSet::new();
        for some in ids.chunks(100) {
            found.extend(self.find(json!({ "ids": some, "limit": some.len() })).await);
        }
        found
    }
}

/// A group event that nobody in the group can open, `age` seconds old: a flood within one second could not be paged through by anybody.
pub fn garbage(address: &str, age: u64) -> Event {
    EventBuilder::new(Kind::MlsGroupMessage, "bm90IE1MUw==")
        .tags([
            Tag::parse(["h", address]).unwrap(),
            Tag::parse(["encoding", "base64"]).unwrap(),
        ])
        .custom_created_at(Timestamp::now() - age)
        .sign_with_keys(&Keys::generate())
        .unwrap()
}
