//! A device as its firmware would be: keys of its own, one MQTT connection, and of the service nothing but its addresses.
//!
//! It signs what it says and takes sealed commands only; a command in clear is none to it.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use hpke::{Kem as _, Serializable as _, kem::X25519HkdfSha256};
use keyturn_proto::device::{
    AuthRequest, AuthResult, DeviceError, DeviceId, DeviceNonce, DeviceSignature, IdentityKey,
    Retry, Sealed, SealingKey, Statement, proof, status::Asked, topic,
};
use keyturn_proto::encoding::b64url;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::QuickstartError;
use super::people::{at, now};

/// After which a device that heard nothing asks again.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Between two attempts to reach the broker.
const RECONNECT: Duration = Duration::from_millis(200);
/// Messages on their way from or to the connection.
const CHANNEL: usize = 16;

/// A connected device.
pub(super) struct Device {
    id: DeviceId,
    identity: SigningKey,
    /// X25519, private and public.
    sealing: (Zeroizing<[u8; 32]>, [u8; 32]),
    client: AsyncClient,
    commands: mpsc::Receiver<Bytes>,
    connection: JoinHandle<()>,
    /// Every payload that the broker has carried for it, either way.
    carried: Vec<Bytes>,
}

/// What it was given.
#[derive(Deserialize)]
pub(super) struct Given {
    nonce: DeviceNonce,
    role_id: String,
    /// Leaves this value in a login and as the key of the proof.
    pub(super) secret_id: Zeroizing<String>,
}

/// What can come on the command topic.
#[derive(Deserialize)]
#[serde(untagged)]
enum Told {
    Sealed(Sealed),
    Retry(Retry),
}

