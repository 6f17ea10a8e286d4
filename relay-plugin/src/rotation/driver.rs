//! Carries out what is due: expiry, promotion, retirement, announcements, deletion, and whatever a crash or an outage left half done.
//!
//! What must always hold: every deadline is found again in the store; memory holds only how long to wait after a failure. One thing that
//! fails never holds up the others. Nothing is done without the lease.

use std::collections::HashMap;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use keyturn_proto::{RotationId, UnixMs};
use keyturn_store::documents::RotationDoc;
use keyturn_store::store::{Due, StoreError};
use tokio_util::sync::CancellationToken;

use super::engine::{Claim, Engine};
use super::failure::Failure;
use super::machine::{self, Effect, Event};
use crate::metrics as names;

/// How much is taken from the store at once.
const BATCH: usize = 256;
/// How much of it is carried out at once: most of it waits for the relay's write batches.
const AT_ONCE: usize = 64;

/// When to try again what failed; forgotten with the process, because the store still has the work.
#[derive(Default)]
struct Backoff {
    pauses: HashMap<String, (UnixMs, Duration)>,
    swept: Option<UnixMs>,
}

const RESUME: &str = "resume/";

impl Backoff {
    fn waits(&self, key: &str, now: UnixMs) -> bool {
        self.pauses.get(key).is_some_and(|(until, _)| now < *until)
    }

    /// How many things wait.
    fn waiting(&self, now: UnixMs) -> usize {
        let waits = self.pauses.values().filter(|(until, _)| now < *until);
        waits.count()
    }

    /// Rotations whose pause is over.
    fn resumable(&self, now: UnixMs) -> Vec<RotationId> {
        let over = self.pauses.iter().filter(|(_, (until, _))| now >= *until);
        over.filter_map(|(key, _)| key.strip_prefix(RESUME)?.parse().ok())
            .collect()
    }

    fn sweep_due(&mut self, now: UnixMs, every: Duration) -> bool {
        let due = self.swept.is_none_or(|swept| now >= swept.plus(every));
        if due {
            self.swept = Some(now);
        }
        due
    }

    fn failed(&mut self, key: &str, now: UnixMs, first: Duration, longest: Duration) {
        let pause = self
            .pauses
            .get(key)
            .map_or(first, |(_, pause)| (*pause * 2).min(longest));
        self.pauses.insert(key.to_owned(), (now.plus(pause), pause));
    }

    fn succeeded(&mut self, key: &str) {
        self.pauses.remove(key);
    }

    fn next(&self) -> Option<UnixMs> {
        self.pauses.values().map(|(until, _)| *until).min()
    }
}

impl Engine {
    /// Runs until `stop`. Finishes the effects under way, then returns.
    pub async fn drive(&self, stop: CancellationToken) {
        tokio::join!(self.keep_lease(&stop), self.work(&stop));
    }

