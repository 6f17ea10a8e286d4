//! The caller's time, going on while something is waited for.
//!
//! A verification is told the time once, and judges by it as long as it waits for nobody: that is the hot path, which reads no clock. What was waited
//! for took time, and whatever is judged after it is judged as of then.

use std::time::Instant;

use keyturn_proto::UnixMs;

/// The time as it was told, and how long ago that was.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    told: UnixMs,
    at: Instant,
}

impl Clock {
    /// It is `now`.
    pub(super) fn set(now: UnixMs) -> Self {
        Self {
            told: now,
            at: Instant::now(),
        }
    }

    /// The time as it was told: what was found out since is no older than that.
    pub(super) const fn told(&self) -> UnixMs {
        self.told
    }

    pub(super) fn now(&self) -> UnixMs {
        self.told.plus(self.at.elapsed())
    }
}