impl Device {
    /// Makes its keys and connects; returns once it hears its commands.
    pub(super) async fn connect(
        id: DeviceId,
        broker: SocketAddr,
        until: Instant,
    ) -> Result<Self, QuickstartError> {
        let mut seed = Zeroizing::new([0u8; 32]);
        getrandom::fill(seed.as_mut()).map_err(at("device"))?;
        let identity = SigningKey::from_bytes(&seed);
        getrandom::fill(seed.as_mut()).map_err(at("device"))?;
        let (private, public) = X25519HkdfSha256::derive_keypair(seed.as_ref());
        let private: Zeroizing<[u8; 32]> = Zeroizing::new(private.to_bytes().into());
        let sealing = (private, public.to_bytes().into());

        let mut options = MqttOptions::new(id.as_str(), broker.ip().to_string(), broker.port());
        options.set_clean_start(true);
        let mut network = options.network_options();
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        let (client, events) = AsyncClient::new(options, CHANNEL);
        let (send, commands) = mpsc::channel(CHANNEL);
        let (ready, mut is_ready) = watch::channel(false);
        let connection = keep(client.clone(), events, topic::command(&id), send, ready);
        let device = Self {
            id,
            identity,
            sealing,
            client,
            commands,
            connection: tokio::spawn(connection),
            carried: Vec::new(),
        };
        let heard = is_ready.wait_for(|ready| *ready);
        match tokio::time::timeout_at(until, heard).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return Err(late("device", "it could not connect")),
        }
        Ok(device)
    }

    /// Its two public keys, for the allow-list.
    pub(super) fn keys(&self) -> Result<(IdentityKey, SealingKey), QuickstartError> {
        let identity = self.identity.verifying_key().to_bytes();
        let identity = IdentityKey::from_bytes(identity).map_err(at("device"))?;
        let sealing = SealingKey::from_bytes(self.sealing.1).map_err(at("device"))?;
        Ok((identity, sealing))
    }

    /// Asks until it has a secret_id, as often and as patiently as it is told to.
    pub(super) async fn ask(
        &mut self,
        reason: &str,
        until: Instant,
    ) -> Result<Given, QuickstartError> {
        loop {
            let nonce = DeviceNonce::generate().map_err(at("device"))?;
            let request = AuthRequest {
                device_id: self.id.clone(),
                auth_request: Asked::SecretId,
                reason: reason.to_owned(),
                signature: Some(self.sign(Statement::Request, &nonce)),
                nonce: nonce.clone(),
            };
            self.publish(&request).await?;
            let patience = until.min(Instant::now() + ASK_AGAIN);
            let pause = match tokio::time::timeout_at(patience, self.told(&nonce)).await {
                Ok(Some(Told::Sealed(sealed))) => return self.open(&sealed, &nonce),
                Ok(Some(Told::Retry(retry))) => self.heed(&retry)?,
                Ok(None) => return Err(late("device", "its connection has ended")),
                Err(_) => Duration::ZERO,
            };
            if Instant::now() + pause >= until {
                return Err(late("device", "it was given no secret_id"));
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Reports success, with the proof.
    pub(super) async fn report(&mut self, given: &Given) -> Result<(), QuickstartError> {
        let result = AuthResult {
            nonce: given.nonce.clone(),
            device_id: Some(self.id.clone()),
            auth_result: "ok".to_owned(),
            proof: Some(proof::proof(&given.secret_id, &given.nonce)),
            reason: String::new(),
            signature: Some(self.sign(Statement::Ok, &given.nonce)),
        };
        self.publish(&result).await
    }

    /// Everything the broker has carried for it.
    pub(super) fn carried(&self) -> Vec<u8> {
        self.carried.join(&b'\n')
    }

    fn sign(&self, statement: Statement, nonce: &DeviceNonce) -> DeviceSignature {
        let ts = now();
        let bytes = statement.bytes(&self.id, nonce, ts);
        let sig = b64url(&self.identity.sign(&bytes).to_bytes());
        DeviceSignature { ts, sig }
    }

    async fn publish(&mut self, message: &impl Serialize) -> Result<(), QuickstartError> {
        let text = serde_json::to_vec(message).map_err(at("device"))?;
        let payload = Bytes::from(text);
        self.carried.push(payload.clone());
        let topic = topic::status(&self.id);
        let sent = self
            .client
            .publish_bytes(topic, QoS::AtLeastOnce, false, payload);
        // The library's error would repeat the message.
        sent.await
            .map_err(|_| late("device", "its connection has ended"))
    }

    /// The next message that answers `nonce`.
    async fn told(&mut self, nonce: &DeviceNonce) -> Option<Told> {
        loop {
            let payload = self.commands.recv().await?;
            self.carried.push(payload.clone());
            let told = serde_json::from_slice(&payload);
            match told {
                Ok(Told::Sealed(sealed)) if sealed.nonce == *nonce => {
                    return Some(Told::Sealed(sealed));
                }
                Ok(Told::Retry(retry)) if retry.nonce == *nonce => return Some(Told::Retry(retry)),
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn open(&self, sealed: &Sealed, nonce: &DeviceNonce) -> Result<Given, QuickstartError> {
        let text = sealed
            .open(&self.sealing.0, &self.id)
            .map_err(at("sealed command"))?;
        // serde's message could repeat what was sealed.
        let given: Given = serde_json::from_slice(&text)
            .map_err(|_| late("sealed command", "it holds no secret_id"))?;
        if given.nonce == *nonce {
            Ok(given)
        } else {
            Err(late("sealed command", "it answers another request"))
        }
    }

    /// How long to wait, unless waiting cannot help.
    fn heed(&self, retry: &Retry) -> Result<Duration, QuickstartError> {
        match retry.error {
            DeviceError::NonceUsed | DeviceError::Unavailable | DeviceError::Interrupted => {
                Ok(Duration::from_secs(retry.retry_after_sec))
            }
            DeviceError::InvalidRequest
            | DeviceError::Unauthorized
            | DeviceError::ClockSkew
            | DeviceError::RateLimited => Err(late("device", retry.error.as_str())),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Given {
    /// Whether `POST /kr/v1/approle/login` takes it.
    pub(super) async fn logs_in(
        &self,
        http: &reqwest::Client,
        web: &str,
    ) -> Result<bool, QuickstartError> {
        let login = json!({ "role_id": self.role_id, "secret_id": self.secret_id.as_str() });
        let text = Zeroizing::new(serde_json::to_vec(&login).map_err(at("login"))?);
        let answer = http
            .post(format!("{web}/kr/v1/approle/login"))
            .body(Bytes::from_owner(text))
            .send()
            .await
            .map_err(at("login"))?;
        match answer.status() {
            reqwest::StatusCode::OK => Ok(true),
            reqwest::StatusCode::BAD_REQUEST => Ok(false),
            other => Err(late("login", other.as_str())),
        }
    }

    /// The part that is secret: what comes before it names it.
    pub(super) fn secret(&self) -> &str {
        self.secret_id
            .rsplit_once('.')
            .map_or(self.secret_id.as_str(), |(_, secret)| secret)
    }
}

/// Polls the connection until the device is gone; subscribes whenever it is made.
async fn keep(
    client: AsyncClient,
    mut events: EventLoop,
    topic: String,
    commands: mpsc::Sender<Bytes>,
    ready: watch::Sender<bool>,
) {
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                // The channel is read by this very task: waiting for room in it could wait for ever.
                if client.try_subscribe(&topic, QoS::AtLeastOnce).is_err() {
                    return;
                }
            }
            Ok(Event::Incoming(Packet::SubAck(_))) => {
                ready.send_replace(true);
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                if commands.send(publish.payload).await.is_err() {
                    return;
                }
            }
            Ok(_) => {}
            Err(_) => tokio::time::sleep(RECONNECT).await,
        }
    }
}

fn late(step: &'static str, cause: &str) -> QuickstartError {
    QuickstartError::Step {
        step,
        cause: cause.to_owned(),
    }
}
