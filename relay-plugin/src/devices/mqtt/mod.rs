//! The connection to the broker: subscribes, hands messages to the flow, acknowledges them when they are stored, publishes the answers.
//!
//! What must always hold:
//! - the task that polls the connection waits for nothing else;
//! - a message is acknowledged only after the flow is done with it, only on the connection it came by, and in the order of arrival (MQTT 5, 4.6: brokers may
//!   end a connection that does otherwise);
//! - a packet that cannot be read ends one connection, not every following one.

pub mod options;
pub mod outbox;
mod wire;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use self::options::RECEIVE;
pub use self::options::{Options, Tls, Version};
use self::outbox::Parcel;
pub use self::outbox::{Inbox, Outbox, outbox};
use self::wire::{Arrived, Client, Lost, Seen, Wire};
use super::flow::Devices;
use super::intake::{Carriage, Incoming};
use super::settings::jittered;
use crate::metrics as names;

/// Messages that are looked at, or wait for their turn to be acknowledged. Their store writes share commits.
const AT_ONCE: usize = 256;
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
    let (arrived, arrivals) = mpsc::channel(usize::from(RECEIVE));
    let deliver = inbox.deliver(client.clone(), is_connected, back, stopping.clone());
    let deliver = tokio::spawn(deliver);
    let take_in = tokio::spawn(take_in(arrivals, Arc::clone(&devices), client.clone()));
    let gone = CancellationToken::new();
    let link = Link {
        reconnect: options.reconnect,
        connected,
        again,
        arrived,
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

/// Why the broker cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// No connection, for a stable reason.
    #[error("no connection: {0}")]
    Connection(&'static str),
    /// It does not let us read.
    #[error("the subscription was refused")]
    Subscription,
}

/// Connects once, subscribes, and goes again. Nothing is acknowledged.
///
/// # Errors
/// [`ProbeError`].
pub async fn probe(options: &Options) -> Result<(), ProbeError> {
    let (client, mut wire) = wire::open(options);
    wire.start_clean();
    let found = loop {
        match wire.poll().await {
            Seen::Subscribed(true) => break Ok(()),
            Seen::Subscribed(false) => break Err(ProbeError::Subscription),
            Seen::Lost(lost) => break Err(ProbeError::Connection(lost.why)),
            Seen::Connected(_) | Seen::Message(_) | Seen::Nothing => {}
        }
    };
    if found.is_ok() {
        client.disconnect().await;
        let _ = tokio::time::timeout(GOODBYE, wire.poll()).await;
    }
    found
}

/// The task that polls.
struct Link {
    reconnect: (Duration, Duration),
    connected: watch::Sender<bool>,
    again: mpsc::UnboundedSender<Vec<Parcel>>,
    arrived: mpsc::Sender<Arrived>,
    devices: Arc<Devices>,
    gone: CancellationToken,
}

impl Link {
    async fn keep(self, mut wire: Wire) {
        let mut pause = self.reconnect.0;
        let mut since: Option<Instant> = None;
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
                Seen::Nothing => {}
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

    /// Never waits. The broker sends no more than fits (MQTT 5); a 3.1.1 broker might, and its device is told to ask again.
    fn hand_over(&self, message: Arrived) {
        match self.arrived.try_send(message) {
            Ok(()) => {}
            Err(
                mpsc::error::TrySendError::Full(message)
                | mpsc::error::TrySendError::Closed(message),
            ) => {
                self.devices.overrun(&incoming(&message));
            }
        }
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
async fn take_in(mut arrivals: mpsc::Receiver<Arrived>, devices: Arc<Devices>, client: Client) {
    let mut under_way = FuturesOrdered::new();
    loop {
        tokio::select! {
            message = arrivals.recv(), if under_way.len() < AT_ONCE => {
                let Some(message) = message else { return };
                let devices = Arc::clone(&devices);
                under_way.push_back(UnderWay(tokio::spawn(async move {
                    devices.handle(incoming(&message)).await;
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
