//! How many calls are under way: a bounded number, in the order they came, and none while the circuit is open.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use super::circuit::{Circuit, Leave};
use super::transport::{Answer, Failure};
use crate::devices::issuer::Reason;

pub(super) struct Gate {
    permits: Semaphore,
    circuit: Mutex<Circuit>,
    max_wait: Duration,
}

/// Leave for one exchange. What became of it is reported; one that is dropped without a report was given up by somebody who had waited too long, which
/// speaks against Vault as much as a timeout of ours.
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    _permit: SemaphorePermit<'a>,
    tries: bool,
    reported: bool,
}

impl Gate {
    pub(super) fn new(max_in_flight: usize, max_wait: Duration) -> Self {
        Self {
            permits: Semaphore::new(max_in_flight.clamp(1, Semaphore::MAX_PERMITS)),
            circuit: Mutex::default(),
            max_wait,
        }
    }

    /// Waits for its turn: the semaphore serves in the order of asking.
    pub(super) async fn enter(&self) -> Result<Pass<'_>, Failure> {
        if let Some(pause) = self.circuit().pause(Instant::now()) {
            return Err(Failure::retryable(Reason::CircuitOpen, pause));
        }
        let busy = Failure::retryable(Reason::Busy, self.max_wait);
        let permit = match timeout(self.max_wait, self.permits.acquire()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) | Err(_) => return Err(busy),
        };
        let leave = self.circuit().ask(Instant::now());
        match leave {
            Leave::Go | Leave::Try => Ok(Pass {
                gate: self,
                _permit: permit,
                tries: leave == Leave::Try,
                reported: false,
            }),
            Leave::Wait(pause) => Err(Failure::retryable(Reason::CircuitOpen, pause)),
        }
    }

    fn circuit(&self) -> MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass<'_> {
    pub(super) fn report(mut self, outcome: &Result<Answer, Failure>) {
        let failure = match outcome {
            Ok(answer) => answer.failure(),
            Err(failure) => Some(*failure),
        };
        // A plain 500 is also how servers say that an accessor is gone.
        let plain = outcome
            .as_ref()
            .is_ok_and(|answer| answer.status.as_u16() == 500);
        let bad = failure.is_some_and(|failure| failure.of_the_server()) && !plain;
        self.reported = true;
        let mut circuit = self.gate.circuit();
        if bad {
            circuit.bad(self.tries, Instant::now());
        } else if self.tries || !plain {
            circuit.good();
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if !self.reported {
            self.gate.circuit().bad(self.tries, Instant::now());
        }
    }
}
