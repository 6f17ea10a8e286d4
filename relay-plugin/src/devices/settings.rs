//! What an operator decides about the device flow.

use std::time::Duration;

use keyturn_store::devices::Limits;

/// See the configuration's `[devices]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This relay among those that share the store.
    pub owner: String,
    /// Lifetime of a new secret_id.
    pub secret_id_ttl: Duration,
    /// How many logins it allows; 0 for any number.
    pub secret_id_uses: u32,
    /// Networks it may be used from; empty for any.
    pub cidrs: Vec<super::issuer::Cidr>,
    /// When given, devices get a wrapping token of this lifetime.
    pub wrap_ttl: Option<Duration>,
    /// A device without an identity key is refused.
    pub require_signed: bool,
    /// A device without a sealing key is refused.
    pub require_sealed: bool,
    /// Calls to the issuer at once.
    pub concurrency: usize,
    /// Requests that may wait for the issuer.
    pub queue: usize,
    /// How long one call to the issuer may take.
    pub issue_timeout: Duration,
    /// How long a request may wait before the device is told to ask again.
    pub step: Duration,
    /// How long the device's result is awaited.
    pub confirm: Duration,
    /// How long a broker keeps an answer for a device that is not there.
    pub answer_expiry: Duration,
    /// secret_ids made for one device within an hour.
    pub per_hour: u32,
    /// Messages of one device within a minute.
    pub per_minute: u32,
    /// Messages of all devices within a second, after a burst of ten times as many.
    pub per_second: u32,
    /// How far a device's clock may be off.
    pub skew: Duration,
    /// How often a device on the schedule is invited.
    pub interval: Duration,
    /// How soon it is invited again when it did not answer.
    pub ping_retry: Duration,
    /// How often the store is asked for work that nobody announced.
    pub sweep: Duration,
    /// How long what the issuer was asked for may take to show, after nobody asks any more: an empty search before that says nothing.
    pub orphan_wait: Duration,
}

/// How far the clocks of relays that share a store may be apart.
const CLOCKS: Duration = Duration::from_secs(30);

impl Settings {
    /// What the store holds a request to.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            per_hour: self.per_hour,
            step: self.step,
            ttl: self.secret_id_ttl,
            // Signed ahead by as much as is allowed, it is good until it is as much behind.
            replay: self.skew * 2 + CLOCKS,
        }
    }
}

/// `base` and up to `share` of it more, by chance, so that those who were told at once do not come back at once.
#[must_use]
pub fn jittered(base: Duration, share: f64) -> Duration {
    let mut bytes = [0u8; 4];
    // Without randomness the pause is only less even.
    let _ = getrandom::fill(&mut bytes);
    let part = f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX);
    base + base.mul_f64(share * part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_jittered_is_never_shorter_and_never_longer_than_its_share() {
        let base = Duration::from_secs(100);
        for (share, most) in [(0.0, 100), (0.1, 110), (0.5, 150)] {
            let all: Vec<Duration> = (0..1_000).map(|_| jittered(base, share)).collect();
            let within = base..=Duration::from_secs(most);
            assert!(all.iter().all(|found| within.contains(found)), "{share}");
            // All over the range; that a thousand throws miss a half of it does not happen.
            let middle = base + base.mul_f64(share / 2.0);
            let above = all.iter().filter(|found| **found > middle).count();
            assert_eq!(above > 0 && above < 1_000, share > 0.0, "{share}: {above}");
        }
        assert_eq!(jittered(Duration::ZERO, 0.5), Duration::ZERO);
    }
}
