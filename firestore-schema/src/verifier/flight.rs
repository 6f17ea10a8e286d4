//! Single flight: callers that need the same answer at the same time share one piece of work.
//!
//! The first caller works, the others wait; if the first one goes away half-way, one of the others works instead. Nothing stays behind after the last
//! one has left.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

type Shared<V> = Arc<OnceCell<V>>;

/// Work under way, by key.
pub(super) struct Flights<K, V> {
    under_way: Mutex<HashMap<K, Shared<V>>>,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self {
            under_way: Mutex::new(HashMap::new()),
        }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Flights<K, V> {
    /// The answer for `key`: from whoever works on it already, or from `work`.
    pub(super) async fn join<F, W>(&self, key: K, work: F) -> V
    where
        F: FnOnce() -> W,
        W: Future<Output = V>,
    {
        let cell = Arc::clone(self.lock().entry(key.clone()).or_default());
        let seat = Seat {
            flights: self,
            key,
            cell,
        };
        seat.cell.get_or_init(work).await.clone()
    }

    /// Callers from now on do not join work that began before.
    pub(super) fn forget(&self, key: &K) {
        self.lock().remove(key);
    }

    /// The same for every key.
    pub(super) fn forget_all(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<K, Shared<V>>> {
        // Nothing that can panic runs under the lock.
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// One caller's place; the entry goes with the answer, or with the last caller.
struct Seat<'a, K: Hash + Eq + Clone, V: Clone> {
    flights: &'a Flights<K, V>,
    key: K,
    cell: Shared<V>,
}

impl<K: Hash + Eq + Clone, V: Clone> Drop for Seat<'_, K, V> {
    fn drop(&mut self) {
        let mut under_way = self.flights.lock();
        let ours = under_way
            .get(&self.key)
            .is_some_and(|cell| Arc::ptr_eq(cell, &self.cell));
        // Two holders are the map and this seat.
        if ours && (self.cell.initialized() || Arc::strong_count(&self.cell) <= 2) {
            under_way.remove(&self.key);
        }
    }
}
