//! Leaves a service alone that keeps failing: callers get their answer at once, and one at a time finds out whether it is back.
//!
//! What must always hold: whoever was let in reports how it went, or gives its place back by being dropped; while the breaker is not closed, only the
//! one probe under way can change that.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// When to open, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Failures in a row that open it.
    pub failures: u32,
    /// How long it stays open the first time; doubled with every probe that fails.
    pub pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            failures: 8,
            pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(30),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed {
        failures: u32,
    },
    Open {
        until: Instant,
        pause: Duration,
    },
    /// One caller is finding out.
    Probing {
        pause: Duration,
    },
}

/// See the module.
pub(super) struct Breaker {
    settings: Settings,
    state: Mutex<State>,
}

/// The right to ask once.
pub(super) struct Pass<'a> {
    breaker: &'a Breaker,
    probe: bool,
    reported: bool,
}

/// What a metric shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Closed,
    HalfOpen,
    Open,
}

impl Breaker {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            state: Mutex::new(State::Closed { failures: 0 }),
        }
    }

    /// Lets a caller ask, or not.
    pub(super) fn admit(&self, now: Instant) -> Option<Pass<'_>> {
        let mut state = self.lock();
        let probe = match *state {
            State::Closed { .. } => false,
            State::Open { until, pause } if now >= until => {
                *state = State::Probing { pause };
                true
            }
            State::Open { .. } | State::Probing { .. } => return None,
        };
        Some(Pass {
            breaker: self,
            probe,
            reported: false,
        })
    }

    pub(super) fn shown(&self) -> Shown {
        match *self.lock() {
            State::Closed { .. } => Shown::Closed,
            State::Open { .. } => Shown::Open,
            State::Probing { .. } => Shown::HalfOpen,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is one value, whole whenever the lock is free.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass<'_> {
    /// The service answered, whatever it said.
    pub(super) fn answered(mut self) {
        self.reported = true;
        let mut state = self.breaker.lock();
        match *state {
            State::Probing { .. } if self.probe => *state = State::Closed { failures: 0 },
            State::Closed { .. } => *state = State::Closed { failures: 0 },
            // Asked before it opened: says nothing about now.
            State::Open { .. } | State::Probing { .. } => {}
        }
    }

    /// It did not, or not with sense.
    pub(super) fn failed(mut self, now: Instant) {
        self.reported = true;
        let Settings {
            failures: limit,
            pause: first,
            longest_pause,
        } = self.breaker.settings;
        let mut state = self.breaker.lock();
        match *state {
            State::Closed { failures } if failures + 1 < limit => {
                *state = State::Closed {
                    failures: failures + 1,
                };
            }
            State::Closed { .. } => {
                *state = State::Open {
                    until: now + first,
                    pause: first,
                };
            }
            State::Probing { pause } if self.probe => {
                let pause = (pause * 2).min(longest_pause);
                *state = State::Open {
                    until: now + pause,
                    pause,
                };
            }
            State::Open { .. } | State::Probing { .. } => {}
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.reported || !self.probe {
            return;
        }
        // The caller went away without an answer: the next one may ask at once.
        let mut state = self.breaker.lock();
        if let State::Probing { pause } = *state {
            *state = State::Open {
                until: Instant::now(),
                pause,
            };
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        failures: 3,
        pause: Duration::from_secs(1),
        longest_pause: Duration::from_secs(3),
    };

    fn opened(start: Instant) -> Breaker {
        let breaker = Breaker::new(SETTINGS);
        for _ in 0..SETTINGS.failures {
            breaker.admit(start).unwrap().failed(start);
        }
        assert_eq!(breaker.shown(), Shown::Open);
        breaker
    }

    #[test]
    fn it_opens_after_failures_in_a_row_only() {
        let (breaker, now) = (Breaker::new(SETTINGS), Instant::now());
        for _ in 0..10 {
            breaker.admit(now).unwrap().failed(now);
            breaker.admit(now).unwrap().failed(now);
            breaker.admit(now).unwrap().answered();
        }
        assert_eq!(breaker.shown(), Shown::Closed);
        for _ in 0..3 {
            breaker.admit(now).unwrap().failed(now);
        }
        assert_eq!(breaker.shown(), Shown::Open);
        assert!(breaker.admit(now).is_none());
    }

    #[test]
    fn one_probe_at_a_time_closes_it_or_keeps_it_open_for_longer() {
        let start = Instant::now();
        let breaker = opened(start);
        let after = |seconds| start + Duration::from_secs(seconds);
        let probe = breaker.admit(after(1)).unwrap();
        assert_eq!(breaker.shown(), Shown::HalfOpen);
        assert!(breaker.admit(after(1)).is_none(), "one at a time");
        probe.failed(after(1));
        assert!(breaker.admit(after(2)).is_none(), "two seconds now");
        breaker.admit(after(3)).unwrap().failed(after(3));
        assert!(breaker.admit(after(5)).is_none(), "the longest pause");
        breaker.admit(after(6)).unwrap().answered();
        assert_eq!(breaker.shown(), Shown::Closed);
        let both = [breaker.admit(after(6)), breaker.admit(after(6))];
        assert!(both.iter().all(Option::is_some));
    }

    #[test]
    fn a_probe_that_goes_away_leaves_its_place_to_the_next() {
        let start = Instant::now();
        let breaker = opened(start);
        let later = start + Duration::from_secs(1);
        drop(breaker.admit(later).unwrap());
        assert_eq!(breaker.shown(), Shown::Open);
        let much_later = Instant::now() + Duration::from_secs(1);
        assert!(breaker.admit(much_later).is_some());
    }

    #[test]
    fn what_was_asked_before_it_opened_changes_nothing_afterwards() {
        let start = Instant::now();
        let breaker = Breaker::new(SETTINGS);
        let early = [breaker.admit(start).unwrap(), breaker.admit(start).unwrap()];
        for _ in 0..3 {
            breaker.admit(start).unwrap().failed(start);
        }
        let [one, two] = early;
        one.answered();
        two.failed(start + Duration::from_secs(60));
        assert_eq!(breaker.shown(), Shown::Open);
        assert!(breaker.admit(start + Duration::from_secs(1)).is_some());
    }
}
