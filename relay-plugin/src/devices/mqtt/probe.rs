//! One visit to the broker, for `keyturn doctor`: whether it lets us in, hear devices and answer them.
//!
//! Nothing is acknowledged that is not ours, and no session is left behind.

use std::time::{Duration, Instant};

use bytes::Bytes;
use keyturn_proto::device::DeviceNonce;

use super::options::{Options, Version};
use super::outbox::Parcel;
use super::wire::{self, Client, Seen, Wire};

/// A device that cannot be, by whose topics the broker is tried. Its message is nothing that a relay looks at.
const NOBODY: &str = "keyturn-doctor";
/// How long a message may take to come back.
const ROUND: Duration = Duration::from_secs(5);
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// Why the broker cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// No connection, for a stable reason.
    #[error("no connection: {0}")]
    Connection(&'static str),
    /// It does not let us read.
    #[error("the subscription was refused")]
    Subscription,
    /// It does not let us write (only MQTT 5 says so).
    #[error("an answer to a device was refused")]
    Answering,
    /// It has taken the subscription and delivers nothing.
    #[error("nothing comes by the subscription")]
    Deaf,
}

/// What a good broker let us see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A message came back.
    Itself,
    /// We may not write the message that would have come back, so only the subscription is known to be taken.
    NotTried,
    /// There is no subscription: the broker's webhook brings the messages.
    NotWanted,
}

/// Connects once, subscribes, sends two harmless messages, and goes again.
///
/// # Errors
/// [`ProbeError`].
pub async fn probe(options: &Options) -> Result<Heard, ProbeError> {
    let (client, mut wire) = wire::open(options);
    wire.start_clean();
    let found = visit(options, &client, &mut wire).await;
    if !matches!(found, Err(ProbeError::Connection(_))) {
        client.disconnect().await;
        let goodbye = async { while !matches!(wire.poll().await, Seen::Lost(_)) {} };
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
    }
    found
}

async fn visit(options: &Options, client: &Client, wire: &mut Wire) -> Result<Heard, ProbeError> {
    loop {
        match wire.poll().await {
            Seen::Connected(_) if !options.subscribe => break,
            Seen::Subscribed(true) => break,
            Seen::Subscribed(false) => return Err(ProbeError::Subscription),
            Seen::Lost(lost) => return Err(ProbeError::Connection(lost.why)),
            Seen::Connected(_) | Seen::Published(_) | Seen::Message(_) | Seen::Nothing => {}
        }
    }
    send(client, "command", Bytes::from_static(b"{}")).await?;
    if !published(wire).await? {
        return Err(ProbeError::Answering);
    }
    if !options.subscribe {
        return Ok(Heard::NotWanted);
    }
    let nonce = DeviceNonce::generate().map_err(|_| ProbeError::Connection("random"))?;
    let message = Bytes::from(format!(r#"{{"doctor":"{nonce}"}}"#));
    send(client, "status", message.clone()).await?;
    match tokio::time::timeout(ROUND, comes_back(wire, &message)).await {
        Ok(heard) => heard,
        // A 3.1.1 broker swallows what may not be written.
        Err(_) if options.version == Version::V311 => Ok(Heard::NotTried),
        Err(_) => Err(ProbeError::Deaf),
    }
}

async fn send(client: &Client, leaf: &str, payload: Bytes) -> Result<(), ProbeError> {
    let parcel = Parcel {
        topic: format!("iot/{NOBODY}/{leaf}"),
        payload,
        retain: false,
        expires_in: ROUND,
        since: Instant::now(),
    };
    let sent = client.publish(&parcel, ROUND).await;
    sent.map_err(|_| ProbeError::Connection("closed"))
}

async fn published(wire: &mut Wire) -> Result<bool, ProbeError> {
    loop {
        match wire.poll().await {
            Seen::Published(allowed) => return Ok(allowed),
            Seen::Lost(lost) => return Err(ProbeError::Connection(lost.why)),
            _ => {}
        }
    }
}

async fn comes_back(wire: &mut Wire, message: &Bytes) -> Result<Heard, ProbeError> {
    loop {
        match wire.poll().await {
            Seen::Message(arrived) if arrived.payload == *message => return Ok(Heard::Itself),
            Seen::Published(false) => return Ok(Heard::NotTried),
            Seen::Lost(lost) => return Err(ProbeError::Connection(lost.why)),
            _ => {}
        }
    }
}
