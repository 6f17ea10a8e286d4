//! The snapshots that are known, how far each can be trusted now, and who is told when one changes.
//!
//! What must always hold:
//! - what was read or heard early never replaces what is later, and nobody is answered by a read that a change has overtaken;
//! - a change that is told here is seen by every verification that begins afterwards;
//! - nothing is used that is older than `max_stale`, whatever has failed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keyturn_proto::{ClientId, UnixMs, VersionId};
use tokio::sync::broadcast;

use super::cached::{Cached, age};
use super::clock::Clock;
use super::flight::{Flights, Outlook};
use super::memo::Memo;
use super::source::{ClientSnapshot, SnapshotSource, SourceError};
use super::{Settings, VerifyError};

/// Changes that a slow subscriber can be behind before it is told that it has missed some.
const NEWS: usize = 4096;

/// Pause after a failed read, at least; it grows with the time that the read took, so that callers mostly do not wait for what fails.
const RETRY: Duration = Duration::from_secs(1);

/// Bytes of an id of usual length.
const USUAL_ID: usize = 128;

/// Reads for one caller, if each is overtaken by a change of that very client. A client does not change that often.
const READS: u32 = 4;

/// A client has changed: only these versions verify now. A server drops the tokens of every other version of that client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Living {
    /// Whose.
    pub client_id: ClientId,
    /// Current, then previous; none for a client that is suspended, revoked or gone.
    pub versions: Vec<VersionId>,
}

/// Every client that is known, at most [`Settings::max_clients`], and as many ids that are nobody's: those have a place of their own, so that asking for what
/// does not exist drives nobody out.
pub struct Book {
    clients: moka::sync::Cache<Box<str>, Arc<Cached>>,
    /// Ids that no client has: as of when.
    nobodies: moka::sync::Cache<Box<str>, UnixMs>,
    /// Held while an entry is changed: what was looked at before still holds then, and news go out in the order of the changes.
    changing: Mutex<()>,
    nobody: Arc<Cached>,
    memo: Arc<Memo>,
    /// Reads under way. A read that is forgotten here, because its client has changed, is not kept: all that is remembered of changes is what somebody waits for.
    reads: Flights<ClientId, Result<Read, SourceError>>,
    /// Clients that are known and whose read has failed: until when what is known serves without another try. Each by itself, since what fails can be one document.
    failed: moka::sync::Cache<ClientId, UnixMs>,
    news: broadcast::Sender<Living>,
    trust: Trust,
}

/// What a read has found.
#[derive(Clone)]
struct Read {
    cached: Arc<Cached>,
    begun: Instant,
}

/// For how long what kind of knowledge is used.
#[derive(Clone, Copy)]
pub(super) struct Trust {
    /// Without a listener, or after it has ended.
    pub(super) snapshot_ttl: Duration,
    /// While a listener listens, since it was last heard.
    pub(super) heartbeat_limit: Duration,
    /// While nothing can be read.
    pub(super) max_stale: Duration,
}

impl Book {
    pub(super) fn new(settings: &Settings, memo: Arc<Memo>) -> Self {
        Self {
            clients: moka::sync::Cache::builder()
                .max_capacity(settings.max_clients)
                .build(),
            nobodies: moka::sync::Cache::<Box<str>, UnixMs>::builder()
                .max_capacity(settings.max_clients)
                .weigher(|id, _| weight(id))
                .build(),
            changing: Mutex::new(()),
            nobody: Arc::new(Cached::nobody(&memo)),
            memo,
            reads: Flights::default(),
            failed: moka::sync::Cache::builder()
                .max_capacity(settings.max_clients)
                .time_to_live(settings.max_stale)
                .build(),
            news: broadcast::channel(NEWS).0,
            trust: Trust {
                snapshot_ttl: settings.snapshot_ttl,
                heartbeat_limit: settings.heartbeat_limit,
                max_stale: settings.max_stale,
            },
        }
    }

