//! What went over the wire: a TCP proxy that keeps every byte of both directions, and a subscriber that keeps every event.

use std::sync::{Arc, Mutex};

use futures::{SinkExt as _, StreamExt as _};
use nostr::{Event, JsonUtil as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use crate::world::{PATIENCE, eventually};

/// One direction of one connection.
type Recorded = Arc<Mutex<Vec<u8>>>;

/// Listens on a port of its own and passes everything on to `target`.
pub struct Tap {
    address: String,
    recorded: Arc<Mutex<Vec<Recorded>>>,
    task: JoinHandle<()>,
}

impl Tap {
    /// `target` is `host:port`.
    pub async fn before(target: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let recorded: Arc<Mutex<Vec<Recorded>>> = Arc::default();
        let (target, directions) = (target.to_owned(), Arc::clone(&recorded));
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                // The relay may be down; then the connection ends at once, as it would without us.
                let Ok(far) = TcpStream::connect(&target).await else {
                    continue;
                };
                let (near_in, near_out) = near.into_split();
                let (far_in, far_out) = far.into_split();
                for (from, to) in [(near_in, far_out), (far_in, near_out)] {
                    let record = Recorded::default();
                    directions.lock().unwrap().push(Arc::clone(&record));
                    tokio::spawn(pass_on(from, to, record));
                }
            }
        });
        Self {
            address,
            recorded,
            task,
        }
    }

    /// `host:port` to connect to.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Every byte of both directions of all connections, one direction after another.
    pub fn bytes(&self) -> Vec<u8> {
        self.each().concat()
    }

    /// The payloads of all websocket frames, unmasked.
    pub fn payloads(&self) -> Vec<u8> {
        self.each()
            .iter()
            .flat_map(|bytes| payloads(bytes))
            .collect()
    }

    fn each(&self) -> Vec<Vec<u8>> {
        let recorded = self.recorded.lock().unwrap();
        recorded
            .iter()
            .map(|bytes| bytes.lock().unwrap().clone())
            .collect()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass_on(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    record: Recorded,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read) => {
                record.lock().unwrap().extend_from_slice(&buffer[..read]);
                if to.write_all(&buffer[..read]).await.is_err() {
                    break;
                }
            }
        }
    }
    // The other side may be gone already.
    drop(to.shutdown().await);
}

/// The payloads of the frames after the HTTP head (RFC 6455 §5.2); none if it was plain HTTP. The last frame may be cut off.
fn payloads(bytes: &[u8]) -> Vec<u8> {
    let end = b"\r\n\r\n";
    let Some(head) = bytes.windows(end.len()).position(|window| window == end) else {
        return Vec::new();
    };
    let (head, rest) = bytes.split_at(head + end.len());
    let mut rest = rest;
    if !head
        .to_ascii_lowercase()
        .windows(10)
        .any(|window| window == b"websocket-")
    {
        return Vec::new();
    }
    let mut all = Vec::new();
    while let Some((payload, after)) = frame(rest) {
        all.extend(payload);
        all.push(b'\n');
        rest = after;
    }
    all
}

fn frame(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (head, rest) = bytes.split_at_checked(2)?;
    assert_eq!(
        head[0] & 0x70,
        0,
        "no extension, so no compression, was agreed"
    );
    let (length, rest) = match head[1] & 0x7f {
        126 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            (u64::from(u16::from_be_bytes(*length)), rest)
        }
        127 => {
            let (length, rest) = rest.split_first_chunk::<8>()?;
            (u64::from_be_bytes(*length), rest)
        }
        short => (u64::from(short), rest),
    };
    let (mask, rest) = if head[1] & 0x80 == 0 {
        ([0; 4], rest)
    } else {
        let (mask, rest) = rest.split_first_chunk::<4>()?;
        (*mask, rest)
    };
    let (payload, rest) = rest.split_at_checked(usize::try_from(length).unwrap())?;
    let clear = payload
        .iter()
        .zip(mask.iter().cycle())
        .map(|(byte, mask)| byte ^ mask)
        .collect();
    Some((clear, rest))
}

/// Subscribed to everything, and keeps it.
pub struct Subscriber {
    events: Arc<Mutex<Vec<Event>>>,
    task: JoinHandle<()>,
}

impl Subscriber {
    /// Returns once the subscription stands: everything published from then on is kept.
    pub async fn everything(url: &str) -> Self {
        let (socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        let (mut to, mut from) = socket.split();
        to.send(Message::text(r#"["REQ","all",{"limit":500}]"#))
            .await
            .unwrap();
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let kept = Arc::clone(&events);
        let standing = async {
            loop {
                let message = from.next().await.unwrap().unwrap();
                let text = message.to_text().unwrap();
                if text.starts_with(r#"["EOSE""#) {
                    break;
                }
                kept.lock().unwrap().extend(event_of(text));
            }
        };
        tokio::time::timeout(PATIENCE, standing)
            .await
            .expect("the subscription stands in time");
        let task = tokio::spawn(async move {
            // Kept open: the relay ends a session whose other side is closed.
            let _to = to;
            while let Some(Ok(message)) = from.next().await {
                let event = message.to_text().ok().and_then(event_of);
                kept.lock().unwrap().extend(event);
            }
        });
        Self { events, task }
    }

    /// What came so far, in this order.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    /// Waits for an event.
    pub async fn wait_for(&self, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
        eventually(what, async || {
            self.events().into_iter().find(|event| wanted(event))
        })
        .await
    }
}

/// The event of `["EVENT", subscription, event]`.
fn event_of(text: &str) -> Option<Event> {
    let parts: serde_json::Value = serde_json::from_str(text).ok()?;
    Event::from_json(parts.get(2)?.to_string()).ok()
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether the relay at `url` still has the event.
pub async fn is_stored(url: &str, event: &Event) -> bool {
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    let request = format!(r#"["REQ","one",{{"ids":["{}"]}}]"#, event.id);
    socket.send(Message::text(request)).await.unwrap();
    let answer = async {
        loop {
            let message = socket.next().await.unwrap().unwrap();
            match message.to_text() {
                Ok(text) if text.starts_with(r#"["EVENT""#) => return true,
                Ok(text) if text.starts_with(r#"["EOSE""#) => return false,
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, answer)
        .await
        .expect("an answer in time")
}

/// Publishes an event and waits until the relay has taken it.
pub async fn publish(url: &str, event: &Event) {
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    let message = format!(r#"["EVENT",{}]"#, event.as_json());
    socket.send(Message::text(message)).await.unwrap();
    let answer = async {
        loop {
            let message = socket.next().await.unwrap().unwrap();
            let text = message.to_text().unwrap();
            if text.starts_with(r#"["OK""#) {
                assert!(text.contains("true"), "{text}");
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, answer)
        .await
        .expect("an answer in time");
}
