//! One connection, whichever version of the protocol. The two halves of `rumqttc` share no types; above this file nobody can tell them apart.
//!
//! Nothing of the library's own errors or packets goes on: both can print payloads.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use rumqttc::v5::mqttbytes::QoS as QoS5;
use rumqttc::v5::mqttbytes::v5 as five;
use rumqttc::{self as four, QoS as QoS4};

use super::message::{Arrived, Receipt};
use super::options::{CHANNEL, Options, Version};
use super::outbox::Parcel;
use super::reasons::{five_error, five_poisoned, four_error, four_poisoned};
use super::undelivered;
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

/// A message on this topic panics in tests as if the library did: no packet is known that it panics on.
#[cfg(test)]
pub(super) const POISON: &str = "iot/poison/status";

/// What a connection is called before the broker has taken it: nothing is acknowledged on it.
const NONE_YET: u64 = u64::MAX;

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
    /// The number of the latest publish.
    number: u16,
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
        number: 0,
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
            // Without an expiry nothing is kept by the broker, so there is nothing to take back.
            Inner::Four(_) if parcel.forgets() => Ok(()),
            Inner::Four(client) => client
                .publish_bytes(topic, QoS4::AtLeastOnce, false, payload.clone())
                .await
                .map_err(|_| Closed),
        }
    }

    /// Acknowledges a message, unless its connection is gone: there its number means another one by now, and the broker sends it again anyway.
    pub(super) async fn ack(&self, receipt: &Receipt) {
        if receipt.connection != self.connection.load(Ordering::Acquire) {
            return;
        }
        // The library wants the packet, and looks at no more of it. An error means that the connection is closed for good.
        match &self.inner {
            Inner::Five(client) => {
                let quality = match receipt.quality {
                    QoS4::AtMostOnce => QoS5::AtMostOnce,
                    QoS4::AtLeastOnce => QoS5::AtLeastOnce,
                    QoS4::ExactlyOnce => QoS5::ExactlyOnce,
                };
                let mut packet = five::Publish::new("", quality, Bytes::new(), None);
                packet.pkid = receipt.number;
                drop(client.ack(&packet).await);
            }
            Inner::Four(client) => {
                let mut packet = four::Publish::from_bytes("", receipt.quality, Bytes::new());
                packet.pkid = receipt.number;
                drop(client.ack(&packet).await);
            }
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
            Seen::Lost(_) => self.is_down(),
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
                Ok(event) => {
                    self.number = undelivered::five_number(&event).unwrap_or(self.number);
                    five_event(event, connection)
                }
                Err(error) => Seen::Lost(Lost {
                    why: five_error(&error),
                    poisoned: five_poisoned(&error),
                    undelivered: undelivered::five(poll, self.number),
                }),
            },
            Loop::Four(poll) => match poll.poll().await {
                Ok(event) => {
                    self.number = undelivered::four_number(&event).unwrap_or(self.number);
                    four_event(event, connection)
                }
                Err(error) => Seen::Lost(Lost {
                    why: four_error(&error),
                    poisoned: four_poisoned(&error),
                    undelivered: undelivered::four(poll, self.number),
                }),
            },
        }
    }

    fn panicked(&mut self) -> Seen {
        metrics::counter!(names::PANICS, "part" => "mqtt").increment(1);
        Seen::Lost(self.drop_connection("panic", true))
    }

    /// Ends the connection from our side; the broker keeps the session.
    pub(super) fn hang_up(&mut self, why: &'static str) -> Lost {
        let lost = self.drop_connection(why, false);
        self.is_down();
        lost
    }

    fn drop_connection(&mut self, why: &'static str, poisoned: bool) -> Lost {
        let undelivered = match &mut self.inner {
            Loop::Five(poll) => {
                poll.clean();
                undelivered::five(poll, self.number)
            }
            Loop::Four(poll) => {
                poll.clean();
                undelivered::four(poll, self.number)
            }
        };
        Lost {
            why,
            poisoned,
            undelivered,
        }
    }

    fn is_down(&mut self) {
        self.up = false;
        self.connection.fetch_add(1, Ordering::AcqRel);
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
        four::v5::Event::Incoming(five::Packet::Publish(publish)) => {
            #[cfg(test)]
            assert_ne!(
                &publish.topic[..],
                POISON.as_bytes(),
                "as the library might"
            );
            let receipt = Receipt {
                number: publish.pkid,
                quality: match publish.qos {
                    QoS5::AtMostOnce => QoS4::AtMostOnce,
                    QoS5::AtLeastOnce => QoS4::AtLeastOnce,
                    QoS5::ExactlyOnce => QoS4::ExactlyOnce,
                },
                connection,
            };
            let five::Publish {
                topic,
                payload,
                retain,
                ..
            } = publish;
            Seen::Message(Box::new(Arrived::keep(&topic, &payload, retain, receipt)))
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
        four::Event::Incoming(four::Packet::Publish(publish)) => {
            #[cfg(test)]
            assert_ne!(publish.topic, POISON, "as the library might");
            let receipt = Receipt {
                number: publish.pkid,
                quality: publish.qos,
                connection,
            };
            let four::Publish {
                topic,
                payload,
                retain,
                ..
            } = publish;
            Seen::Message(Box::new(Arrived::keep(
                topic.as_bytes(),
                &payload,
                retain,
                receipt,
            )))
        }
        _ => Seen::Nothing,
    }
}
