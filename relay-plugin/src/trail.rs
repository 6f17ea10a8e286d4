//! How decisions that change nothing get into the audit trail: refusals above all. The rotation and the device flow have trails of their own, under their own [`Terms`].
//!
//! What must always hold:
//! - a request that was judged and refused has a record of its own, in one commit with the mark that makes every instance refuse the same event; until
//!   that commit is known, nobody is answered and the message stays in the inbox ([`Trail::decide`]). How many of them there can be is bounded by the
//!   member's own limits and its breaker.
//! - what no limit bounds (messages of a member that is not listened to, acks, messages that are dropped, messages of devices) has records of its own as far as
//!   the [`Terms`] go ([`Trail::note`]). One that could not be written is kept and written later: [`KEPT`] of them at most. Whatever goes beyond is counted, and
//!   a summary with its number, its first and last time, its reason and a digest over the events follows. A summary that cannot be written is kept and tried
//!   again. So a flood cannot fill the store, memory is bounded, and nothing is in neither form;
//! - the chain of one client or device that cannot be written for good (damaged, or full) keeps nothing out of the trail, and nobody else's records: what belongs
//!   there goes into this instance's chain and says why;
//! - whatever is tried again bears a mark in its commit: of an attempt whose outcome was unknown and its repeat, only one counts.
//!
//! A process that is killed loses what it has only counted; the metrics have it as well.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keyturn_proto::{ErrorClass, Npub, UnixMs};
use keyturn_store::audit::{Chain, Instance, chain_of};
use keyturn_store::documents::{Actor, AuditDevice, AuditRecord};
use keyturn_store::store::{Decision, MAX_DECISIONS, Refuse, Store, StoreError};
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use crate::metrics::{ALARMS, AUDIT_FAILED, UNWRITTEN_REFUSALS};

/// Records of their own per sender, reason and window, where no other limit holds and the [`Terms`] say nothing else.
pub const FIRST: u32 = 60;
/// See [`FIRST`].
pub const WINDOW: Duration = Duration::from_secs(600);
/// How long something is only counted, at most, while the store can be written and the [`Terms`] say nothing else; and how soon what could not be written is
/// tried again.
pub const EVERY: Duration = Duration::from_secs(10);
/// Most (sender, reason) pairs told apart; further ones share a count.
const MAX_KEYS: usize = 4096;
/// Most records of their own that are being written, or wait for a store that takes them.
pub const KEPT: usize = 512;
/// How long a mark of ours is remembered after an attempt: far longer than until the next one.
const MARKED: Duration = Duration::from_secs(3600);

/// `event` of a refusal.
pub const REFUSED: &str = "request.refused";
/// `event` of the record that sums up what has no record of its own.
pub const REPEATED: &str = "request.refused_repeatedly";

/// Somebody who can be refused.
pub trait Sender: Clone + Eq + Hash + Send + Sync {
    /// Who it is.
    fn actor(&self) -> Actor;
    /// The device that a summary names.
    fn device(&self) -> Option<AuditDevice>;
}

impl Sender for Npub {
    fn actor(&self) -> Actor {
        Actor::Admin { npub: *self }
    }
    fn device(&self) -> Option<AuditDevice> {
        None
    }
}

/// How much one trail writes.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// `event` of the summaries.
    pub repeated: &'static str,
    /// Records of their own per sender, reason and [`WINDOW`].
    pub first: u32,
    /// Records of their own in one [`WINDOW`], of everybody.
    pub in_all: u32,
    /// How long something is only counted.
    pub every: Duration,
    /// Summaries at a time; where there are so many already, all further senders with one reason share one.
    pub summaries: usize,
}

impl Terms {
    /// For senders of whom there can be only so many.
    const fn of_members(repeated: &'static str) -> Self {
        Self {
            repeated,
            first: FIRST,
            in_all: u32::MAX,
            every: EVERY,
            summaries: MAX_KEYS,
        }
    }
}

