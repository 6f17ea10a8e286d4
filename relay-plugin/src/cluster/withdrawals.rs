//! Ciphertext past its retention goes from every relay, not just from that of the instance that acts: the store lists what was withdrawn.

use std::time::Duration;

use keyturn_proto::UnixMs;
use keyturn_store::documents::OutboxDoc;
use keyturn_store::store::{Store, StoreError, WithdrawnAfter};
use nostr::EventId;

use super::Site;
use crate::metrics as names;

/// How often the list is read.
const EVERY: Duration = Duration::from_secs(30);
/// The list is read again this far back: a commit may be younger than it says it is.
const OVERLAP: Duration = Duration::from_secs(600);
/// Events of the list read at once.
const PAGE: usize = 256;
/// First pause after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Deletes everything on the list. Tried until it succeeds; returns where to go on.
pub(super) async fn catch_up(site: &Site, store: &dyn Store) -> WithdrawnAfter {
    site.relay.attached().await;
    loop {
        match read_on(site, store, WithdrawnAfter::default()).await {
            Ok(after) => return after,
            Err(error) => {
                tracing::warn!(%error, "what other relays have withdrawn is not known yet");
                pause(site, RETRY).await;
            }
        }
    }
}

/// Goes on deleting, for ever.
pub(super) async fn watch(site: &Site, store: &dyn Store, mut after: WithdrawnAfter) {
    loop {
        pause(site, EVERY).await;
        let overlap = u64::try_from(OVERLAP.as_millis()).unwrap_or(u64::MAX);
        let from = WithdrawnAfter {
            at: UnixMs(after.at.0.saturating_sub(overlap)),
            event_id: String::new(),
        };
        match read_on(site, store, from).await {
            Ok(next) => after = next.max(after),
            Err(error) => tracing::warn!(%error, "withdrawn events could not be listed"),
        }
    }
}

async fn pause(site: &Site, length: Duration) {
    site.clock.sleep_until(site.clock.now().plus(length)).await;
}

async fn read_on(
    site: &Site,
    store: &dyn Store,
    mut after: WithdrawnAfter,
) -> Result<WithdrawnAfter, StoreError> {
    loop {
        let page = store.withdrawn(&after, PAGE).await?;
        let last = page.len() < PAGE;
        if let Some(event) = page.last() {
            after = WithdrawnAfter {
                at: event.withdrawn_at.unwrap_or_default(),
                event_id: event.event_id.clone(),
            };
        }
        delete(site, &page).await;
        if last {
            return Ok(after);
        }
    }
}

/// Deletes those of these events that this relay holds. One that fails is met again by the overlap or the next start.
async fn delete(site: &Site, page: &[OutboxDoc]) {
    let ids = page.iter().map(|event| EventId::from_hex(&event.event_id));
    let ids: Vec<EventId> = ids.filter_map(Result::ok).collect();
    // First, so that none of them comes back meanwhile.
    site.gone.add(ids.iter().copied());
    let mut held = Vec::new();
    for id in ids {
        if site.relay.stored(id).await.unwrap_or(true) {
            held.push(id);
        }
    }
    if held.is_empty() {
        return;
    }
    match site.relay.delete(held).await {
        Ok(deleted) => {
            metrics::counter!(names::CIPHERTEXTS_DELETED).increment(deleted.removed.len() as u64);
        }
        Err(error) => tracing::warn!(%error, "withdrawn events could not be deleted"),
    }
}
