//! Firestore as the verifier's source: one document read when a client is asked about for the first time, and a listener that says what has changed since.
//! Needs nothing but the right to read.
//!
//! What must always hold:
//! - what is believed, and for how long, is decided by [`crate::verifier::watch::Watch`], which is pure; here is only what carries it out;
//! - every read has a deadline; a connection that does not answer is replaced, the listener's and the reads' apart;
//! - no document value reaches a log.
//!
//! The client crate's own listener is not used: it reconnects by itself and never says so, and what it does not say cannot be acted upon. This one is the
//! plain `Listen` call on a connection of its own.

mod driver;
mod link;
mod stream;
mod wire;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use keyturn_proto::{ClientId, UnixMs};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::link::ReadLink;
use super::open::OpenError;
use super::settings::FirestoreSettings;
use crate::verifier::watch::{Standing, Watch, WatchSettings};
use crate::verifier::{Book, ClientSnapshot, SnapshotSource, SourceError};

/// Clients that were asked about and not yet listened to; more than this at once are listened to when they are asked about again.
const WANTED: usize = 4096;

/// The source. Dropping it ends the listener.
pub struct FirestoreSnapshots {
    shared: Arc<Shared>,
    runtime: Handle,
    wanted: Mutex<Option<mpsc::Receiver<ClientId>>>,
    listener: OnceLock<JoinHandle<()>>,
}

struct Shared {
    settings: FirestoreSettings,
    reads: ReadLink,
    watch: Mutex<Watch>,
    wants: mpsc::Sender<ClientId>,
    clock: Clock,
}

/// The time, as the caller of the verifier tells it.
pub type Clock = Arc<dyn Fn() -> UnixMs + Send + Sync>;

impl FirestoreSnapshots {
    /// Connects for reading. The listener begins when a verifier takes the source. To be called on the runtime that it will run on.
    ///
    /// `watch.heartbeat_limit` must be the verifier's own.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(
        settings: FirestoreSettings,
        watch: WatchSettings,
        clock: Clock,
    ) -> Result<Self, OpenError> {
        let (wants, wanted) = mpsc::channel(WANTED);
        Ok(Self {
            shared: Arc::new(Shared {
                reads: ReadLink::open(&settings).await?,
                settings,
                watch: Mutex::new(Watch::new(watch)),
                wants,
                clock,
            }),
            runtime: Handle::current(),
            wanted: Mutex::new(Some(wanted)),
            listener: OnceLock::new(),
        })
    }

    /// How things stand with the listener.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let now = self.shared.now();
        self.shared.watch().standing(now)
    }
}

impl Drop for FirestoreSnapshots {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.get() {
            listener.abort();
        }
    }
}

impl Shared {
    fn now(&self) -> UnixMs {
        (self.clock)()
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        // Nothing that can panic runs under the lock.
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl SnapshotSource for FirestoreSnapshots {
    async fn snapshot(&self, client: &ClientId) -> Result<Option<ClientSnapshot>, SourceError> {
        // Before the read: if listening ends meanwhile, this coverage ends with it.
        let coverage = self.shared.watch().coverage(client);
        let read = self.shared.reads.client(client).await;
        let Some(snapshot) = read? else {
            return Ok(None);
        };
        if coverage.is_none() {
            // Full means busy: it will be asked about again.
            let _later = self.shared.wants.try_send(client.clone());
        }
        Ok(Some(ClientSnapshot {
            coverage,
            ..snapshot
        }))
    }

    fn attach(&self, book: &Arc<Book>) {
        let wanted = self
            .wanted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(wanted) = wanted else {
            tracing::error!(
                "a source of snapshots serves one verifier; the second one hears of no change"
            );
            return;
        };
        let driver = driver::run(Arc::clone(&self.shared), Arc::clone(book), wanted);
        // Taken once above, so this is the first.
        let _first = self.listener.set(self.runtime.spawn(driver));
    }
}

/// Never longer than this between two looks at the machine, so that gauges move.
const LOOK: Duration = Duration::from_secs(1);
