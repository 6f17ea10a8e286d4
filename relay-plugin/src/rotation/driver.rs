//! Carries out what is due: expiry, promotion, retirement, announcements, deletion, and whatever a crash or an outage left half done.
//!
//! What must always hold: every deadline is found again in the store; memory holds only how long to wait after a failure, and until the next deadline. One
//! thing that fails, or cannot be read, never holds up the others. Nothing is done without the lease.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use keyturn_proto::{RotationId, UnixMs};
use keyturn_store::documents::RotationDoc;
use keyturn_store::store::{Due, StoreError};
use tokio_util::sync::CancellationToken;

use super::engine::{Claim, Engine};
use super::failure::Failure;
use super::lease::renewed_every;
use super::machine::{self, Effect, Event};
use crate::metrics as names;

/// How much is taken from the store at once.
const BATCH: usize = 256;
/// How often expired nonces are forgotten. How many there are is what the limits on requests let in within this time.
const FORGET: Duration = Duration::from_secs(600);
/// How many of them in one transaction: others wait for it.
const FORGET_AT_ONCE: usize = 400;
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
        // A clock set back starts anew.
        let due = self
            .swept
            .is_none_or(|swept| now < swept || now >= swept.plus(every));
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

    /// Forgets what is not due any more because somebody else saw to it: a pause that nothing ends would wake the driver for ever.
    fn keep_only(&mut self, due: &HashSet<String>) {
        self.pauses
            .retain(|key, _| key.starts_with(RESUME) || due.contains(key));
    }

    fn next(&self) -> Option<UnixMs> {
        self.pauses.values().map(|(until, _)| *until).min()
    }
}

/// When to look again. `due` is the earliest deadline in the store, `retry` the end of the first pause. A deadline that is past belongs to
/// something that waits after a failure and hides the next one behind it, so then the store is asked again after `soon` at the latest.
fn next_look(
    due: Option<UnixMs>,
    retry: Option<UnixMs>,
    now: UnixMs,
    soon: Duration,
) -> Option<UnixMs> {
    match (due, retry) {
        (Some(at), Some(retry)) if at <= now => Some(retry.min(now.plus(soon))),
        (Some(at), Some(retry)) => Some(at.min(retry)),
        (at, retry) => at.or(retry),
    }
}

impl Engine {
    /// Runs until `stop`. Finishes the effects under way, then returns.
    pub async fn drive(&self, stop: CancellationToken) {
        tokio::join!(
            self.keep_lease(&stop),
            self.work(&stop),
            self.forget_nonces(&stop)
        );
    }

