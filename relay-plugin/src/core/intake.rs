//! The loop over live events.
//!
//! A message may run ahead of the relay's database; whatever could change a group (a commit, a proposal, an event that nothing opens yet) waits
//! until the relay has stored it, in the order it came: a commit that we follow and the relay then loses would part us from the group for good.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use futures::future::BoxFuture;
use keyturn_mls::{Arrival, Receipt};
use keyturn_proto::UnixMs;
use nostr::Event;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Core;
use super::standby;
use super::work::Desk;
use crate::metrics as names;
use crate::service::Inbound;

/// Events that may wait for the relay's database at once.
const MAX_WAITING: usize = 256;
/// How long the relay may take to store an event; it writes every 100 ms.
const STORED_WITHIN: Duration = Duration::from_secs(5);

/// An event on its way into the relay's database.
struct Held {
    event: Event,
    receipt: Receipt,
    stored: BoxFuture<'static, bool>,
    arrival: Arrival,
}

impl Core {
    pub(super) async fn attend(
        &self,
        mut inbound: mpsc::Receiver<Inbound>,
        desk: &mut Desk,
        stop: &CancellationToken,
    ) {
        let mut held: VecDeque<Held> = VecDeque::new();
        let mut house = self.engine.now();
        let mut acting = self.engine.acting();
        // At most one at a time; ends with the core.
        let mut pruning: JoinSet<()> = JoinSet::new();
        let mut kept = 0;
        loop {
            let room = desk.has_room() && held.len() < MAX_WAITING;
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = desk.one_done() => if desk.wants_more() { self.lay_out(desk).await },
                stored = first_stored(&mut held) => {
                    let Some(Held { event, receipt, stored: _, arrival: _until_taken_in }) = held.pop_front() else { continue };
                    if stored {
                        kept += self.take_in(&event, receipt, desk).await;
                    } else {
                        metrics::counter!(names::EVENTS_NOT_STORED).increment(1);
                        tracing::warn!(event = %event.id, "the relay did not store it; not followed");
                    }
                }
                // The lease was taken, and everything under way taken up: now what waits in the inbox.
                Ok(()) = acting.changed() => {
                    self.prune_before_acting().await;
                    self.lay_out(desk).await;
                }
                Some(_) = pruning.join_next() => {}
                () = self.clock.sleep_until(house) => {
                    if !self.engine.acts() {
                        self.trim().await;
                        if pruning.is_empty() && self.service.prune_is_due(standby::EVERY) {
                            let core = self.clone();
                            pruning.spawn(async move { core.prune().await });
                        }
                    }
                    self.keep_house(desk).await;
                    house = self.engine.now().plus(self.house_interval().await);
                }
                next = inbound.recv(), if room => {
                    let Some(next) = next else { return };
                    metrics::gauge!(names::INBOUND_QUEUE).set(inbound.len() as f64);
                    kept += self.arrived(next, &mut held, desk).await;
                }
            }
            if kept >= standby::PER_LEAF {
                kept = 0;
                if !self.engine.acts() {
                    self.trim().await;
                }
            }
        }
    }

    /// How many messages were kept: one or none.
    async fn arrived(&self, inbound: Inbound, held: &mut VecDeque<Held>, desk: &mut Desk) -> u32 {
        let Inbound {
            event,
            received_at_ms,
            session: _,
            stored,
            arrival,
        } = inbound;
        let received_at = UnixMs(received_at_ms);
        let receipt = if stored {
            Receipt::stored(received_at)
        } else {
            Receipt::live(received_at)
        };
        match self.service.may_run_ahead(&event).await {
            Ok(true) => return self.take_in(&event, receipt, desk).await,
            Ok(false) => {
                let (relay, id) = (std::sync::Arc::clone(&self.relay), event.id);
                let deadline = Instant::now() + STORED_WITHIN;
                let stored = async move { relay.wait_stored(id, deadline).await.unwrap_or(false) };
                held.push_back(Held {
                    event,
                    receipt,
                    stored: Box::pin(stored),
                    arrival,
                });
            }
            Err(error) => tracing::error!(event = %event.id, %error, "not taken in"),
        }
        0
    }

    async fn take_in(&self, event: &Event, receipt: Receipt, desk: &mut Desk) -> u32 {
        match self.service.take_in(event, receipt).await {
            Ok(false) => {}
            Ok(true) => {
                crate::crash::point(crate::crash::Point::AfterInbox).await;
                if let Err(error) = desk.lay_out_new().await {
                    tracing::error!(%error, "the inbox could not be read; it is read again later");
                }
                return 1;
            }
            // It is stored by the relay, and taken in again at the next start.
            Err(error) => {
                metrics::counter!(names::INTAKE_FAILURES).increment(1);
                tracing::error!(event = %event.id, %error, "not taken in");
            }
        }
        0
    }

    async fn keep_house(&self, desk: &mut Desk) {
        if let Err(error) = self.service.keep_house().await {
            tracing::warn!(%error, "some of the house-keeping is left for later");
        }
        self.lay_out(desk).await;
    }

    async fn lay_out(&self, desk: &mut Desk) {
        if let Err(error) = desk.lay_out().await {
            tracing::error!(%error, "the inbox could not be read; it is read again later");
        }
    }

    /// Sooner while a leaf is to be renewed or an epoch to settle: nothing can be sealed until then.
    async fn house_interval(&self) -> Duration {
        match self.service.is_settling().await {
            Ok(true) => self.retry,
            _ => self.sweep,
        }
    }
}

/// Resolves with the fate of the first event that waits; never while none does.
async fn first_stored(held: &mut VecDeque<Held>) -> bool {
    match held.front_mut() {
        Some(first) => Pin::new(&mut first.stored).await,
        None => std::future::pending().await,
    }
}
