//! Mosquitto's own clients under somebody's certificate: what a device, or whoever pretends to be one, can say and hear.

use serde_json::Value;

use super::broker::{Certificate, program};
use crate::leash::Leashed;

/// Which protocol a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mqtt {
    V5,
    V311,
}

impl Mqtt {
    /// As the configuration and `device.py` spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V5 => "5",
            Self::V311 => "3.1.1",
        }
    }

    const fn flag(self) -> &'static str {
        match self {
            Self::V5 => "5",
            Self::V311 => "311",
        }
    }
}

/// Somebody who can connect.
#[derive(Clone)]
pub struct Client {
    pub port: u16,
    pub who: Certificate,
    pub version: Mqtt,
}

impl Client {
    fn command(&self, name: &str) -> (std::path::PathBuf, Vec<String>) {
        let Certificate {
            ca,
            certificate,
            key,
        } = &self.who;
        let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
        let mut words: Vec<String> = [
            "-h",
            "127.0.0.1",
            "-q",
            "1",
            "-V",
            self.version.flag(),
            "-p",
        ]
        .map(str::to_owned)
        .into();
        words.push(self.port.to_string());
        for (option, file) in [("--cafile", ca), ("--cert", certificate), ("--key", key)] {
            words.extend([option.to_owned(), path(file)]);
        }
        (program(name), words)
    }

    /// Publishes; what the client says about it. `Err` when it could not connect, or the broker said no (MQTT 5 only).
    pub async fn publish(&self, topic: &str, message: &[u8], retain: bool) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("message");
        std::fs::write(&file, message).unwrap();
        let (program, mut words) = self.command("mosquitto_pub");
        words.extend(["-t", topic, "-f", file.to_str().unwrap()].map(str::to_owned));
        words.extend(retain.then(|| "-r".to_owned()));
        let output = tokio::process::Command::new(program)
            .args(words)
            .kill_on_drop(true)
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // A refused message is a warning, and no failure, to mosquitto_pub.
        if output.status.success() && !said.contains("failed") {
            Ok(())
        } else {
            Err(said)
        }
    }

    /// Publishes JSON as the device `id`, and must be allowed to.
    pub async fn say(&self, id: &str, message: &Value) {
        let topic = format!("iot/{id}/status");
        self.publish(&topic, message.to_string().as_bytes(), false)
            .await
            .unwrap();
    }

    /// Subscribes, and returns when the broker has answered. `own_id` names a session that is kept.
    pub async fn listen(&self, topics: &[&str]) -> Listener {
        let (program, mut words) = self.command("mosquitto_sub");
        words.extend(["-d", "-F", "message %r %t %p"].map(str::to_owned));
        for topic in topics {
            words.extend(["-t", topic].map(str::to_owned));
        }
        let errors = tempfile::tempfile().unwrap();
        let mut process = Leashed::spawn(program, words, errors);
        loop {
            let line = process.line().await.expect("it ended before it subscribed");
            if line.starts_with("Subscribed ") {
                return Listener(process);
            }
        }
    }
}

/// Somebody who listens.
pub struct Listener(Leashed);

/// What was heard.
#[derive(Debug)]
pub struct Heard {
    pub topic: String,
    pub retained: bool,
    pub payload: String,
}

impl Heard {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.payload).unwrap()
    }
}

impl Listener {
    /// The next message. Panics when there is none in time.
    pub async fn next(&mut self) -> Heard {
        loop {
            let line = self.0.line().await.expect("it was disconnected");
            // Between messages it says what the protocol does.
            if let Some(message) = line.strip_prefix("message ") {
                let mut parts = message.splitn(3, ' ').map(str::to_owned);
                let retained = parts.next().unwrap() == "1";
                let topic = parts.next().unwrap();
                let payload = parts.next().unwrap_or_default();
                return Heard {
                    topic,
                    retained,
                    payload,
                };
            }
        }
    }

    /// The next message under `nonce`; others are passed over.
    pub async fn answer(&mut self, nonce: &str) -> Value {
        loop {
            let message = self.next().await;
            if let Ok(json) = serde_json::from_str::<Value>(&message.payload)
                && json["nonce"] == nonce
            {
                return json;
            }
        }
    }
}