type Key<W> = (Option<W>, &'static str);

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

    /// What was counted for somebody else as well.
    fn absorb(&mut self, other: &Self) {
        let first = if self.count == 0 {
            other.first
        } else {
            self.first.min(other.first)
        };
        self.add(&hex::encode(other.digest), other.last);
        self.first = first;
        self.count += other.count - 1;
    }

    fn record<W: Sender>(
        &self,
        event: &str,
        (sender, reason): &Key<W>,
        now: UnixMs,
    ) -> AuditRecord {
        let Self {
            count,
            first,
            last,
            digest,
        } = self;
        AuditRecord {
            at: now,
            actor: sender.as_ref().map_or(Actor::Unknown, Sender::actor),
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
            device: sender.as_ref().and_then(Sender::device),
        }
    }
}

/// A sum that is being written: it stays as it is until it is known to be, so that what it says and its digest belong together.
#[derive(Clone)]
struct Sealed {
    sum: Sum,
    /// Of the attempts to write it, one counts. Without randomness there is none.
    mark: Option<String>,
}

/// One window of one sender and reason.
#[derive(Default)]
struct Seen {
    since: UnixMs,
    /// Places for records of their own that were taken.
    written: u32,
    /// Still counting.
    open: Sum,
    sealed: Option<Sealed>,
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

struct State<W> {
    seen: HashMap<Key<W>, Seen>,
    /// How many of them have something that is in no record yet.
    unwritten: usize,
    /// When the summaries were written, and when what is kept was tried.
    flushed: UnixMs,
    tried: UnixMs,
    /// Places for records of their own that everybody together has taken in the window that began then.
    since: UnixMs,
    own: u32,
    /// Records of their own that could not be written, and the reasons under which they count.
    kept: VecDeque<(&'static str, Decision)>,
    /// Those that are being written.
    under_way: usize,
}

impl<W> Default for State<W> {
    fn default() -> Self {
        Self {
            seen: HashMap::new(),
            unwritten: 0,
            flushed: UnixMs::default(),
            tried: UnixMs::default(),
            since: UnixMs::default(),
            own: 0,
            kept: VecDeque::new(),
            under_way: 0,
        }
    }
}

impl<W: Sender> State<W> {
    fn is_over(&self, now: UnixMs) -> bool {
        now < self.since || now.since(self.since) >= WINDOW
    }

    /// Forgets windows that are over and written.
    fn tidy(&mut self, now: UnixMs) {
        self.seen
            .retain(|_, seen| !(seen.over(now) && seen.is_written()));
    }

    fn count_unwritten(&mut self) {
        let unwritten = self.seen.values().filter(|seen| !seen.is_written());
        self.unwritten = unwritten.count();
    }
}

/// A record on its way, and who waits for it.
type Waiting = (Decision, oneshot::Sender<Result<(), StoreError>>);

/// See the module.
pub struct Trail<W = Npub> {
    store: Arc<dyn Store>,
    terms: Terms,
    state: Mutex<State<W>>,
    queue: Mutex<VecDeque<Waiting>>,
    /// Whoever holds it writes for all who wait.
    writing: tokio::sync::Mutex<()>,
    flushing: tokio::sync::Mutex<()>,
}

/// Room for a record of its own, while it is being written.
struct Place<'a, W: Sender>(&'a Trail<W>);

impl<W: Sender> Drop for Place<'_, W> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.under_way = state.under_way.saturating_sub(1);
    }
}

impl Trail {
    /// The trail of refused requests.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self::counting_as(REPEATED, store)
    }

    /// A trail for other refusals of members than those of requests.
    pub(crate) fn counting_as(repeated: &'static str, store: Arc<dyn Store>) -> Self {
        Self::under(Terms::of_members(repeated), store)
    }
}

