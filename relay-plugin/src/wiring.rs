//! The one place where adapters are chosen: from the configuration to a running core.
//!
//! Everything that can be wrong with a key, a file or a database is found here, before the first event is taken in.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use keyturn_mls::{Member, MemberConfig, StorageKey};
use keyturn_proto::nonce::Challenge;
use keyturn_proto::{Npub, UnixMs};
use keyturn_store::mac::MacKey;
use keyturn_store::mac::local::LocalMacKey;
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::Store;
use nostr::Keys as NostrKeys;
use tokio::time::Instant;

use crate::admission::{self, Admission};
use crate::config::{self, ConfigError, ValidatedConfig};
use crate::core::{self, CoreHandle, Deps};
use crate::delivery::member_thread::MemberThread;
use crate::delivery::service_member::{Parts, ServiceMember};
use crate::rotation::Settings;
use crate::rotation::ports::Clock;
use crate::service::{
    ChallengeIssuer, ChallengeUnavailable, Ports, Service, ServiceFactory, StartError,
};

/// How long another instance waits before it takes over from one that went silent.
const LEASE: Duration = Duration::from_secs(15);
/// How often the store is asked for work that nobody announced.
const SWEEP: Duration = Duration::from_secs(5);
/// First pause after something failed that will pass.
const RETRY: Duration = Duration::from_millis(250);
/// How often refusals that were only counted are written down.
const TRAIL: Duration = Duration::from_secs(10);
/// How often the readiness of store and issuer is asked.
const PROBE: Duration = Duration::from_secs(10);

/// Opens the store that the configuration names. The command line uses it as well.
///
/// # Errors
/// [`StartError`] naming the part and what to mend.
pub fn open_store(config: &config::Store) -> Result<Arc<dyn Store>, StartError> {
    match config {
        config::Store::Sqlite { path } => {
            Ok(Arc::new(SqliteStore::open(path).map_err(wrong("store"))?))
        }
    }
}

/// Opens the MAC key that the configuration names.
///
/// # Errors
/// [`StartError`] naming the part and what to mend.
pub fn open_mac(config: &config::Mac) -> Result<Arc<dyn MacKey>, StartError> {
    match config {
        config::Mac::Local { key_file } => Ok(Arc::new(
            LocalMacKey::open(&[key_file]).map_err(wrong("mac"))?,
        )),
    }
}

/// Reads the relay's own Nostr key.
///
/// # Errors
/// [`StartError`] naming the key; never its value.
pub fn nostr_keys(config: &config::Mls) -> Result<NostrKeys, StartError> {
    let text = config.nostr_secret_key.text().map_err(wrong("mls"))?;
    NostrKeys::parse(text.expose()).map_err(|_| StartError {
        part: "mls",
        reason: "mls.nostr_secret_key: expected an nsec or 64 hex digits of a valid key".to_owned(),
    })
}

fn wrong<E: std::fmt::Display>(part: &'static str) -> impl Fn(E) -> StartError {
    move |error| StartError {
        part,
        reason: error.to_string(),
    }
}

/// The system's clock.
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> UnixMs {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        UnixMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    async fn sleep_until(&self, at: UnixMs) {
        tokio::time::sleep(at.since(self.now())).await;
    }
}

/// Makes the production core.
pub struct Production;

