//! The circuit breaker: a Vault that fails again and again is left alone for a while, so that calls fail at once and its recovery is not run over.
//!
//! Pure; time is told. After [`THRESHOLD`] failures in a row it opens for a pause that doubles up to [`MAX_PAUSE`]; then one call may try, the others go on waiting
//! for what becomes of it.

use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row that open it.
pub(super) const THRESHOLD: u32 = 5;
/// The first pause.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct Circuit {
    failures: u32,
    /// Pauses in a row, the present one included.
    pauses: u32,
    open_until: Option<Instant>,
    trying: bool,
}

/// Whether a call may be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Leave {
    Go,
    /// As the one that tries.
    Try,
    /// Not before this is over.
    Wait(Duration),
}

impl Circuit {
    /// How long nobody may call; asks for no leave.
    pub(super) fn pause(&self, now: Instant) -> Option<Duration> {
        let until = self.open_until?;
        (now < until).then(|| until - now)
    }

    pub(super) fn ask(&mut self, now: Instant) -> Leave {
        match self.open_until {
            None => Leave::Go,
            Some(until) if now < until => Leave::Wait(until - now),
            Some(_) if self.trying => Leave::Wait(FIRST_PAUSE),
            Some(_) => {
                self.trying = true;
                Leave::Try
            }
        }
    }

    /// Vault answered for itself, whatever it thinks of the request.
    pub(super) fn good(&mut self) {
        *self = Self::default();
    }

    pub(super) fn bad(&mut self, tried: bool, now: Instant) {
        // A call that was under way when it opened says nothing new.
        if self.open_until.is_some() && !tried {
            return;
        }
        self.failures += 1;
        if tried || self.failures >= THRESHOLD {
            let pause = FIRST_PAUSE * 2_u32.saturating_pow(self.pauses.min(16));
            self.pauses += 1;
            self.failures = 0;
            self.open_until = Some(now + pause.min(MAX_PAUSE));
            self.trying = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(now: Instant) -> Circuit {
        let mut circuit = Circuit::default();
        for _ in 0..THRESHOLD {
            assert_eq!(circuit.ask(now), Leave::Go);
            circuit.bad(false, now);
        }
        circuit
    }

    #[test]
    fn opens_after_failures_in_a_row_only() {
        let now = Instant::now();
        let mut circuit = Circuit::default();
        for _ in 0..3 {
            for _ in 1..THRESHOLD {
                circuit.bad(false, now);
            }
            circuit.good();
        }
        assert_eq!(circuit.ask(now), Leave::Go);
        assert_eq!(opened(now).ask(now), Leave::Wait(FIRST_PAUSE));
    }

    #[test]
    fn one_call_tries_and_closes_it() {
        let now = Instant::now();
        let mut circuit = opened(now);
        let later = now + FIRST_PAUSE;
        assert_eq!(circuit.ask(later), Leave::Try);
        assert_eq!(circuit.ask(later), Leave::Wait(FIRST_PAUSE));
        circuit.good();
        assert_eq!(circuit.ask(later), Leave::Go);
    }

    #[test]
    fn the_pause_doubles_up_to_its_end() {
        let mut now = Instant::now();
        let mut circuit = opened(now);
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(circuit.ask(now), Leave::Wait(Duration::from_secs(seconds)));
            // Stragglers change nothing.
            circuit.bad(false, now);
            now += Duration::from_secs(seconds);
            assert_eq!(circuit.ask(now), Leave::Try);
            circuit.bad(true, now);
        }
    }
}
