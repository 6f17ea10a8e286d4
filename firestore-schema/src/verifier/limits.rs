//! Limits on what guesses cost: MAC verifications and bcrypt, which cost money and processor time and tell time, and reads of clients that do not exist.
//!
//! Only what neither memory nor prefilter answered comes to the MAC key. One unit is one MAC verification; a bcrypt check weighs more, by its cost:
//! - a source from which this client has verified before has a quarter of the client's rate for itself (or a source's, if that is less), and depends on nobody:
//!   neither guesses from elsewhere nor guesses from there at other clients can starve a caller that is known;
//! - any other source pays, in this order: its quarter at this client, so that no single source can use a client up; its own rate over all clients, so that one that
//!   is over its limit spends nobody else's; the client's. One that asks about this client for the first time within a while has a second budget to draw on,
//!   which guessers from few sources cannot empty.
//!
//! So what everybody together can spend on one client is bounded by twice its rate, and by a quarter of it for each known source.
//!
//! A client that nobody knows here is read. Reads that find nobody are counted against the source that asked; one that is over that limit finds nobody new until a
//! moment has passed.
//!
//! Every table is bounded. One that is full lets nobody new in, except known sources, whose table only the right secret opens.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use keyturn_proto::ClientId;

use super::{Settings, VerifierError};

/// How many different keys a limiter follows; past that, new keys are refused until old ones have calmed down.
const MAX_KEYS: usize = 100_000;
/// A full limiter looks for keys that have calmed down no more often than this: looking goes through all of them.
const SWEEP: Duration = Duration::from_secs(1);
/// For how long a source that was over its limit of unknown clients is not read for.
const SEARCHED: Duration = Duration::from_secs(1);
/// How long a source stays known to a client after it verified from there.
const KNOWN_FOR: Duration = Duration::from_secs(24 * 3600);
/// A source is new to a client once in this time.
const NEW_AGAIN: Duration = Duration::from_secs(60);
/// What one source may use of a client's rate: one part in this many.
const SHARE: u32 = 4;
/// A bcrypt check of this cost weighs one unit, each further step of cost doubles it.
const UNIT_COST: u32 = 8;

/// A rate with a burst, both at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Sustained.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

/// A client as seen from one source.
type Pair = (ClientId, IpAddr);

pub(super) struct Limits {
    sources: Limiter<IpAddr>,
    pairs: Limiter<Pair>,
    clients: Limiter<ClientId>,
    newcomers: Limiter<ClientId>,
    /// Of pairs that have verified.
    regulars: Limiter<Pair>,
    /// Pairs that have verified.
    known: moka::sync::Cache<Pair, ()>,
    /// Pairs that have asked lately.
    seen: moka::sync::Cache<Pair, ()>,
    /// Reads that found nobody.
    misses: Limiter<IpAddr>,
    /// Sources over that limit.
    searching: moka::sync::Cache<IpAddr, ()>,
}

/// What one check weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Weight(NonZeroU32);

struct Limiter<K: Hash + Eq + Clone> {
    keyed: DefaultKeyedRateLimiter<K>,
    /// Nothing weighs more than this: it would never pass.
    burst: NonZeroU32,
    max_keys: usize,
    swept: Mutex<Option<Instant>>,
}

impl Weight {
    /// One MAC verification.
    pub(super) const ONE: Self = Self(NonZeroU32::MIN);

    /// A bcrypt check of this cost, with its MAC verification.
    pub(super) fn of_bcrypt(cost: u32) -> Self {
        let steps = cost.saturating_sub(UNIT_COST).min(31);
        Self(NonZeroU32::MIN.saturating_mul(NonZeroU32::new(1 << steps).unwrap_or(NonZeroU32::MIN)))
    }
}

impl Limits {
    pub(super) fn new(settings: &Settings) -> Result<Self, VerifierError> {
        let per_client = settings.mac_per_client;
        let share = Rate {
            per_second: per_client.per_second.div_ceil(SHARE),
            burst: per_client.burst.div_ceil(SHARE),
        };
        let per_source = settings.mac_per_source;
        // Nor more than any source gets, though not out of what it gets elsewhere.
        let regular = Rate {
            per_second: share.per_second.min(per_source.per_second),
            burst: share.burst.min(per_source.burst),
        };
        Ok(Self {
            sources: Limiter::new("mac_per_source", per_source)?,
            pairs: Limiter::new("mac_per_client", share)?,
            clients: Limiter::new("mac_per_client", per_client)?,
            newcomers: Limiter::new("mac_per_client", per_client)?,
            regulars: Limiter::new("mac_per_source", regular)?,
            known: remembered(KNOWN_FOR),
            seen: remembered(NEW_AGAIN),
            misses: Limiter::new("unknown_per_source", settings.unknown_per_source)?,
            searching: remembered(SEARCHED),
        })
    }

