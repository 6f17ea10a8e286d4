//! Answers that wait for the connection: bounded, and forgotten when their time is over.
//!
//! What must always hold:
//! - what matters (a secret_id) never stands behind what may be lost (a refusal, a ping): whoever causes refusals by the thousand delays nobody's secret_id;
//! - the empty message that takes a retained command back stands in the commands' own queue and is sent once or not at all: so it is never published after the device's
//!   next command, which it would erase.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::wire::Client;
use crate::devices::outgoing::{NotSent, Outgoing, Outlet};
use crate::metrics as names;

/// How long a message that matters waits for room.
const PATIENCE: Duration = Duration::from_secs(10);

/// A message as the protocol takes it.
pub(super) struct Parcel {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) retain: bool,
    pub(super) expires_in: Duration,
    pub(super) since: Instant,
}

impl Parcel {
    /// See [`Outgoing::forgets`]. Over 3.1.1 nothing is retained, so that there the mark is lost and only the emptiness left.
    pub(super) fn forgets(&self) -> bool {
        self.payload.is_empty()
    }
}

/// The entrance. Clones share it.
#[derive(Clone)]
pub struct Outbox {
    first: mpsc::Sender<Parcel>,
    then: mpsc::Sender<Parcel>,
}

/// The other end, for the connection.
pub struct Inbox {
    first: mpsc::Receiver<Parcel>,
    then: mpsc::Receiver<Parcel>,
}

/// Two queues of at most `capacity` answers each.
#[must_use]
pub fn outbox(capacity: usize) -> (Outbox, Inbox) {
    let (first, take_first) = mpsc::channel(capacity.max(1));
    let (then, take_then) = mpsc::channel(capacity.max(1));
    let inbox = Inbox {
        first: take_first,
        then: take_then,
    };
    (Outbox { first, then }, inbox)
}

fn parcel(message: Outgoing) -> Parcel {
    let Outgoing {
        device,
        payload,
        retain,
        expires_in,
    } = message;
    Parcel {
        topic: keyturn_proto::device::topic::command(&device),
        payload: Bytes::copy_from_slice(&payload),
        retain,
        expires_in,
        since: Instant::now(),
    }
}

#[async_trait]
impl Outlet for Outbox {
    async fn send(&self, message: Outgoing) -> Result<(), NotSent> {
        self.first
            .send_timeout(parcel(message), PATIENCE)
            .await
            .map_err(|_| NotSent)
    }

    fn has_room(&self) -> bool {
        self.first.capacity() > 0
    }

    fn offer(&self, message: Outgoing) -> Result<(), NotSent> {
        let queue = if message.forgets() {
            &self.first
        } else {
            &self.then
        };
        queue.try_send(parcel(message)).map_err(|_| NotSent)
    }
}

impl Inbox {
    /// The next answer; `None` when nobody can make one any more.
    async fn next(&mut self) -> Option<Parcel> {
        tokio::select! {
            biased;
            Some(parcel) = self.first.recv() => Some(parcel),
            parcel = self.then.recv() => parcel,
        }
    }

    /// Hands messages to the protocol while there is a connection, those first that a lost connection gave back. Ends when `last` is cancelled and what
    /// waits then is handed over, or there is no connection to hand it to.
    pub(super) async fn deliver(
        mut self,
        client: Client,
        mut connected: watch::Receiver<bool>,
        mut again: mpsc::UnboundedReceiver<Vec<Parcel>>,
        last: CancellationToken,
    ) {
        let mut first: VecDeque<Parcel> = VecDeque::new();
        loop {
            let parcel = match first.pop_front() {
                Some(parcel) => Some(parcel),
                None => tokio::select! {
                    biased;
                    back = again.recv() => match back {
                        Some(parcels) => {
                            first.extend(parcels);
                            continue;
                        }
                        None => None,
                    },
                    parcel = self.next() => parcel,
                    () = last.cancelled() => None,
                },
            };
            let Some(parcel) = parcel else { return };
            let is_connected = tokio::select! {
                biased;
                up = connected.wait_for(|connected| *connected) => up.is_ok(),
                () = last.cancelled() => false,
            };
            if !is_connected {
                return;
            }
            let left = parcel.expires_in.saturating_sub(parcel.since.elapsed());
            if left < Duration::from_secs(1) {
                if !parcel.forgets() {
                    metrics::counter!(names::DEVICE_ANSWERS_EXPIRED).increment(1);
                }
                continue;
            }
            if client.publish(&parcel, left).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    fn message(n: usize) -> Outgoing {
        Outgoing {
            device: format!("river-{n}").parse().unwrap(),
            payload: Zeroizing::new(n.to_string().into_bytes()),
            retain: false,
            expires_in: Duration::from_secs(60),
        }
    }

    #[tokio::test]
    async fn taking_a_command_back_comes_after_it_and_before_the_next() {
        let (outbox, mut inbox) = outbox(3);
        let forget = || crate::devices::outgoing::forget(&"river-1".parse().unwrap());
        outbox.send(message(1)).await.unwrap();
        outbox.offer(message(0)).unwrap();
        outbox.offer(forget()).unwrap();
        outbox.send(message(2)).await.unwrap();
        assert_eq!(outbox.offer(forget()), Err(NotSent), "it may be lost");
        drop(outbox);
        let mut order = Vec::new();
        while let Some(parcel) = inbox.next().await {
            assert_eq!(parcel.forgets(), parcel.retain);
            order.push(String::from_utf8(parcel.payload.to_vec()).unwrap());
        }
        assert_eq!(order, ["1", "", "2", "0"]);
    }

    #[tokio::test]
    async fn what_matters_passes_a_full_queue_of_what_may_be_lost() {
        let (outbox, mut inbox) = outbox(3);
        for n in 0..3 {
            outbox.offer(message(n)).unwrap();
        }
        assert_eq!(outbox.offer(message(3)), Err(NotSent));
        outbox.send(message(10)).await.unwrap();
        outbox.send(message(11)).await.unwrap();
        drop(outbox);
        let mut order = Vec::new();
        while let Some(parcel) = inbox.next().await {
            order.push(String::from_utf8(parcel.payload.to_vec()).unwrap());
        }
        assert_eq!(order, ["10", "11", "0", "1", "2"]);
    }
}
