//! Answers that wait for the connection: bounded, and forgotten when their time is over.

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

/// The entrance. Clones share it.
#[derive(Clone)]
pub struct Outbox(mpsc::Sender<Parcel>);

/// The other end, for the connection.
pub struct Inbox(mpsc::Receiver<Parcel>);

/// A queue of at most `capacity` answers.
#[must_use]
pub fn outbox(capacity: usize) -> (Outbox, Inbox) {
    let (sender, receiver) = mpsc::channel(capacity.max(1));
    (Outbox(sender), Inbox(receiver))
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
        self.0
            .send_timeout(parcel(message), PATIENCE)
            .await
            .map_err(|_| NotSent)
    }

    fn offer(&self, message: Outgoing) -> Result<(), NotSent> {
        self.0.try_send(parcel(message)).map_err(|_| NotSent)
    }
}

impl Inbox {
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
                    parcel = self.0.recv() => parcel,
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
                metrics::counter!(names::DEVICE_ANSWERS_EXPIRED).increment(1);
                continue;
            }
            if client.publish(&parcel, left).await.is_err() {
                return;
            }
        }
    }
}
