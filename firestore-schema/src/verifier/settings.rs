//! Bounds and lifetimes of a verifier.

use std::time::Duration;

use super::{Rate, VerifierError};

/// protocol.md §7: pointers are cached for at most this long.
const MAX_TTL: Duration = Duration::from_secs(60);

/// How often the relay that acts writes the heartbeat, which is its lease `rotation`, at the least: whatever it is configured to.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(5);
/// Renewals that may fail to come before a listener is doubted. One is nothing; that three in a row are late by chance is unlikely, and what is left over is room for
/// a clock that differs from Firestore's.
const MISSED: u32 = 3;
/// The limit that follows from both.
pub(super) const HEARTBEAT_LIMIT: Duration = HEARTBEAT_EVERY.saturating_mul(MISSED);

/// Bounds and lifetimes.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a client's snapshot is used without asking again, at most 60 s. Whoever calls [`Verifier::invalidate`](super::Verifier::invalidate) from a listener can
    /// afford the maximum.
    pub snapshot_ttl: Duration,
    /// How long a listener's silence is no reason to ask again, at most 60 s. It is measured from the moment that Firestore names to this machine's clock, so the
    /// difference between the two comes off it: with the default a clock may be 5 s ahead and one renewal still fail to come. The relay's clock does not matter.
    pub heartbeat_limit: Duration,
    /// How old a snapshot may get while the source does not answer; then [`VerifyError::Unavailable`](super::VerifyError::Unavailable).
    pub max_stale: Duration,
    /// Clients kept in memory, and as many ids that are no client's.
    pub max_clients: u64,
    /// How long a right MAC is remembered.
    pub memo_ttl: Duration,
    /// How many right MACs are remembered.
    pub max_memos: u64,
    /// MAC verifications for one client; a quarter of it for one source at that client. A bcrypt check counts for more, by its cost: 4 at
    /// cost 10, 16 at cost 12.
    pub mac_per_client: Rate,
    /// MAC verifications for one source (an IPv4 address or an IPv6 /64), over all clients but those that have verified from there.
    pub mac_per_source: Rate,
    /// Reads for one source that find that there is no such client. One that asks for more finds nobody who is not known already, for a moment.
    pub unknown_per_source: Rate,
    /// bcrypt checks that run at the same time, at least 1.
    pub bcrypt_at_once: usize,
    /// Callers that wait for bcrypt; the next one hears [`VerifyError::Unavailable`](super::VerifyError::Unavailable).
    pub bcrypt_waiting: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            snapshot_ttl: Duration::from_secs(5),
            heartbeat_limit: HEARTBEAT_LIMIT,
            max_stale: Duration::from_secs(60),
            max_clients: 100_000,
            memo_ttl: Duration::from_secs(3600),
            max_memos: 200_000,
            mac_per_client: Rate {
                per_second: 20,
                burst: 100,
            },
            mac_per_source: Rate {
                per_second: 20,
                burst: 100,
            },
            unknown_per_source: Rate {
                per_second: 20,
                burst: 200,
            },
            bcrypt_at_once: std::thread::available_parallelism()
                .map_or(1, |cores| cores.get().div_ceil(2)),
            bcrypt_waiting: 64,
        }
    }
}

impl Settings {
    /// What can be judged before anything is built.
    pub(super) fn check(&self) -> Result<(), VerifierError> {
        let rules = [
            ("snapshot_ttl", "at most 60 s", self.snapshot_ttl <= MAX_TTL),
            (
                "heartbeat_limit",
                "at most 60 s",
                self.heartbeat_limit <= MAX_TTL,
            ),
            (
                "max_stale",
                "no shorter than snapshot_ttl and heartbeat_limit",
                self.max_stale >= self.snapshot_ttl && self.max_stale >= self.heartbeat_limit,
            ),
            ("bcrypt_at_once", "at least 1", self.bcrypt_at_once >= 1),
        ];
        match rules.into_iter().find(|(_, _, kept)| !kept) {
            Some((setting, expected, _)) => Err(VerifierError::Setting { setting, expected }),
            None => Ok(()),
        }
    }
}
