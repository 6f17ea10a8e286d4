//! One check of a presented secret against one version: bcrypt first where the secret was imported as a bcrypt hash, then the MAC key.
//!
//! bcrypt is processor time by design, so it runs on blocking threads, only so many at once, and only so many callers wait for their turn: who comes
//! later hears "cannot verify now" instead of waiting behind guesses. The limits have been asked before this.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use keyturn_proto::{ClientId, PresentedSecret};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::Settings;
use super::cached::Entry;
use super::metrics::Counters;
use crate::mac::prehash::BcryptSetting;
use crate::mac::{MacError, MacKey};

/// Where bcrypt runs.
pub(super) struct Bcrypt {
    running: Arc<Semaphore>,
    waiting: AtomicUsize,
    max_waiting: usize,
}

/// Counts itself among those who wait.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Bcrypt {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            running: Arc::new(Semaphore::new(settings.bcrypt_at_once)),
            waiting: AtomicUsize::new(0),
            max_waiting: settings.bcrypt_waiting,
        }
    }

    /// The bcrypt text of a secret; `None` for one that cannot have been hashed.
    async fn apply(
        &self,
        setting: &Arc<BcryptSetting>,
        secret: &PresentedSecret,
    ) -> Result<Option<Zeroizing<String>>, MacError> {
        let unavailable = |cause| MacError::Unavailable {
            cause,
            retryable: true,
        };
        let place = Waiting(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.max_waiting {
            return Err(unavailable("too many bcrypt checks wait"));
        }
        let running = Arc::clone(&self.running).acquire_owned().await;
        let running = running.map_err(|_| unavailable("bcrypt has ended"))?;
        drop(place);
        let setting = Arc::clone(setting);
        let secret = Zeroizing::new(secret.expose().to_owned());
        // Held by the thread, not by the caller: one that goes away does not make room for more than may run.
        let work = tokio::task::spawn_blocking(move || {
            let _running = running;
            setting.apply(&secret)
        });
        work.await.map_err(|_| unavailable("bcrypt did not finish"))
    }
}

/// Whether `secret` is the one of `entry`.
pub(super) async fn check<M: MacKey>(
    mac: &M,
    bcrypt: &Bcrypt,
    counters: &Counters,
    client: &ClientId,
    entry: &Entry,
    secret: &PresentedSecret,
) -> Result<bool, MacError> {
    let text;
    let input = match &entry.prehash {
        None => secret.expose(),
        Some(setting) => {
            let started = Instant::now();
            let applied = bcrypt.apply(setting, secret).await?;
            counters
                .bcrypt_seconds
                .record(started.elapsed().as_secs_f64());
            let Some(applied) = applied else {
                return Ok(false);
            };
            text = applied;
            text.as_str()
        }
    };
    counters.mac_calls.increment(1);
    mac.verify(
        &entry.key_ref,
        client,
        &entry.version_id,
        input,
        &entry.hash,
    )
    .await
}
