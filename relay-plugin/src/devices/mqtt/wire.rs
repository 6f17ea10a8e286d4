//! One connection, whichever version of the protocol. The two halves of `rumqttc` share no types; above this file nobody can tell them apart.
//!
//! Nothing of the library's own errors or packets goes on: both can print payloads.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use keyturn_proto::device::MAX_STATUS;
use rumqttc::v5::mqttbytes::QoS as QoS5;
use rumqttc::v5::mqttbytes::v5 as five;
use rumqttc::{self as four, QoS as QoS4};

use super::options::{CHANNEL, Options, Version};
use super::outbox::Parcel;
use crate::metrics as names;

/// What a poll brought.
pub(super) enum Seen {
    /// Connected; whether the broker kept our session.
    Connected(bool),
    /// Subscribed, or refused.
    Subscribed(bool),
    /// The broker has a message of ours, or (MQTT 5) does not let us publish it.
    Published(bool),
    /// A message.
    Message(Box<Arrived>),
    /// Nothing of interest.
    Nothing,
    /// The connection is lost, or could not be made.
    Lost(Lost),
}

/// What remains of a lost connection.
pub(super) struct Lost {
    /// A stable word.
    pub(super) why: &'static str,
    /// The broker sent a packet that we cannot read, and would send it again and again.
    pub(super) poisoned: bool,
    /// Messages that the broker had not acknowledged.
    pub(super) undelivered: Vec<Parcel>,
}

/// A message, to be acknowledged on the connection it came by.
pub(super) struct Arrived {
    pub(super) topic: String,
    /// No more than it takes to see that it is too long.
    pub(super) payload: Bytes,
    pub(super) retain: bool,
    /// When it came in.
    pub(super) at: Instant,
    /// The device has been told to ask again; only the acknowledgement is left.
    pub(super) overrun: bool,
    ack: Ack,
    connection: u64,
}

/// What a connection is called before the broker has taken it: nothing is acknowledged on it.
const NONE_YET: u64 = u64::MAX;

impl Arrived {
    /// Whether the broker counts it until it is acknowledged, and would send it again.
    pub(super) fn is_awaited(&self) -> bool {
        match &self.ack {
            Ack::Five(publish) => publish.qos != QoS5::AtMostOnce,
            Ack::Four(publish) => publish.qos != QoS4::AtMostOnce,
        }
    }
}

#[cfg(test)]
impl Arrived {
    /// A message of a test's.
    pub(super) fn made(topic: &str, payload: &[u8], awaited: bool, number: u16) -> Self {
        let quality = if awaited {
            QoS5::AtLeastOnce
        } else {
            QoS5::AtMostOnce
        };
        let mut publish = five::Publish::new(topic, quality, payload.to_vec(), None);
        publish.pkid = number;
        let event = four::v5::Event::Incoming(five::Packet::Publish(publish));
        match five_event(event, NONE_YET) {
            Seen::Message(arrived) => *arrived,
            _ => unreachable!("a publish is a message"),
        }
    }

    /// What the packet was called.
    pub(super) fn number(&self) -> u16 {
        match &self.ack {
            Ack::Five(publish) => publish.pkid,
            Ack::Four(publish) => publish.pkid,
        }
    }
}

/// A copy of its own: the packet lies in a buffer that many others may share, and each would keep all of it alive.
fn kept(payload: &Bytes) -> Bytes {
    Bytes::copy_from_slice(payload.get(..=MAX_STATUS).unwrap_or(payload))
}

/// The packet without its contents: its number and quality.
enum Ack {
    Five(five::Publish),
    Four(four::Publish),
}

/// Sends. Clones share the connection.
#[derive(Clone)]
pub(super) struct Client {
    inner: Inner,
    connection: Arc<AtomicU64>,
}

#[derive(Clone)]
enum Inner {
    Five(four::v5::AsyncClient),
    Four(four::AsyncClient),
}

/// The connection is closed for good.
pub(super) struct Closed;

