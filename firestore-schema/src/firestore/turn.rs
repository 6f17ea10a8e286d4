//! One method of the store from its beginning to its end: its deadline, its repeats, and its place in the queue.
//!
//! A method that writes runs in a loop: read, judge, commit; if somebody else changed what was read, again. Within one process those who work on the same
//! client wait for each other instead, so that only another process makes anybody repeat.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use firestore::gcloud_sdk::google::firestore::v1::Write;
use firestore::gcloud_sdk::tonic::{Request, Status};
use tokio::sync::{Mutex, MutexGuard};

use super::apply::{self, Also};
use super::backoff;
use super::call::{Client, Link};
use super::commit::{Committed, Mark};
use super::fault::{self, Cause, Fault};
use super::reading::Reading;
use crate::lifecycle::{Change, Verdict};
use crate::metrics::STORE_SECONDS;
use crate::store::{Result, StoreError};

/// How often anything may be done again within one method. With full jitter that is half a minute on average; the deadline is usually shorter.
const REPEATS: u32 = 60;

/// How many places there are to wait in. Two clients that share one only wait a little.
const PLACES: usize = 256;

/// Where those who would write the same document wait for each other.
pub(super) struct Places {
    hasher: RandomState,
    places: Vec<Mutex<()>>,
}

impl Places {
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            places: (0..PLACES).map(|_| Mutex::new(())).collect(),
        }
    }

    /// The place for `key`, waited for until `deadline`.
    async fn take(&self, key: &str, deadline: Instant) -> Result<Option<MutexGuard<'_, ()>>> {
        let number = usize::try_from(self.hasher.hash_one(key) % PLACES as u64).unwrap_or(0);
        let Some(place) = self.places.get(number) else {
            return Ok(None);
        };
        match tokio::time::timeout_at(deadline.into(), place.lock()).await {
            Ok(guard) => Ok(Some(guard)),
            Err(_) => Err(StoreError::Unavailable {
                cause: "too many wait for the same document",
            }),
        }
    }
}

/// One method under way.
pub(super) struct Turn<'s> {
    pub(super) link: &'s Link,
    pub(super) deadline: Instant,
    op: &'static str,
    kind: &'static str,
    started: Instant,
    repeats: AtomicU32,
    _place: Option<MutexGuard<'s, ()>>,
}

impl<'s> Turn<'s> {
    /// A method that only reads.
    pub(super) fn to_read(link: &'s Link, op: &'static str) -> Self {
        Self::begin(link, op, "read")
    }

    /// A method that writes what belongs to `key`, one after the other within this process.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when its turn did not come in time.
    pub(super) async fn to_write(
        link: &'s Link,
        places: &'s Places,
        op: &'static str,
        key: &str,
    ) -> Result<Self> {
        let mut turn = Self::begin(link, op, "write");
        turn._place = places.take(key, turn.deadline).await?;
        Ok(turn)
    }

    fn begin(link: &'s Link, op: &'static str, kind: &'static str) -> Self {
        let started = Instant::now();
        Self {
            link,
            deadline: started + link.settings.timeout,
            op,
            kind,
            started,
            repeats: AtomicU32::new(0),
            _place: None,
        }
    }

    /// Which method of the store.
    pub(super) fn op(&self) -> &'static str {
        self.op
    }

    /// A fresh look at the store.
    pub(super) fn read(&self) -> Reading<'_> {
        Reading::new(self)
    }

    /// Waits before doing something again. False when there is no more time, or it was tried often enough.
    pub(super) async fn again(&self, cause: Cause) -> bool {
        let repeat = self.repeats.fetch_add(1, Ordering::Relaxed);
        let pause = backoff::pause(repeat);
        if repeat >= REPEATS || Instant::now() + pause >= self.deadline {
            self.log(cause.text(), "gave up");
            return false;
        }
        self.link.counters.retry(cause);
        tracing::debug!(op = self.op, cause = cause.label(), repeat, "again");
        tokio::time::sleep(pause).await;
        true
    }

    /// Runs a call that changes nothing until it succeeds, is refused, or the time is over.
    pub(super) async fn ask<M, R, F, Fut>(
        &self,
        call: &'static str,
        message: &M,
        send: F,
    ) -> Result<R>
    where
        M: Clone,
        F: Fn(Client, Request<M>) -> Fut,
        Fut: Future<Output = std::result::Result<R, Status>>,
    {
        loop {
            let attempt = self
                .link
                .attempt(call, self.deadline, message.clone(), &send);
            let status = match attempt.await {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            match fault::of_read(&status) {
                Fault::Again(cause) | Fault::Doubt(cause) => {
                    if !self.again(cause).await {
                        return Err(StoreError::Unavailable {
                            cause: cause.text(),
                        });
                    }
                }
                Fault::Changed => return Err(self.refused("Firestore refused the request")),
                Fault::Refused(cause) => return Err(self.refused(cause)),
            }
        }
    }

    /// Commits a verdict's change set and hands out its answer; `None` when it must be read and judged again.
    ///
    /// # Errors
    /// As [`Turn::commit`].
    pub(super) async fn settle<T>(
        &self,
        reading: Reading<'_>,
        verdict: Verdict<T>,
    ) -> Result<Option<T>> {
        self.settle_with(reading, verdict, Also::default()).await
    }

    /// As [`Turn::settle`], writing more than the lifecycle's change set.
    ///
    /// # Errors
    /// As [`Turn::commit`].
    pub(super) async fn settle_with<T>(
        &self,
        mut reading: Reading<'_>,
        verdict: Verdict<T>,
        also: Also,
    ) -> Result<Option<T>> {
        let Verdict { answer, change } = verdict;
        if change == Change::default() && also == Also::default() {
            return Ok(Some(answer));
        }
        let (writes, mark) = apply::plan(&mut reading, change, also).await?;
        let happened = self.happened(writes, mark.as_ref()).await?;
        Ok(happened.then_some(answer))
    }

    /// Commits, and waits a little if it did not happen and must be judged again.
    ///
    /// # Errors
    /// As [`Turn::commit`].
    pub(super) async fn happened(&self, writes: Vec<Write>, mark: Option<&Mark>) -> Result<bool> {
        let cause = Cause::Changed;
        match self.commit(writes, mark).await? {
            Committed::Yes => Ok(true),
            Committed::No | Committed::Ask if self.again(cause).await => Ok(false),
            Committed::No => Err(StoreError::Unavailable {
                cause: cause.text(),
            }),
            Committed::Ask => Err(StoreError::Unknown {
                cause: cause.text(),
            }),
        }
    }

    /// Logs a refusal that no repeat will mend.
    pub(super) fn refused(&self, cause: &'static str) -> StoreError {
        self.log(cause, "refused");
        StoreError::Unavailable { cause }
    }

    pub(super) fn log(&self, cause: &'static str, what: &'static str) {
        tracing::warn!(op = self.op, cause, "firestore: {what}");
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        metrics::histogram!(STORE_SECONDS, "op" => self.kind)
            .record(self.started.elapsed().as_secs_f64());
    }
}
