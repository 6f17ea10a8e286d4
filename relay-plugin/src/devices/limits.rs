//! How many messages are looked at: per device and in all; and how many refusals a device is told of.
//!
//! These limits save one relay's time and its connection, so each relay counts for itself: several relays together take that many times as much. What bounds the calls to the
//! issuer, requests per device and hour, is judged by the store, for all relays together.
//!
//! What must always hold: whoever speaks in a device's name without being able to prove it uses up nothing that is the device's own. What came on its topic is counted as its own
//! only when the allow-list and, where it has a key, the signature were good and the store has recorded it, which it does once; everything else has budgets apart, messages with a
//! signature and messages without one. Asking whether there is anything left takes nothing.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use keyturn_proto::device::{DeviceId, Status};

use super::settings::Settings;

/// Devices whose budget is remembered; beyond it, budgets that are full again are forgotten, and if none is, unknown devices share one.
const DEVICES: usize = 50_000;

/// Refusals that one device is told of within a minute. Firmware that heeds its answers comes nowhere near it.
const ANSWERS: u32 = 20;

/// Messages on one device's topic that turned out not to be the device's, and what each costs: a look into the store, and for a signed one a verification (below a
/// tenth of a millisecond). So many at once, then one every so often. Signed ones get more: among them may be the device's own, which nothing but the verification tells from the others.
const UNSIGNED: (u32, Duration) = (20, Duration::from_secs(1));
/// See [`UNSIGNED`]: a flood of these costs less than a thousandth of a processor, and the device is kept from being heard only by one that is faster.
const SIGNED: (u32, Duration) = (50, Duration::from_millis(100));

/// How often budgets that are full again are looked for, at most: it takes a look at all of them.
const SWEEP: Duration = Duration::from_secs(1);

/// What everybody shares whom there is no room to remember.
const STRANGERS: u64 = 0;

/// In whose name a message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Voice {
    /// It came on the device's topic without a signature.
    Unsigned,
    /// With one that was not looked at yet, or does not verify.
    Signed,
    /// It bore what proof is asked for, and nothing of it was recorded: whoever has heard it can say it again, as often as they like.
    Verified,
    /// It is the device's: allowed, signed where it has a key, and under a nonce that is good for once.
    Own,
}

impl Voice {
    /// What can be said of a message by itself.
    pub(super) fn of(status: &Status) -> Self {
        let signature = match status {
            Status::Request(request) => request.signature.as_ref(),
            Status::Result(result) => result.signature.as_ref(),
            Status::Other => None,
        };
        if signature.is_some() {
            Self::Signed
        } else {
            Self::Unsigned
        }
    }

    /// As which voice a message is counted that claimed to be one, and turned out to be this one.
    pub(super) fn counted(self, claimed: Self) -> Self {
        match self {
            Self::Verified => claimed,
            other => other,
        }
    }
}

/// See the module.
pub struct Limits {
    all: DefaultDirectRateLimiter,
    own: Budgets,
    unsigned: Budgets,
    signed: Budgets,
    /// Apart from the ones below, so that inventing devices cannot take its places.
    own_answers: Budgets,
    answers: Budgets,
    /// Keyed: nobody can look for devices that share a budget.
    hash: RandomState,
}

impl Limits {
    pub(super) fn new(settings: &Settings) -> Self {
        let all = Quota::per_second(at_least_one(settings.per_second))
            .allow_burst(at_least_one(settings.per_second.saturating_mul(10)));
        Self {
            all: RateLimiter::direct(all),
            own: Budgets::per_minute(settings.per_minute),
            unsigned: Budgets::of(UNSIGNED),
            signed: Budgets::of(SIGNED),
            own_answers: Budgets::per_minute(ANSWERS),
            answers: Budgets::per_minute(ANSWERS),
            hash: RandomState::new(),
        }
    }

    fn key(&self, device: &DeviceId, voice: Voice) -> u64 {
        self.hash.hash_one((device, voice))
    }

    /// The budget that a message of this device's counts towards, in the end.
    fn budget(&self, voice: Voice) -> &Budgets {
        match voice {
            Voice::Unsigned => &self.unsigned,
            Voice::Signed | Voice::Verified => &self.signed,
            Voice::Own => &self.own,
        }
    }

