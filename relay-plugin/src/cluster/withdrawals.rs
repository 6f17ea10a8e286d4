//! Ciphertext past its retention goes from every relay, not just from that of the instance that acts: the store lists what was withdrawn.
//!
//! What must always hold: the place in the list moves past an event only when this relay does not hold it any more. So a deletion that fails is
//! tried again until it succeeds, and memory holds no list of its own.

use std::time::Duration;

use async_trait::async_trait;
use keyturn_store::documents::OutboxDoc;
use keyturn_store::store::{Store, StoreError, WithdrawnAfter};
use nostr::EventId;

use super::Site;
use crate::delivery::port::ReadError;
use crate::metrics as names;

/// How often the list is read.
const EVERY: Duration = Duration::from_secs(30);
/// The list is read again this far back: a commit may be younger than it says it is.
const OVERLAP: Duration = Duration::from_secs(600);
/// Events of the list read at once.
const PAGE: usize = 256;
/// First pause after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Why the list was not worked off.
#[derive(Debug, thiserror::Error)]
enum WithdrawError {
    /// The store did not say what was withdrawn.
    #[error("what was withdrawn could not be read: {0}")]
    List(#[from] StoreError),
    /// Our relay did not delete it.
    #[error("withdrawn events could not be deleted: {0}")]
    Relay(#[from] ReadError),
}

/// What was withdrawn, in the order of that.
#[async_trait]
pub(super) trait Withdrawn: Send + Sync {
    /// As [`keyturn_store::store::SecretStore::withdrawn`].
    async fn after(
        &self,
        after: &WithdrawnAfter,
        limit: usize,
    ) -> Result<Vec<OutboxDoc>, StoreError>;
}

#[async_trait]
impl Withdrawn for dyn Store {
    async fn after(
        &self,
        after: &WithdrawnAfter,
        limit: usize,
    ) -> Result<Vec<OutboxDoc>, StoreError> {
        self.withdrawn(after, limit).await
    }
}

/// Deletes everything on the list. Tried until it succeeds; returns where to go on.
pub(super) async fn catch_up(site: &Site, list: &(impl Withdrawn + ?Sized)) -> WithdrawnAfter {
    site.relay.attached().await;
    let mut after = WithdrawnAfter::default();
    insist(site, list, &mut after).await;
    after
}

/// Goes on deleting, for ever.
pub(super) async fn watch(
    site: &Site,
    list: &(impl Withdrawn + ?Sized),
    mut after: WithdrawnAfter,
) {
    loop {
        pause(site, EVERY).await;
        let mut place = WithdrawnAfter {
            at: after.at.minus(OVERLAP),
            event_id: String::new(),
        };
        insist(site, list, &mut place).await;
        after = place.max(after);
    }
}

/// Works the list off to its end, however often that has to be tried.
async fn insist(site: &Site, list: &(impl Withdrawn + ?Sized), place: &mut WithdrawnAfter) {
    let mut rest = RETRY;
    while let Err(error) = read_on(site, list, place).await {
        metrics::counter!(names::WITHDRAWALS_FAILED).increment(1);
        tracing::warn!(%error, "to be tried again");
        pause(site, rest).await;
        rest = (rest * 2).min(EVERY);
    }
}

async fn pause(site: &Site, length: Duration) {
    site.clock.sleep_until(site.clock.now().plus(length)).await;
}

async fn read_on(
    site: &Site,
    list: &(impl Withdrawn + ?Sized),
    place: &mut WithdrawnAfter,
) -> Result<(), WithdrawError> {
    loop {
        let page = list.after(place, PAGE).await?;
        delete(site, &page).await?;
        if let Some(event) = page.last() {
            *place = WithdrawnAfter {
                at: event.withdrawn_at.unwrap_or_default(),
                event_id: event.event_id.clone(),
            };
        }
        if page.len() < PAGE {
            return Ok(());
        }
    }
}

/// Deletes those of these events that this relay holds.
async fn delete(site: &Site, page: &[OutboxDoc]) -> Result<(), ReadError> {
    let ids = page.iter().map(|event| EventId::from_hex(&event.event_id));
    let ids: Vec<EventId> = ids.filter_map(Result::ok).collect();
    // First, so that none of them comes back meanwhile.
    site.gone.add(ids.iter().copied());
    let mut held = Vec::new();
    for id in ids {
        if site.relay.stored(id).await? {
            held.push(id);
        }
    }
    if held.is_empty() {
        return Ok(());
    }
    let deleted = site.relay.delete(held).await?;
    metrics::counter!(names::CIPHERTEXTS_DELETED).increment(deleted.removed.len() as u64);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    use keyturn_mls::Backlog;
    use keyturn_proto::UnixMs;
    use nostr::{Event, EventBuilder, Keys, Kind};
    use tokio::sync::mpsc;

    use super::super::gone::Gone;
    use super::*;
    use crate::core::tests::relay::{FakeRelay, Mood};
    use crate::delivery::port::RelayPort as _;
    use crate::rotation::ports::Clock;
    use crate::service::ServedSet;

    const START: u64 = 1_760_000_000_000;

    /// Time passes as fast as it is waited for.
    struct Swift(AtomicU64);

    #[async_trait]
    impl Clock for Swift {
        fn now(&self) -> UnixMs {
            UnixMs(self.0.load(Ordering::SeqCst))
        }

        async fn sleep_until(&self, at: UnixMs) {
            tokio::task::yield_now().await;
            self.0.fetch_max(at.0, Ordering::SeqCst);
        }
    }

    #[derive(Default)]
    struct List(Mutex<Vec<OutboxDoc>>);

    impl List {
        fn add(&self, event: &Event, at: UnixMs) {
            let mut events = self.0.lock().unwrap();
            events.push(OutboxDoc {
                event_id: event.id.to_hex(),
                rotation_id: "01JM8VEZAMG2DK6T4S9N7TT1C8".parse().unwrap(),
                attempt: 1,
                group: "ops".to_owned(),
                epoch: 1,
                roster_hash: String::new(),
                event_json: String::new(),
                created_at: at,
                delete_after: None,
                withdrawn_at: Some(at),
            });
        }
    }

    #[async_trait]
    impl Withdrawn for List {
        async fn after(
            &self,
            after: &WithdrawnAfter,
            limit: usize,
        ) -> Result<Vec<OutboxDoc>, StoreError> {
            let events = self.0.lock().unwrap();
            let later = events.iter().filter(|event| {
                let place = (event.withdrawn_at.unwrap(), &event.event_id);
                place > (after.at, &after.event_id)
            });
            Ok(later.take(limit).cloned().collect())
        }
    }

    fn site(relay: &FakeRelay, clock: &Arc<Swift>) -> Site {
        Site {
            relay: Arc::new(relay.clone()),
            served: ServedSet::default(),
            backlog: Backlog::default(),
            inbound: mpsc::channel(1).0,
            gone: Gone::default(),
            siblings: Vec::new(),
            message_bytes: 524_288,
            clock: Arc::clone(clock) as Arc<dyn Clock>,
        }
    }

    fn event(n: usize) -> Event {
        EventBuilder::new(Kind::from_u16(445), n.to_string())
            .sign_with_keys(&Keys::generate())
            .unwrap()
    }

    /// Until `relay` holds nothing, or `turns` are over.
    async fn emptied(relay: &FakeRelay, turns: usize) -> bool {
        for _ in 0..turns {
            if relay.events().is_empty() {
                return true;
            }
            tokio::task::yield_now().await;
        }
        false
    }

    #[tokio::test]
    async fn a_start_goes_on_only_when_everything_withdrawn_is_gone() {
        let (relay, clock) = (FakeRelay::default(), Arc::new(Swift(AtomicU64::new(START))));
        let (site, list) = (site(&relay, &clock), List::default());
        // More than a page.
        for n in 0..PAGE + 3 {
            let event = event(n);
            list.add(&event, UnixMs(START + n as u64));
            relay.admin_sends(event, START);
        }
        relay.set_mood(Mood::Keeping);
        let heal = async {
            assert!(!emptied(&relay, 50).await);
            relay.set_mood(Mood::Well);
        };
        let (after, ()) = tokio::join!(catch_up(&site, &list), heal);
        assert!(relay.events().is_empty());
        assert_eq!(after.at, UnixMs(START + PAGE as u64 + 2));
        let kept = list.0.lock().unwrap();
        let mut ids = kept.iter().map(|event| event.event_id.parse().unwrap());
        assert!(ids.all(|id| site.gone.has(&id)), "nor do they come back");
    }

    #[tokio::test]
    async fn what_could_not_be_deleted_is_tried_again_however_long_that_takes() {
        let (relay, clock) = (FakeRelay::default(), Arc::new(Swift(AtomicU64::new(START))));
        let (site, list) = (site(&relay, &clock), List::default());
        relay.set_mood(Mood::Keeping);
        let first = event(1);
        list.add(&first, UnixMs(START));
        relay.admin_sends(first.clone(), START);
        let away = async {
            // Well past the overlap; and something newer was withdrawn meanwhile.
            while clock.now().since(UnixMs(START)) < OVERLAP * 3 {
                tokio::task::yield_now().await;
            }
            list.add(&event(2), clock.now());
            while clock.now().since(UnixMs(START)) < OVERLAP * 6 {
                tokio::task::yield_now().await;
            }
            assert!(relay.stored(first.id).await.unwrap(), "control");
            relay.set_mood(Mood::Well);
            assert!(emptied(&relay, 1_000).await, "it was forgotten");
        };
        tokio::select! {
            () = watch(&site, &list, WithdrawnAfter::default()) => {}
            () = away => {}
        }
    }
}
