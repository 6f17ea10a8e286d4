//! The connection to the broker: subscribes, hands messages to the flow, acknowledges them when they are stored, publishes the answers.
//!
//! What must always hold:
//! - the task that polls the connection waits for nothing else;
//! - a message is acknowledged only after the flow is done with it, only on the connection it came by, and in the order of arrival (MQTT 5, 4.6: brokers may
//!   end a connection that does otherwise);
//! - a packet that cannot be read ends one connection, not every following one.

pub mod options;
pub mod outbox;
pub mod probe;
mod wire;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

pub use self::options::{Options, Tls, Version};
use self::outbox::Parcel;
pub use self::outbox::{Inbox, Outbox, outbox};
pub use self::probe::{Heard, ProbeError, probe};
use self::wire::{Arrived, Client, Lost, Seen, Wire};
use super::flow::Devices;
use super::intake::{Carriage, Incoming};
use super::settings::jittered;
use crate::metrics as names;

/// Messages that are looked at, or wait for their turn to be acknowledged. Their store writes share commits.
const AT_ONCE: usize = 256;
/// Messages that may wait, or half as many of those that need no acknowledgement. Far more than we let a broker send without one: in the first moments of a storm
/// more come all the same (seen with Mosquitto 2.0.11), and whoever finds no room here is sent away.
const WAITING: usize = 16_384;
/// A connection that lasted so long was a good one.
const SETTLED: Duration = Duration::from_secs(30);
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);
/// How long a message that a 3.1.1 broker did not acknowledge is good for being sent again.
const RESEND: Duration = Duration::from_secs(60);

/// Keeps the connection until `stopping`, which comes after the flow has ended; then hands over the answers that are left.
pub async fn run(
    options: Options,
    inbox: Inbox,
    devices: Arc<Devices>,
    stopping: CancellationToken,
) {
    let (client, wire) = wire::open(&options);
    let (connected, is_connected) = watch::channel(false);
    let (again, back) = mpsc::unbounded_channel();
    let (arrived, arrivals) = mpsc::unbounded_channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let deliver = inbox.deliver(client.clone(), is_connected, back, stopping.clone());
    let deliver = tokio::spawn(deliver);
    let take_in = take_in(
        arrivals,
        Arc::clone(&waiting),
        Arc::clone(&devices),
        client.clone(),
    );
    let take_in = tokio::spawn(take_in);
    let gone = CancellationToken::new();
    let link = Link {
        reconnect: options.reconnect,
        connected,
        again,
        arrived,
        waiting,
        devices,
        gone: gone.clone(),
    };
    let poll = tokio::spawn(link.keep(wire));
    stopping.cancelled().await;
    let _ = tokio::time::timeout(GOODBYE, deliver).await;
    client.disconnect().await;
    gone.cancel();
    let _ = tokio::time::timeout(GOODBYE, poll).await;
    take_in.abort();
}

/// The task that polls.
struct Link {
    reconnect: (Duration, Duration),
    connected: watch::Sender<bool>,
    again: mpsc::UnboundedSender<Vec<Parcel>>,
    arrived: mpsc::UnboundedSender<Arrived>,
    /// How many of them are yet to be looked at.
    waiting: Arc<AtomicUsize>,
    devices: Arc<Devices>,
    gone: CancellationToken,
}

impl Link {
    async fn keep(self, mut wire: Wire) {
        let mut pause = self.reconnect.0;
        let mut since: Option<Instant> = None;
        let mut refused: Option<Instant> = None;
        loop {
            match wire.poll().await {
                Seen::Connected(session) => {
                    tracing::info!(session, "connected to the broker");
                    metrics::gauge!(names::MQTT_CONNECTED).set(1.0);
                    since = Some(Instant::now());
                    self.connected.send_replace(true);
                }
                Seen::Subscribed(true) => tracing::info!("subscribed to the devices' messages"),
                Seen::Subscribed(false) => {
                    metrics::counter!(names::MQTT_LOST, "reason" => "subscription").increment(1);
                    tracing::error!("the broker refused the subscription; see its access rules");
                }
                Seen::Message(message) => self.hand_over(*message),
                Seen::Published(true) | Seen::Nothing => {}
                Seen::Published(false) => {
                    metrics::counter!(names::MQTT_REFUSED).increment(1);
                    // One line a minute says it as well as one for each.
                    if refused.is_none_or(|at: Instant| at.elapsed() >= RESEND) {
                        refused = Some(Instant::now());
                        tracing::error!(
                            "the broker does not let us answer devices; see its access rules"
                        );
                    }
                }
                Seen::Lost(lost) => {
                    self.connected.send_replace(false);
                    metrics::gauge!(names::MQTT_CONNECTED).set(0.0);
                    if self.gone.is_cancelled() {
                        return;
                    }
                    if since.take().is_some_and(|at| at.elapsed() >= SETTLED) {
                        pause = self.reconnect.0;
                    }
                    self.lost(lost, &mut wire, pause);
                    tokio::select! {
                        () = tokio::time::sleep(jittered(pause, 0.5)) => {}
                        () = self.gone.cancelled() => return,
                    }
                    pause = (pause * 2).min(self.reconnect.1);
                }
            }
        }
    }

