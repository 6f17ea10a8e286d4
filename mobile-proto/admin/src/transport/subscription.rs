//! What comes back on a subscription: stored events up to the EOSE, or live ones from it on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use keyturn_proto::UnixMs;
use nostr::filter::MatchEventOptions;
use nostr::{Event, Filter, SubscriptionId};
use nostr_sdk::pool::RelayNotification;
use nostr_sdk::{RelayMessage, RelayStatus};
use tokio::sync::{broadcast, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::{Limits, RelayError, printable, weight};
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
    queue: mpsc::Receiver<Heard>,
    /// What the queue weighs.
    waiting: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Live {
    /// Starts stamping; the caller sends the REQ.
    pub(super) fn begin(
        heard: broadcast::Receiver<RelayNotification>,
        id: SubscriptionId,
        clock: Arc<dyn Clock>,
        limits: Limits,
    ) -> Self {
        let (sender, queue) = mpsc::channel(limits.waiting.max(1));
        let waiting = Arc::<AtomicUsize>::default();
        let arrivals = Arrivals {
            id: id.clone(),
            clock,
            queue: sender,
            waiting: Arc::clone(&waiting),
            most: limits.waiting_bytes,
        };
        let task = tokio::spawn(arrivals.run(heard)).abort_handle();
        Self {
            id,
            queue,
            waiting,
            task,
        }
    }

    /// The next one; `None` when there will be none.
    pub(super) async fn recv(&mut self) -> Option<Heard> {
        let heard = self.queue.recv().await?;
        Some(self.taken(heard))
    }

    /// What waits already.
    pub(super) fn try_recv(&mut self) -> Option<Heard> {
        let heard = self.queue.try_recv().ok()?;
        Some(self.taken(heard))
    }

    fn taken(&self, heard: Heard) -> Heard {
        if let Heard::Live { event, .. } = &heard {
            self.waiting.fetch_sub(weight(event), Ordering::Relaxed);
        }
        heard
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Fills the queue of a live subscription. Before its EOSE a relay sends what is stored, in an order of its own; that is left to
/// [`Connection::fetch_all`](super::Connection::fetch_all).
struct Arrivals {
    id: SubscriptionId,
    clock: Arc<dyn Clock>,
    queue: mpsc::Sender<Heard>,
    waiting: Arc<AtomicUsize>,
    most: usize,
}

impl Arrivals {
    async fn run(self, mut heard: broadcast::Receiver<RelayNotification>) {
        let mut live = false;
        // There was no room for something. What comes until that is told is dropped, so that nothing piles up before the queue.
        let mut missed = false;
        loop {
            let next = tokio::select! {
                biased;
                room = self.queue.reserve(), if missed => {
                    let Ok(room) = room else { return };
                    room.send(Heard::Resync);
                    missed = false;
                    continue;
                }
                next = heard.recv() => next,
            };
            let next = match next {
                Ok(RelayNotification::Shutdown) | Err(broadcast::error::RecvError::Closed) => {
                    return;
                }
                Ok(notification) => self.meaning(notification, &mut live),
                Err(broadcast::error::RecvError::Lagged(_)) => Some(Heard::Resync),
            };
            match next {
                Some(heard) if !missed => match self.put(heard) {
                    Ok(()) => {}
                    Err(mpsc::error::TrySendError::Full(_)) => missed = true,
                    Err(mpsc::error::TrySendError::Closed(_)) => return,
                },
                _ => {}
            }
        }
    }

    fn meaning(&self, notification: RelayNotification, live: &mut bool) -> Option<Heard> {
        let message = match notification {
            RelayNotification::Message { message } => message,
            // The client library renews the subscription by itself, but what came in between is not told apart from what is old.
            RelayNotification::RelayStatus {
                status: RelayStatus::Connected,
            } => return Some(Heard::Resync),
            _ => return None,
        };
        match message {
            RelayMessage::Event {
                subscription_id,
                event,
            } if *live && *subscription_id == self.id => Some(Heard::Live {
                event: Box::new(event.into_owned()),
                at: self.clock.now(),
            }),
            RelayMessage::EndOfStoredEvents(done) if *done == self.id => {
                *live = true;
                None
            }
            RelayMessage::Closed {
                subscription_id,
                message,
            } if *subscription_id == self.id && !message.starts_with("auth-required") => {
                Some(Heard::Closed(printable(&message)))
            }
            _ => None,
        }
    }

    fn put(&self, heard: Heard) -> Result<(), mpsc::error::TrySendError<Heard>> {
        let Heard::Live { event, .. } = &heard else {
            return self.queue.try_send(heard);
        };
        let weighs = weight(event);
        if self.waiting.fetch_add(weighs, Ordering::Relaxed) + weighs > self.most {
            self.waiting.fetch_sub(weighs, Ordering::Relaxed);
            return Err(mpsc::error::TrySendError::Full(heard));
        }
        self.queue.try_send(heard).inspect_err(|_| {
            self.waiting.fetch_sub(weighs, Ordering::Relaxed);
        })
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
