//! Single flight: callers that need the same answer at the same time share one piece of work.
//!
//! What must always hold:
//! - the first caller works, the others wait; if the first one goes away half-way, one of the others works instead;
//! - nothing stays behind after the last one has left, however they leave;
//! - work that was forgotten is joined by nobody any more, and knows it: so does everybody who was waiting for it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

/// Work under way, by key.
pub(super) struct Flights<K, V> {
    under_way: Mutex<HashMap<K, Arc<Flight<V>>>>,
}

/// One piece of work.
struct Flight<V> {
    answer: OnceCell<V>,
    /// Callers that are in it; changed only under the lock.
    seats: AtomicUsize,
    outlook: Outlook,
}

/// Whether work is still wanted.
#[derive(Clone, Default)]
pub(super) struct Outlook(Arc<AtomicBool>);

/// What came of it.
pub(super) struct Landed<V> {
    pub(super) answer: V,
    /// Whether it was forgotten before it was there.
    pub(super) forgotten: bool,
}

impl Outlook {
    /// Something has happened since the work began that its answer may not contain.
    pub(super) fn is_forgotten(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
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
    pub(super) async fn join<F, W>(&self, key: K, work: F) -> Landed<V>
    where
        F: FnOnce(Outlook) -> W,
        W: Future<Output = V>,
    {
        let seat = self.seat(key);
        let flight = &seat.flight;
        let begin = || work(flight.outlook.clone());
        let answer = flight.answer.get_or_init(begin).await.clone();
        Landed {
            answer,
            forgotten: flight.outlook.is_forgotten(),
        }
    }

    /// Callers from now on do not join work that began before.
    pub(super) fn forget(&self, key: &K) {
        if let Some(flight) = self.lock().remove(key) {
            flight.outlook.0.store(true, Ordering::Release);
        }
    }

    /// The same for every key.
    pub(super) fn forget_all(&self) {
        for (_, flight) in self.lock().drain() {
            flight.outlook.0.store(true, Ordering::Release);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn seat(&self, key: K) -> Seat<'_, K, V> {
        let mut under_way = self.lock();
        let flight = under_way.entry(key.clone()).or_insert_with(|| {
            Arc::new(Flight {
                answer: OnceCell::new(),
                seats: AtomicUsize::new(0),
                outlook: Outlook::default(),
            })
        });
        flight.seats.fetch_add(1, Ordering::Relaxed);
        Seat {
            flights: self,
            key,
            flight: Arc::clone(flight),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<K, Arc<Flight<V>>>> {
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
    flight: Arc<Flight<V>>,
}

impl<K: Hash + Eq + Clone, V: Clone> Drop for Seat<'_, K, V> {
    fn drop(&mut self) {
        let mut under_way = self.flights.lock();
        let last = self.flight.seats.fetch_sub(1, Ordering::Relaxed) == 1;
        let ours = under_way
            .get(&self.key)
            .is_some_and(|flight| Arc::ptr_eq(flight, &self.flight));
        if ours && (last || self.flight.answer.initialized()) {
            under_way.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::future::{pending, ready};

    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn nothing_stays_behind_however_callers_leave() {
        let flights = Flights::<u8, u8>::default();
        // All of them go away half-way.
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let mut caller = Box::pin(flights.join(1, |_| pending()));
                assert!(caller.as_mut().now_or_never().is_none());
                caller
            })
            .collect();
        assert_eq!(flights.lock().len(), 1);
        drop(waiting);
        assert!(flights.is_empty());
        // With an answer.
        let landed = flights.join(1, |_| ready(7)).now_or_never().unwrap();
        assert_eq!((landed.answer, landed.forgotten), (7, false));
        assert!(flights.is_empty());
    }

    #[test]
    fn callers_that_leave_on_many_threads_at_once_leave_nothing_behind() {
        let flights = Flights::<u8, u8>::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let caller = Box::pin(flights.join(1, |_| pending()));
                        assert!(caller.now_or_never().is_none());
                    }
                });
            }
        });
        assert!(flights.is_empty());
    }

    #[test]
    fn forgotten_work_is_told_and_joined_by_nobody() {
        let flights = Flights::<u8, u8>::default();
        let (answer, answered) = tokio::sync::oneshot::channel();
        let outlook = OnceCell::new();
        let early = flights.join(1, async |given: Outlook| {
            outlook.set(given).ok().unwrap();
            answered.await.unwrap()
        });
        let mut early = Box::pin(early);
        assert!(early.as_mut().now_or_never().is_none());
        let mut waiting = Box::pin(flights.join(1, |_| ready(9)));
        assert!(waiting.as_mut().now_or_never().is_none());
        flights.forget(&2);
        assert!(!outlook.get().unwrap().is_forgotten());
        flights.forget(&1);
        assert!(outlook.get().unwrap().is_forgotten());
        // Who comes now works anew.
        let late = flights.join(1, |_| ready(8)).now_or_never().unwrap();
        assert_eq!((late.answer, late.forgotten), (8, false));
        answer.send(7).unwrap();
        let landed = early.now_or_never().unwrap();
        assert_eq!((landed.answer, landed.forgotten), (7, true));
        let landed = waiting.now_or_never().unwrap();
        assert_eq!((landed.answer, landed.forgotten), (7, true));
    }
}
