//! What a listener shows of itself.

use metrics::{Counter, Gauge, counter, gauge};

use super::watch::{Lost, Standing};
use crate::metrics::{
    VERIFY_CHANGES, VERIFY_HEARTBEAT_AGE, VERIFY_LISTENER_LOST, VERIFY_LISTENER_UP, VERIFY_MODE,
    VERIFY_TARGETS,
};

/// How clients are judged now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Clients that are listened to need no read.
    Live,
    /// Every client is read again after a few seconds.
    ReadThrough,
    /// Nothing can be read either: what is known serves until it is too old.
    Stale,
}

/// Handles, looked up once.
pub(crate) struct Gauges {
    up: Gauge,
    heartbeat_age: Gauge,
    targets: Gauge,
    modes: [(Mode, Gauge); 3],
    changes: Counter,
    lost: [(Lost, Counter); 4],
}

impl Gauges {
    pub(crate) fn bind() -> Self {
        let mode = |mode, name: &'static str| (mode, gauge!(VERIFY_MODE, "mode" => name));
        let lost = |why, name: &'static str| (why, counter!(VERIFY_LISTENER_LOST, "why" => name));
        Self {
            up: gauge!(VERIFY_LISTENER_UP),
            heartbeat_age: gauge!(VERIFY_HEARTBEAT_AGE),
            targets: gauge!(VERIFY_TARGETS),
            modes: [
                mode(Mode::Live, "live"),
                mode(Mode::ReadThrough, "read_through"),
                mode(Mode::Stale, "stale"),
            ],
            changes: counter!(VERIFY_CHANGES),
            lost: [
                lost(Lost::Ended, "ended"),
                lost(Lost::Slow, "slow"),
                lost(Lost::Deaf, "deaf"),
                lost(Lost::Refused, "refused"),
            ],
        }
    }

    pub(crate) fn show(&self, standing: &Standing, mode: Mode) {
        self.up.set(if standing.live { 1.0 } else { 0.0 });
        if let Some(silence) = standing.silence {
            self.heartbeat_age.set(silence.as_secs_f64());
        }
        // Exact up to 2^53 targets.
        self.targets.set(f64::from(
            u32::try_from(standing.targets).unwrap_or(u32::MAX),
        ));
        for (which, gauge) in &self.modes {
            gauge.set(if *which == mode { 1.0 } else { 0.0 });
        }
    }

    pub(crate) fn change(&self) {
        self.changes.increment(1);
    }

    pub(crate) fn lost(&self, why: Lost) {
        for (which, counter) in &self.lost {
            if *which == why {
                counter.increment(1);
            }
        }
    }
}
