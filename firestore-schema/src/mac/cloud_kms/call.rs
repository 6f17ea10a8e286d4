//! One operation: attempts, pauses, and the deadline over all of them.
//!
//! What must always hold: an operation ends within `timeout`, whatever the service, its credentials or the network do; each attempt is counted once, timed,
//! and reported to the breaker.

use std::time::Instant;

use google_cloud_kms_v1::client::KeyManagementService;
use tokio::time::{Instant as Deadline, sleep, timeout_at};

use super::CloudKmsKey;
use super::breaker::Shown;
use super::client::silent;
use super::fault::{Class, Fault, Op};
use crate::metrics::{KMS_BREAKER, KMS_CALLS, KMS_SECONDS};

impl CloudKmsKey {
    /// Tries `attempt` until it succeeds, cannot, or time is up. Whatever it asks for must be safe to ask twice.
    pub(super) async fn call<T, F, A>(&self, op: Op, attempt: F) -> Result<T, Fault>
    where
        F: Fn(KeyManagementService) -> A,
        A: Future<Output = Result<T, Fault>>,
    {
        let deadline = Deadline::now() + self.settings.timeout;
        let mut last = None;
        for tried in 0..self.settings.attempts.max(1) {
            let fault = match self.attempt(op, deadline, &attempt).await {
                Ok(found) => return Ok(found),
                // What opened the breaker says more than that it is open.
                Err(fault) if fault.class == Class::BreakerOpen => {
                    return Err(last.unwrap_or(fault));
                }
                Err(fault) if !fault.retryable => return Err(fault),
                Err(fault) => fault,
            };
            last = Some(fault);
            // Whoever wants more than we have is not asked again; nor may the sum overflow.
            let wanted = fault.retry_after.unwrap_or_default();
            let pause = self.pause(tried).max(wanted.min(self.settings.timeout));
            let last_attempt = tried + 1 == self.settings.attempts.max(1);
            if last_attempt || Deadline::now() + pause >= deadline {
                break;
            }
            sleep(pause).await;
        }
        Err(last.unwrap_or(Fault::new(Class::Timeout)))
    }

    async fn attempt<T, F, A>(&self, op: Op, deadline: Deadline, attempt: &F) -> Result<T, Fault>
    where
        F: Fn(KeyManagementService) -> A,
        A: Future<Output = Result<T, Fault>>,
    {
        let Some(pass) = self.breaker.admit(Instant::now()) else {
            counted(op, Class::BreakerOpen.word());
            return Err(Fault::new(Class::BreakerOpen));
        };
        self.show_breaker();
        let started = Deadline::now();
        let until = deadline.min(started + self.settings.attempt_timeout);
        let asked = async { attempt(self.client.get().await?).await };
        let result = timeout_at(until, silent(asked))
            .await
            .unwrap_or(Err(Fault::new(Class::Timeout)));
        metrics::histogram!(KMS_SECONDS, "op" => op.word()).record(started.elapsed().as_secs_f64());
        match &result {
            Err(fault) if fault.counts_against_the_service() => pass.failed(Instant::now()),
            _ => pass.answered(),
        }
        self.show_breaker();
        match &result {
            Ok(_) => counted(op, "ok"),
            Err(fault) => counted(op, fault.class.word()),
        }
        result
    }

    /// Doubled each time, then shortened at random by up to a half, so that many callers do not come back together.
    fn pause(&self, tried: u32) -> std::time::Duration {
        let full = self.settings.first_pause * 2u32.saturating_pow(tried.min(10));
        // Without randomness the pause is merely longer.
        let random = getrandom::u32().unwrap_or(u32::MAX);
        full.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
    }

    fn show_breaker(&self) {
        let value = match self.breaker.shown() {
            Shown::Closed => 0.0,
            Shown::HalfOpen => 1.0,
            Shown::Open => 2.0,
        };
        metrics::gauge!(KMS_BREAKER).set(value);
    }
}

fn counted(op: Op, result: &'static str) {
    metrics::counter!(KMS_CALLS, "op" => op.word(), "result" => result).increment(1);
}
