//! The connection to the broker: subscribes, hands messages to the flow, acknowledges them when they are stored, publishes the answers.
//!
//! What must always hold:
//! - the task that polls the connection waits for nothing else;
//! - a message is acknowledged only after the flow is done with it, only on the connection it came by, and in the order of arrival (MQTT 5, 4.6: brokers may
//!   end a connection that does otherwise);
//! - a packet that cannot be read ends one connection, not every following one;
//! - a connection without a subscription is ended, and made again with the same pauses as one that was lost.

mod arrivals;
mod message;
pub mod options;
pub mod outbox;
mod pause;
pub mod probe;
mod reasons;
mod undelivered;
mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::arrivals::Arrivals;

pub use self::options::{Options, Tls, Version};
use self::outbox::Parcel;
pub use self::outbox::{Inbox, Outbox, outbox};
use self::pause::Pauses;
pub use self::probe::{Heard, ProbeError, probe};
use self::wire::{Lost, Seen, Wire};
use super::flow::Devices;
use crate::metrics as names;
use crate::web::readiness::Check;

/// Why a connection is ended on which nothing would be heard.
const SUBSCRIPTION: &str = "subscription";
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);
/// How long a message that a 3.1.1 broker did not acknowledge is good for being sent again.
const RESEND: Duration = Duration::from_secs(60);

/// Keeps the connection until `stopping`, which comes after the flow has ended; then hands over the answers that are left.
pub async fn run(
    options: Options,
    inbox: Inbox,
    devices: Arc<Devices>,
    heard: Check,
    stopping: CancellationToken,
) {
    let (client, wire) = wire::open(&options);
    let (connected, is_connected) = watch::channel(false);
    let (again, back) = mpsc::unbounded_channel();
    let deliver = inbox.deliver(client.clone(), is_connected, back, stopping.clone());
    let deliver = tokio::spawn(deliver);
    let (arrivals, take_in) = arrivals::arrivals(devices, client.clone());
    let take_in = tokio::spawn(take_in);
    let gone = CancellationToken::new();
    let link = Link {
        reconnect: options.reconnect,
        subscribes: options.subscribe,
        connected,
        again,
        arrivals,
        heard,
        gone: gone.clone(),
    };
    let mut poll = tokio::spawn(link.keep(wire));
    stopping.cancelled().await;
    let _ = tokio::time::timeout(GOODBYE, deliver).await;
    client.disconnect().await;
    gone.cancel();
    // A broker may not care.
    if tokio::time::timeout(GOODBYE, &mut poll).await.is_err() {
        poll.abort();
    }
    take_in.abort();
}

/// The task that polls.
struct Link {
    reconnect: (Duration, Duration),
    subscribes: bool,
    connected: watch::Sender<bool>,
    again: mpsc::UnboundedSender<Vec<Parcel>>,
    arrivals: Arrivals,
    heard: Check,
    gone: CancellationToken,
}

impl Link {
    async fn keep(self, mut wire: Wire) {
        let mut pauses = Pauses::new(self.reconnect);
        let mut since: Option<Instant> = None;
        let mut refused: Option<Instant> = None;
        loop {
            let mut seen = wire.poll().await;
            if matches!(seen, Seen::Subscribed(false)) {
                tracing::error!("the broker refused the subscription; see its access rules");
                // Nobody would be heard, and the broker would not say when that has changed.
                seen = Seen::Lost(wire.hang_up(SUBSCRIPTION));
            }
            match seen {
                Seen::Connected(session) => {
                    tracing::info!(session, "connected to the broker");
                    metrics::gauge!(names::MQTT_CONNECTED).set(1.0);
                    since = Some(Instant::now());
                    self.connected.send_replace(true);
                    if !self.subscribes {
                        self.heard.ready();
                    }
                }
                Seen::Subscribed(_) => {
                    tracing::info!("subscribed to the devices' messages");
                    self.heard.ready();
                }
                Seen::Message(message) => self.arrivals.hand_over(*message),
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
                    let pause = pauses.after(since.take().map(|at| at.elapsed()));
                    self.lost(lost, &mut wire, pause);
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.gone.cancelled() => return,
                    }
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
        self.heard.not_ready(if why == SUBSCRIPTION {
            "the broker refused the subscription; see its access rules"
        } else {
            "no connection to the broker; see the log"
        });
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
}

#[cfg(test)]
mod tests;