/// Receives. Must be polled by one task, and a poll must be waited for: an abandoned one can lose a packet.
pub(super) struct Wire {
    inner: Loop,
    connection: Arc<AtomicU64>,
    /// Whether the broker has taken the connection. What comes before that is left over from the one before.
    up: bool,
    subscribe: Option<String>,
}

enum Loop {
    Five(Box<four::v5::EventLoop>),
    Four(Box<four::EventLoop>),
}

pub(super) fn open(options: &Options) -> (Client, Wire) {
    let connection = Arc::new(AtomicU64::new(0));
    let subscribe = options.subscribe.then(|| options.filter());
    let (client, inner) = match options.version {
        Version::V5 => {
            let (client, poll) = four::v5::AsyncClient::new(options.v5(), CHANNEL);
            (Inner::Five(client), Loop::Five(Box::new(poll)))
        }
        Version::V311 => {
            let (client, mut poll) = four::AsyncClient::new(options.v311(), CHANNEL);
            poll.network_options.set_tcp_nodelay(true);
            (Inner::Four(client), Loop::Four(Box::new(poll)))
        }
    };
    let client = Client {
        inner: client,
        connection: Arc::clone(&connection),
    };
    let wire = Wire {
        inner,
        connection,
        up: false,
        subscribe,
    };
    (client, wire)
}

impl Client {
    pub(super) async fn publish(&self, parcel: &Parcel, left: Duration) -> Result<(), Closed> {
        let Parcel {
            topic,
            payload,
            retain,
            ..
        } = parcel;
        match &self.inner {
            Inner::Five(client) => {
                let properties = five::PublishProperties {
                    message_expiry_interval: Some(
                        u32::try_from(left.as_secs()).unwrap_or(u32::MAX),
                    ),
                    payload_format_indicator: Some(1),
                    ..five::PublishProperties::default()
                };
                client
                    .publish_bytes_with_properties(
                        topic,
                        QoS5::AtLeastOnce,
                        *retain,
                        payload.clone(),
                        properties,
                    )
                    .await
                    .map_err(|_| Closed)
            }
            // Without an expiry nothing is kept by the broker.
            Inner::Four(client) => client
                .publish_bytes(topic, QoS4::AtLeastOnce, false, payload.clone())
                .await
                .map_err(|_| Closed),
        }
    }

    /// Acknowledges a message, unless its connection is gone: there its number means another one by now, and the broker sends it again anyway.
    pub(super) async fn ack(&self, arrived: &Arrived) {
        if arrived.connection != self.connection.load(Ordering::Acquire) {
            return;
        }
        // An error means that the connection is closed for good.
        match (&self.inner, &arrived.ack) {
            (Inner::Five(client), Ack::Five(publish)) => drop(client.ack(publish).await),
            (Inner::Four(client), Ack::Four(publish)) => drop(client.ack(publish).await),
            (Inner::Five(_), Ack::Four(_)) | (Inner::Four(_), Ack::Five(_)) => {}
        }
    }

    pub(super) async fn disconnect(&self) {
        match &self.inner {
            Inner::Five(client) => drop(client.disconnect().await),
            Inner::Four(client) => drop(client.disconnect().await),
        }
    }
}

impl Wire {
    /// What happens next. A panic of the library is one lost connection.
    pub(super) async fn poll(&mut self) -> Seen {
        let polled = AssertUnwindSafe(self.next()).catch_unwind().await;
        let seen = polled.unwrap_or_else(|_| self.panicked());
        match &seen {
            Seen::Connected(_) => self.connected(),
            Seen::Lost(_) => {
                self.up = false;
                self.connection.fetch_add(1, Ordering::AcqRel);
            }
            Seen::Subscribed(_) | Seen::Published(_) | Seen::Message(_) | Seen::Nothing => {}
        }
        seen
    }

    async fn next(&mut self) -> Seen {
        let connection = if self.up {
            self.connection.load(Ordering::Acquire)
        } else {
            NONE_YET
        };
        match &mut self.inner {
            Loop::Five(poll) => match poll.poll().await {
                Ok(event) => five_event(event, connection),
                Err(error) => Seen::Lost(Lost {
                    why: five_error(&error),
                    poisoned: five_poisoned(&error),
                    undelivered: five_undelivered(poll),
                }),
            },
            Loop::Four(poll) => match poll.poll().await {
                Ok(event) => four_event(event, connection),
                Err(error) => Seen::Lost(Lost {
                    why: four_error(&error),
                    poisoned: four_poisoned(&error),
                    undelivered: four_undelivered(poll),
                }),
            },
        }
    }

