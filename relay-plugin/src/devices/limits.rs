//! How many messages are looked at: per device and in all; and how many refusals a device is told of.
//!
//! These limits save one relay's time and its connection, so each relay counts for itself: several relays together take that many times as much. What bounds the calls to the
//! issuer, requests per device and hour, is judged by the store, for all relays together.

use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock as _, DefaultClock};
use governor::state::keyed::DashMapStateStore;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use keyturn_proto::device::DeviceId;

use super::settings::Settings;

/// Devices whose budget is remembered; beyond it, budgets that are full again are forgotten, and if none is, unknown devices share one.
const DEVICES: usize = 50_000;

/// Refusals that one device is told of within a minute. Firmware that heeds its answers comes nowhere near it.
const ANSWERS: u32 = 20;

/// How often budgets that are full again are looked for, at most: it takes a look at all of them.
const SWEEP: Duration = Duration::from_secs(1);

type Keyed = RateLimiter<Option<DeviceId>, DashMapStateStore<Option<DeviceId>>, DefaultClock>;

/// See the module.
pub struct Limits {
    all: DefaultDirectRateLimiter,
    each: Budgets,
    answers: Budgets,
}

impl Limits {
    pub(super) fn new(settings: &Settings) -> Self {
        let all = Quota::per_second(at_least_one(settings.per_second))
            .allow_burst(at_least_one(settings.per_second.saturating_mul(10)));
        Self {
            all: RateLimiter::direct(all),
            each: Budgets::of(settings.per_minute),
            answers: Budgets::of(ANSWERS),
        }
    }

    /// Takes one message from the budgets.
    ///
    /// # Errors
    /// The stable word of the one that is used up, and after how many seconds it is not.
    pub(super) fn take(&self, device: &DeviceId) -> Result<(), (&'static str, u64)> {
        // The device's own budget first: one that shouts must not use up everybody's.
        self.each
            .take(device)
            .map_err(|wait| ("rate.device", wait))?;
        self.all.check().map_err(|until| {
            let wait = until.wait_time_from(DefaultClock::default().now());
            ("rate.all", wait.as_secs() + 1)
        })
    }

    /// Whether a device is told of one more refusal.
    pub(super) fn may_answer(&self, device: &DeviceId) -> bool {
        self.answers.take(device).is_ok()
    }
}

/// So many of something for each device within a minute.
struct Budgets {
    limiter: Keyed,
    swept: Mutex<Instant>,
}

impl Budgets {
    fn of(per_minute: u32) -> Self {
        Self {
            limiter: RateLimiter::dashmap(Quota::per_minute(at_least_one(per_minute))),
            swept: Mutex::new(Instant::now()),
        }
    }

    /// Takes one; else after how many seconds there is one again.
    fn take(&self, device: &DeviceId) -> Result<(), u64> {
        self.limiter.check_key(&self.key(device)).map_err(|until| {
            let wait = until.wait_time_from(DefaultClock::default().now());
            wait.as_secs() + 1
        })
    }

    fn key(&self, device: &DeviceId) -> Option<DeviceId> {
        if self.limiter.len() >= DEVICES {
            let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
            if swept.elapsed() >= SWEEP {
                self.limiter.retain_recent();
                *swept = Instant::now();
            }
            if self.limiter.len() >= DEVICES {
                return None;
            }
        }
        Some(device.clone())
    }
}

fn at_least_one(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN)
}