    /// What can be used without asking anybody.
    pub(super) fn fresh(&self, client_id: &str, now: UnixMs) -> Option<Arc<Cached>> {
        match self.clients.get(client_id) {
            Some(cached) => cached.is_fresh(&self.trust, now).then_some(cached),
            None => self.is_nobody(client_id, self.trust.snapshot_ttl, now),
        }
    }

    /// Whether `cached` may have changed without a word.
    pub(super) fn may_be_overtaken(&self, cached: &Cached, now: UnixMs) -> bool {
        cached.may_be_overtaken(&self.trust, now)
    }

    /// What [`Self::fresh`] does for an unknown client and not for a known one: so that both have done it.
    pub(super) fn even_out(&self, client_id: &str) {
        std::hint::black_box(self.nobodies.get(client_id));
    }

    /// Whether a client by this id is known, however old that is.
    pub(super) fn knows(&self, client_id: &str) -> bool {
        self.clients.contains_key(client_id)
    }

    /// A client that does not exist.
    pub(super) const fn nobody(&self) -> &Arc<Cached> {
        &self.nobody
    }

    /// Reads through; while the source fails, what is known serves until it is too old.
    pub(super) async fn read<S: SnapshotSource>(
        &self,
        source: &S,
        client_id: &str,
        clock: Clock,
        count: impl Fn(),
    ) -> Result<Arc<Cached>, VerifyError> {
        let Ok(id) = client_id.parse::<ClientId>() else {
            return Ok(Arc::clone(&self.nobody));
        };
        let now = clock.now();
        let failed_lately = self.failed.get(&id).is_some_and(|until| now < until);
        if let (true, Some(cached)) = (failed_lately, self.usable(client_id, now)) {
            return Ok(cached);
        }
        let asked = Instant::now();
        let read = async |outlook: Outlook| {
            let begun = Instant::now();
            count();
            let snapshot = source.snapshot(&id).await?;
            let cached = self.keep(&id, snapshot, clock.told(), &outlook);
            Ok(Read { cached, begun })
        };
        for _ in 0..READS {
            let landed = self.reads.join(id.clone(), &read).await;
            let found = match landed.answer {
                Ok(found) => found,
                Err(error) => return self.without_source(&id, error, clock, asked),
            };
            // Somebody else's read may have begun long ago, and nobody who asks now shall get less than what was read a lifetime ago.
            let in_time = asked.saturating_duration_since(found.begun) < self.trust.snapshot_ttl;
            if !landed.forgotten && (in_time || found.begun >= asked) {
                return Ok(found.cached);
            }
            // What has changed meanwhile was perhaps told.
            if let Some(cached) = self.fresh(client_id, clock.now()) {
                return Ok(cached);
            }
        }
        Err(VerifyError::Unavailable {
            cause: "the client changes while it is read",
        })
    }

    /// A read has failed: what is known serves, until it is too old.
    fn without_source(
        &self,
        id: &ClientId,
        error: SourceError,
        clock: Clock,
        asked: Instant,
    ) -> Result<Arc<Cached>, VerifyError> {
        tracing::warn!(%error, "a client cannot be read");
        // Failing can take its time, and what is known has grown older meanwhile.
        let now = clock.now();
        let usable = self.usable(id.as_str(), now);
        let usable = usable.ok_or(VerifyError::Unavailable {
            cause: "the source of verify snapshots does not answer",
        })?;
        let pause = (asked.elapsed() * 4).max(RETRY);
        self.failed
            .insert(id.clone(), now.plus(pause.min(self.trust.snapshot_ttl)));
        Ok(usable)
    }

    /// What serves while nothing can be read.
    fn usable(&self, client_id: &str, now: UnixMs) -> Option<Arc<Cached>> {
        match self.clients.get(client_id) {
            Some(cached) => (cached.age(now) < self.trust.max_stale).then_some(cached),
            None => self.is_nobody(client_id, self.trust.max_stale, now),
        }
    }

    fn is_nobody(&self, client_id: &str, within: Duration, now: UnixMs) -> Option<Arc<Cached>> {
        let read_at = self.nobodies.get(client_id)?;
        (age(read_at, now) < within).then(|| Arc::clone(&self.nobody))
    }