impl<W: Sender> Trail<W> {
    /// A trail that writes as much as `terms` say.
    #[must_use]
    pub fn under(terms: Terms, store: Arc<dyn Store>) -> Self {
        Self {
            store,
            terms,
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

    /// Records a refusal that no other limit bounds: on its own, now or as soon as the store takes it, or as one of many. Returns whether it has a record of
    /// its own by now.
    pub async fn note(
        &self,
        sender: impl Into<Option<W>>,
        reason: &'static str,
        event: &str,
        decision: Decision,
        now: UnixMs,
    ) -> bool {
        let key = self.key(sender.into(), reason, now);
        let Some(_place) = self.place(&key, now) else {
            self.count(key, event, now);
            return false;
        };
        let Err(error) = self.write(decision.clone()).await else {
            return true;
        };
        metrics::counter!(AUDIT_FAILED).increment(1);
        // Without a mark a repeat of what did happen would count twice.
        let can_be_repeated =
            decision.refuses.is_some() || matches!(error, StoreError::Unavailable { .. });
        if will_pass(&error) && can_be_repeated {
            tracing::error!(%error, reason, "a refusal could not be recorded; it is kept and tried again");
            self.state().kept.push_back((reason, decision));
        } else {
            tracing::error!(%error, reason, "a refusal could not be recorded on its own; it is counted");
            self.count(key, event, now);
        }
        false
    }

    /// As [`Self::decide`], for what no other limit bounds: where there is no room for a record of its own it is counted instead. Returns whether it has one.
    ///
    /// # Errors
    /// As [`Self::decide`].
    pub async fn decide_within(
        &self,
        sender: W,
        reason: &'static str,
        event: &str,
        decision: Decision,
        now: UnixMs,
    ) -> Result<bool, StoreError> {
        let key = self.key(Some(sender), reason, now);
        let Some(_place) = self.place(&key, now) else {
            self.count(key, event, now);
            return Ok(false);
        };
        let written = self.decide(decision).await;
        if written.is_err() {
            // It comes again.
            let mut state = self.state();
            state.own = state.own.saturating_sub(1);
            if let Some(seen) = state.seen.get_mut(&key) {
                seen.written = seen.written.saturating_sub(1);
            }
        }
        written.map(|()| true)
    }

    /// Counts something for the next summary. Waits for nobody.
    pub fn sum_up(
        &self,
        sender: impl Into<Option<W>>,
        reason: &'static str,
        event: &str,
        now: UnixMs,
    ) {
        let key = self.key(sender.into(), reason, now);
        self.count(key, event, now);
    }

    /// Writes what was kept, and the summaries of what has no record of its own; with `all` (at shutdown) also if the last ones are young. What cannot be written
    /// stays and is tried again.
    pub async fn flush(&self, now: UnixMs, all: bool) {
        let _one_at_a_time = self.flushing.lock().await;
        let (kept, summaries) = self.is_due(now, all);
        let takes = !kept || self.write_kept(now).await;
        if takes && summaries {
            // What was being written before, and what was counted meanwhile.
            while self.flush_once(now).await && all {}
        }
        self.state().count_unwritten();
        metrics::gauge!(UNWRITTEN_REFUSALS, "trail" => self.terms.repeated)
            .set(self.unwritten() as f64);
    }

    /// Writes the records that were kept, oldest first. Whether the store takes records.
    async fn write_kept(&self, now: UnixMs) -> bool {
        loop {
            let (reasons, mut some): (Vec<_>, Vec<Decision>) = {
                let state = self.state();
                state.kept.iter().take(MAX_DECISIONS).cloned().unzip()
            };
            for refuse in some.iter_mut().filter_map(|some| some.refuses.as_mut()) {
                refuse.expires_at = refuse.expires_at.max(now.plus(MARKED));
            }
            if some.is_empty() {
                return true;
            }
            for (reason, written) in reasons.into_iter().zip(self.write_some(some).await) {
                match written {
                    Ok(()) => {}
                    Err(error) if will_pass(&error) => return false,
                    // It never can be: the number remains.
                    Err(_) => self.count((None, reason), "", now),
                }
                self.state().kept.pop_front();
            }
        }
    }

    /// Whether something was written, and the store takes records.
    async fn flush_once(&self, now: UnixMs) -> bool {
        let sealed = self.seal(now);
        for some in sealed.chunks(MAX_DECISIONS) {
            let decisions = some.iter().map(|(key, Sealed { sum, mark })| Decision {
                audit: sum.record(self.terms.repeated, key, now),
                refuses: mark.as_ref().map(|mark| marked(mark.clone(), key.1, now)),
            });
            let written = self.write_some(decisions.collect()).await;
            for ((key, sealed), written) in some.iter().zip(written) {
                match written {
                    Ok(()) => {}
                    Err(error) if will_pass(&error) || key.0.is_none() => return false,
                    // A sender of whom nothing can be written must not hold back the others.
                    Err(_) => {
                        let shared = (None, key.1);
                        let mut state = self.state();
                        let shared = state.seen.entry(shared).or_default();
                        shared.open.absorb(&sealed.sum);
                    }
                }
                if let Some(seen) = self.state().seen.get_mut(key) {
                    seen.sealed = None;
                }
            }
        }
        !sealed.is_empty()
    }

    /// As [`Self::outcomes`]; says what failed.
    async fn write_some(&self, decisions: Vec<Decision>) -> Vec<Result<(), StoreError>> {
        let outcomes = self.outcomes(decisions).await;
        for error in outcomes.iter().filter_map(|written| written.as_ref().err()) {
            metrics::counter!(AUDIT_FAILED).increment(1);
            tracing::error!(%error, "refusals could not be recorded in the audit trail; they are kept and tried again");
        }
        outcomes
    }

    /// Writes decisions in one go, and one by one when one of them cannot be written at all. The outcomes in their order, up to the first failure that will pass.
    async fn outcomes(&self, decisions: Vec<Decision>) -> Vec<Result<(), StoreError>> {
        match self.store.record(decisions.clone()).await {
            Ok(()) => return vec![Ok(()); decisions.len()],
            Err(error) if will_pass(&error) => return vec![Err(error)],
            Err(_) => {}
        }
        let mut outcomes = Vec::with_capacity(decisions.len());
        for decision in decisions {
            let written = self.write_one(decision).await;
            let ends = written.as_ref().err().is_some_and(will_pass);
            outcomes.push(written);
            if ends {
                break;
            }
        }
        outcomes
    }

    /// Writes a decision into its own chain, or into this instance's if its own cannot be written for good.
    async fn write_one(&self, decision: Decision) -> Result<(), StoreError> {
        let Err(error) = self.store.record(vec![decision.clone()]).await else {
            return Ok(());
        };
        // Which instance this is, is the store's business.
        let chain = chain_of(&decision.audit, &Instance::operator());
        if will_pass(&error) || matches!(chain, Chain::Instance(_)) {
            return Err(error);
        }
        metrics::counter!(AUDIT_FAILED).increment(1);
        metrics::counter!(ALARMS, "reason" => "audit.chain_unwritable").increment(1);
        tracing::error!(%error, %chain, "ALARM: an audit chain cannot be written; what belongs there is recorded in this instance's");
        let Decision { audit, refuses } = decision;
        let audit = AuditRecord {
            reason: format!("{} chain={chain} unwritable={}", audit.reason, error.word()),
            client_id: None,
            // What it was about stays known.
            device: audit.device.map(|device| AuditDevice {
                claimed: true,
                ..device
            }),
            ..audit
        };
        self.store.record(vec![Decision { audit, refuses }]).await
    }

    /// How many refusals are in no record yet.
    #[must_use]
    pub fn unwritten(&self) -> u64 {
        let state = self.state();
        let sums = state.seen.values();
        let counted: u64 = sums
            .map(|seen| seen.open.count + seen.sealed.as_ref().map_or(0, |it| it.sum.count))
            .sum();
        counted + state.kept.len() as u64
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
            let mut outcomes = self.outcomes(decisions).await.into_iter();
            let mut last = Ok(());
            for done in waiting {
                // What was not tried is kept from it by the last failure.
                last = outcomes.next().unwrap_or(last);
                // Whoever waited may be gone.
                let _gone = done.send(last.clone());
            }
        }
    }

    /// Under which key it counts: memory is bounded, and where nobody gets a record of their own any more, newcomers share a count.
    fn key(&self, sender: Option<W>, reason: &'static str, now: UnixMs) -> Key<W> {
        let mut state = self.state();
        let key = (sender, reason);
        if state.seen.contains_key(&key) {
            return key;
        }
        if state.own >= self.terms.in_all && !state.is_over(now) {
            return (None, reason);
        }
        if state.seen.len() >= MAX_KEYS {
            state.tidy(now);
            if state.seen.len() >= MAX_KEYS {
                return (None, reason);
            }
        }
        key
    }

    /// Takes a place for a record of its own, if there is one.
    fn place(&self, key: &Key<W>, now: UnixMs) -> Option<Place<'_, W>> {
        let mut state = self.state();
        if state.is_over(now) {
            (state.since, state.own) = (now, 0);
        }
        let room = state.own < self.terms.in_all && state.kept.len() + state.under_way < KEPT;
        let seen = state.seen.entry(key.clone()).or_default();
        if seen.over(now) {
            (seen.since, seen.written) = (now, 0);
        }
        if !room || seen.written >= self.terms.first {
            return None;
        }
        seen.written += 1;
        state.own += 1;
        state.under_way += 1;
        Some(Place(self))
    }