#[async_trait]
impl ServiceFactory for Production {
    async fn start(self: Box<Self>, ports: Ports) -> Result<Arc<dyn Service>, StartError> {
        let Ports {
            config,
            inbound,
            relay,
            served,
            readiness,
            stopping,
        } = ports;
        let store_ready = readiness.register("store");
        let issuer_ready = readiness.register("issuer");

        let store = open_store(&config.store)?;
        store.ping().await.map_err(wrong("store"))?;
        store_ready.ready();
        let mac = open_mac(&config.mac)?;
        let admission = Arc::new(admission(&config, Arc::clone(&store))?);

        let keys = nostr_keys(&config.mls)?;
        let identity = Npub::from_bytes(keys.public_key().to_bytes());
        let member = open_member(&config.mls, keys)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let service = ServiceMember::new(Parts {
            member: MemberThread::spawn(member).map_err(wrong("mls"))?,
            identity,
            store: Arc::clone(&store),
            relay: Arc::clone(&relay),
            served,
            clock: Arc::clone(&clock),
            relays: config.mls.relays.clone(),
        });
        let core = core::start(Deps {
            store: Arc::clone(&store),
            mac,
            gate: Arc::<Admission>::clone(&admission),
            relay,
            service,
            clock: Arc::clone(&clock),
            settings: settings(&config, identity),
            inbound,
        });
        if !core.ready().await {
            return Err(StartError {
                part: "core",
                reason: "it ended while it started; see the log".to_owned(),
            });
        }

        let watching = Arc::clone(&admission);
        tokio::spawn(async move {
            let mut trail = tokio::time::interval(TRAIL);
            let mut probe = tokio::time::interval(PROBE);
            loop {
                tokio::select! {
                    () = stopping.cancelled() => return,
                    _ = trail.tick() => watching.flush_trail(clock.now(), false).await,
                    _ = probe.tick() => {
                        match store.ping().await {
                            Ok(()) => store_ready.ready(),
                            Err(_) => store_ready.not_ready("the store does not answer"),
                        }
                        match watching.probe_issuer(clock.now()).await {
                            Ok(()) => issuer_ready.ready(),
                            Err(_) => issuer_ready.not_ready("the issuer's keys cannot be had"),
                        }
                    }
                }
            }
        });
        Ok(Arc::new(Running {
            core: tokio::sync::Mutex::new(Some(core)),
            admission,
        }))
    }
}

fn admission(config: &ValidatedConfig, store: Arc<dyn Store>) -> Result<Admission, StartError> {
    let named = |error: ConfigError| StartError {
        part: "admission",
        reason: error.to_string(),
    };
    let keys = admission::Keys::from_config(config).map_err(named)?;
    let settings = admission::Settings::from_config(config).map_err(named)?;
    Admission::new(store, settings, keys).map_err(wrong("issuer"))
}

fn open_member(config: &config::Mls, keys: NostrKeys) -> Result<Member, StartError> {
    if let Some(parent) = config.database.parent() {
        std::fs::create_dir_all(parent).map_err(wrong("mls"))?;
    }
    let storage_key = storage_key(config)?;
    Member::open(MemberConfig {
        settle: config.settle,
        ..MemberConfig::new(config.database.clone(), storage_key, keys)
    })
    .map_err(wrong("mls"))
}

/// The database key, from the file or the value that the configuration names.
fn storage_key(config: &config::Mls) -> Result<StorageKey, StartError> {
    let key: &Path = match config.storage_key.path() {
        Some(path) => path,
        None => {
            let text = config.storage_key.text().map_err(wrong("mls"))?;
            return StorageKey::from_text(text.expose()).map_err(wrong("mls"));
        }
    };
    StorageKey::from_file(key).map_err(wrong("mls"))
}

fn settings(config: &ValidatedConfig, identity: Npub) -> Settings {
    let config::Policy {
        ack_deadline,
        quorum,
        require_proven_ack,
        requester_ack_counts,
        ..
    } = &config.policy;
    Settings {
        instance: identity.to_string(),
        ack_deadline: *ack_deadline,
        quorum: *quorum,
        require_proven: *require_proven_ack,
        requester_counts: *requester_ack_counts,
        retention: config.outbox.retention,
        lease: LEASE,
        sweep: SWEEP,
        retry: RETRY,
    }
}

struct Running {
    /// Taken when it is shut down.
    core: tokio::sync::Mutex<Option<CoreHandle>>,
    admission: Arc<Admission>,
}

#[async_trait]
impl Service for Running {
    fn challenges(&self) -> Arc<dyn ChallengeIssuer> {
        let admission = Arc::clone(&self.admission);
        Arc::new(move || -> Result<Challenge, ChallengeUnavailable> {
            admission
                .challenge(SystemClock.now())
                .map_err(|_| ChallengeUnavailable)
        })
    }

    async fn shutdown(&self, deadline: Instant) {
        if let Some(core) = self.core.lock().await.take() {
            core.shutdown(deadline).await;
        }
        self.admission.flush_trail(SystemClock.now(), true).await;
    }
}
