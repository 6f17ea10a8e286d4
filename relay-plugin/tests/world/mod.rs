//! A real relay on ephemeral ports, with a core that only records what it is handed.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{SinkExt, StreamExt};
use keyturn::{
    config::{Config, Environment, ValidatedConfig},
    delivery::port::RelayPort,
    extension::RotationExtension,
    host::{Host, HostError},
    running::Keyturn,
    service::{ChallengeIssuer, Inbound, Ports, Served, Service, ServiceFactory, StartError},
};
use keyturn_proto::{UnixMs, nonce::Challenge};
use nostr::{Event, EventBuilder, Keys, Kind, Tag};
use nostr_relay::App;
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    sync::oneshot,
    time::{Instant, timeout},
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

/// Long enough for a loaded machine; every wait ends as soon as its condition holds.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// What an orderly end may take on a machine with other things to do. It takes a moment; rnostr's own takes thirty seconds.
pub const ORDERLY: Duration = Duration::from_secs(20);
/// The group that the tests serve.
pub const GROUP: [u8; 32] = [0xab; 32];
/// Somebody else's group on the same relay.
pub const OTHER_GROUP: [u8; 32] = [0xcd; 32];

struct Recorder;

#[async_trait]
impl Service for Recorder {
    fn challenges(&self) -> Arc<dyn ChallengeIssuer> {
        Arc::new(|| {
            Ok(Challenge {
                challenge: "c1".to_owned(),
                expires_at: UnixMs(1_700_000_000_000),
            })
        })
    }

    async fn shutdown(&self, _deadline: Instant) {}
}

/// Hands its ports to the test. Fails to start when told to.
pub struct Handover {
    pub ports: oneshot::Sender<Ports>,
    pub served: Option<Served>,
    pub fails: bool,
}

#[async_trait]
impl ServiceFactory for Handover {
    async fn start(self: Box<Self>, ports: Ports) -> Result<Arc<dyn Service>, StartError> {
        if self.fails {
            return Err(StartError {
                part: "store",
                reason: "told to".to_owned(),
            });
        }
        if let Some(served) = self.served {
            ports.served.replace(served);
        }
        let _ = self.ports.send(ports);
        Ok(Arc::new(Recorder))
    }
}

pub fn served() -> Served {
    Served {
        groups: [GROUP].into(),
        ..Served::default()
    }
}

/// A configuration below `dir` with free ports, and `more` variables on top.
pub fn config(dir: &Path, more: &[(&str, &str)]) -> ValidatedConfig {
    let text = r#"
        [profile]
        environment = "development"
        [relay]
        port = 0
        data_dir = "relay"
        [web]
        listen = "127.0.0.1:0"
        [mls]
        database = "member.db"
        storage_key_file = "mls.key"
        nostr_secret_key_file = "nostr.nsec"
        relays = ["ws://127.0.0.1:1"]
        [store]
        path = "keyturn.db"
        [mac]
        key_file = "mac.key"
        [issuer]
        jwks_file = "jwks.json"
        [admission]
        challenge_key_file = "challenge.key"
        totp_seed_key_file = "totp.key"
    "#;
    let environment = Environment::from_pairs(more.iter().copied());
    Config::parse(text, &dir.join("keyturn.toml"), environment).unwrap()
}

pub struct World {
    pub ports: Ports,
    pub keyturn: Keyturn,
    pub host: Host,
}

impl World {
    pub async fn start(dir: &Path, served: Option<Served>, more: &[(&str, &str)]) -> Self {
        Self::start_with(dir, served, more, |extension, app| {
            extension.attach(&app)?;
            Ok(app.add_extension(extension))
        })
        .await
    }

    pub async fn start_with(
        dir: &Path,
        served: Option<Served>,
        more: &[(&str, &str)],
        add: impl FnOnce(RotationExtension, App) -> Result<App, HostError> + Send + 'static,
    ) -> Self {
        let config = Arc::new(config(dir, more));
        let (ports, handed_over) = oneshot::channel();
        let factory = Handover {
            ports,
            served,
            fails: false,
        };
        let keyturn = Keyturn::start(Arc::clone(&config), Box::new(factory)).unwrap();
        let extension = RotationExtension::of(&keyturn);
        let host = Host::start(&config.relay, move |app| add(extension, app))
            .await
            .unwrap();
        let ports = timeout(PATIENCE, handed_over).await.unwrap().unwrap();
        keyturn.started().await.unwrap();
        Self {
            ports,
            keyturn,
            host,
        }
    }

    pub fn relay(&self) -> Arc<dyn RelayPort> {
        Arc::clone(&self.ports.relay)
    }

    pub async fn inbound(&mut self) -> Inbound {
        timeout(PATIENCE, self.ports.inbound.recv())
            .await
            .unwrap()
            .unwrap()
    }

    pub async fn client(&self) -> Client {
        Client::connect(&format!("ws://{}", self.host.address())).await
    }

    pub fn web(&self, path: &str) -> String {
        format!("http://{}{path}", self.keyturn.web_address())
    }

    /// In the order of `keyturn serve`.
    pub async fn stop(self, within: Duration) {
        let deadline = Instant::now() + within;
        let Self {
            ports,
            keyturn,
            host,
        } = self;
        keyturn.stop();
        drop(ports);
        tokio::task::spawn_blocking(move || keyturn.shutdown(deadline))
            .await
            .unwrap();
        host.shutdown(deadline).await;
    }
}

pub struct Client(pub WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    pub async fn connect(url: &str) -> Self {
        Self(
            timeout(PATIENCE, connect_async(url))
                .await
                .unwrap()
                .unwrap()
                .0,
        )
    }

    pub async fn send(&mut self, message: Value) {
        self.0
            .send(Message::text(message.to_string()))
            .await
            .unwrap();
    }

    /// The next message that is JSON and whose first element is `command`.
    pub async fn next(&mut self, command: &str) -> Value {
        timeout(PATIENCE, async {
            loop {
                if let Message::Text(text) = self.0.next().await.unwrap().unwrap() {
                    let value: Value = serde_json::from_str(&text).unwrap();
                    if value[0] == command {
                        return value;
                    }
                }
            }
        })
        .await
        .unwrap()
    }

    /// The code of the close frame; `None` when the connection ends without one.
    pub async fn close_frame(&mut self) -> Option<u16> {
        timeout(PATIENCE, async {
            loop {
                match self.0.next().await? {
                    Ok(Message::Close(frame)) => return frame.map(|frame| frame.code.into()),
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        })
        .await
        .unwrap()
    }

    /// Publishes, and returns what the relay's OK says.
    pub async fn publish(&mut self, event: &Event) -> (bool, String) {
        self.send(json!(["EVENT", event])).await;
        loop {
            let ok = self.next("OK").await;
            if ok[1] == event.id.to_hex() {
                return (ok[2].as_bool().unwrap(), ok[3].as_str().unwrap().to_owned());
            }
        }
    }
}

pub fn group_event(group: [u8; 32], content: &str) -> Event {
    event(445, &[&["h", &hex::encode(group)]], content)
}

pub fn event(kind: u16, tags: &[&[&str]], content: &str) -> Event {
    let tags = tags
        .iter()
        .map(|tag| Tag::parse(tag.iter().copied()).unwrap());
    EventBuilder::new(Kind::from_u16(kind), content)
        .tags(tags)
        .sign_with_keys(&Keys::generate())
        .unwrap()
}