    fn count(&self, key: Key<W>, event: &str, now: UnixMs) {
        let mut state = self.state();
        let counted = state.seen.get(&key).is_some_and(|seen| !seen.is_written());
        let key = if counted || state.unwritten < self.terms.summaries {
            key
        } else {
            (None, key.1)
        };
        let seen = state.seen.entry(key).or_default();
        let first = seen.is_written();
        seen.open.add(event, now);
        state.unwritten += usize::from(first);
    }

    /// Whether what is kept, and whether the summaries are to be written.
    fn is_due(&self, now: UnixMs, all: bool) -> (bool, bool) {
        // A clock set back makes everything due.
        let over = |since: UnixMs, every| all || now < since || now.since(since) >= every;
        let mut state = self.state();
        let due = (
            over(state.tried, EVERY),
            over(state.flushed, self.terms.every),
        );
        if due.0 {
            state.tried = now;
        }
        if due.1 {
            state.flushed = now;
        }
        due
    }

    /// What is to be written now; windows that are over and written are forgotten.
    fn seal(&self, now: UnixMs) -> Vec<(Key<W>, Sealed)> {
        let mut state = self.state();
        state.tidy(now);
        let mut sealed = Vec::new();
        for (key, seen) in &mut state.seen {
            if seen.sealed.is_none() && seen.open.count > 0 {
                seen.sealed = Some(Sealed {
                    sum: std::mem::take(&mut seen.open),
                    mark: mark(),
                });
            }
            sealed.extend(seen.sealed.clone().map(|sum| (key.clone(), sum)));
        }
        sealed
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, VecDeque<Waiting>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A mark of our own for a record that refuses no event: of several attempts to write it, one counts. `None` without randomness.
#[must_use]
pub fn mark() -> Option<String> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).ok()?;
    Some(hex::encode(bytes))
}

/// The mark as the store takes it.
#[must_use]
pub fn marked(mark: String, reason: &str, now: UnixMs) -> Refuse {
    Refuse {
        event_id: mark,
        class: ErrorClass::PolicyViolation,
        reason: reason.to_owned(),
        expires_at: now.plus(MARKED),
    }
}

/// Whether the same write can succeed later.
fn will_pass(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Unavailable { .. } | StoreError::Unknown { .. }
    )
}

const CUT_SHORT: StoreError = StoreError::Unknown {
    cause: "cut short before the trail answered",
};

#[cfg(test)]
mod tests;
