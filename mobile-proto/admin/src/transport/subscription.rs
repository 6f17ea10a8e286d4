//! What comes back on a subscription: stored events up to the EOSE, or live ones from it on.

use std::collections::BTreeSet;
use std::sync::Arc;

use keyturn_proto::UnixMs;
use nostr::filter::MatchEventOptions;
use nostr::{Event, Filter, SubscriptionId};
use nostr_sdk::pool::RelayNotification;
use nostr_sdk::{RelayMessage, RelayStatus};
use tokio::sync::{broadcast, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::{QUEUE, RelayError, printable};
use crate::clock::Clock;

/// What [`Connection::next`](super::Connection::next) heard.
#[derive(Debug)]
pub enum Heard {
    /// An event that was published just now.
    Live {
        /// The event.
        event: Box<Event>,
        /// When it arrived, however late it is asked for: MLS commits are judged by that.
        at: UnixMs,
    },
    /// Something may have been missed (reconnected, or too much at once): [`Connection::listen`](super::Connection::listen) and fetch again.
    Resync,
    /// The relay closed the subscription, in its words.
    Closed(String),
}

/// The live subscription: a task that stamps what arrives, and the queue it fills.
pub(super) struct Live {
    pub(super) id: SubscriptionId,
    pub(super) queue: mpsc::Receiver<Heard>,
    task: AbortHandle,
}

impl Live {
    /// Starts stamping; the caller sends the REQ.
    pub(super) fn begin(
        heard: broadcast::Receiver<RelayNotification>,
        id: SubscriptionId,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let (sender, queue) = mpsc::channel(QUEUE);
        let task = tokio::spawn(arrive(heard, id.clone(), clock, sender)).abort_handle();
        Self { id, queue, task }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Fills the queue of a live subscription. Before its EOSE a relay sends what is stored, in an order of its own; that is left to
/// [`Connection::fetch_all`](super::Connection::fetch_all).
async fn arrive(
    mut heard: broadcast::Receiver<RelayNotification>,
    id: SubscriptionId,
    clock: Arc<dyn Clock>,
    queue: mpsc::Sender<Heard>,
) {
    let mut live = false;
    loop {
        let next = match heard.recv().await {
            Ok(RelayNotification::Message { message }) => match message {
                RelayMessage::Event {
                    subscription_id,
                    event,
                } if live && *subscription_id == id => Heard::Live {
                    event: Box::new(event.into_owned()),
                    at: clock.now(),
                },
                RelayMessage::EndOfStoredEvents(done) if *done == id => {
                    live = true;
                    continue;
                }
                RelayMessage::Closed {
                    subscription_id,
                    message,
                } if *subscription_id == id && !message.starts_with("auth-required") => {
                    Heard::Closed(printable(&message))
                }
                _ => continue,
            },
            // The client library renews the subscription by itself, but what came in between is not told apart from what is old.
            Ok(RelayNotification::RelayStatus {
                status: RelayStatus::Connected,
            })
            | Err(broadcast::error::RecvError::Lagged(_)) => Heard::Resync,
            Ok(RelayNotification::Shutdown) | Err(broadcast::error::RecvError::Closed) => return,
            Ok(_) => continue,
        };
        // A full queue makes the receiver lag behind, which ends in a resync.
        if queue.send(next).await.is_err() {
            return;
        }
    }
}

/// The stored events of one REQ: all of them, or an error.
pub(super) async fn collect(
    heard: &mut broadcast::Receiver<RelayNotification>,
    id: &SubscriptionId,
    filter: &Filter,
    deadline: Instant,
) -> Result<Vec<Event>, RelayError> {
    let mut events = Vec::new();
    let mut seen = BTreeSet::new();
    loop {
        let heard = match timeout_at(deadline, heard.recv()).await {
            Err(_elapsed) => return Err(RelayError::Timeout("stored events")),
            Ok(Err(broadcast::error::RecvError::Lagged(_))) => return Err(RelayError::Lagged),
            Ok(Err(broadcast::error::RecvError::Closed)) => return Err(RelayError::Lost),
            Ok(Ok(heard)) => heard,
        };
        match heard {
            RelayNotification::Message { message } => match message {
                RelayMessage::Event {
                    subscription_id,
                    event,
                } if *subscription_id == *id
                    // A relay may send what was not asked for, and twice.
                    && filter.match_event(&event, MatchEventOptions::new())
                    && seen.insert(event.id) =>
                {
                    events.push(event.into_owned());
                }
                RelayMessage::EndOfStoredEvents(done) if *done == *id => return Ok(events),
                RelayMessage::Closed {
                    subscription_id,
                    message,
                } if *subscription_id == *id && !message.starts_with("auth-required") => {
                    return Err(RelayError::Closed(printable(&message)));
                }
                _ => {}
            },
            RelayNotification::RelayStatus { status } if gone(status) => {
                return Err(RelayError::Lost);
            }
            RelayNotification::AuthenticationFailed => {
                return Err(RelayError::Closed("authentication failed".to_owned()));
            }
            RelayNotification::Shutdown => return Err(RelayError::Lost),
            _ => {}
        }
    }
}

const fn gone(status: RelayStatus) -> bool {
    matches!(
        status,
        RelayStatus::Disconnected | RelayStatus::Terminated | RelayStatus::Banned
    )
}
