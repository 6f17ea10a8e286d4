//! Counters without values: no client, no version, no source in a label.

use metrics::{Counter, Histogram, counter, histogram};

use crate::metrics::{
    VERIFY, VERIFY_BCRYPT_SECONDS, VERIFY_LIMITED, VERIFY_MAC_CALLS, VERIFY_SNAPSHOT_READS,
};

use super::{Verified, VerifyError, Which};

/// Handles, looked up once: the hot path only adds.
pub(super) struct Counters {
    current: Counter,
    previous: Counter,
    refused: Counter,
    unavailable: Counter,
    /// MAC verifications asked for.
    pub(super) mac_calls: Counter,
    /// bcrypt checks, the wait for their turn included.
    pub(super) bcrypt_seconds: Histogram,
    /// Verifications refused by a limit.
    pub(super) limited: Counter,
    /// Snapshots read from the source.
    pub(super) reads: Counter,
}

impl Counters {
    pub(super) fn bind() -> Self {
        let result = |name: &'static str| counter!(VERIFY, "result" => name);
        Self {
            current: result("current"),
            previous: result("previous"),
            refused: result("refused"),
            unavailable: result("unavailable"),
            mac_calls: counter!(VERIFY_MAC_CALLS),
            bcrypt_seconds: histogram!(VERIFY_BCRYPT_SECONDS),
            limited: counter!(VERIFY_LIMITED),
            reads: counter!(VERIFY_SNAPSHOT_READS),
        }
    }

    pub(super) fn result(&self, result: &Result<Verified, VerifyError>) {
        match result {
            Ok(verified) => match verified.which {
                Which::Current => &self.current,
                Which::Previous => &self.previous,
            },
            Err(VerifyError::Refused) => &self.refused,
            Err(VerifyError::Unavailable { .. }) => &self.unavailable,
        }
        .increment(1);
    }
}
