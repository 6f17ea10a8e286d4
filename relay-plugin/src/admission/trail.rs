//! How decisions that change nothing get into the audit trail: refusals above all.
//!
//! What must always hold:
//! - a request that was judged and refused has a record of its own, in one commit with the mark that makes every instance refuse the same event; until
//!   that commit is known, nobody is answered and the message stays in the inbox ([`Trail::decide`]). How many of them there can be is bounded by the
//!   member's own limits and its breaker.
//! - what no limit bounds (messages of a member that is not listened to, acks, messages that are dropped) has records of its own up to [`FIRST`] per
//!   sender, reason and [`WINDOW`]; whatever goes beyond, and whatever could not be written, is counted, and a summary with its number, its first and
//!   last time, its reason and a digest over the events follows within [`EVERY`] ([`Trail::note`]). A summary that cannot be written is kept and tried
//!   again. So a flood cannot fill the store, memory is bounded, and nothing is in neither form. A process that is killed loses the counts of the last
//!   [`EVERY`]; the metrics have them as well.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keyturn_proto::{Npub, UnixMs};
use keyturn_store::documents::{Actor, AuditRecord};
use keyturn_store::store::{Decision, MAX_DECISIONS, Store, StoreError};
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use crate::metrics::{AUDIT_FAILED, UNWRITTEN_REFUSALS};

/// Records of their own per sender, reason and window, where no other limit holds.
pub const FIRST: u32 = 60;
/// See [`FIRST`].
pub const WINDOW: Duration = Duration::from_secs(600);
/// How long something is only counted, at most, while the store can be written.
pub const EVERY: Duration = Duration::from_secs(10);
/// Most (sender, reason) pairs told apart; further ones share a count.
const MAX_KEYS: usize = 4096;

/// `event` of a refusal.
pub const REFUSED: &str = "request.refused";
/// `event` of the record that sums up what has no record of its own.
pub const REPEATED: &str = "request.refused_repeatedly";

type Key = (Option<Npub>, &'static str);

/// What has no record of its own: how many, when, and which.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sum {
    count: u64,
    first: UnixMs,
    last: UnixMs,
    /// Each event hashed onto those before it.
    digest: [u8; 32],
}

impl Sum {
    fn add(&mut self, event: &str, at: UnixMs) {
        if self.count == 0 {
            self.first = at;
        }
        self.last = self.last.max(at);
        self.count += 1;
        let mut hash = Sha256::new();
        hash.update(self.digest);
        hash.update(event.as_bytes());
        self.digest = hash.finalize().into();
    }

    fn record(&self, event: &str, (sender, reason): Key, now: UnixMs) -> AuditRecord {
        let Self {
            count,
            first,
            last,
            digest,
        } = self;
        AuditRecord {
            at: now,
            actor: sender.map_or(Actor::Unknown, |npub| Actor::Admin { npub }),
            event: event.to_owned(),
            reason: format!(
                "{reason} count={count} since={} until={} digest={}",
                first.0,
                last.0,
                hex::encode(digest)
            ),
            client_id: None,
            rotation_id: None,
            version_id: None,
            group: None,
            nostr_event: None,
            device: None,
        }
    }
}

/// One window of one sender and reason.
#[derive(Default)]
struct Seen {
    since: UnixMs,
    /// Places for records of their own that were taken.
    written: u32,
    /// Still counting.
    open: Sum,
    /// Being written: it stays as it is until it is known to be, so that what it says and its digest belong together.
    sealed: Option<Sum>,
}

impl Seen {
    fn over(&self, now: UnixMs) -> bool {
        now < self.since || now.since(self.since) >= WINDOW
    }

    /// Whether everything that it has seen is in the trail.
    fn is_written(&self) -> bool {
        self.open.count == 0 && self.sealed.is_none()
    }
}

#[derive(Default)]
struct State {
    seen: HashMap<Key, Seen>,
    flushed: UnixMs,
}

/// A record on its way, and who waits for it.
type Waiting = (Decision, oneshot::Sender<Result<(), StoreError>>);

