//! What the engine is told by the configuration. Plain values, already checked.

use std::time::Duration;

/// Everything the engine needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of this instance in leases: stable over restarts, so that a restart does not wait for its own lease to run out.
    pub instance: String,
    /// Without a quorum by then a rotation expires (protocol.md §3).
    pub ack_deadline: Duration,
    /// Acks needed unless the client says otherwise.
    pub quorum: u32,
    /// At least one counted ack must be proven.
    pub require_proven: bool,
    /// Whether the requester's own ack counts.
    pub requester_counts: bool,
    /// How long ciphertext is kept after the end of its rotation.
    pub retention: Duration,
    /// How long the id of a deleted ciphertext is kept, so that other relays delete theirs; `None` when there are none.
    pub keep_withdrawn: Option<Duration>,
    /// How long the lease is taken for; renewed at a third of it.
    pub lease: Duration,
    /// How often what lies in this process is looked through, and the longest pause after something failed.
    pub sweep: Duration,
    /// How often the store is asked for work that nobody announced and no known deadline brings: what other processes (the operator's commands, another
    /// relay) have left to do. Each look costs a few reads.
    pub look: Duration,
    /// First pause after something failed that will pass; doubles up to `sweep`.
    pub retry: Duration,
}

impl Settings {
    /// The lease that decides which instance acts.
    pub const LEASE: &'static str = "rotation";

    /// `retention` in milliseconds.
    #[must_use]
    pub fn retention_ms(&self) -> u64 {
        u64::try_from(self.retention.as_millis()).unwrap_or(u64::MAX)
    }

    /// `lease` in milliseconds.
    #[must_use]
    pub fn lease_ms(&self) -> u64 {
        u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX)
    }
}