    fn lost(&self, lost: Lost, wire: &mut Wire, pause: Duration) {
        let Lost {
            why,
            poisoned,
            undelivered,
        } = lost;
        metrics::counter!(names::MQTT_LOST, "reason" => why).increment(1);
        tracing::warn!(
            why,
            poisoned,
            undelivered = undelivered.len(),
            pause_ms = pause.as_millis(),
            "no connection to the broker"
        );
        if poisoned {
            // With the session the broker would keep the packet, and send it again on every connection.
            wire.start_clean();
        }
        if !undelivered.is_empty() {
            // Nobody takes it only when everything ends.
            let _ = self.again.send(undelivered);
        }
    }

    /// Never waits. A broker sends no more than fits of what it wants acknowledged (MQTT 5); beyond that, and of what needs no acknowledgement beyond half of
    /// it, a device is told to ask again. What is awaited goes on without its contents: unacknowledged it would take up the broker's place for good.
    fn hand_over(&self, mut message: Arrived) {
        let room = if message.is_awaited() {
            WAITING
        } else {
            WAITING / 2
        };
        if self.waiting.load(Ordering::Acquire) >= room {
            self.devices.overrun(&incoming(&message));
            if !message.is_awaited() {
                return;
            }
            message.overrun = true;
            message.payload = bytes::Bytes::new();
        } else {
            self.waiting.fetch_add(1, Ordering::AcqRel);
        }
        // Nobody takes it only when everything ends.
        let _ = self.arrived.send(message);
    }
}

fn incoming(message: &Arrived) -> Incoming<'_> {
    Incoming {
        carriage: Carriage::Mqtt,
        topic: &message.topic,
        payload: &message.payload,
        retained: message.retain,
        arrived: message.at,
    }
}

/// Lets the flow look at messages, many at once, and acknowledges each when the flow is done with it and with all that came before.
async fn take_in(
    mut arrivals: mpsc::UnboundedReceiver<Arrived>,
    waiting: Arc<AtomicUsize>,
    devices: Arc<Devices>,
    client: Client,
) {
    let mut under_way = FuturesOrdered::new();
    loop {
        tokio::select! {
            message = arrivals.recv(), if under_way.len() < AT_ONCE => {
                let Some(message) = message else { return };
                if !message.overrun {
                    waiting.fetch_sub(1, Ordering::AcqRel);
                }
                let devices = Arc::clone(&devices);
                under_way.push_back(UnderWay(tokio::spawn(async move {
                    if !message.overrun {
                        devices.handle(incoming(&message)).await;
                    }
                    message
                })));
            }
            Some(ended) = under_way.next() => match ended {
                Ok(message) => client.ack(&message).await,
                Err(_) => {
                    metrics::counter!(names::PANICS, "part" => "devices").increment(1);
                    tracing::error!("the handling of a device's message panicked");
                }
            },
        }
    }
}

/// A message that is looked at; nobody looks at it any more once this is dropped.
struct UnderWay(JoinHandle<Arrived>);

impl Future for UnderWay {
    type Output = Result<Arrived, JoinError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use keyturn_proto::device::MAX_STATUS;

    use super::*;
    use crate::devices::tests::world::World;

    #[tokio::test]
    async fn a_flood_is_bounded_and_whatever_the_broker_waits_for_is_acknowledged_in_order() {
        let world = World::new();
        let (arrived, mut arrivals) = mpsc::unbounded_channel();
        let link = Link {
            reconnect: (Duration::ZERO, Duration::ZERO),
            connected: watch::channel(false).0,
            again: mpsc::unbounded_channel().0,
            arrived,
            waiting: Arc::default(),
            devices: Arc::clone(&world.devices),
            gone: CancellationToken::new(),
        };
        let long = vec![b'x'; 5_000];
        // More than fits of what needs no acknowledgement leaves room for as much as a broker may send of what does.
        for _ in 0..WAITING {
            link.hand_over(Arrived::made("iot/d1/status", &long, false, 0));
        }
        // And a broker may send more than it should.
        let last = u16::try_from(WAITING).unwrap();
        let awaited = options::RECEIVE;
        assert!(usize::from(awaited) <= WAITING / 2 && last > awaited);
        for number in 1..=last {
            link.hand_over(Arrived::made("iot/d2/status", &long, true, number));
        }
        let (mut bytes, mut unawaited, mut looked_at, mut numbers) = (0, 0, 0, Vec::new());
        while let Ok(message) = arrivals.try_recv() {
            bytes += message.payload.len();
            if message.is_awaited() {
                numbers.push(message.number());
            } else {
                unawaited += 1;
            }
            looked_at += usize::from(!message.overrun);
        }
        assert_eq!((unawaited, looked_at), (WAITING / 2, WAITING));
        assert_eq!(numbers, (1..=last).collect::<Vec<_>>());
        assert!(bytes <= WAITING * (MAX_STATUS + 1), "{bytes}");
    }
}
