//! One device's messages one after another, in the order in which they came; those of different devices at once. Whichever way they came: a broker's subscription and
//! its webhook share the lines.
//!
//! What must always hold:
//! - a turn is given where the message comes in (`Turns::take` never waits), so that no scheduler can change the order;
//! - whoever is dropped, having panicked or been given up, lets the next one go; whoever is dropped while it waits lets nobody overtake those before it;
//! - a device without messages takes no memory, and no lock is held while a message is handled.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keyturn_proto::device::DeviceId;
use tokio::sync::oneshot;

/// Those who wait for the message that is being handled.
type Line = VecDeque<oneshot::Sender<()>>;

/// See the module. Clones share the lines.
#[derive(Clone, Default)]
pub(super) struct Turns(Arc<Mutex<HashMap<DeviceId, Line>>>);

/// A message's place in the line of its device. The next one's turn comes when this is dropped.
pub struct Turn {
    /// `None` for a message of no device: it waits for nobody.
    line: Option<(Turns, DeviceId)>,
    /// Told when the turn has come; `None` from then on.
    waits: Option<oneshot::Receiver<()>>,
}

impl Turns {
    fn lines(&self) -> MutexGuard<'_, HashMap<DeviceId, Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next place in the line of `device`.
    pub(super) fn take(&self, device: Option<DeviceId>) -> Turn {
        let Some(device) = device else {
            return Turn {
                line: None,
                waits: None,
            };
        };
        let waits = match self.lines().entry(device.clone()) {
            Entry::Vacant(nobody) => {
                nobody.insert(Line::new());
                None
            }
            Entry::Occupied(mut line) => {
                let line = line.get_mut();
                // Those who were given up while they waited are forgotten now and then, else behind one that takes long they would pile up.
                if line.len().is_power_of_two() {
                    line.retain(|waiting| !waiting.is_closed());
                }
                let (tell, told) = oneshot::channel();
                line.push_back(tell);
                Some(told)
            }
        };
        Turn {
            line: Some((self.clone(), device)),
            waits,
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lines().is_empty()
    }
}

impl Turn {
    /// Returns when all that came before is done with. May be given up and waited for again.
    pub(super) async fn come(&mut self) {
        if let Some(waits) = &mut self.waits {
            // Whoever holds the other end is in the line until it has spoken.
            let _ = waits.await;
            self.waits = None;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some((turns, device)) = self.line.take() else {
            return;
        };
        let mut lines = turns.lines();
        if let Some(waits) = &mut self.waits {
            // Under the lock, under which turns are given: from here on nobody gives us ours.
            waits.close();
            if waits.try_recv().is_err() {
                return;
            }
        }
        let Some(line) = lines.get_mut(&device) else {
            return;
        };
        while let Some(next) = line.pop_front() {
            if next.send(()).is_ok() {
                return;
            }
        }
        lines.remove(&device);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;

    use super::*;

    fn device(n: u32) -> Option<DeviceId> {
        Some(format!("d{n}").parse().unwrap())
    }

    fn has_come(turn: &mut Turn) -> bool {
        turn.come().now_or_never().is_some()
    }

    #[tokio::test]
    async fn one_device_is_served_in_order_and_waits_for_no_other() {
        let turns = Turns::default();
        let mut mine: Vec<Turn> = (0..4).map(|_| turns.take(device(1))).collect();
        let mut other = turns.take(device(2));
        let mut nobody = turns.take(None);
        assert!(has_come(&mut other) && has_come(&mut nobody));
        while !mine.is_empty() {
            assert!(has_come(&mut mine[0]));
            assert!(!mine.iter_mut().skip(1).any(has_come));
            drop(mine.remove(0));
        }
        drop(other);
        assert!(turns.is_empty());
    }

    #[tokio::test]
    async fn who_is_given_up_while_waiting_lets_nobody_overtake() {
        let turns = Turns::default();
        let mut first = turns.take(device(1));
        let second = turns.take(device(1));
        let mut third = turns.take(device(1));
        assert!(has_come(&mut first));
        drop(second);
        assert!(!has_come(&mut third), "the first is still under way");
        drop(first);
        assert!(has_come(&mut third));
        drop(third);
        assert!(turns.is_empty());
    }

    #[tokio::test]
    async fn who_is_given_up_between_being_told_and_looking_passes_it_on() {
        let turns = Turns::default();
        let first = turns.take(device(1));
        let second = turns.take(device(1));
        let mut third = turns.take(device(1));
        drop(first);
        // It was the second one's turn, and it never looked.
        drop(second);
        assert!(has_come(&mut third));
        drop(third);
        assert!(turns.is_empty());
    }

    #[tokio::test]
    async fn who_panics_lets_the_next_one_go() {
        let turns = Turns::default();
        let mut first = turns.take(device(1));
        let mut second = turns.take(device(1));
        let panics = tokio::spawn(async move {
            first.come().await;
            panic!("on purpose");
        });
        assert!(panics.await.unwrap_err().is_panic());
        tokio::time::timeout(Duration::from_secs(20), second.come())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn those_who_went_away_do_not_pile_up() {
        let turns = Turns::default();
        let first = turns.take(device(1));
        for _ in 0..10_000 {
            drop(turns.take(device(1)));
        }
        let waiting = turns.lines()[&device(1).unwrap()].len();
        assert!(waiting <= 2, "{waiting}");
        drop(first);
        assert!(turns.is_empty());
    }
}
