//! One admin at work: an MLS member, connections to its relays, and what they do together.
//!
//! The flow of a rotation through the files: `groups` and `welcome` (who is in) → `sync` and `update` (what arrives) → `request` (ask) → `secret` (open, ack). All
//! of it is driven by the caller's `&mut`: nothing runs in the background, so that a plaintext is opened only when somebody asks.
//!
//! What must hold:
//! - a secret is opened by [`AdminSession::open_secret`] only; until then it stays ciphertext on disk, with its key in the encrypted
//!   member database;
//! - secrets and reports count only from the configured service npubs, under keys they have vouched for, whoever else is in the group;
//! - events of one group that depend on each other are published one after another, each read back before the next;
//! - no wait is without a deadline.

mod cursor;
mod groups;
mod request;
mod secret;
mod sync;
mod update;
mod vouch;
mod welcome;

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keyturn_mls::error::OpenError;
use keyturn_mls::{Member, MemberConfig, StorageKey, StorageKeyError};
use keyturn_proto::{MlsGroupId, Npub};
use nostr::{EventId, Keys, PublicKey, RelayUrl};
use tokio::time::Instant;

use crate::challenge::{ChallengeClient, ChallengeError};
use crate::clock::{Clock, SystemClock};
use crate::home::{Config, Home, HomeError};
use crate::transport::{RelayError, Relays};

pub use groups::{GroupError, NewGroup};
pub use request::{Reply, RequestError, RequestSpec};
pub use secret::{About, OpenedSecret, SecretError, WaitingSecret};
pub use sync::SyncError;
pub use update::{Update, WaitingWelcome};

/// What a session is opened with.
pub struct SessionConfig {
    /// The relays: what one of them has counts, and one of them is enough.
    pub relays: Vec<RelayUrl>,
    /// Base URLs of the relays' HTTP listeners; requests need one.
    pub service_urls: Vec<String>,
    /// The service's npubs, one per relay instance.
    pub services: Vec<Npub>,
    /// Whose Welcome is followed without asking.
    pub welcomers: Vec<Npub>,
    /// Audience of the proofs.
    pub audience: String,
    /// Our Nostr identity.
    pub keys: Keys,
    /// The member database.
    pub member_path: PathBuf,
    /// Its key.
    pub storage_key: StorageKey,
    /// Where the moment of the last sync is kept; `None`: every session reads from the start.
    pub sync_path: Option<PathBuf>,
    /// How long a commit may still lose; see `keyturn_mls::MemberConfig::settle`.
    pub settle: Duration,
    /// How long one answer of the network may take.
    pub patience: Duration,
    /// The present.
    pub clock: Arc<dyn Clock>,
}

impl SessionConfig {
    /// From a home directory and its configuration.
    ///
    /// # Errors
    /// [`OpenSessionError::Home`], [`OpenSessionError::StorageKey`].
    pub fn from_home(home: &Home, config: Config) -> Result<Self, OpenSessionError> {
        let Config {
            relays,
            service_urls,
            services,
            welcomers,
            audience,
            settle_secs,
            proof_command: _,
        } = config;
        Ok(Self {
            relays,
            service_urls,
            services,
            welcomers,
            audience,
            keys: home.keys()?,
            member_path: home.member_path(),
            storage_key: StorageKey::from_file_or_create(&home.member_key_path())?,
            sync_path: Some(home.sync_path()),
            settle: Duration::from_secs(settle_secs),
            patience: Duration::from_secs(15),
            clock: Arc::new(SystemClock),
        })
    }

    /// The defaults for a database at `member_path`.
    #[must_use]
    pub fn new(relay: RelayUrl, keys: Keys, member_path: PathBuf, storage_key: StorageKey) -> Self {
        Self {
            relays: vec![relay],
            service_urls: Vec::new(),
            services: Vec::new(),
            welcomers: Vec::new(),
            audience: keyturn_proto::proof::DEFAULT_AUDIENCE.to_owned(),
            keys,
            member_path,
            storage_key,
            sync_path: None,
            settle: Duration::from_secs(10),
            patience: Duration::from_secs(15),
            clock: Arc::new(SystemClock),
        }
    }
}

