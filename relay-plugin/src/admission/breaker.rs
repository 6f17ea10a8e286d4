//! The circuit breaker: a sender whose requests keep being refused is not listened to for a while.
//!
//! Asked before anything is parsed or verified, so that a flood costs one map look-up per message. Counted per leaf signature key, which MLS has
//! authenticated, and not per npub, which is only claimed: a leaf under somebody else's npub silences itself, not that admin. And counted over
//! all senders with a threshold of its own, which never holds back revoke and emergency: whoever trips it must not be able to keep a leaked
//! secret alive.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use keyturn_proto::UnixMs;

use super::settings::LimitSettings;

/// Most senders remembered. Senders are leaves of our groups, so more means an attack; the one seen longest ago is forgotten first.
const MAX_SENDERS: usize = 4096;

/// Refusals of one sender, or of all, within one window.
#[derive(Clone, Copy, Default)]
struct Tally {
    since: UnixMs,
    count: u32,
    open_until: UnixMs,
}

impl Tally {
    fn note(&mut self, threshold: u32, settings: &LimitSettings, now: UnixMs) {
        // A clock set back starts a new window as well.
        if now < self.since || now.since(self.since) >= settings.breaker_window {
            (self.since, self.count) = (now, 0);
        }
        self.count = self.count.saturating_add(1);
        if self.count >= threshold {
            self.open_until = now.plus(settings.breaker_pause);
            self.count = 0;
        }
    }

    fn pause(&self, now: UnixMs, longest: Duration) -> Option<Duration> {
        let left = self.open_until.since(now).min(longest);
        (!left.is_zero()).then_some(left)
    }

    fn over(&self, settings: &LimitSettings, now: UnixMs) -> bool {
        now >= self.open_until && now.since(self.since) >= settings.breaker_window
    }
}

/// See the module.
pub(super) struct Breakers {
    settings: LimitSettings,
    senders: Mutex<HashMap<Box<[u8]>, Tally>>,
    all: Mutex<Tally>,
}

impl Breakers {
    pub(super) fn new(settings: LimitSettings) -> Self {
        Self {
            settings,
            senders: Mutex::default(),
            all: Mutex::default(),
        }
    }

    /// How long this sender is still not listened to.
    pub(super) fn sender(&self, leaf: &[u8], now: UnixMs) -> Option<Duration> {
        let senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        senders.get(leaf)?.pause(now, self.settings.breaker_pause)
    }

    /// How long everything but protective actions is still held back.
    pub(super) fn all(&self, now: UnixMs) -> Option<Duration> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.pause(now, self.settings.breaker_pause)
    }

    /// Counts a refusal.
    pub(super) fn note(&self, leaf: &[u8], now: UnixMs) {
        let settings = &self.settings;
        self.all
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .note(settings.global_breaker_refusals, settings, now);
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        if senders.len() >= MAX_SENDERS && !senders.contains_key(leaf) {
            senders.retain(|_, tally| !tally.over(settings, now));
            let oldest = senders
                .iter()
                .min_by_key(|(_, tally)| tally.since)
                .map(|(leaf, _)| leaf.clone());
            if let Some(oldest) = oldest.filter(|_| senders.len() >= MAX_SENDERS) {
                senders.remove(&oldest);
            }
        }
        senders
            .entry(leaf.into())
            .or_default()
            .note(settings.breaker_refusals, settings, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = UnixMs(1_760_000_000_000);
    const ALICE: &[u8] = &[1; 32];
    const BOB: &[u8] = &[2; 32];

    fn breakers() -> Breakers {
        Breakers::new(LimitSettings {
            client_per_hour: 1,
            admin_per_hour: 1,
            breaker_refusals: 3,
            global_breaker_refusals: 5,
            breaker_window: Duration::from_secs(10),
            breaker_pause: Duration::from_secs(60),
        })
    }

    fn at(seconds: u64) -> UnixMs {
        UnixMs(NOW.0 + seconds * 1000)
    }

    #[test]
    fn opens_for_one_sender_and_closes_again() {
        let breakers = breakers();
        breakers.note(ALICE, at(0));
        breakers.note(ALICE, at(9));
        assert_eq!(breakers.sender(ALICE, at(9)), None);
        breakers.note(ALICE, at(9));
        assert_eq!(breakers.sender(ALICE, at(9)), Some(Duration::from_secs(60)));
        assert_eq!(breakers.sender(BOB, at(9)), None);
        assert_eq!(breakers.sender(ALICE, at(68)), Some(Duration::from_secs(1)));
        assert_eq!(breakers.sender(ALICE, at(69)), None);
    }

    #[test]
    fn slow_refusals_do_not_add_up() {
        let breakers = breakers();
        for step in 0..10 {
            breakers.note(ALICE, at(step * 6));
            assert_eq!(breakers.sender(ALICE, at(step * 6)), None, "refusal {step}");
        }
    }

    #[test]
    fn many_senders_together_open_the_common_one() {
        let breakers = breakers();
        for sender in 0..4 {
            breakers.note(&[sender; 32], NOW);
        }
        assert_eq!(breakers.all(NOW), None);
        breakers.note(BOB, NOW);
        assert!(breakers.all(NOW).is_some());
    }

    #[test]
    fn a_clock_set_back_does_not_lengthen_the_pause() {
        let breakers = breakers();
        for _ in 0..3 {
            breakers.note(ALICE, at(100_000));
        }
        assert_eq!(breakers.sender(ALICE, at(0)), Some(Duration::from_secs(60)));
    }

    #[test]
    fn memory_is_bounded() {
        let breakers = breakers();
        for sender in 0..MAX_SENDERS as u64 + 100 {
            let mut key = [0u8; 32];
            key[..8].copy_from_slice(&sender.to_be_bytes());
            breakers.note(&key, at(sender / 1000));
        }
        let senders = breakers
            .senders
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        assert_eq!(senders.len(), MAX_SENDERS);
    }
}
