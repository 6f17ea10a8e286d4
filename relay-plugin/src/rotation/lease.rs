//! Which instance acts: a lease document with a fencing number (architecture.md, "Many relays").
//!
//! What must always hold: an instance whose lease has run out by its own clock starts nothing new, and what it has under way is stopped by
//! the store, because the successor's fence differs.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use keyturn_proto::UnixMs;
use keyturn_store::store::{Lease, StoreError};
use keyturn_store::verifier::HEARTBEAT_EVERY;

use super::engine::Engine;
use super::failure::Failure;
use super::settings::Settings;

/// How often the holder renews: three times in a lease, and as often as the verifier expects its heartbeat however long that is.
pub(super) fn renewed_every(lease: Duration) -> Duration {
    (lease / 3).min(HEARTBEAT_EVERY)
}

/// The fencing number under which this instance acts, if it does.
#[derive(Default)]
pub struct Fence(Mutex<Option<Lease>>);

impl Fence {
    /// The number, while the lease lasts.
    #[must_use]
    pub fn current(&self, now: UnixMs) -> Option<u64> {
        self.lock()
            .as_ref()
            .filter(|lease| now < lease.until)
            .map(|lease| lease.fence)
    }

    fn set(&self, lease: Option<Lease>) {
        *self.lock() = lease;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// The fencing number to act under.
    ///
    /// # Errors
    /// [`Failure::Again`] without the lease.
    pub fn fenced(&self) -> Result<u64, Failure> {
        let fence = self.fence().current(self.now());
        fence.ok_or(Failure::Again("lease.not_held"))
    }

    /// Gives the lease up, so that another instance need not wait until it runs out. To be called when nothing is under way any more.
    pub async fn give_up_lease(&self) {
        if self.fence().current(self.now()).is_none() {
            return;
        }
        self.fence().set(None);
        let settings = self.settings();
        let given_up = self
            .store()
            .lease(Settings::LEASE, &settings.instance, 0, self.now());
        if let Err(error) = given_up.await {
            tracing::info!(%error, "the lease was not given up; it runs out");
        }
    }

    /// Takes or renews the lease. `Ok(true)` while it is ours, `Ok(false)` while somebody else holds it.
    ///
    /// # Errors
    /// [`StoreError`]; a lease that was ours stays ours until it runs out.
    pub async fn hold_lease(&self) -> Result<bool, StoreError> {
        let settings = self.settings();
        let taken = self
            .store()
            .lease(
                Settings::LEASE,
                &settings.instance,
                settings.lease_ms(),
                self.now(),
            )
            .await;
        match taken {
            Ok(lease) => {
                self.fence().set(Some(lease));
                Ok(true)
            }
            Err(StoreError::Conflict { why: _ }) => {
                self.fence().set(None);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use keyturn_store::verifier::watch::WatchSettings;

    use super::*;

    #[test]
    fn a_lease_of_any_length_is_renewed_in_time_for_itself_and_for_the_verifier() {
        let limit = WatchSettings::default().heartbeat_limit;
        for seconds in 2..=60 {
            let lease = Duration::from_secs(seconds);
            let every = renewed_every(lease);
            assert!(every * 3 <= lease, "{seconds} s");
            // Two renewals may be late or lost.
            assert!(every * 3 <= limit, "{seconds} s");
        }
        assert_eq!(renewed_every(Duration::from_secs(15)), HEARTBEAT_EVERY);
    }
}
