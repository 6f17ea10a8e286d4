//! Which refusals are answered.
//!
//! An answer is sealed and published, and every member of the group opens it: whoever could have one for each message would have the relay
//! flood its own groups. What must always hold: a leaf that is not listened to is told so once per pause; refused acks, which no breaker
//! counts, and requests sent again under an id that was granted are answered up to [`ACKS`] per leaf and [`WINDOW`]; no more than [`AT_ONCE`] refusals wait for their relay or their epoch at a
//! time, so that they leave room for work. The audit trail and the metrics know of every refusal, answered or not.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keyturn_proto::UnixMs;
use keyturn_proto::inner::InnerKind;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::admission::{PAUSES, Refusal};

/// Refused acks and repeated requests of one leaf that are answered within [`WINDOW`].
pub(super) const ACKS: u32 = 20;
/// See [`ACKS`].
pub(super) const WINDOW: Duration = Duration::from_secs(600);
/// Refusals on their way at once.
const AT_ONCE: usize = 32;
/// Leaves remembered. Leaves are members of our groups; with more than that only those whose time is over make room.
const MAX_LEAVES: usize = 4096;
/// What one leaf was told.
#[derive(Clone, Copy, Default)]
struct Told {
    since: UnixMs,
    acks: u32,
    paused_until: UnixMs,
}

impl Told {
    /// Counts one; whether there was room for it.
    fn counts(&mut self, now: UnixMs) -> bool {
        if now < self.since || now.since(self.since) >= WINDOW {
            (self.since, self.acks) = (now, 0);
        }
        self.acks = self.acks.saturating_add(1);
        self.acks <= ACKS
    }

    fn over(&self, now: UnixMs) -> bool {
        now >= self.paused_until && (now < self.since || now.since(self.since) >= WINDOW)
    }
}

/// See the module.
#[derive(Clone)]
pub(super) struct Answers {
    told: Arc<Mutex<HashMap<Box<[u8]>, Told>>>,
    under_way: Arc<Semaphore>,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            told: Arc::default(),
            under_way: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

impl Answers {
    /// The right to answer this refusal, to be held until that is done.
    pub(super) fn may_refuse(
        &self,
        leaf: &[u8],
        kind: InnerKind,
        refusal: &Refusal,
        now: UnixMs,
    ) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.under_way).try_acquire_owned().ok()?;
        self.is_news(leaf, kind, refusal, now).then_some(permit)
    }

    fn is_news(&self, leaf: &[u8], kind: InnerKind, refusal: &Refusal, now: UnixMs) -> bool {
        // These last until a moment of which the sender was told.
        let pause = PAUSES.contains(&refusal.reason);
        if !pause && kind != InnerKind::Ack {
            return true;
        }
        self.told_of(leaf, now, |told| {
            if pause {
                let length = Duration::from_millis(refusal.retry_after_ms.unwrap_or(0));
                // A pause cannot end later than it would if it began now: then the clock was set back.
                let known = now < told.paused_until && told.paused_until.since(now) <= length;
                if !known {
                    told.paused_until = now.plus(length);
                }
                return !known;
            }
            told.counts(now)
        })
    }

    /// Whether a request of this leaf that was granted before, under whatever event, is answered once more. It passes no breaker.
    pub(super) fn may_repeat(&self, leaf: &[u8], now: UnixMs) -> bool {
        self.told_of(leaf, now, |told| told.counts(now))
    }

    fn told_of(&self, leaf: &[u8], now: UnixMs, judge: impl FnOnce(&mut Told) -> bool) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= MAX_LEAVES && !told.contains_key(leaf) {
            told.retain(|_, told| !told.over(now));
            if told.len() >= MAX_LEAVES {
                return false;
            }
        }
        judge(told.entry(leaf.into()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use keyturn_proto::ErrorClass;

    use super::*;

    const NOW: UnixMs = UnixMs(1_760_000_000_000);
    const ALICE: &[u8] = &[1; 32];
    const BOB: &[u8] = &[2; 32];

    fn refusal(reason: &'static str, retry_after_ms: Option<u64>) -> Refusal {
        Refusal {
            class: ErrorClass::PolicyViolation,
            reason,
            retry_after_ms,
        }
    }

    fn at(seconds: u64) -> UnixMs {
        NOW.plus(Duration::from_secs(seconds))
    }

    #[test]
    fn a_pause_is_told_once_to_each_leaf() {
        let answers = Answers::default();
        let told = |leaf, seconds: u64, left: u64| {
            let refusal = refusal("limits.breaker_open", Some(left * 1000));
            answers
                .may_refuse(leaf, InnerKind::Request, &refusal, at(seconds))
                .is_some()
        };
        assert!(told(ALICE, 0, 60));
        assert!((1..60).all(|second| !told(ALICE, second, 60 - second)));
        assert!(told(BOB, 30, 30));
        assert!(told(ALICE, 60, 60), "the next pause");
    }

    #[test]
    fn what_was_granted_is_told_again_so_often() {
        let answers = Answers::default();
        for (leaf, from) in [(ALICE, 0), (BOB, 0), (ALICE, WINDOW.as_secs())] {
            let told = (from..from + 100).filter(|s| answers.may_repeat(leaf, at(*s)));
            assert_eq!(told.count(), ACKS as usize);
        }
    }

    #[test]
    fn refused_acks_are_answered_so_often_and_requests_always() {
        let answers = Answers::default();
        let count = |kind, from: u64| {
            let refusal = refusal("ack.malformed", None);
            (0..100)
                .filter(|_| {
                    answers
                        .may_refuse(ALICE, kind, &refusal, at(from))
                        .is_some()
                })
                .count()
        };
        assert_eq!(count(InnerKind::Ack, 0), ACKS as usize);
        assert_eq!(count(InnerKind::Ack, WINDOW.as_secs() - 1), 0);
        assert_eq!(count(InnerKind::Ack, WINDOW.as_secs()), ACKS as usize);
        assert_eq!(
            count(InnerKind::Request, 0),
            100,
            "the breaker counts those"
        );
    }

    #[test]
    fn refusals_that_cannot_get_out_leave_room_for_work() {
        let answers = Answers::default();
        let refusal = refusal("request.malformed", None);
        let one = || answers.may_refuse(ALICE, InnerKind::Request, &refusal, NOW);
        let waiting: Vec<_> = (0..100).filter_map(|_| one()).collect();
        assert_eq!(waiting.len(), AT_ONCE);
        drop(waiting);
        assert!(one().is_some());
    }

    #[test]
    fn memory_is_bounded_and_makes_room_for_others_in_time() {
        let answers = Answers::default();
        let refusal = refusal("ack.malformed", None);
        let told = |leaf: usize, at| {
            let leaf = leaf.to_be_bytes();
            answers.is_news(&leaf, InnerKind::Ack, &refusal, at)
        };
        let heard = (0..2 * MAX_LEAVES).filter(|leaf| told(*leaf, NOW)).count();
        assert_eq!(heard, MAX_LEAVES);
        assert!(told(2 * MAX_LEAVES, at(WINDOW.as_secs())));
    }
}
