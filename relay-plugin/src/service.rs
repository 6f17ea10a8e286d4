//! The boundary between the host (rnostr, web listener, configuration) and the core (admission, rotation, delivery).
//!
//! Arrows point one way: the host knows these types and drives a [`ServiceFactory`]; the core implements it and never
//! sees an actor, an HTTP request or an environment variable. What must always hold: the host hands over every event
//! that concerns us or tells its sender that it did not; it never drops one in silence.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use keyturn_mls::{Arrival, Backlog};
use keyturn_proto::nonce::Challenge;
use nostr::{Event, PublicKey};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    config::ValidatedConfig,
    delivery::port::RelayPort,
    devices::issuer::embedded::login::AppRoleLogin,
    web::{Webhook, readiness::Readiness},
};

/// An event that a client sent to the relay and that concerns us.
///
/// The relay has checked its id, signature and time. It is **not stored yet**, may be a repeat, and may still be
/// refused: whatever must not outrun the relay's database (following a commit) waits with
/// [`RelayPort::wait_stored`]. Repeats are told apart by `event.id`.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// The event as signed.
    pub event: Event,
    /// When the relay received it, unix milliseconds by this machine's clock.
    pub received_at_ms: u64,
    /// Whose connection it came over.
    pub session: SessionInfo,
    /// It was fetched from a peer's store after we were away: its `created_at` says nothing about its receipt.
    pub stored: bool,
    /// Its place among what waits to be taken in; dropped when that is done.
    pub arrival: Arrival,
}

/// What the relay knows of the connection. Hints for limits and audit, never for authorisation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionInfo {
    /// rnostr's session number, unique while the process lives.
    pub id: usize,
    /// Proven by NIP-42 on this connection.
    pub authenticated: Option<PublicKey>,
    /// Peer address, or what the configured proxy header says.
    pub ip: Option<IpAddr>,
}

/// Which events concern us. Anything not named here passes the relay untouched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Served {
    /// nostr_group_ids (tag `h` of kind 445) of the groups we are in.
    pub groups: HashSet<[u8; 32]>,
    /// Our own public keys (tag `p` of kinds 1059 and 444).
    pub recipients: HashSet<[u8; 32]>,
    /// Enrolled admins, whose key packages and bindings (kinds 443, 30443 and 40913) prove their MLS keys.
    pub key_package_authors: HashSet<[u8; 32]>,
    /// Whether requests and acks outside MLS (409xx) are looked at. Off in production.
    pub cleartext_requests: bool,
}

/// The served set, shared between the core (writes) and the extension (reads on every event of our kinds).
///
/// Until the core has set it for the first time the extension hands over everything of our kinds, so that no event
/// falls between the rescan at start and the first live one.
#[derive(Debug, Clone, Default)]
pub struct ServedSet(Arc<RwLock<Option<Arc<Served>>>>);

impl ServedSet {
    /// The current set; `None` until the core has loaded its groups.
    pub fn snapshot(&self) -> Option<Arc<Served>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Replaces the whole set.
    pub fn replace(&self, served: Served) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(served));
    }

    /// Changes the set in place (copy on write); starts from an empty one.
    pub fn update(&self, change: impl FnOnce(&mut Served)) {
        let mut slot = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = slot.as_deref().cloned().unwrap_or_default();
        change(&mut next);
        *slot = Some(Arc::new(next));
    }
}

/// Why no challenge could be issued. The answer to the client says no more than this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no challenge can be issued at the moment")]
pub struct ChallengeUnavailable;

/// Issues challenges. Stateless and cheap: called on every `GET /kr/v1/challenge`.
pub trait ChallengeIssuer: Send + Sync + 'static {
    /// A fresh challenge.
    fn issue(&self) -> Result<Challenge, ChallengeUnavailable>;
}

impl<F> ChallengeIssuer for F
where
    F: Fn() -> Result<Challenge, ChallengeUnavailable> + Send + Sync + 'static,
{
    fn issue(&self) -> Result<Challenge, ChallengeUnavailable> {
        self()
    }
}

/// Everything the core gets from the host.
pub struct Ports {
    /// The checked configuration.
    pub config: Arc<ValidatedConfig>,
    /// Events that concern us, in the order the relay took them. Bounded: when it is full, senders are told so.
    pub inbound: mpsc::Receiver<Inbound>,
    /// The relay's database and writer.
    pub relay: Arc<dyn RelayPort>,
    /// To be set once the groups are loaded, and kept current.
    pub served: ServedSet,
    /// The other end of `inbound`, for events from peers.
    pub feed: mpsc::Sender<Inbound>,
    /// What was handed over and is not taken in yet; for the MLS member.
    pub backlog: Backlog,
    /// Register one check per part that `/readyz` should wait for.
    pub readiness: Readiness,
    /// Cancelled when the process is about to stop; `Service::shutdown` follows.
    pub stopping: CancellationToken,
}

/// Why the core did not start. Shown to the operator, so it names what to mend and no values.
#[derive(Debug, thiserror::Error)]
#[error("{part}: {reason}")]
pub struct StartError {
    /// Which part failed: "store", "mls", "issuer", …
    pub part: &'static str,
    /// What to mend.
    pub reason: String,
}

/// Builds the core from its ports. Called once, on Keyturn's own runtime.
#[async_trait]
pub trait ServiceFactory: Send + 'static {
    /// Opens stores, loads the MLS member, sets the served set, recovers, then begins to read `ports.inbound`.
    async fn start(self: Box<Self>, ports: Ports) -> Result<Arc<dyn Service>, StartError>;
}

/// The running core.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// What answers `GET /kr/v1/challenge`.
    fn challenges(&self) -> Arc<dyn ChallengeIssuer>;

    /// What answers `POST /kr/v1/approle/login`, where secret_ids of our own are issued.
    fn approle(&self) -> Option<Arc<AppRoleLogin>> {
        None
    }

    /// What answers `POST /kr/v1/mqtt/webhook`, where a broker hands messages over by HTTP.
    fn webhook(&self) -> Option<Arc<Webhook>> {
        None
    }

    /// Finishes the step under way and stops. After `deadline` the process ends regardless; whatever was cut short
    /// is picked up by the recovery of the next start.
    async fn shutdown(&self, deadline: Instant);
}
