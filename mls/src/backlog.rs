//! Events that have arrived and are not taken in yet.
//!
//! A commit counts from its receipt, not from the moment somebody got round to it. So while an event waits (in a queue, or for the relay to
//! have stored it), no epoch settles past its receipt: the rival it may hold was in time. What must hold: an event is in the backlog before
//! anybody can read a clock that is later than its receipt; it leaves when it was taken in, or was dropped on the way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ids::UnixMs;

/// Shared by those who receive events and the [`crate::Member`] that takes them in ([`crate::MemberConfig::backlog`]). Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Backlog(Arc<Mutex<BTreeMap<UnixMs, usize>>>);

/// One event's place in the backlog; given up when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Arrival(Arc<Place>);

#[derive(Debug)]
struct Place {
    at: UnixMs,
    backlog: Backlog,
}

impl Backlog {
    /// An event has arrived. `clock` is read under the lock, so that nothing settles past a receipt that is just being stamped.
    pub fn arrived(&self, clock: impl FnOnce() -> UnixMs) -> Arrival {
        let mut waiting = self.lock();
        let at = clock();
        *waiting.entry(at).or_default() += 1;
        drop(waiting);
        Arrival(Arc::new(Place {
            at,
            backlog: self.clone(),
        }))
    }

    /// `now`, or the receipt of the oldest event that waits if that is earlier.
    pub(crate) fn settled_by(&self, now: UnixMs) -> UnixMs {
        let waiting = self.lock();
        waiting
            .first_key_value()
            .map_or(now, |(oldest, _)| now.min(*oldest))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<UnixMs, usize>> {
        // Counts are whole whenever the lock is free.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arrival {
    /// When the event was received.
    pub fn at(&self) -> UnixMs {
        self.0.at
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.backlog.lock();
        if let Some(count) = waiting.get_mut(&self.at) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_waits_bounds_what_settles() {
        let backlog = Backlog::default();
        let now = UnixMs(100);
        assert_eq!(backlog.settled_by(now), now);
        let late = backlog.arrived(|| UnixMs(70));
        let early = backlog.arrived(|| UnixMs(50));
        let twin = backlog.arrived(|| UnixMs(50));
        assert_eq!(backlog.settled_by(now), UnixMs(50));
        assert_eq!(backlog.settled_by(UnixMs(40)), UnixMs(40));
        drop(early.clone());
        drop(early);
        assert_eq!(backlog.settled_by(now), UnixMs(50));
        drop(twin);
        assert_eq!(backlog.settled_by(now), UnixMs(70));
        assert_eq!(late.at(), UnixMs(70));
        drop(late);
        assert_eq!(backlog.settled_by(now), now);
    }
}