    /// Renews the lease beside the work, however long a piece of that takes.
    async fn keep_lease(&self, stop: &CancellationToken) {
        let settings = self.settings();
        while !stop.is_cancelled() {
            let renewed = self.hold_lease().await;
            let pause = match renewed {
                Ok(held) => {
                    metrics::gauge!(names::LEASE_HELD).set(if held { 1.0 } else { 0.0 });
                    settings.lease / 3
                }
                Err(error) => {
                    tracing::warn!(%error, "the lease could not be renewed");
                    settings.retry
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.clock().sleep_until(self.now().plus(pause)) => {}
            }
        }
    }

    async fn work(&self, stop: &CancellationToken) {
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            let next = self.turn(&mut backoff).await;
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.woken() => {}
                () = self.clock().sleep_until(next) => {}
            }
        }
    }

    /// One turn: due work, half-done work. Returns when to look again at the latest.
    async fn turn(&self, backoff: &mut Backoff) -> UnixMs {
        let now = self.now();
        let settings = self.settings();
        let latest = now.plus(settings.sweep);
        if !self.acts() {
            // What is due is another instance's.
            metrics::gauge!(names::DUE_LAG_SECONDS).set(0.0);
            return now.plus(settings.retry).min(latest);
        }
        match self.one_round(backoff, now).await {
            // A moment is always left for others.
            Ok(next) => {
                let floor = self.now().plus(Duration::from_millis(5));
                next.map_or(latest, |at| at.max(floor).min(latest))
            }
            Err(error) => {
                tracing::warn!(%error, "the store did not say what is due");
                now.plus(settings.retry).min(latest)
            }
        }
    }

    async fn one_round(
        &self,
        backoff: &mut Backoff,
        now: UnixMs,
    ) -> Result<Option<UnixMs>, StoreError> {
        let more = self.due_work(backoff).await?;
        self.left_behind(backoff).await?;
        if more {
            return Ok(Some(now));
        }
        let next = self.store().next_due().await?;
        let lag = next.map(|at| self.now().since(at)).unwrap_or_default();
        metrics::gauge!(names::DUE_LAG_SECONDS).set(lag.as_secs_f64());
        // What is due already and failed waits for its backoff.
        Ok(match backoff.next() {
            Some(retry) if next.is_none_or(|at| at <= now) => Some(retry),
            Some(retry) => next.map(|at| at.min(retry)),
            None => next,
        })
    }

    /// Returns whether there may be more at once. What waits after a failure is read past, so that it never hides what is due behind it.
    async fn due_work(&self, backoff: &mut Backoff) -> Result<bool, StoreError> {
        let now = self.now();
        let limit = BATCH + backoff.waiting(now);
        let due = self.store().due(now, limit).await?;
        let more = due.len() == limit;
        let ready = due.into_iter().map(|work| (key(&work), work));
        let ready: Vec<_> = ready.filter(|(key, _)| !backoff.waits(key, now)).collect();
        let carried = stream::iter(ready)
            .map(|(key, work)| async move { (key, self.carry_out(work).await) })
            .buffer_unordered(AT_ONCE);
        for (key, result) in carried.collect::<Vec<_>>().await {
            self.settle(backoff, &key, result);
        }
        Ok(more)
    }

    async fn carry_out(&self, work: Due) -> Result<(), Failure> {
        match work {
            Due::StaleReservation(rotation)
            | Due::Expire(rotation)
            | Due::Promote(rotation)
            | Due::Announce(rotation) => self.ticked(&rotation).await,
            Due::Retire {
                client_id,
                version_id,
            } => self.retire(&client_id, &version_id).await,
            Due::Purge(events) => self.purge(&events).await,
        }
    }

    async fn ticked(&self, rotation: &RotationDoc) -> Result<(), Failure> {
        // Somebody is at it: a request on its way through prepare. A later turn finds what is left.
        let Some(_claim) = self.claim(&rotation.rotation_id) else {
            return Err(Failure::Again("rotation.claimed"));
        };
        match machine::step(rotation, Event::Ticked, self.now()) {
            Some(Effect::Promote) => self.promote(rotation).await,
            Some(Effect::Announce) => self.announce_end(rotation).await,
            Some(Effect::Cancel { outcome, reason }) => {
                self.end(rotation, outcome, reason).await.map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Takes up what was left behind: named by whoever left it, or found by the sweep. Rotations that wait for acks cost nothing here.
    async fn left_behind(&self, backoff: &mut Backoff) -> Result<(), StoreError> {
        let mut ids = self.take_later();
        ids.extend(backoff.resumable(self.now()));
        if backoff.sweep_due(self.now(), self.settings().sweep) {
            ids.extend(self.half_done().await?);
        }
        let now = self.now();
        ids.retain(|id| !backoff.waits(&resume_key(id), now));
        let claims: Vec<Claim> = ids.iter().filter_map(|id| self.claim(id)).collect();
        let taken_up = stream::iter(claims)
            .map(|claim| async move {
                let result = match self.take_up(&claim).await {
                    // It was cancelled for that reason: nothing is left to try.
                    Err(Failure::Refused(_)) => Ok(()),
                    other => other,
                };
                (resume_key(claim.id()), result)
            })
            .buffer_unordered(AT_ONCE);
        for (key, result) in taken_up.collect::<Vec<_>>().await {
            self.settle(backoff, &key, result);
        }
        Ok(())
    }

    fn settle(&self, backoff: &mut Backoff, key: &str, result: Result<(), Failure>) {
        match result {
            Ok(()) => backoff.succeeded(key),
            Err(failure) => {
                metrics::counter!(names::DRIVER_FAILURES).increment(1);
                tracing::warn!(work = key, reason = failure.reason(), "to be tried again");
                let settings = self.settings();
                backoff.failed(key, self.now(), settings.retry, settings.sweep);
            }
        }
    }
}

fn resume_key(id: &RotationId) -> String {
    format!("{RESUME}{id}")
}

fn key(work: &Due) -> String {
    match work {
        Due::StaleReservation(rotation) | Due::Expire(rotation) => {
            format!("end/{}", rotation.rotation_id)
        }
        Due::Promote(rotation) => format!("promote/{}", rotation.rotation_id),
        Due::Announce(rotation) => format!("announce/{}", rotation.rotation_id),
        Due::Retire {
            client_id,
            version_id,
        } => format!("retire/{client_id}/{version_id}"),
        Due::Purge(_) => "purge".to_owned(),
    }
}