    /// Spends one check. See the module's words for the order.
    pub(super) fn allow(&self, client: &ClientId, source: IpAddr, weight: Weight) -> bool {
        let source = network(source);
        let pair = (client.clone(), source);
        if self.known.contains_key(&pair) {
            return self.regulars.spend(&pair, weight);
        }
        if !self.pairs.spend(&pair, weight) || !self.sources.spend(&source, weight) {
            return false;
        }
        let new = self.seen.entry_by_ref(&pair).or_insert(()).is_fresh();
        self.clients.spend(client, weight) || (new && self.newcomers.spend(client, weight))
    }

    /// The client has verified from there.
    pub(super) fn verified(&self, client: &ClientId, source: IpAddr) {
        self.known.insert((client.clone(), network(source)), ());
    }

    /// A read for this source found nobody.
    pub(super) fn found_nobody(&self, source: IpAddr) {
        let source = network(source);
        if !self.misses.spend(&source, Weight::ONE) {
            self.searching.insert(source, ());
        }
    }

    /// Whether this source has asked for more clients that do not exist than it may.
    pub(super) fn is_searching(&self, source: IpAddr) -> bool {
        self.searching.contains_key(&network(source))
    }
}

fn remembered<K: Hash + Eq + Send + Sync + 'static>(
    lifetime: Duration,
) -> moka::sync::Cache<K, ()> {
    moka::sync::Cache::builder()
        .max_capacity(MAX_KEYS as u64)
        .time_to_live(lifetime)
        .build()
}

impl<K: Hash + Eq + Clone> Limiter<K> {
    fn new(setting: &'static str, rate: Rate) -> Result<Self, VerifierError> {
        let expected = VerifierError::Setting {
            setting,
            expected: "at least 1 per second and a burst of at least 1",
        };
        let per_second = NonZeroU32::new(rate.per_second).ok_or_else(|| expected.clone())?;
        let burst = NonZeroU32::new(rate.burst).ok_or(expected)?;
        Ok(Self {
            keyed: RateLimiter::keyed(Quota::per_second(per_second).allow_burst(burst)),
            burst,
            max_keys: MAX_KEYS,
            swept: Mutex::new(None),
        })
    }

    fn spend(&self, key: &K, weight: Weight) -> bool {
        if self.is_full() {
            return false;
        }
        let weight = weight.0.min(self.burst);
        matches!(self.keyed.check_key_n(key, weight), Ok(Ok(())))
    }

    fn is_full(&self) -> bool {
        if self.keyed.len() < self.max_keys {
            return false;
        }
        // Whoever comes while somebody sweeps is turned away, as is whoever comes soon after.
        let Ok(mut swept) = self.swept.try_lock() else {
            return true;
        };
        if swept.is_none_or(|at| at.elapsed() >= SWEEP) {
            self.keyed.retain_recent();
            *swept = Some(Instant::now());
        }
        self.keyed.len() >= self.max_keys
    }
}

