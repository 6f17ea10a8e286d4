//! From the configuration to the running core: the one place where real adapters are chosen.
//!
//! Order: what can be wrong on the operator's side (keys, files, databases) is opened first and named if it fails; only then
//! is anything started that talks to the relay.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use keyturn_mls::{Backlog, Member, MemberConfig, StorageKey};
use keyturn_proto::Npub;
use keyturn_store::{
    approle::AppRoleStore,
    audit::Instance,
    mac::{MacKey, probe::probe},
    store::Store,
};
use nostr::Keys;
use tokio::{
    runtime::Handle,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    admission::{self, Admission},
    clock::SystemClock,
    cluster::{
        self, Site,
        cursor::Cursors,
        gone::{Gone, Remembering},
    },
    config::ValidatedConfig,
    core::{self, CoreHandle, Deps},
    delivery::{
        member_thread::MemberThread,
        port::RelayPort,
        service_member::{Parts, ServiceMember},
    },
    devices::{
        self,
        issuer::{
            choose::{Chosen, choose},
            embedded::{self, login::AppRoleLogin},
        },
    },
    mac,
    rotation::{self, ports::Clock as _},
    service::{ChallengeIssuer, ChallengeUnavailable, Ports, Service, ServiceFactory, StartError},
    store::{self, Stores},
    web::{CertificateDoor, Limits, Webhook, readiness::Check},
};

/// How often what lies in this process is looked through, and the longest pause after something failed.
const SWEEP: Duration = Duration::from_secs(5);
/// How often Firestore is asked for work that nobody announced: it bills each look (docs/google-cloud.md, "What an idle relay reads"). The embedded store
/// is asked with every sweep.
const LOOK_FIRESTORE: Duration = Duration::from_secs(60);
/// How often Firestore is asked whether admins have changed.
const REGISTRY_FIRESTORE: Duration = Duration::from_secs(10);
/// First pause after something failed that will pass.
const RETRY: Duration = Duration::from_millis(200);
/// How often refusals that were only counted are written down.
const TRAIL: Duration = Duration::from_secs(10);
/// How often a MAC key that does not work is tried again.
const MAC_WATCH: Duration = Duration::from_secs(5);
/// How often the store is asked whether it answers.
const STORE_WATCH: Duration = Duration::from_secs(10);
/// The same for Firestore while it answers; the lease is renewed more often, and fails loudly.
const WATCH_FIRESTORE: Duration = Duration::from_secs(40);

/// The product's core. Everything else it needs comes with the ports.
#[derive(Debug, Clone, Copy, Default)]
pub struct Assembly;

/// What is opened before anything runs.
struct Opened {
    store: Arc<dyn Store>,
    approle: Arc<dyn AppRoleStore>,
    mac: Arc<dyn MacKey>,
    member: MemberThread,
    identity: Npub,
    /// The same identity, for relays that want to know who asks.
    keys: Keys,
    admission: Arc<Admission>,
}

struct Running {
    core: Mutex<Option<CoreHandle>>,
    admission: Arc<Admission>,
    device_issuer: Option<Chosen>,
    devices: Mutex<Option<devices::start::Running>>,
    webhook: Option<Arc<Webhook>>,
    certificate_door: Mutex<Option<(CancellationToken, JoinHandle<()>)>>,
}