/// Why a session does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenSessionError {
    /// The home directory.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The key of the member database.
    #[error(transparent)]
    StorageKey(#[from] StorageKeyError),
    /// The member database.
    #[error(transparent)]
    Member(#[from] OpenError),
    /// The relay.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// The service URL.
    #[error(transparent)]
    Challenge(#[from] ChallengeError),
    /// The first sync.
    #[error(transparent)]
    Sync(#[from] SyncError),
}

/// One admin, connected.
pub struct AdminSession {
    member: Member,
    relay: Relays,
    relay_urls: Vec<RelayUrl>,
    challenges: Vec<ChallengeClient>,
    keys: Keys,
    me: PublicKey,
    services: Vec<PublicKey>,
    welcomers: Vec<PublicKey>,
    audience: String,
    cursor: cursor::Cursor,
    updates: VecDeque<Update>,
    vouched: vouch::Vouched,
    /// Messages that wait for their sender's key to be looked up.
    unvouched: Vec<EventId>,
    /// Commits of ours that another one took the epoch from.
    lost: BTreeSet<EventId>,
    /// Seconds with more events than could be fetched.
    crowded: BTreeSet<(MlsGroupId, u64)>,
    welcomes: Vec<welcome::HeldWelcome>,
    patience: Duration,
    clock: Arc<dyn Clock>,
}

impl AdminSession {
    /// Opens the member database, connects, and catches up with the relay: Welcomes from trusted welcomers are joined, leaves renewed,
    /// unfinished commits of an earlier run finished. What happened meanwhile is found by [`Self::next_update`].
    ///
    /// # Errors
    /// [`OpenSessionError`].
    pub async fn open(config: SessionConfig, deadline: Instant) -> Result<Self, OpenSessionError> {
        let SessionConfig {
            relays: relay_urls,
            service_urls,
            services,
            welcomers,
            audience,
            keys,
            member_path,
            storage_key,
            sync_path,
            settle,
            patience,
            clock,
        } = config;
        let challenges = service_urls.iter();
        let challenges = challenges
            .map(|url| ChallengeClient::new(url, patience))
            .collect::<Result<_, _>>()?;
        let member = Member::open(MemberConfig {
            settle,
            ..MemberConfig::new(member_path, storage_key, keys.clone())
        })?;
        let patience_now = deadline.saturating_duration_since(Instant::now());
        let patience_now = patience.min(patience_now);
        let relays = Relays::open(&relay_urls, &keys, patience_now, clock.clone()).await?;
        let mut session = Self {
            member,
            relay: relays,
            relay_urls,
            challenges,
            me: keys.public_key(),
            keys,
            services: services.iter().map(public_key).collect(),
            welcomers: welcomers.iter().map(public_key).collect(),
            audience,
            cursor: cursor::Cursor::load(sync_path)?,
            updates: VecDeque::new(),
            vouched: vouch::Vouched::default(),
            unvouched: Vec::new(),
            lost: BTreeSet::new(),
            crowded: BTreeSet::new(),
            welcomes: Vec::new(),
            patience,
            clock,
        };
        session.look_up_services(deadline).await?;
        // An earlier run may have ended between leaving a message closed and looking its sender up.
        session.unvouched = session.left_unvouched().map_err(SyncError::from)?;
        session.sync(deadline).await?;
        Ok(session)
    }

    /// Who we are.
    #[must_use]
    pub fn npub(&self) -> Npub {
        npub(&self.me)
    }

    /// The relays that we use.
    #[must_use]
    pub fn relay_urls(&self) -> &[RelayUrl] {
        &self.relay_urls
    }

    /// Closes the connection and the database.
    pub async fn close(self) {
        self.relay.close().await;
    }

    /// The end of one network step: now plus the configured patience, but never after `deadline`.
    fn step(&self, deadline: Instant) -> Instant {
        deadline.min(Instant::now() + self.patience)
    }

    fn is_service(&self, key: &PublicKey) -> bool {
        self.services.contains(key)
    }
}

pub(crate) fn npub(key: &PublicKey) -> Npub {
    Npub::from_bytes(key.to_bytes())
}

pub(crate) fn public_key(npub: &Npub) -> PublicKey {
    PublicKey::from_byte_array(*npub.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs spawn sessions on multi-threaded runtimes.
    #[test]
    fn a_session_and_its_futures_can_move_between_threads() {
        fn check<T: Send>(_: T) {}
        fn all(session: &mut AdminSession, deadline: Instant) {
            check(&mut *session);
            check(session.sync(deadline));
            check(session.next_update(deadline));
            check(session.publish_key_package(deadline));
            check(session.create_group(NewGroup::default(), deadline));
        }
        // Compiling is the test; there is no session here to run it with.
        let _: fn(&mut AdminSession, Instant) = all;
    }
}
