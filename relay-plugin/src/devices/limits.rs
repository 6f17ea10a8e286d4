//! How many messages are looked at: per device and in all. The finer limit, requests per device and hour, is judged by the store, for all relays together.

use std::num::NonZeroU32;

use governor::clock::{Clock as _, DefaultClock};
use governor::state::keyed::DashMapStateStore;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use keyturn_proto::device::DeviceId;

use super::settings::Settings;

/// Devices whose budget is remembered; beyond it, budgets that are full again are forgotten, and if none is, unknown devices share one.
const DEVICES: usize = 50_000;

type Keyed = RateLimiter<Option<DeviceId>, DashMapStateStore<Option<DeviceId>>, DefaultClock>;

/// See the module.
pub struct Limits {
    all: DefaultDirectRateLimiter,
    each: Keyed,
}

impl Limits {
    pub(super) fn new(settings: &Settings) -> Self {
        let at_least_one = |n: u32| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        let all = Quota::per_second(at_least_one(settings.per_second))
            .allow_burst(at_least_one(settings.per_second.saturating_mul(10)));
        Self {
            all: RateLimiter::direct(all),
            each: RateLimiter::dashmap(Quota::per_minute(at_least_one(settings.per_minute))),
        }
    }

    /// Takes one message from the budgets.
    ///
    /// # Errors
    /// The stable word of the one that is used up, and after how many seconds it is not.
    pub(super) fn take(&self, device: &DeviceId) -> Result<(), (&'static str, u64)> {
        let clock = DefaultClock::default();
        // The device's own budget first: one that shouts must not use up everybody's.
        let key = self.key(device);
        self.each.check_key(&key).map_err(|until| {
            let wait = until.wait_time_from(clock.now());
            ("rate.device", wait.as_secs() + 1)
        })?;
        self.all.check().map_err(|until| {
            let wait = until.wait_time_from(clock.now());
            ("rate.all", wait.as_secs() + 1)
        })
    }

    fn key(&self, device: &DeviceId) -> Option<DeviceId> {
        if self.each.len() >= DEVICES {
            self.each.retain_recent();
            if self.each.len() >= DEVICES {
                return None;
            }
        }
        Some(device.clone())
    }
}
