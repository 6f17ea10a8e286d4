//! Events that were deleted from this instance's relay on purpose: the mirror does not bring them back.
//!
//! Bounded; what is forgotten first is the oldest. What the store knows as withdrawn is read again at every start; the rest (a used Welcome and
//! its key package) is of use to nobody and is deleted again if it comes back after a restart.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use nostr::{Event, EventId};
use tokio::time::Instant;

use crate::delivery::port::{Deleted, Page, PublishError, Published, ReadError, RelayPort, Scan};

/// Ids remembered, 32 bytes each: a thousand rotations a day in ten groups for the whole horizon.
const MOST: usize = 450_000;

#[derive(Default)]
struct Ids {
    known: HashSet<EventId>,
    order: VecDeque<EventId>,
}

/// See the module. Cheap to clone.
#[derive(Clone, Default)]
pub struct Gone(Arc<Mutex<Ids>>);

impl Gone {
    /// Remembers ids.
    pub fn add(&self, ids: impl IntoIterator<Item = EventId>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            if held.known.insert(id) {
                held.order.push_back(id);
            }
        }
        while held.order.len() > MOST {
            if let Some(oldest) = held.order.pop_front() {
                held.known.remove(&oldest);
            }
        }
    }

    /// Whether an event must not come back.
    #[must_use]
    pub fn has(&self, id: &EventId) -> bool {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.known.contains(id)
    }
}

/// A relay whose deletions are remembered.
pub struct Remembering {
    relay: Arc<dyn RelayPort>,
    gone: Gone,
}

impl Remembering {
    /// Over `relay`.
    #[must_use]
    pub fn new(relay: Arc<dyn RelayPort>, gone: Gone) -> Self {
        Self { relay, gone }
    }
}

#[async_trait]
impl RelayPort for Remembering {
    async fn attached(&self) {
        self.relay.attached().await;
    }

    async fn publish(&self, event: Event) -> Result<Published, PublishError> {
        self.relay.publish(event).await
    }

    async fn stored(&self, id: EventId) -> Result<bool, ReadError> {
        self.relay.stored(id).await
    }

    async fn wait_stored(&self, id: EventId, deadline: Instant) -> Result<bool, ReadError> {
        self.relay.wait_stored(id, deadline).await
    }

    async fn scan(&self, scan: Scan) -> Result<Page, ReadError> {
        self.relay.scan(scan).await
    }

    async fn delete(&self, ids: Vec<EventId>) -> Result<Deleted, ReadError> {
        // Before: an event that is deleted and brought back in between would stay.
        self.gone.add(ids.iter().copied());
        self.relay.delete(ids).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> EventId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        EventId::from_byte_array(bytes)
    }

    #[test]
    fn what_was_deleted_is_known_and_memory_is_bounded() {
        let gone = Gone::default();
        gone.add([id(1), id(1), id(2)]);
        assert!(gone.has(&id(1)) && gone.has(&id(2)) && !gone.has(&id(3)));
        gone.add((3..=MOST + 1).map(id));
        assert!(!gone.has(&id(1)), "the oldest gives way");
        assert!(gone.has(&id(2)) && gone.has(&id(MOST + 1)));
    }
}