    /// Whether a message may be looked into. Takes one from what all share; what it costs the device or those who use its name is said by [`Limits::count`], when it is known.
    ///
    /// # Errors
    /// The stable word of the budget that is used up, and after how many seconds it is not.
    pub(super) fn admit(&self, device: &DeviceId, voice: Voice) -> Result<(), (&'static str, u64)> {
        let now = Instant::now();
        // The device's own budgets first: one that shouts must not use up everybody's.
        for (voice, word) in [(Voice::Own, "rate.device"), (voice, "rate.unproven")] {
            let key = self.key(device, voice);
            if let Some(wait) = self.budget(voice).used_up(key, now) {
                return Err((word, wait.as_secs() + 1));
            }
        }
        self.all.check().map_err(|until| {
            let wait = until.wait_time_from(DefaultClock::default().now());
            ("rate.all", wait.as_secs() + 1)
        })
    }

    /// Counts a message that was looked into, by whose it turned out to be.
    pub(super) fn count(&self, device: &DeviceId, voice: Voice) {
        let key = self.key(device, voice);
        self.budget(voice).take(key, Instant::now());
    }

    /// Whether a device is told of one more refusal.
    pub(super) fn may_answer(&self, device: &DeviceId, voice: Voice) -> bool {
        let (now, key) = (Instant::now(), self.key(device, voice));
        let answers = match voice {
            Voice::Own | Voice::Verified => &self.own_answers,
            Voice::Unsigned | Voice::Signed => &self.answers,
        };
        let left = answers.used_up(key, now).is_none();
        if left {
            answers.take(key, now);
        }
        left
    }
}

/// So many of something at once, and one more every so often, for each key (GCRA).
struct Budgets {
    every: Duration,
    /// How far ahead of its time a key may be.
    slack: Duration,
    known: Mutex<Known>,
}

struct Known {
    /// When the budget is full again. What is not here has a full one.
    full_at: HashMap<u64, Instant>,
    swept: Instant,
}

impl Budgets {
    fn per_minute(n: u32) -> Self {
        let n = at_least_one(n).get();
        Self::of((n, Duration::from_secs(60) / n))
    }

    fn of((at_once, every): (u32, Duration)) -> Self {
        Self {
            every,
            slack: every * at_once.saturating_sub(1),
            known: Mutex::new(Known {
                full_at: HashMap::new(),
                swept: Instant::now(),
            }),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long there is none left, if there is none.
    fn used_up(&self, key: u64, now: Instant) -> Option<Duration> {
        let mut known = self.known();
        let key = known.place_of(key, now);
        let full_at = known.full_at.get(&key)?;
        let wait = full_at.saturating_duration_since(now + self.slack);
        (!wait.is_zero()).then_some(wait)
    }

    /// Takes one, if there is one left.
    fn take(&self, key: u64, now: Instant) {
        let mut known = self.known();
        let key = known.place_of(key, now);
        let full_at = known.full_at.entry(key).or_insert(now);
        let empty = now + self.slack + self.every;
        *full_at = ((*full_at).max(now) + self.every).min(empty);
    }
}

impl Known {
    fn place_of(&mut self, key: u64, now: Instant) -> u64 {
        if self.full_at.len() < DEVICES || self.full_at.contains_key(&key) {
            return key;
        }
        if now.saturating_duration_since(self.swept) >= SWEEP {
            self.full_at.retain(|_, full_at| *full_at > now);
            self.swept = now;
        }
        if self.full_at.len() < DEVICES {
            key
        } else {
            STRANGERS
        }
    }
}

fn at_least_one(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_so_many_at_once_and_one_more_every_so_often() {
        let budgets = Budgets::per_minute(3);
        let start = Instant::now();
        for _ in 0..3 {
            assert_eq!(budgets.used_up(1, start), None);
            budgets.take(1, start);
        }
        assert_eq!(budgets.used_up(1, start), Some(Duration::from_secs(20)));
        assert_eq!(budgets.used_up(2, start), None, "somebody else's");
        let later = start + Duration::from_secs(20);
        assert_eq!(budgets.used_up(1, later), None);
        budgets.take(1, later);
        assert!(budgets.used_up(1, later).is_some());
    }

    #[test]
    fn what_is_remembered_is_bounded_and_full_budgets_are_forgotten_first() {
        let budgets = Budgets::per_minute(1);
        let start = Instant::now();
        for key in 1..=2 * DEVICES as u64 {
            budgets.take(key, start);
        }
        assert!(budgets.known().full_at.len() <= DEVICES + 1);
        // Whom there was no room for shares with the others; who was known keeps what is theirs.
        assert!(budgets.used_up(u64::MAX, start).is_some());
        let later = start + Duration::from_secs(60);
        assert_eq!(budgets.used_up(1, later), None);
        assert_eq!(budgets.used_up(u64::MAX, later), None);
        assert!(budgets.known().full_at.len() <= 1, "the strangers' own");
    }
}