/// See the module.
pub struct Trail {
    store: Arc<dyn Store>,
    /// `event` of the summaries.
    repeated: &'static str,
    state: Mutex<State>,
    queue: Mutex<VecDeque<Waiting>>,
    /// Whoever holds it writes for all who wait.
    writing: tokio::sync::Mutex<()>,
    flushing: tokio::sync::Mutex<()>,
}

impl Trail {
    /// The trail of refused requests.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self::counting_as(REPEATED, store)
    }

    /// A trail for other refusals than those of requests.
    pub(crate) fn counting_as(repeated: &'static str, store: Arc<dyn Store>) -> Self {
        Self {
            store,
            repeated,
            state: Mutex::default(),
            queue: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
            flushing: tokio::sync::Mutex::default(),
        }
    }

    /// Records a decision. Those that are made at the same time go into one commit.
    ///
    /// # Errors
    /// [`StoreError`]: it is not recorded, or not known to be. The decision must not be told, and is made again.
    pub async fn decide(&self, decision: Decision) -> Result<(), StoreError> {
        let reason = decision.audit.reason.clone();
        let written = self.write(decision).await;
        if let Err(error) = &written {
            metrics::counter!(AUDIT_FAILED).increment(1);
            tracing::error!(%error, reason, "a decision could not be recorded in the audit trail; it is made again");
        }
        written
    }

    /// Records a refusal that no other limit bounds: on its own, or as one of many. Returns whether it has a record of its own.
    pub async fn note(
        &self,
        sender: Npub,
        reason: &'static str,
        event: &str,
        decision: Decision,
        now: UnixMs,
    ) -> bool {
        let key = self.key(sender, reason, now);
        if !self.has_room(key, now) {
            self.count(key, event, now);
            return false;
        }
        match self.write(decision).await {
            Ok(()) => true,
            Err(error) => {
                metrics::counter!(AUDIT_FAILED).increment(1);
                tracing::error!(%error, reason, "a refusal could not be recorded on its own; it is counted");
                self.count(key, event, now);
                false
            }
        }
    }

    /// As [`Self::decide`], for what no other limit bounds: where there is no room for a record of its own it is counted instead. Returns whether it has one.
    ///
    /// # Errors
    /// As [`Self::decide`].
    pub async fn decide_within(
        &self,
        sender: Npub,
        reason: &'static str,
        event: &str,
        decision: Decision,
        now: UnixMs,
    ) -> Result<bool, StoreError> {
        let key = self.key(sender, reason, now);
        if !self.has_room(key, now) {
            self.count(key, event, now);
            return Ok(false);
        }
        let written = self.decide(decision).await;
        if written.is_err()
            && let Some(seen) = self.state().seen.get_mut(&key)
        {
            // It comes again.
            seen.written = seen.written.saturating_sub(1);
        }
        written.map(|()| true)
    }

    /// Counts something for the next summary. Waits for nobody.
    pub fn sum_up(&self, sender: Npub, reason: &'static str, event: &str, now: UnixMs) {
        let key = self.key(sender, reason, now);
        self.count(key, event, now);
    }

    /// Writes the summaries of what has no record of its own; with `all` (at shutdown) also if the last ones are not [`EVERY`] old. What cannot be written
    /// stays and is tried again.
    pub async fn flush(&self, now: UnixMs, all: bool) {
        let _one_at_a_time = self.flushing.lock().await;
        if self.is_due(now, all) {
            // What was being written before, and what was counted meanwhile.
            while self.flush_once(now).await && all {}
        }
        metrics::gauge!(UNWRITTEN_REFUSALS, "trail" => self.repeated).set(self.unwritten() as f64);
    }

    /// Whether something was written, and nothing failed.
    async fn flush_once(&self, now: UnixMs) -> bool {
        let sealed = self.seal(now);
        for some in sealed.chunks(MAX_DECISIONS) {
            let decisions = some.iter().map(|(key, sum)| Decision {
                audit: sum.record(self.repeated, *key, now),
                refuses: None,
            });
            if let Err(error) = self.store.record(decisions.collect()).await {
                metrics::counter!(AUDIT_FAILED).increment(1);
                tracing::error!(%error, summaries = some.len(), "refusals could not be summed up in the audit trail; they are kept and tried again");
                return false;
            }
            let mut state = self.state();
            for (key, _) in some {
                if let Some(seen) = state.seen.get_mut(key) {
                    seen.sealed = None;
                }
            }
        }
        !sealed.is_empty()
    }

    /// How many refusals are in no record yet.
    #[must_use]
    pub fn unwritten(&self) -> u64 {
        let state = self.state();
        let sums = state.seen.values();
        sums.map(|seen| seen.open.count + seen.sealed.as_ref().map_or(0, |sum| sum.count))
            .sum()
    }

    /// The first who comes writes for all who wait by then; those who come meanwhile are the next commit.
    async fn write(&self, decision: Decision) -> Result<(), StoreError> {
        let (done, mut written) = oneshot::channel();
        self.queue().push_back((decision, done));
        loop {
            let turn = tokio::select! {
                biased;
                // A writer that was dropped in the middle leaves it in doubt.
                told = &mut written => return told.unwrap_or(Err(CUT_SHORT)),
                turn = self.writing.lock() => turn,
            };
            let batch: Vec<Waiting> = {
                let mut queue = self.queue();
                let some = queue.len().min(MAX_DECISIONS);
                queue.drain(..some).collect()
            };
            let (decisions, waiting): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            if decisions.is_empty() {
                drop(turn);
                return written.await.unwrap_or(Err(CUT_SHORT));
            }
            let result = self.store.record(decisions).await;
            for done in waiting {
                // Whoever waited may be gone.
                let _gone = done.send(result.clone());
            }
        }
    }

    /// Under which key it counts: memory is bounded.
    fn key(&self, sender: Npub, reason: &'static str, now: UnixMs) -> Key {
        let mut state = self.state();
        let key = (Some(sender), reason);
        if state.seen.len() >= MAX_KEYS && !state.seen.contains_key(&key) {
            state
                .seen
                .retain(|_, seen| !(seen.over(now) && seen.is_written()));
            if state.seen.len() >= MAX_KEYS {
                return (None, reason);
            }
        }
        key
    }

    /// Takes a place for a record of its own, if the window has one.
    fn has_room(&self, key: Key, now: UnixMs) -> bool {
        let mut state = self.state();
        let seen = state.seen.entry(key).or_default();
        if seen.over(now) {
            (seen.since, seen.written) = (now, 0);
        }
        let room = seen.written < FIRST;
        if room {
            seen.written += 1;
        }
        room
    }

    fn count(&self, key: Key, event: &str, now: UnixMs) {
        let mut state = self.state();
        state.seen.entry(key).or_default().open.add(event, now);
    }

    fn is_due(&self, now: UnixMs, all: bool) -> bool {
        let mut state = self.state();
        // A clock set back makes everything due.
        let due = all || now < state.flushed || now.since(state.flushed) >= EVERY;
        if due {
            state.flushed = now;
        }
        due
    }

    /// What is to be written now; windows that are over and written are forgotten.
    fn seal(&self, now: UnixMs) -> Vec<(Key, Sum)> {
        let mut state = self.state();
        state
            .seen
            .retain(|_, seen| !(seen.over(now) && seen.is_written()));
        let mut sealed = Vec::new();
        for (key, seen) in &mut state.seen {
            if seen.sealed.is_none() && seen.open.count > 0 {
                seen.sealed = Some(std::mem::take(&mut seen.open));
            }
            sealed.extend(seen.sealed.clone().map(|sum| (*key, sum)));
        }
        sealed
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, VecDeque<Waiting>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const CUT_SHORT: StoreError = StoreError::Unknown {
    cause: "cut short before the trail answered",
};

#[cfg(test)]
mod tests;
