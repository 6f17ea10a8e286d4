//! What was asked of Firestore: the numbers that Google bills, and how often something had to be done again.
//!
//! Every store counts for itself (for tests and the cost benchmark) and for the process (metrics).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::fault::Cause;
use crate::metrics::{
    FIRESTORE_COMMITS, FIRESTORE_READS, FIRESTORE_RETRIES, FIRESTORE_SECONDS, FIRESTORE_WRITES,
};

/// What a store has asked for since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Commits that were sent, repeats included.
    pub commits: u64,
    /// Documents written or deleted by commits that were answered with success.
    pub writes: u64,
    /// Documents read; a missing one and an empty result count as one, as Google counts them.
    pub reads: u64,
    /// Calls, and whole readings, that were done again.
    pub retries: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    commits: AtomicU64,
    writes: AtomicU64,
    reads: AtomicU64,
    retries: AtomicU64,
}

impl Counters {
    pub(super) fn commit(&self) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        metrics::counter!(FIRESTORE_COMMITS).increment(1);
    }

    pub(super) fn writes(&self, documents: usize) {
        let documents = documents as u64;
        self.writes.fetch_add(documents, Ordering::Relaxed);
        metrics::counter!(FIRESTORE_WRITES).increment(documents);
    }

    pub(super) fn reads(&self, op: &'static str, documents: usize) {
        let documents = documents as u64;
        self.reads.fetch_add(documents, Ordering::Relaxed);
        metrics::counter!(FIRESTORE_READS, "op" => op).increment(documents);
    }

    pub(super) fn retry(&self, cause: Cause) {
        self.retries.fetch_add(1, Ordering::Relaxed);
        metrics::counter!(FIRESTORE_RETRIES, "cause" => cause.label()).increment(1);
    }

    pub(super) fn so_far(&self) -> Cost {
        Cost {
            commits: self.commits.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            reads: self.reads.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
        }
    }
}

/// One attempt of one call took this long.
pub(super) fn took(call: &'static str, time: Duration) {
    metrics::histogram!(FIRESTORE_SECONDS, "call" => call).record(time.as_secs_f64());
}
