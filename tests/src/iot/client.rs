//! Mosquitto's own clients under somebody's certificate: what a device, or whoever pretends to be one, can say and hear.

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

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

    /// Publishes these as the device `id`, one right after another over one connection.
    pub async fn say_in_one_breath(&self, id: &str, messages: &[Value]) {
        let (program, mut words) = self.command("mosquitto_pub");
        words.extend(["-t", &format!("iot/{id}/status"), "-l"].map(str::to_owned));
        let mut process = tokio::process::Command::new(program)
            .args(words)
            .stdin(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = process.stdin.take().unwrap();
        for message in messages {
            lines
                .write_all(format!("{message}\n").as_bytes())
                .await
                .unwrap();
        }
        drop(lines);
        assert!(process.wait().await.unwrap().success());
    }

    /// Says `message` as the device `id` and waits on the same connection for what comes on its command topic. A device that connects twice throws itself out.
    pub async fn ask(&self, id: &str, message: &Value) -> Value {
        let (program, mut words) = self.command("mosquitto_rr");
        let (status, command) = (format!("iot/{id}/status"), format!("iot/{id}/command"));
        let text = message.to_string();
        words.extend(["-W", "55", "-t", &status, "-e", &command, "-m", &text].map(str::to_owned));
        let output = tokio::process::Command::new(program)
            .args(words)
            .kill_on_drop(true)
            .output()
            .await
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let answer: Value = serde_json::from_str(said.trim()).unwrap_or_else(|_| {
            panic!(
                "no answer: {said} {}",
                String::from_utf8_lossy(&output.stderr)
            )
        });
        assert_eq!(answer["nonce"], message["nonce"]);
        answer
    }

    /// Subscribes, and returns when the broker has answered.
    pub async fn listen(&self, topics: &[&str]) -> Listener {
        let (program, mut words) = self.command("mosquitto_sub");
        words.extend(["-d", "-F", "message %r %t %p"].map(str::to_owned));
        for topic in topics {
            words.extend(["-t", topic].map(str::to_owned));
        }
        let errors = tempfile::tempfile().unwrap();
        // It writes into a pipe by blocks, and what the protocol does would come with the first message only.
        let mut line_by_line = vec!["-oL".to_owned(), program.to_str().unwrap().to_owned()];
        line_by_line.extend(words);
        let mut process = Leashed::spawn("stdbuf", line_by_line, errors);
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
}