    fn panicked(&mut self) -> Seen {
        metrics::counter!(names::PANICS, "part" => "mqtt").increment(1);
        let undelivered = match &mut self.inner {
            Loop::Five(poll) => {
                poll.clean();
                five_undelivered(poll)
            }
            Loop::Four(poll) => {
                poll.clean();
                four_undelivered(poll)
            }
        };
        Seen::Lost(Lost {
            why: "panic",
            poisoned: true,
            undelivered,
        })
    }

    /// Subscribes, ahead of everything that waits. The broker may have forgotten us even where it kept the session.
    fn connected(&mut self) {
        self.up = true;
        match (&mut self.inner, &self.subscribe) {
            (Loop::Five(poll), subscribe) => {
                poll.options.set_clean_start(false);
                if let Some(filter) = subscribe {
                    let mut filter = five::Filter::new(filter.clone(), QoS5::AtLeastOnce);
                    // Else a message that is to be kept could not be told from any other while we are here.
                    filter.preserve_retain = true;
                    let subscribe = five::Subscribe::new(filter, None);
                    poll.pending
                        .push_front(four::v5::Request::Subscribe(subscribe));
                }
            }
            (Loop::Four(poll), subscribe) => {
                poll.mqtt_options.set_clean_session(false);
                if let Some(filter) = subscribe {
                    let subscribe = four::Subscribe::new(filter.clone(), QoS4::AtLeastOnce);
                    poll.pending.push_front(four::Request::Subscribe(subscribe));
                }
            }
        }
    }

    /// Makes the next connection begin a new session: the broker forgets what it would send again.
    pub(super) fn start_clean(&mut self) {
        match &mut self.inner {
            Loop::Five(poll) => drop(poll.options.set_clean_start(true)),
            Loop::Four(poll) => drop(poll.mqtt_options.set_clean_session(true)),
        }
    }
}

fn five_event(event: four::v5::Event, connection: u64) -> Seen {
    match event {
        four::v5::Event::Incoming(five::Packet::ConnAck(ack)) => {
            Seen::Connected(ack.session_present)
        }
        four::v5::Event::Incoming(five::Packet::SubAck(ack)) => Seen::Subscribed(
            ack.return_codes
                .iter()
                .all(|code| matches!(code, five::SubscribeReasonCode::Success(_))),
        ),
        four::v5::Event::Incoming(five::Packet::PubAck(ack)) => {
            Seen::Published(ack.reason != five::PubAckReason::NotAuthorized)
        }
        four::v5::Event::Incoming(five::Packet::Publish(mut publish)) => {
            let topic = std::mem::take(&mut publish.topic);
            let payload = std::mem::take(&mut publish.payload);
            Seen::Message(Box::new(Arrived {
                topic: String::from_utf8_lossy(&topic).into_owned(),
                payload: kept(&payload),
                retain: publish.retain,
                at: Instant::now(),
                overrun: false,
                ack: Ack::Five(publish),
                connection,
            }))
        }
        _ => Seen::Nothing,
    }
}

fn four_event(event: four::Event, connection: u64) -> Seen {
    match event {
        four::Event::Incoming(four::Packet::ConnAck(ack)) => Seen::Connected(ack.session_present),
        four::Event::Incoming(four::Packet::SubAck(ack)) => Seen::Subscribed(
            ack.return_codes
                .iter()
                .all(|code| matches!(code, four::SubscribeReasonCode::Success(_))),
        ),
        four::Event::Incoming(four::Packet::PubAck(_)) => Seen::Published(true),
        four::Event::Incoming(four::Packet::Publish(mut publish)) => {
            let payload = std::mem::take(&mut publish.payload);
            Seen::Message(Box::new(Arrived {
                topic: std::mem::take(&mut publish.topic),
                payload: kept(&payload),
                retain: publish.retain,
                at: Instant::now(),
                overrun: false,
                ack: Ack::Four(publish),
                connection,
            }))
        }
        _ => Seen::Nothing,
    }
}