/// IPv6 hosts own a /64 at least, so that is one source.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const RATE: Rate = Rate {
        per_second: 1,
        burst: 40,
    };

    fn limits() -> Limits {
        let settings = Settings {
            mac_per_client: RATE,
            mac_per_source: RATE,
            unknown_per_source: RATE,
            ..Settings::default()
        };
        Limits::new(&settings).unwrap()
    }

    fn source(n: u32) -> IpAddr {
        IpAddr::from((u32::from_be_bytes([10, 0, 0, 0]) + n).to_be_bytes())
    }

    #[test]
    fn one_source_gets_a_quarter_of_a_client_and_stays_inside_its_own_limit() {
        let limits = limits();
        let (a, b): (ClientId, ClientId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let spent = |client, from, tries| {
            (0..tries)
                .filter(|_| limits.allow(client, from, Weight::ONE))
                .count()
        };
        // A refill may slip in on a slow machine.
        assert!((10..=15).contains(&spent(&a, source(1), 1_000)));
        // What the source has left serves it at another client; the client has its other three quarters.
        assert!((10..=15).contains(&spent(&b, source(1), 1_000)));
        assert!((10..=15).contains(&spent(&a, source(2), 1_000)));
    }

    #[test]
    fn a_known_source_passes_when_guesses_from_everywhere_have_used_the_client_up() {
        let limits = limits();
        let client: ClientId = "a".parse().unwrap();
        limits.verified(&client, source(0));
        for n in 1..=1_000 {
            for _ in 0..5 {
                limits.allow(&client, source(n), Weight::ONE);
            }
        }
        assert!(!limits.allow(&client, source(2_000), Weight::ONE));
        assert!(limits.allow(&client, source(0), Weight::ONE));
    }

    #[test]
    fn a_known_source_passes_when_guesses_from_there_at_other_clients_have_used_the_source_up() {
        let limits = limits();
        let client: ClientId = "a".parse().unwrap();
        limits.verified(&client, source(0));
        for n in 0..1_000 {
            limits.allow(&format!("b{n}").parse().unwrap(), source(0), Weight::ONE);
        }
        let other: ClientId = "c".parse().unwrap();
        assert!(!limits.allow(&other, source(0), Weight::ONE));
        let passed = (0..1_000)
            .filter(|_| limits.allow(&client, source(0), Weight::ONE))
            .count();
        assert!((10..=15).contains(&passed), "{passed}");
    }

    #[test]
    fn a_full_table_lets_nobody_in_but_known_sources_and_is_not_searched_again_and_again() {
        let mut limits = limits();
        limits.pairs.max_keys = 100;
        let client: ClientId = "a".parse().unwrap();
        limits.verified(&client, source(0));
        // Heavy enough not to calm down while this runs.
        let heavy = Weight::of_bcrypt(15);
        for n in 1..=1_000 {
            limits.allow(&client, source(n), heavy);
        }
        assert_eq!(limits.pairs.keyed.len(), 100);
        let swept = *limits.pairs.swept.lock().unwrap();
        assert!(!limits.allow(&client, source(2_000), Weight::ONE));
        assert!(limits.allow(&client, source(0), Weight::ONE));
        let again = *limits.pairs.swept.lock().unwrap();
        let later = again.unwrap() - swept.unwrap();
        assert!(later.is_zero() || later >= SWEEP, "{later:?}");
    }

    #[test]
    fn a_source_that_searches_is_held_up_and_no_other() {
        let limits = limits();
        for _ in 0..40 {
            limits.found_nobody(source(1));
        }
        assert!(!limits.is_searching(source(1)));
        // A refill may slip in on a slow machine.
        for _ in 0..100 {
            limits.found_nobody(source(1));
        }
        assert!(limits.is_searching(source(1)));
        assert!(!limits.is_searching(source(2)));
    }

    #[test]
    fn a_newcomer_passes_when_guesses_from_a_few_sources_have_used_the_client_up() {
        let limits = limits();
        let client: ClientId = "a".parse().unwrap();
        let spent = (0..1_000)
            .filter(|n| limits.allow(&client, source(n % 8), Weight::ONE))
            .count();
        assert!((40..=60).contains(&spent), "{spent}");
        assert!(limits.allow(&client, source(9), Weight::ONE));
    }

    #[test]
    fn an_expensive_check_weighs_more_and_never_too_much_to_pass_at_all() {
        assert_eq!(Weight::of_bcrypt(4), Weight::ONE);
        assert_eq!(Weight::of_bcrypt(8), Weight::ONE);
        assert_eq!(Weight::of_bcrypt(10).0.get(), 4);
        assert_eq!(Weight::of_bcrypt(15).0.get(), 128);
        let limits = limits();
        let client: ClientId = "a".parse().unwrap();
        let heavy = Weight::of_bcrypt(15);
        assert!(limits.allow(&client, source(1), heavy));
        assert!(!limits.allow(&client, source(1), heavy));
        assert!(limits.allow(&client, source(2), heavy));
    }

    #[test]
    fn an_ipv6_network_is_one_source_and_mapped_addresses_are_ipv4() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
