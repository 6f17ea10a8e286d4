//! What the core may ask of the relay it lives in.
//!
//! The core knows this trait and nothing of the relay behind it. What must always hold of an implementation:
//! - `publish` answers only after the event can be read back by id, so a caller that awaits it can publish the next
//!   event of the same group without the two landing in one write batch (rnostr stores a batch in reverse order);
//! - nothing here blocks an async worker thread: database work runs on threads of its own;
//! - events handed out come from the relay's own database, whose signatures the relay checked when it took them.

use std::{collections::HashSet, time::Duration};

use async_trait::async_trait;
use nostr::{Event, EventId, PublicKey};
use tokio::time::Instant;

/// How an event came to be in the relay's database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// This call stored it.
    New,
    /// It was already there: a repeat after a crash, or a mirror was faster. Not an error.
    Already,
}

/// What [`RelayPort::delete`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Found and removed.
    pub removed: Vec<EventId>,
    /// Not in the database, also not after the batch that may have been on its way.
    pub absent: Vec<EventId>,
}

/// Which stored events to read.
#[derive(Debug, Clone)]
pub struct Scan {
    /// Event kinds. Must not be empty.
    pub kinds: Vec<u16>,
    /// What else the events have in common.
    pub by: By,
    /// Oldest `created_at` wanted, unix seconds.
    pub since: Option<u64>,
    /// Most events in one page.
    pub page: usize,
    /// Where the page before ended.
    pub after: Option<Cursor>,
}

/// The index a scan walks. An empty list finds nothing.
#[derive(Debug, Clone)]
pub enum By {
    /// One of these nostr_group_ids in the `h` tag.
    Groups(Vec<[u8; 32]>),
    /// One of these public keys in the `p` tag.
    Recipients(Vec<PublicKey>),
    /// One of these authors.
    Authors(Vec<PublicKey>),
}

/// The end of a page. Ordered scans resume at a second, skipping what was already handed out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub(crate) created_at: u64,
    pub(crate) seen: HashSet<EventId>,
}

/// One page of a scan, oldest first: by `created_at`, and within one second in the order the relay stored them.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// The events.
    pub events: Vec<Event>,
    /// Stored events that rnostr takes and the `nostr` crate does not (an empty tag, say). They are left out, since
    /// anybody could stop a recovery with one otherwise.
    pub unreadable: usize,
    /// Present when there may be more.
    pub next: Option<Cursor>,
}

/// Why an event was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The event breaks the relay's own rules (size, time, signature, tags). Publishing it again will not help.
    #[error("the relay would not take this event: {reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// The relay answered `OK false`.
    #[error("the relay refused the event: {reason}")]
    Refused {
        /// The relay's own words.
        reason: String,
    },
    /// No `OK` in time. The event may or may not be stored: ask `stored` before trying again.
    #[error("no answer from the relay within {0:?}")]
    NoAnswer(Duration),
    /// The relay said `OK true`, but the event cannot be read back: its commit failed.
    #[error("the relay accepted the event but did not store it within {0:?}")]
    NotStored(Duration),
    /// The relay is not there yet, or is already gone.
    #[error("the relay is not running")]
    Detached,
    /// Reading back failed.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Why the relay's database could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The relay is not there yet, or is already gone.
    #[error("the relay is not running")]
    Detached,
    /// LMDB or the event index failed.
    #[error("the relay's database failed: {0}")]
    Database(String),
}

/// The relay, seen from the core.
#[async_trait]
pub trait RelayPort: Send + Sync + 'static {
    /// Resolves once the relay's database and writer can be reached. Until then the other calls answer `Detached`.
    async fn attached(&self);

    /// Validates, stores and hands the event to live subscribers; resolves once it can be read back by id.
    async fn publish(&self, event: Event) -> Result<Published, PublishError>;

    /// Whether the event is committed in the relay's database.
    async fn stored(&self, id: EventId) -> Result<bool, ReadError>;

    /// Waits until the event is committed; `false` when the deadline came first.
    async fn wait_stored(&self, id: EventId, deadline: Instant) -> Result<bool, ReadError>;

    /// One page of stored events.
    async fn scan(&self, scan: Scan) -> Result<Page, ReadError>;

    /// Removes events from the relay's database, whoever signed them. An event that is still on its way into the
    /// database is waited for (two write batches). Anybody who kept a copy can publish a removed event again.
    async fn delete(&self, ids: Vec<EventId>) -> Result<Deleted, ReadError>;
}