#[async_trait]
impl ServiceFactory for Assembly {
    async fn start(self: Box<Self>, ports: Ports) -> Result<Arc<dyn Service>, StartError> {
        let Ports {
            config,
            inbound,
            feed,
            relay,
            served,
            backlog,
            readiness,
            stopping,
        } = ports;
        let mls_check = readiness.register("mls");
        let store_check = readiness.register("store");
        let mac_check = readiness.register("mac");
        let opened = spawn_blocking({
            let config = Arc::clone(&config);
            let backlog = backlog.clone();
            move || open(&config, backlog)
        });
        let opened = opened.await.map_err(failed("service"))??;
        let Opened {
            store,
            approle,
            mac,
            member,
            identity,
            keys,
            admission,
        } = opened;
        let (to_come, cluster_stop) = (backlog, stopping.clone());
        mls_check.ready();
        tokio::spawn(watch_store(
            Arc::clone(&store),
            store_check,
            look(&config, STORE_WATCH, WATCH_FIRESTORE),
            stopping.clone(),
        ));
        tokio::spawn(write_trail(Arc::clone(&admission), stopping.clone()));
        tokio::spawn(watch_mac(Arc::clone(&mac), mac_check, stopping.clone()));
        tokio::spawn(watch_issuer(
            Arc::clone(&admission),
            readiness.register("jwks"),
            config.issuer.refresh_min_interval,
            stopping.clone(),
        ));
        let clock = Arc::new(SystemClock);
        let device_issuer = choose(
            &config.device_issuer,
            &identity.to_string(),
            embedded::Parts {
                store: approle,
                mac: Arc::clone(&mac),
                clock: clock.clone(),
            },
            store.clone(),
        )
        .map_err(failed("devices"))?;
        // Before the core: devices are served whether or not the relay or its groups are.
        let devices = match (&config.mqtt.broker, &device_issuer) {
            (Some(broker), Some(chosen)) => {
                let needs = devices::start::Needs {
                    devices: store.clone(),
                    store: store.clone(),
                    issuer: Arc::clone(&chosen.issuer),
                    clock: clock.clone(),
                    identity,
                    broker: readiness.register_apart("mqtt"),
                    stopping,
                };
                let started = devices::start::start(&config, broker, needs);
                Some(started.map_err(failed("devices"))?)
            }
            (Some(_), None) | (None, _) => None,
        };
        let webhook = match (&devices, &config.mqtt.webhook.secret) {
            (Some(running), Some(secret)) => {
                let secret = secret.text().map_err(failed("devices"))?;
                if secret.expose().len() < 32 {
                    return Err(StartError {
                        part: "devices",
                        reason: "mqtt.webhook_secret: expected at least 32 characters".to_owned(),
                    });
                }
                let door = Webhook::new(Arc::clone(&running.devices), secret.expose());
                Some(Arc::new(door))
            }
            (Some(_), None) | (None, _) => None,
        };
        let certificate_door = match (&devices, &config.mqtt.webhook.tls) {
            (Some(running), Some(tls)) => {
                let tls = CertificateDoor::open(tls).map_err(failed("devices"))?;
                let (devices, stop) = (Arc::clone(&running.devices), CancellationToken::new());
                let serving = tls.serve(devices, Limits::of(&config.web), stop.clone());
                Some((stop, tokio::spawn(serving)))
            }
            (Some(_), None) | (None, _) => None,
        };
        let siblings = config.cluster.siblings.iter().copied().collect();
        let gone = Gone::default();
        let relay: Arc<dyn RelayPort> = Arc::new(Remembering::new(relay, gone.clone()));
        let site = Site {
            relay: Arc::clone(&relay),
            served: served.clone(),
            backlog: to_come,
            inbound: feed,
            gone,
            siblings: siblings_of(&config),
            message_bytes: config.relay.max_message_bytes,
            clock: clock.clone(),
        };
        let cluster_store = Arc::clone(&store);
        let service = ServiceMember::new(Parts {
            siblings,
            member,
            identity,
            store: Arc::clone(&store),
            relay: Arc::clone(&relay),
            served,
            clock: clock.clone(),
            relays: config.mls.relays.clone(),
            registry: look(&config, SWEEP, REGISTRY_FIRESTORE),
        });
        let core = core::start(Deps {
            store,
            mac,
            gate: admission.clone(),
            relay,
            service,
            clock,
            settings: settings(&config, identity),
            inbound,
        });
        if !core.ready().await {
            return Err(StartError {
                part: "core",
                reason: "it ended while it started; see the log".to_owned(),
            });
        }
        if !config.cluster.peers.is_empty() {
            let peers = config.cluster.peers.clone();
            let cursors = Cursors::open(config.mls.database.with_extension("mirror.json"));
            cluster::start(site, cluster_store, peers, keys, cursors, cluster_stop);
        }
        Ok(Arc::new(Running {
            core: Mutex::new(Some(core)),
            admission,
            device_issuer,
            devices: Mutex::new(devices),
            webhook,
            certificate_door: Mutex::new(certificate_door),
        }))
    }
}

#[async_trait]
impl Service for Running {
    fn challenges(&self) -> Arc<dyn ChallengeIssuer> {
        let admission = Arc::clone(&self.admission);
        Arc::new(move || {
            admission
                .challenge(SystemClock.now())
                .map_err(|_| ChallengeUnavailable)
        })
    }

    fn approle(&self) -> Option<Arc<AppRoleLogin>> {
        self.device_issuer.as_ref()?.login.clone()
    }

    fn webhook(&self) -> Option<Arc<Webhook>> {
        self.webhook.clone()
    }

    async fn shutdown(&self, deadline: Instant) {
        let core = self
            .core
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let devices = self
            .devices
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let door = self
            .certificate_door
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((stop, serving)) = door {
            stop.cancel();
            let _ = timeout_at(deadline, serving).await;
        }
        tokio::join!(
            async {
                if let Some(core) = core {
                    core.shutdown(deadline).await;
                }
            },
            async {
                if let Some(devices) = devices {
                    devices.shutdown(deadline).await;
                }
            },
        );
        // After the last secret_id was destroyed or left to the next start.
        if let Some(chosen) = &self.device_issuer {
            let _ = timeout_at(deadline, chosen.issuer.close()).await;
        }
        self.admission.flush_trail(SystemClock.now(), true).await;
    }
}

fn siblings_of(config: &ValidatedConfig) -> Vec<[u8; 32]> {
    let siblings = config.cluster.siblings.iter();
    siblings.map(|sibling| *sibling.as_bytes()).collect()
}

fn failed<E: fmt::Display>(part: &'static str) -> impl FnOnce(E) -> StartError {
    move |error| StartError {
        part,
        reason: error.to_string(),
    }
}

