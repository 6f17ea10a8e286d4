//! The snapshots that are known, how far each can be trusted now, and who is told when one changes.
//!
//! What must always hold:
//! - what was read or heard early never replaces what is later;
//! - a change that is told here is seen by every verification that begins afterwards;
//! - nothing is used that is older than `max_stale`, whatever has failed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keyturn_proto::{ClientId, UnixMs, VersionId};
use tokio::sync::broadcast;

use super::cached::Cached;
use super::flight::Flights;
use super::memo::Memo;
use super::source::{ClientSnapshot, SnapshotSource, SourceError};
use super::{Settings, VerifyError};

/// Changes that a slow subscriber can be behind before it is told that it has missed some.
const NEWS: usize = 4096;

/// Pause after a failed read, at least; it grows with the time that the read took, so that callers mostly do not wait for what fails.
const RETRY: Duration = Duration::from_secs(1);

/// A client has changed: only these versions verify now. A server drops the tokens of every other version of that client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Living {
    /// Whose.
    pub client_id: ClientId,
    /// Current, then previous; none for a client that is suspended, revoked or gone.
    pub versions: Vec<VersionId>,
}

/// Every client that is known, at most [`Settings::max_clients`].
pub struct Book {
    clients: moka::sync::Cache<Box<str>, Arc<Cached>>,
    /// Counts what was told, so that a read that began before is not kept after it.
    told: AtomicU64,
    unknown: Arc<Cached>,
    memo: Arc<Memo>,
    reads: Flights<ClientId, Result<Arc<Cached>, SourceError>>,
    /// Clients whose read has failed: until when what is known serves without another try. Each by itself, since what fails can be one document.
    failed: moka::sync::Cache<ClientId, UnixMs>,
    news: broadcast::Sender<Living>,
    trust: Trust,
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
            told: AtomicU64::new(0),
            unknown: Arc::new(Cached::unknown(&memo, UnixMs(0))),
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

    pub(super) fn fresh(&self, client_id: &str, now: UnixMs) -> Option<Arc<Cached>> {
        let cached = self.clients.get(client_id)?;
        cached.is_fresh(&self.trust, now).then_some(cached)
    }

    /// Reads through; while the source fails, what is known serves until it is too old.
    pub(super) async fn read<S: SnapshotSource>(
        &self,
        source: &S,
        client_id: &str,
        now: UnixMs,
        count: impl Fn(),
    ) -> Result<Arc<Cached>, VerifyError> {
        let Ok(id) = client_id.parse::<ClientId>() else {
            return Ok(Arc::clone(&self.unknown));
        };
        let usable = |now: UnixMs| {
            self.clients
                .get(client_id)
                .filter(|cached| cached.age(now) < self.trust.max_stale)
        };
        let failed_lately = self.failed.get(&id).is_some_and(|until| now < until);
        if let (true, Some(cached)) = (failed_lately, usable(now)) {
            return Ok(cached);
        }
        let asked = Instant::now();
        let read = async || {
            let told = self.told.load(Ordering::Acquire);
            count();
            let snapshot = source.snapshot(&id).await?;
            let cached = Arc::new(Cached::of(&self.memo, &id, snapshot, now));
            Ok(self.keep(&id, cached, Some(told)))
        };
        let read = self.reads.join(id.clone(), read).await;
        read.or_else(|error: SourceError| {
            // Failing can take its time, and what is known has grown older meanwhile.
            let took = asked.elapsed();
            let now = now.plus(took);
            let pause = (took * 4).max(RETRY).min(self.trust.snapshot_ttl);
            self.failed.insert(id, now.plus(pause));
            tracing::warn!(%error, "a client cannot be read");
            usable(now).ok_or(VerifyError::Unavailable {
                cause: "the source of verify snapshots does not answer",
            })
        })
    }

    /// A client is now so. For listeners: how far this can be trusted is in the snapshot's coverage.
    pub fn tell(&self, client: &ClientId, snapshot: ClientSnapshot) {
        self.told.fetch_add(1, Ordering::AcqRel);
        self.reads.forget(client);
        // When it was heard says nothing about when it was so: the line may be slow.
        let cached = Cached::of(&self.memo, client, Some(snapshot), UnixMs(0));
        self.keep(client, Arc::new(cached), None);
    }

    /// A client's document does not exist any more.
    pub fn gone(&self, client: &ClientId) {
        self.invalidate(client);
        self.announce(client, Vec::new());
    }

    /// Forgets a client, because it has changed.
    pub fn invalidate(&self, client: &ClientId) {
        self.told.fetch_add(1, Ordering::AcqRel);
        self.reads.forget(client);
        self.clients.invalidate(client.as_str());
    }

    /// Forgets everything, because changes may have been missed.
    pub fn invalidate_all(&self) {
        self.told.fetch_add(1, Ordering::AcqRel);
        self.reads.forget_all();
        self.clients.invalidate_all();
    }

    /// Who wants to hear of changes. One that falls too far behind is told so, and asks about everything it holds.
    pub fn subscribe(&self) -> broadcast::Receiver<Living> {
        self.news.subscribe()
    }

    /// Puts an entry in its place unless a later one is there, and returns the one that holds. A read begun at `told` is not kept after something was told:
    /// it answers the one who asked, as any read does that ran at the same time as a change.
    fn keep(&self, client: &ClientId, new: Arc<Cached>, told: Option<u64>) -> Arc<Cached> {
        let overtaken = || told.is_some_and(|told| self.told.load(Ordering::Acquire) != told);
        if overtaken() {
            return new;
        }
        let mut before = None;
        let entry = self.clients.entry(client.as_str().into());
        let kept = entry
            .and_upsert_with(|old| {
                let old = old.map(|old| old.into_value());
                before.clone_from(&old);
                match old {
                    // A document that is gone has no revision.
                    Some(old) if new.client_id.is_some() && old.revision > new.revision => old,
                    _ => Arc::clone(&new),
                }
            })
            .into_value();
        if overtaken() {
            // What was told between the look and the insert must win.
            self.clients.invalidate(client.as_str());
            return new;
        }
        let changed = match &before {
            // Never asked about here, so no token can rest on it; but a listener's word is passed on.
            None => told.is_none(),
            Some(before) => !before.living().eq(kept.living()),
        };
        if changed {
            self.announce(client, kept.living().collect());
        }
        kept
    }

    fn announce(&self, client: &ClientId, versions: Vec<VersionId>) {
        // Nobody listening is not an error.
        let _nobody = self.news.send(Living {
            client_id: client.clone(),
            versions,
        });
    }
}
