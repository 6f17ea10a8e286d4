//! Limits on MAC verifications: they cost money and tell time, so guesses must not buy many.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use keyturn_proto::ClientId;

use super::VerifierError;

/// How many different keys a limiter follows; past that, new keys are refused until old ones have calmed down.
const MAX_KEYS: usize = 100_000;

/// A rate with a burst, both at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Sustained.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

pub(super) struct Limits {
    clients: DefaultKeyedRateLimiter<ClientId>,
    sources: DefaultKeyedRateLimiter<IpAddr>,
}

impl Limits {
    pub(super) fn new(per_client: Rate, per_source: Rate) -> Result<Self, VerifierError> {
        Ok(Self {
            clients: RateLimiter::keyed(quota("mac_per_client", per_client)?),
            sources: RateLimiter::keyed(quota("mac_per_source", per_source)?),
        })
    }

    /// Spends one verification of both. The source goes first: one that is over its limit must not spend the client's.
    pub(super) fn allow(&self, client: &Option<ClientId>, source: IpAddr) -> bool {
        let Some(client) = client else {
            return false;
        };
        spend(&self.sources, &network(source)) && spend(&self.clients, client)
    }
}

fn spend<K: Hash + Eq + Clone>(limiter: &DefaultKeyedRateLimiter<K>, key: &K) -> bool {
    if limiter.len() >= MAX_KEYS {
        limiter.retain_recent();
        if limiter.len() >= MAX_KEYS {
            return false;
        }
    }
    limiter.check_key(key).is_ok()
}

/// IPv6 hosts own a /64 at least, so that is one source.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

fn quota(setting: &'static str, rate: Rate) -> Result<Quota, VerifierError> {
    let expected = VerifierError::Setting {
        setting,
        expected: "at least 1 per second and a burst of at least 1",
    };
    let per_second = NonZeroU32::new(rate.per_second).ok_or_else(|| expected.clone())?;
    let burst = NonZeroU32::new(rate.burst).ok_or(expected)?;
    Ok(Quota::per_second(per_second).allow_burst(burst))
}
