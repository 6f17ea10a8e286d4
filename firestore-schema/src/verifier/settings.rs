//! Bounds and lifetimes of a verifier.

use std::time::Duration;

use super::{Rate, VerifierError};

/// protocol.md §7: pointers are cached for at most this long.
const MAX_TTL: Duration = Duration::from_secs(60);

/// Bounds and lifetimes.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a client's snapshot is used without asking again, at most 60 s. Whoever calls [`Verifier::invalidate`](super::Verifier::invalidate) from a listener can
    /// afford the maximum.
    pub snapshot_ttl: Duration,
    /// How old a snapshot may get while the source does not answer; then [`VerifyError::Unavailable`](super::VerifyError::Unavailable).
    pub max_stale: Duration,
    /// Clients kept in memory.
    pub max_clients: u64,
    /// How long a right MAC is remembered.
    pub memo_ttl: Duration,
    /// How many right MACs are remembered.
    pub max_memos: u64,
    /// MAC verifications for one client.
    pub mac_per_client: Rate,
    /// MAC verifications for one source (an IPv4 address or an IPv6 /64).
    pub mac_per_source: Rate,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            snapshot_ttl: Duration::from_secs(5),
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
        }
    }
}

impl Settings {
    /// What can be judged before anything is built.
    pub(super) fn check(&self) -> Result<(), VerifierError> {
        if self.snapshot_ttl > MAX_TTL {
            return Err(VerifierError::Setting {
                setting: "snapshot_ttl",
                expected: "at most 60 s",
            });
        }
        if self.max_stale < self.snapshot_ttl {
            return Err(VerifierError::Setting {
                setting: "max_stale",
                expected: "no shorter than snapshot_ttl",
            });
        }
        Ok(())
    }
}
