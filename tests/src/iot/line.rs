//! A device on one connection, led by a test step by step: what it says when, and what it is sent.

use std::time::Duration;

use keyturn_proto::device::{DeviceNonce, proof, topic};
use rumqttc::Transport;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PubAckReason};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::{Certificate, Credential};
use crate::world::deadline;

/// Messages either way that nobody has looked at.
const CHANNEL: usize = 256;

/// Seconds between two requests. Within the patience of a test they stay below what a device may ask in an hour.
const LONGEST_WAIT: u64 = 3;

/// A device that is connected and hears its command topic.
pub struct Line {
    id: String,
    client: AsyncClient,
    heard: mpsc::UnboundedReceiver<Value>,
    acknowledged: mpsc::UnboundedReceiver<()>,
    subscribed: mpsc::UnboundedReceiver<()>,
    task: JoinHandle<()>,
    /// Nonce and secret of every command that came.
    given: Vec<(String, String)>,
}

/// A command, as the device keeps it.
#[derive(Clone, Debug)]
pub struct Given {
    /// Of the request.
    pub nonce: DeviceNonce,
    /// What it bears.
    pub credential: Credential,
    /// The whole command.
    pub command: Value,
}

impl Given {
    /// What a command in clear bears.
    pub fn of(command: Value) -> Self {
        let text = |name: &str| command[name].as_str().unwrap().to_owned();
        Self {
            nonce: text("nonce").parse().unwrap(),
            credential: Credential {
                role_id: text("role_id"),
                secret_id: text("secret_id"),
            },
            command,
        }
    }
}

impl Line {
    /// Connects over TLS, subscribes, and waits for the broker's answer.
    pub async fn open(id: &str, port: u16, certificate: &Certificate) -> Self {
        // Another test of this process may have been first.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let read = |path: &std::path::Path| std::fs::read(path).unwrap();
        let client = (read(&certificate.certificate), read(&certificate.key));
        let mut options = MqttOptions::new(id, "127.0.0.1", port);
        options
            .set_transport(Transport::tls(read(&certificate.ca), Some(client), None))
            .set_clean_start(false)
            .set_session_expiry_interval(Some(3600))
            .set_keep_alive(Duration::from_secs(60));
        let (client, mut events) = AsyncClient::new(options, CHANNEL);
        let (hear, heard) = mpsc::unbounded_channel();
        let (acknowledge, acknowledged) = mpsc::unbounded_channel();
        let (subscribed, is_subscribed) = mpsc::unbounded_channel();
        let command = topic::command(&id.parse().unwrap());
        let subscriber = client.clone();
        let task = tokio::spawn(async move {
            loop {
                // Whoever waits has left when a channel is closed.
                let _ = match events.poll().await {
                    // Also after a broker that has forgotten the session.
                    Ok(Event::Incoming(Packet::ConnAck(ack))) => {
                        ack.session_present
                            || subscriber
                                .try_subscribe(command.clone(), QoS::AtLeastOnce)
                                .is_ok()
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => subscribed.send(()).is_ok(),
                    Ok(Event::Incoming(Packet::PubAck(ack))) => {
                        // Nobody hears it: as good as said to a deaf broker, but said.
                        let good = matches!(
                            ack.reason,
                            PubAckReason::Success | PubAckReason::NoMatchingSubscribers
                        );
                        assert!(good, "the broker refused it: {:?}", ack.reason);
                        acknowledge.send(()).is_ok()
                    }
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        let message = serde_json::from_slice(&publish.payload).unwrap();
                        hear.send(message).is_ok()
                    }
                    Ok(_) => true,
                    // The broker may be down on purpose.
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        true
                    }
                };
            }
        });
        let mut line = Self {
            id: id.to_owned(),
            client,
            heard,
            acknowledged,
            subscribed: is_subscribed,
            task,
            given: Vec::new(),
        };
        line.subscribed().await;
        line
    }

    /// Waits until the broker has taken a subscription: once after opening, which is done, and once after each restart of a broker that forgets sessions.
    pub async fn subscribed(&mut self) {
        timeout_at(deadline(), self.subscribed.recv())
            .await
            .expect("the broker did not take the subscription")
            .unwrap();
    }

    /// Says something on the status topic; returns when the broker has it.
    pub async fn say(&mut self, message: &Value) {
        self.say_raw(message.to_string().as_bytes(), false).await;
    }

    /// Says anything at all there.
    pub async fn say_raw(&mut self, message: &[u8], retain: bool) {
        let topic = format!("iot/{}/status", self.id);
        self.client
            .publish(topic, QoS::AtLeastOnce, retain, message.to_vec())
            .await
            .unwrap();
        timeout_at(deadline(), self.acknowledged.recv())
            .await
            .expect("the broker did not take the message")
            .unwrap();
    }

    /// What it is called.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Asks once, under a nonce of its own.
    pub async fn ask(&mut self) -> DeviceNonce {
        let nonce = DeviceNonce::generate().unwrap();
        self.ask_under(&nonce).await;
        nonce
    }

    /// Asks once, under this nonce.
    pub async fn ask_under(&mut self, nonce: &DeviceNonce) {
        let request = json!({ "nonce": nonce, "device_id": self.id, "auth_request": "secret_id", "reason": "invalid_secret" });
        self.say(&request).await;
    }

    /// The next message, whatever it is.
    pub async fn next(&mut self) -> Value {
        let message = timeout_at(deadline(), self.heard.recv())
            .await
            .expect("nothing came")
            .unwrap();
        let secret = message.get("secret_id").or(message.get("wrapping_token"));
        if let (Some(nonce), Some(secret)) = (
            message["nonce"].as_str(),
            secret.and_then(serde_json::Value::as_str),
        ) {
            self.given.push((nonce.to_owned(), secret.to_owned()));
        }
        message
    }

    /// The next thing said about `nonce`: a command, or an error. Other messages are passed over.
    ///
    /// # Errors
    /// The error that was said.
    pub async fn answer(&mut self, nonce: &DeviceNonce) -> Result<Given, Value> {
        loop {
            let command = self.next().await;
            if command["nonce"] != nonce.as_str() {
                continue;
            }
            if !command["secret_id"].is_string() {
                return Err(command);
            }
            return Ok(Given::of(command));
        }
    }

    /// As firmware does: asks, under a fresh nonce each time, until it is given something. It waits as it is told to, but not for longer than a test can.
    pub async fn renew(&mut self) -> Given {
        let until = deadline();
        loop {
            let nonce = self.ask().await;
            match self.answer(&nonce).await {
                Ok(given) => return given,
                Err(error) => {
                    assert!(Instant::now() < until, "given nothing: {error}");
                    let told = error["retry_after_sec"].as_u64().unwrap();
                    tokio::time::sleep(Duration::from_secs(told.clamp(1, LONGEST_WAIT))).await;
                }
            }
        }
    }

    /// Reports with proof that it has logged in.
    pub async fn confirm(&mut self, given: &Given) {
        let proof = proof::proof(&given.credential.secret_id, &given.nonce);
        let ok = json!({ "nonce": given.nonce, "auth_result": "ok", "proof": proof });
        self.say(&ok).await;
    }

    /// Every secret that it was sent, with the nonce of the request.
    pub fn given(&self) -> &[(String, String)] {
        &self.given
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}
