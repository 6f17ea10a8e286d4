//! Requests that wait for the issuer: first come, first served, one place per device.
//!
//! The order is that of arrival, not of `Queue::push`: messages are looked at many at once, and whose record took longer than others' has lost nothing by it. A newer request of a device takes the place of its older one, which the store has superseded: so nobody gains by asking twice, and nobody loses
//! their place.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use keyturn_proto::device::{DeviceId, DeviceNonce};
use tokio::sync::Notify;

use crate::metrics as names;

/// One request.
#[derive(Debug)]
pub struct Job {
    /// Whose.
    pub device: DeviceId,
    /// The request's.
    pub nonce: DeviceNonce,
    /// Number of the issue in the store.
    pub attempt: u64,
    /// When the message came in.
    pub arrived: Instant,
}

/// Earlier ones first.
type Place = (Instant, u64);

#[derive(Default)]
struct Waiting {
    order: BTreeMap<Place, DeviceId>,
    jobs: HashMap<DeviceId, Job>,
    /// Places given so far: tells those of one instant apart.
    given: u64,
    closed: bool,
}

/// See the module.
pub struct Queue {
    waiting: Mutex<Waiting>,
    came: Notify,
    capacity: usize,
}

impl Queue {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            came: Notify::new(),
            capacity,
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a request can wait here.
    pub(super) fn has_room(&self) -> bool {
        let waiting = self.waiting();
        !waiting.closed && waiting.order.len() < self.capacity
    }

    /// Queues a job. Room was asked for before; what came in between may exceed the capacity by the number of messages looked at at once.
    pub(super) fn push(&self, job: Job) {
        let mut waiting = self.waiting();
        if waiting.closed {
            return;
        }
        let device = job.device.clone();
        let arrived = job.arrived;
        if waiting.jobs.insert(device.clone(), job).is_none() {
            waiting.given += 1;
            let place = (arrived, waiting.given);
            waiting.order.insert(place, device);
        }
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!(names::DEVICE_QUEUE).set(waiting.order.len() as f64);
        drop(waiting);
        self.came.notify_one();
    }

    /// The next job; `None` when the queue was closed.
    pub(super) async fn pop(&self) -> Option<Job> {
        loop {
            let came = self.came.notified();
            {
                let mut waiting = self.waiting();
                if waiting.closed {
                    return None;
                }
                if let Some(job) = waiting.next() {
                    let more = !waiting.order.is_empty();
                    drop(waiting);
                    // One notification may have stood for several jobs.
                    if more {
                        self.came.notify_one();
                    }
                    return Some(job);
                }
            }
            came.await;
        }
    }

    /// Lets the workers go. What waits is left to the recovery of the next start.
    pub(super) fn close(&self) {
        self.waiting().closed = true;
        self.came.notify_waiters();
        self.came.notify_one();
    }
}

impl Waiting {
    fn next(&mut self) -> Option<Job> {
        let (_, device) = self.order.pop_first()?;
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!(names::DEVICE_QUEUE).set(self.order.len() as f64);
        self.jobs.remove(&device)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn job(device: u32, attempt: u64) -> Job {
        Job {
            device: format!("d{device}").parse().unwrap(),
            nonce: "0123456789abcdef".parse().unwrap(),
            attempt,
            arrived: Instant::now(),
        }
    }

    #[tokio::test]
    async fn who_came_first_is_served_first_even_if_recorded_later() {
        let queue = Queue::new(10);
        let jobs: Vec<Job> = (1..=4).map(|device| job(device, 1)).collect();
        let order: Vec<DeviceId> = jobs.iter().map(|job| job.device.clone()).collect();
        let mut jobs: Vec<Option<Job>> = jobs.into_iter().map(Some).collect();
        for n in [2, 0, 3, 1] {
            queue.push(jobs[n].take().unwrap());
        }
        for device in order {
            assert_eq!(queue.pop().await.unwrap().device, device);
        }
    }

    #[tokio::test]
    async fn a_device_that_asks_again_keeps_its_place_and_gains_none() {
        let queue = Queue::new(10);
        for (device, attempt) in [(1, 1), (2, 1), (1, 2), (3, 1), (1, 3)] {
            queue.push(job(device, attempt));
        }
        let mut order = Vec::new();
        for _ in 0..3 {
            let job = queue.pop().await.unwrap();
            order.push((job.device.to_string(), job.attempt));
        }
        let order: Vec<(&str, u64)> = order
            .iter()
            .map(|(device, n)| (device.as_str(), *n))
            .collect();
        assert_eq!(order, [("d1", 3), ("d2", 1), ("d3", 1)]);
    }

    #[tokio::test]
    async fn a_full_or_closed_queue_has_no_room_and_closing_frees_the_workers() {
        let queue = std::sync::Arc::new(Queue::new(1));
        assert!(queue.has_room());
        let worker = tokio::spawn({
            let queue = std::sync::Arc::clone(&queue);
            async move { queue.pop().await.is_some() }
        });
        queue.push(job(1, 1));
        assert!(worker.await.unwrap());
        queue.push(job(2, 1));
        assert!(!queue.has_room());
        queue.close();
        assert!(queue.pop().await.is_none() && !queue.has_room());
    }
}