    /// A client is now so. For listeners: how far this can be trusted is in the snapshot's coverage.
    pub fn tell(&self, client: &ClientId, snapshot: ClientSnapshot) {
        self.reads.forget(client);
        // When it was heard says nothing about when it was so: the line may be slow.
        let cached = Cached::of(&self.memo, client, snapshot, UnixMs(0));
        let _turn = self.turn();
        let (before, kept) = self.put(client, Arc::new(cached));
        // Also of a client that nobody has asked about here: a listener's word is passed on.
        if before.is_none_or(|before| !before.living().eq(kept.living())) {
            self.announce(client, kept.living().collect());
        }
    }

    /// A client's document does not exist any more.
    pub fn gone(&self, client: &ClientId) {
        self.reads.forget(client);
        let _turn = self.turn();
        self.forget(client);
        self.announce(client, Vec::new());
    }

    /// Forgets a client, because it has changed.
    pub fn invalidate(&self, client: &ClientId) {
        self.reads.forget(client);
        let _turn = self.turn();
        self.forget(client);
    }

    /// Forgets everything, because changes may have been missed.
    pub fn invalidate_all(&self) {
        self.reads.forget_all();
        let _turn = self.turn();
        self.clients.invalidate_all();
        self.nobodies.invalidate_all();
    }

    /// Who wants to hear of changes. One that falls too far behind is told so, and asks about everything it holds.
    pub fn subscribe(&self) -> broadcast::Receiver<Living> {
        self.news.subscribe()
    }

    /// Puts what was read in its place, and returns what is there now. A read that was overtaken by a change of its client changes nothing: whoever told of the
    /// change made the read be forgotten first, and then took the turn.
    fn keep(
        &self,
        client: &ClientId,
        found: Option<ClientSnapshot>,
        read_at: UnixMs,
        outlook: &Outlook,
    ) -> Arc<Cached> {
        let new = match found {
            Some(snapshot) => Arc::new(Cached::of(&self.memo, client, snapshot, read_at)),
            None => Arc::clone(&self.nobody),
        };
        let _turn = self.turn();
        if outlook.is_forgotten() {
            return new;
        }
        let (before, kept) = if new.client_id.is_some() {
            self.put(client, new)
        } else {
            let before = self.clients.remove(client.as_str());
            self.nobodies.insert(client.as_str().into(), read_at);
            (before, new)
        };
        // Without anything before nobody has asked here, so no token can rest on it.
        if before.is_some_and(|before| !before.living().eq(kept.living())) {
            self.announce(client, kept.living().collect());
        }
        kept
    }

    /// In its place unless a later one is there. Returns what was there, and what is now.
    fn put(&self, client: &ClientId, new: Arc<Cached>) -> (Option<Arc<Cached>>, Arc<Cached>) {
        let before = self.clients.get(client.as_str());
        if let Some(later) = before.as_ref().filter(|old| old.revision > new.revision) {
            return (before.clone(), Arc::clone(later));
        }
        let id: Box<str> = client.as_str().into();
        self.nobodies.invalidate(&id);
        self.clients.insert(id, Arc::clone(&new));
        (before, new)
    }

    fn forget(&self, client: &ClientId) {
        self.clients.invalidate(client.as_str());
        self.nobodies.invalidate(client.as_str());
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        // It guards no data of its own.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self, client: &ClientId, versions: Vec<VersionId>) {
        // Nobody listening is not an error.
        let _nobody = self.news.send(Living {
            client_id: client.clone(),
            versions,
        });
    }
}

/// Whoever asks chooses what is remembered as nobody's, and ids may be long: one of usual length counts once, a long one more often.
fn weight(id: &str) -> u32 {
    u32::try_from(id.len() / USUAL_ID).map_or(u32::MAX, |more| more.saturating_add(1))
}

#[cfg(test)]
#[path = "book/tests.rs"]
mod tests;
