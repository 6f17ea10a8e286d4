//! Messages on their way from the connection to the flow, and their acknowledgements on the way back.
//!
//! What must always hold:
//! - handing over never waits: the connection is polled by whoever does it;
//! - places in a device's line are taken in the order of arrival, and acknowledgements are given in that order;
//! - memory is bounded in bytes. The most there can be: [`BYTES`] (16 MiB) that wait, [`UNDER_WAY`] messages of at most 4.5 KiB with their tasks (8 MiB), and what
//!   an acknowledgement takes (below 128 bytes) for each of the 65,535 packet identifiers of a broker that keeps no limit (8 MiB).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};

use super::message::{Arrived, Receipt};
use super::options::RECEIVE;
use super::wire::Client;
use crate::devices::flow::{Devices, Handled};
use crate::devices::intake::{Carriage, Incoming};
use crate::metrics as names;

/// Messages that may wait, or half as many of those that need no acknowledgement. Far more than we let a broker send without one: in the first moments of a storm
/// more come all the same (seen with Mosquitto 2.0.11), and whoever finds no room here is sent away.
const WAITING: usize = 16_384;
/// How much of them may wait; again half for those that need no acknowledgement. A message as devices send it takes some 500 bytes here, so that there is room for
/// more than [`WAITING`] of them; of the longest that are allowed there is room for some 3,800, and for all that a broker may send without an acknowledgement in either half.
const BYTES: usize = 16 << 20;
/// Messages that are looked at, wait for others of their device, or wait for their turn to be acknowledged. As many as we let a broker send without an acknowledgement:
/// whatever holds up the first of them, the others are looked at. How many the store is asked about at once is for the flow to say.
const UNDER_WAY: usize = RECEIVE as usize;

/// The entrance.
pub(super) struct Arrivals {
    queue: mpsc::UnboundedSender<Waiting>,
    room: Arc<Room>,
    devices: Arc<Devices>,
}

enum Waiting {
    /// To be looked at.
    Message(Arrived),
    /// There was no room for it: the device has been told to ask again, and only the acknowledgement is left.
    Overrun(Receipt),
}

/// What waits to be looked at.
#[derive(Default)]
struct Room {
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

impl Room {
    /// Only ever called by the one who hands over.
    fn take(&self, weight: usize, awaited: bool) -> bool {
        let share = if awaited { 1 } else { 2 };
        let full = self.messages.load(Ordering::Acquire) >= WAITING / share
            || self.bytes.load(Ordering::Acquire) + weight > BYTES / share;
        if !full {
            self.messages.fetch_add(1, Ordering::AcqRel);
            self.bytes.fetch_add(weight, Ordering::AcqRel);
        }
        !full
    }

    fn give_back(&self, weight: usize) {
        self.messages.fetch_sub(1, Ordering::AcqRel);
        self.bytes.fetch_sub(weight, Ordering::AcqRel);
    }
}

/// The entrance, and what carries messages from there to the flow and acknowledges them.
pub(super) fn arrivals(
    devices: Arc<Devices>,
    client: Client,
) -> (Arrivals, impl Future<Output = ()> + Send) {
    let (queue, came) = mpsc::unbounded_channel();
    let room = Arc::<Room>::default();
    let take_in = take_in(came, Arc::clone(&room), Arc::clone(&devices), client);
    let arrivals = Arrivals {
        queue,
        room,
        devices,
    };
    (arrivals, take_in)
}

impl Arrivals {
    /// Never waits. A broker sends no more than fits of what it wants acknowledged (MQTT 5); beyond that, and of what needs no acknowledgement beyond half of
    /// it, a device is told to ask again. What is awaited goes on without its contents: unacknowledged it would take up the broker's place for good.
    pub(super) fn hand_over(&self, message: Arrived) {
        let awaited = message.receipt.is_awaited();
        let waiting = if self.room.take(message.weight(), awaited) {
            Waiting::Message(message)
        } else {
            self.devices.overrun(&incoming(&message));
            if !awaited {
                return;
            }
            Waiting::Overrun(message.receipt)
        };
        // Nobody takes it only when everything ends.
        let _ = self.queue.send(waiting);
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
    mut came: mpsc::UnboundedReceiver<Waiting>,
    room: Arc<Room>,
    devices: Arc<Devices>,
    client: Client,
) {
    let mut under_way = FuturesOrdered::new();
    loop {
        tokio::select! {
            next = came.recv(), if under_way.len() < UNDER_WAY => match next {
                Some(Waiting::Message(message)) => {
                    room.give_back(message.weight());
                    under_way.push_back(UnderWay::begin(&devices, message));
                }
                Some(Waiting::Overrun(receipt)) => under_way.push_back(UnderWay::over(receipt)),
                None => return,
            },
            Some((receipt, ended)) = under_way.next() => match ended {
                // Neither it nor what came after it: the broker sends all that again.
                Ok(Some(Handled::Interrupted)) => return,
                Ok(_) => client.ack(&receipt).await,
                Err(_) => {
                    metrics::counter!(names::PANICS, "part" => "devices").increment(1);
                    tracing::error!("the handling of a device's message panicked");
                    // Sent again, it would panic again.
                    client.ack(&receipt).await;
                }
            },
        }
    }
}

/// A message that is looked at; nobody looks at it any more once this is dropped.
struct UnderWay {
    looking: Option<JoinHandle<Handled>>,
    receipt: Option<Receipt>,
}

impl UnderWay {
    fn begin(devices: &Arc<Devices>, message: Arrived) -> Self {
        let Arrived {
            topic,
            payload,
            retain,
            at,
            receipt,
        } = message;
        // Here, where messages still are in order, and not in the task.
        let turn = devices.line_up(&topic);
        let devices = Arc::clone(devices);
        let looking = async move {
            let incoming = Incoming {
                carriage: Carriage::Mqtt,
                topic: &topic,
                payload: &payload,
                retained: retain,
                arrived: at,
            };
            devices.handle_in(turn, incoming).await
        };
        Self {
            looking: Some(tokio::spawn(looking)),
            receipt: Some(receipt),
        }
    }

    fn over(receipt: Receipt) -> Self {
        Self {
            looking: None,
            receipt: Some(receipt),
        }
    }
}

impl Future for UnderWay {
    type Output = (Receipt, Result<Option<Handled>, JoinError>);
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let ended = match &mut self.looking {
            None => Ok(None),
            Some(looking) => match Pin::new(looking).poll(cx) {
                Poll::Ready(ended) => ended.map(Some),
                Poll::Pending => return Poll::Pending,
            },
        };
        match self.receipt.take() {
            Some(receipt) => Poll::Ready((receipt, ended)),
            // It was ready before; nobody asks again.
            None => Poll::Pending,
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(looking) = &self.looking {
            looking.abort();
        }
    }
}

#[cfg(test)]
mod tests;