/// `rumqttc` forgets these when the broker has no session of ours, and can lose some when it has; so they are taken out and sent anew.
fn five_undelivered(poll: &mut four::v5::EventLoop) -> Vec<Parcel> {
    std::mem::take(&mut poll.pending)
        .into_iter()
        .filter_map(|request| match request {
            four::v5::Request::Publish(publish) => Some(Parcel {
                topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                payload: publish.payload,
                retain: publish.retain,
                expires_in: publish
                    .properties
                    .and_then(|properties| properties.message_expiry_interval)
                    .map_or(Duration::MAX, |secs| Duration::from_secs(secs.into())),
                since: Instant::now(),
            }),
            _ => None,
        })
        .collect()
}

fn four_undelivered(poll: &mut four::EventLoop) -> Vec<Parcel> {
    std::mem::take(&mut poll.pending)
        .into_iter()
        .filter_map(|request| match request {
            four::Request::Publish(publish) => Some(Parcel {
                topic: publish.topic,
                payload: publish.payload,
                retain: publish.retain,
                // 3.1.1 has no expiry to read back.
                expires_in: super::RESEND,
                since: Instant::now(),
            }),
            _ => None,
        })
        .collect()
}

fn five_error(error: &four::v5::ConnectionError) -> &'static str {
    use four::v5::{ConnectionError as Error, StateError, mqttbytes};
    match error {
        Error::Timeout(_) => "timeout",
        Error::Tls(_) => "tls",
        Error::Io(io)
        | Error::MqttState(
            StateError::Io(io) | StateError::Deserialization(mqttbytes::Error::Io(io)),
        ) => of_io(io),
        Error::ConnectionRefused(_) => "refused",
        Error::MqttState(StateError::ServerDisconnect { .. }) => "disconnected_by_broker",
        Error::MqttState(StateError::ConnFail { .. }) => "refused",
        Error::MqttState(StateError::ConnectionAborted) => "network",
        Error::MqttState(StateError::AwaitPingResp) => "no_ping_response",
        Error::RequestsDone => "closed",
        _ => "protocol",
    }
}

/// A broker that does not like our certificate says so in the first answer after the handshake (TLS 1.3).
fn of_io(error: &std::io::Error) -> &'static str {
    let inner = error.get_ref();
    if inner.is_some_and(|inner| inner.is::<rustls::Error>()) {
        "tls"
    } else {
        "network"
    }
}

fn four_error(error: &four::ConnectionError) -> &'static str {
    use four::{ConnectionError as Error, StateError};
    match error {
        Error::NetworkTimeout | Error::FlushTimeout => "timeout",
        Error::Tls(_) => "tls",
        Error::Io(io)
        | Error::MqttState(StateError::Io(io) | StateError::Deserialization(four::Error::Io(io))) => {
            of_io(io)
        }
        Error::ConnectionRefused(_) => "refused",
        Error::MqttState(StateError::ConnectionAborted) => "network",
        Error::MqttState(StateError::AwaitPingResp) => "no_ping_response",
        Error::RequestsDone => "closed",
        _ => "protocol",
    }
}

fn five_poisoned(error: &four::v5::ConnectionError) -> bool {
    use four::v5::{ConnectionError as Error, StateError, mqttbytes};
    match error {
        Error::MqttState(StateError::IncomingPacketTooLarge { .. } | StateError::WrongPacket) => {
            true
        }
        Error::MqttState(StateError::Deserialization(why)) => {
            !matches!(why, mqttbytes::Error::Io(_))
        }
        _ => false,
    }
}

fn four_poisoned(error: &four::ConnectionError) -> bool {
    use four::{ConnectionError as Error, StateError};
    match error {
        Error::MqttState(StateError::Deserialization(why)) => !matches!(why, four::Error::Io(_)),
        Error::MqttState(StateError::WrongPacket) => true,
        _ => false,
    }
}