    /// Renews the lease beside the work, however long a piece of that takes.
    async fn keep_lease(&self, stop: &CancellationToken) {
        let settings = self.settings();
        while !stop.is_cancelled() {
            let renewed = self.hold_lease().await;
            let pause = match renewed {
                Ok(held) => {
                    metrics::gauge!(names::LEASE_HELD).set(if held { 1.0 } else { 0.0 });
                    // Who stands by looks more often: that adds to the time until somebody acts.
                    if held {
                        renewed_every(settings.lease)
                    } else {
                        settings.lease / 8
                    }
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

    /// Forgets nonces whose time is over. By a timer of its own: whoever asks leaves one behind, whether or not anything comes of it.
    async fn forget_nonces(&self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            let pause = if self.acts() {
                self.forget_some().await
            } else {
                self.settings().sweep
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.clock().sleep_until(self.now().plus(pause)) => {}
            }
        }
    }

    /// Forgets a batch; how long to wait before the next one.
    async fn forget_some(&self) -> Duration {
        match self.store().forget_nonces(self.now(), FORGET_AT_ONCE).await {
            Ok(forgotten) => {
                metrics::counter!(names::NONCES_FORGOTTEN).increment(forgotten);
                if usize::try_from(forgotten).unwrap_or(usize::MAX) < FORGET_AT_ONCE {
                    FORGET
                } else {
                    self.settings().retry
                }
            }
            Err(error) => {
                tracing::warn!(%error, "expired nonces were not forgotten");
                self.settings().sweep
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
        let latest = now.plus(settings.look);
        if self.fence().current(now).is_none() {
            // What is due is another instance's.
            metrics::gauge!(names::DUE_LAG_SECONDS).set(0.0);
            return now.plus(settings.retry).min(latest);
        }
        if !self.acts() {
            match self.take_charge().await {
                Ok(()) => tracing::info!("this instance acts from now on"),
                Err(failure) => {
                    tracing::warn!(reason = failure.reason(), "not taken charge yet");
                    return self.now().plus(settings.retry).min(latest);
                }
            }
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
        // The earliest deadline tells whether there is anything to read: who is idle asks for no more.
        let mut next = self.store().next_due().await?;
        let is_due = next.is_some_and(|at| at <= self.now());
        if is_due {
            if self.due_work(backoff).await? {
                self.left_behind(backoff).await?;
                return Ok(Some(now));
            }
        } else {
            backoff.keep_only(&HashSet::new());
        }
        let taken_up = self.left_behind(backoff).await?;
        if is_due || taken_up {
            next = self.store().next_due().await?;
        }
        let lag = next.map(|at| self.now().since(at)).unwrap_or_default();
        metrics::gauge!(names::DUE_LAG_SECONDS).set(lag.as_secs_f64());
        Ok(next_look(next, backoff.next(), now, self.settings().retry))
    }

    /// Returns whether there may be more at once. What waits after a failure is read past, so that it never hides what is due behind it.
    async fn due_work(&self, backoff: &mut Backoff) -> Result<bool, StoreError> {
        let now = self.now();
        let limit = BATCH + backoff.waiting(now);
        let due = self.store().due(now, limit).await?;
        let more = due.len() == limit;
        let due: Vec<_> = due.into_iter().map(|work| (key(&work), work)).collect();
        if !more {
            backoff.keep_only(&due.iter().map(|(key, _)| key.clone()).collect());
        }
        let ready: Vec<_> = due
            .into_iter()
            .filter(|(key, _)| !backoff.waits(key, now))
            .collect();
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

    /// Takes up what was left behind: named by whoever left it, or found by the sweep; whether there was anything. Rotations that wait for acks cost nothing
    /// here.
    async fn left_behind(&self, backoff: &mut Backoff) -> Result<bool, StoreError> {
        let mut ids = self.take_later();
        ids.extend(backoff.resumable(self.now()));
        if backoff.sweep_due(self.now(), self.settings().look) {
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
        let taken_up = taken_up.collect::<Vec<_>>().await;
        let any = !taken_up.is_empty();
        for (key, result) in taken_up {
            self.settle(backoff, &key, result);
        }
        Ok(any)
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

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = UnixMs(1_760_000_000_000);
    const SOON: Duration = Duration::from_millis(200);

    fn after(seconds: u64) -> UnixMs {
        NOW.plus(Duration::from_secs(seconds))
    }

    #[test]
    fn what_somebody_else_saw_to_does_not_keep_the_driver_awake() {
        let mut backoff = Backoff::default();
        for key in ["end/1", "announce/2", "resume/3"] {
            backoff.failed(key, NOW, SOON, SOON);
        }
        backoff.keep_only(&HashSet::from(["announce/2".to_owned()]));
        assert!(!backoff.pauses.contains_key("end/1"));
        assert!(backoff.waits("announce/2", NOW), "still due, still waiting");
        assert!(
            backoff.waits("resume/3", NOW),
            "nobody says when that is due"
        );
        backoff.keep_only(&HashSet::new());
        backoff.succeeded("resume/3");
        assert_eq!(backoff.next(), None);
    }

    #[test]
    fn what_waits_after_a_failure_does_not_hide_the_deadline_behind_it() {
        let look = |due, retry| next_look(due, retry, NOW, SOON);
        assert_eq!(look(None, None), None);
        assert_eq!(look(Some(after(9)), None), Some(after(9)));
        assert_eq!(look(None, Some(after(3))), Some(after(3)));
        assert_eq!(look(Some(after(9)), Some(after(3))), Some(after(3)));
        assert_eq!(look(Some(after(1)), Some(after(3))), Some(after(1)));
        assert_eq!(look(Some(NOW), Some(after(3))), Some(NOW.plus(SOON)));
    }
}