/// Reads keys and opens databases. Blocks.
fn open(config: &ValidatedConfig, backlog: Backlog) -> Result<Opened, StartError> {
    let mac = mac::Opened::open(&config.mac).map_err(failed("mac"))?;

    let nsec = config.mls.nostr_secret_key.text().map_err(failed("mls"))?;
    // The parser's own error could repeat what it was given.
    let keys = Keys::parse(nsec.expose()).map_err(|_| StartError {
        part: "mls",
        reason: "mls.nostr_secret_key: expected an nsec or 64 hex digits".to_owned(),
    })?;
    let identity = Npub::from_bytes(keys.public_key().to_bytes());
    if config.cluster.siblings.contains(&identity) {
        return Err(StartError {
            part: "cluster",
            reason: "cluster.siblings: names this very instance; list the others".to_owned(),
        });
    }
    let nostr_keys = keys.clone();
    let instance = Instance::relay(&identity);
    let Stores { store, approle } = Handle::current()
        .block_on(store::open_all(&config.store, &instance))
        .map_err(failed("store"))?;
    let key = config.mls.storage_key.text().map_err(failed("mls"))?;
    let storage_key = StorageKey::from_text(key.expose()).map_err(failed("mls"))?;
    let member = MemberConfig {
        settle: config.mls.settle,
        backlog,
        ..MemberConfig::new(&config.mls.database, storage_key, keys)
    };
    let member = Member::open(member).map_err(failed("mls"))?;
    let member = MemberThread::spawn(member).map_err(failed("mls"))?;

    let settings = admission::Settings::from_config(config).map_err(failed("admission"))?;
    let keys = admission::Keys::from_config(config).map_err(failed("admission"))?;
    let admission = Admission::new(Arc::clone(&store), settings, keys).map_err(failed("issuer"))?;
    Ok(Opened {
        store,
        approle,
        mac: mac.key(),
        member,
        identity,
        keys: nostr_keys,
        admission: Arc::new(admission),
    })
}

fn settings(config: &ValidatedConfig, identity: Npub) -> rotation::Settings {
    rotation::Settings {
        // Its own identity is the one name that a restart keeps and no other instance has.
        instance: identity.to_string(),
        ack_deadline: config.policy.ack_deadline,
        quorum: config.policy.quorum,
        require_proven: config.policy.require_proven_ack,
        requester_counts: config.policy.requester_ack_counts,
        retention: config.outbox.retention,
        keep_withdrawn: (!config.cluster.siblings.is_empty()).then_some(cluster::HORIZON),
        lease: config.cluster.lease,
        sweep: SWEEP,
        look: look(config, SWEEP, LOOK_FIRESTORE),
        retry: RETRY,
    }
}

/// How often a store is looked at that bills for it, and one that does not.
fn look(config: &ValidatedConfig, free: Duration, billed: Duration) -> Duration {
    match config.store {
        crate::config::Store::Sqlite { .. } => free,
        crate::config::Store::Firestore(_) => billed,
    }
}

/// Writes down the refusals that were only counted, so that a flood leaves its number in the audit trail.
async fn write_trail(admission: Arc<Admission>, stopping: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(TRAIL) => admission.flush_trail(SystemClock.now(), false).await,
            () = stopping.cancelled() => return,
        }
    }
}

/// Keeps `/readyz` honest about the MAC key: ready once it signs and verifies, and until it is known to fail. A key that works is not asked. The relay starts
/// without it all the same: a revocation needs no MAC.
async fn watch_mac(mac: Arc<dyn MacKey>, check: Check, stopping: CancellationToken) {
    let mut works = false;
    loop {
        if !works || !mac.healthy() {
            match probe(mac.as_ref(), SystemClock.now()).await {
                Ok(()) => {
                    tracing::info!(key_ref = mac.primary_ref(), "the MAC key works");
                    works = true;
                    check.ready();
                }
                Err(error) => {
                    tracing::warn!(key_ref = mac.primary_ref(), %error, "the MAC key cannot be used");
                    works = false;
                    check.not_ready("the MAC key cannot be used; see the log");
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(MAC_WATCH) => {}
            () = stopping.cancelled() => return,
        }
    }
}

/// Keeps `/readyz` honest about the store.
async fn watch_store(
    store: Arc<dyn Store>,
    check: Check,
    while_well: Duration,
    stopping: CancellationToken,
) {
    loop {
        let pause = match store.ping().await {
            Ok(()) => {
                check.ready();
                while_well
            }
            Err(error) => {
                tracing::warn!(%error, "the store cannot be used");
                check.not_ready("the store cannot be used; see the log");
                STORE_WATCH
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stopping.cancelled() => return,
        }
    }
}

/// Keeps `/readyz` honest about the issuer: without its keys no request can be admitted.
async fn watch_issuer(
    admission: Arc<Admission>,
    check: Check,
    every: Duration,
    stopping: CancellationToken,
) {
    loop {
        match admission.probe_issuer(SystemClock.now()).await {
            Ok(()) => check.ready(),
            Err(error) => {
                tracing::warn!(%error, "the issuer's keys cannot be had");
                check.not_ready("the issuer's keys cannot be had; see the log");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = stopping.cancelled() => return,
        }
    }
}
