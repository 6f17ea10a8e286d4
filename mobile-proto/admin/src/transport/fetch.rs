//! Stored events, page by page.
//!
//! What must hold: what is called whole has no hole, however the relay pages and whatever strangers have stored there; a fetch ends after so
//! many events and bytes.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use nostr::{Event, EventId, Filter, SubscriptionId, Timestamp};
use nostr_sdk::{Relay, SubscribeOptions};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};

use super::subscription::collect;
use super::wire::Count;
use super::{Connection, RelayError, client_error, weight};

/// How many events one page of a fetch asks for; relays may give fewer.
pub const PAGE: usize = 250;
/// Events of one fetch; far above what an admin's groups hold.
const MOST: usize = 100_000;

/// What a fetch has found.
#[derive(Debug, Default)]
pub struct Fetched {
    /// Oldest first.
    pub events: Vec<Event>,
    /// Seconds (unix) that hold more than a relay shows of one second; the newest of it is among `events`. Whoever may write to a relay can fill one.
    pub crowded: BTreeSet<u64>,
    /// It ended at a limit, or something larger than the limit was left out.
    pub cut: bool,
}

impl Fetched {
    /// Whether nothing else that matches is stored, but for what nobody can read.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        !self.cut && self.crowded.is_empty()
    }
}

/// One REQ until its EOSE.
struct Page {
    events: Vec<Event>,
    count: Count,
}

impl Connection {
    /// Everything that matches `filter`, oldest first. Pages downwards with a limit, because a request without one is answered
    /// differently by different relays (rnostr: the oldest 300).
    ///
    /// # Errors
    /// Any [`RelayError`]; never a partial answer.
    pub async fn fetch_all(
        &self,
        filter: &Filter,
        deadline: Instant,
    ) -> Result<Vec<Event>, RelayError> {
        let fetched = self.fetch(filter, MOST, deadline).await?;
        let whole = fetched.is_whole();
        whole.then_some(fetched.events).ok_or(RelayError::TooMany)
    }

    /// As [`Self::fetch_all`], but steps over crowded seconds, and says which.
    ///
    /// # Errors
    /// As [`Self::fetch_all`].
    pub async fn fetch_past_crowds(
        &self,
        filter: &Filter,
        deadline: Instant,
    ) -> Result<Fetched, RelayError> {
        let fetched = self.fetch(filter, MOST, deadline).await?;
        if fetched.cut {
            return Err(RelayError::TooMany);
        }
        Ok(fetched)
    }

    /// As [`Self::fetch_past_crowds`], for somebody who can ask for less: ends after `most` events or [`super::Limits::fetch_bytes`], and says so.
    ///
    /// # Errors
    /// Any [`RelayError`] but [`RelayError::TooMany`].
    pub async fn fetch(
        &self,
        filter: &Filter,
        most: usize,
        deadline: Instant,
    ) -> Result<Fetched, RelayError> {
        let mut found: HashMap<EventId, Event> = HashMap::new();
        let mut fetched = Fetched::default();
        let mut bytes = 0usize;
        let mut until = filter.until.map(|until| until.as_secs());
        loop {
            let mut page_filter = filter.clone().limit(PAGE);
            page_filter.until = until.map(Timestamp::from_secs);
            let Page { events, count } = self.page(&page_filter, deadline, None).await?;
            for event in events {
                bytes = bytes.saturating_add(weight(&event));
                found.insert(event.id, event);
            }
            if count.events == 0 {
                break;
            }
            // A relay that shows what was not asked for cannot be paged through.
            let span = count
                .span
                .filter(|(oldest, _)| until.is_none_or(|until| *oldest <= until));
            fetched.cut = count.cut || found.len() > most || bytes > self.limits.fetch_bytes;
            let (Some((oldest, newest)), false) = (span, fetched.cut) else {
                fetched.cut = true;
                break;
            };
            let crowded = count.events >= PAGE && oldest == newest;
            if crowded {
                fetched.crowded.insert(oldest);
            }
            // `until` is inclusive: the next page repeats the oldest second, unless this one showed nothing else.
            let next = if crowded || until == Some(oldest) {
                oldest.checked_sub(1)
            } else {
                Some(oldest)
            };
            until = next.filter(|next| filter.since.is_none_or(|since| *next >= since.as_secs()));
            if until.is_none() {
                break;
            }
        }
        fetched.events = found.into_values().collect();
        fetched
            .events
            .sort_by_key(|event| (event.created_at, event.id));
        Ok(fetched)
    }

    /// The newest `most` of what matches, in one question. Over a slow line what was asked for before may still be on its way: the wait goes on while frames
    /// come in, whatever they belong to, ends when none has come for `idle`, and in any case at the deadline.
    ///
    /// # Errors
    /// Any [`RelayError`].
    pub async fn sample(
        &self,
        filter: &Filter,
        most: usize,
        idle: Duration,
        deadline: Instant,
    ) -> Result<Fetched, RelayError> {
        let filter = filter.clone().limit(most);
        let Page { mut events, count } = self.page(&filter, deadline, Some(idle)).await?;
        events.sort_by_key(|event| (event.created_at, event.id));
        Ok(Fetched {
            events,
            crowded: BTreeSet::new(),
            cut: count.cut || count.events >= most,
        })
    }

    /// How many frames have arrived: a line that brings some is slow, not dead.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.tally.frames()
    }

    /// Whether anything that matches is stored.
    pub(super) async fn finds(
        &self,
        filter: &Filter,
        deadline: Instant,
    ) -> Result<bool, RelayError> {
        Ok(!self.page(filter, deadline, None).await?.events.is_empty())
    }

    async fn page(
        &self,
        filter: &Filter,
        deadline: Instant,
        idle: Option<Duration>,
    ) -> Result<Page, RelayError> {
        let mut heard = self.relay.notifications();
        let id = SubscriptionId::generate();
        let counting = self.tally.begin(&id);
        let mut asked = Asked {
            relay: &self.relay,
            id: Some(id.clone()),
        };
        self.relay
            .subscribe_with_id(id.clone(), filter.clone(), SubscribeOptions::default())
            .await
            .map_err(client_error)?;
        let collecting = collect(&mut heard, &id, filter, deadline);
        let collected = match idle {
            Some(idle) => self.while_frames_come(idle, collecting).await,
            None => collecting.await,
        };
        asked.close().await;
        Ok(Page {
            events: collected?,
            count: counting.so_far(),
        })
    }
}

impl Connection {
    async fn while_frames_come<T>(
        &self,
        idle: Duration,
        work: impl Future<Output = Result<T, RelayError>>,
    ) -> Result<T, RelayError> {
        let mut work = std::pin::pin!(work);
        let mut seen = self.frames();
        loop {
            if let Ok(done) = timeout(idle, &mut work).await {
                return done;
            }
            let now = self.frames();
            if std::mem::replace(&mut seen, now) == now {
                return Err(RelayError::Timeout("stored events"));
            }
        }
    }
}

/// A question that is taken back also when nobody waits for its answer any more: relays allow so many at a time.
struct Asked<'r> {
    relay: &'r Relay,
    id: Option<SubscriptionId>,
}

impl Asked<'_> {
    async fn close(&mut self) {
        if let Some(id) = self.id.take() {
            // A failure to say CLOSE changes nothing about what was received.
            let _ = self.relay.unsubscribe(&id).await;
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if let (Some(id), Ok(runtime)) = (self.id.take(), Handle::try_current()) {
            let relay = self.relay.clone();
            runtime.spawn(async move {
                let _ = relay.unsubscribe(&id).await;
            });
        }
    }
}
