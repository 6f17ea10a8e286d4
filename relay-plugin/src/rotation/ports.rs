//! What the rotation engine needs of the world: time, admission, and a way to the admins.
//!
//! The engine knows these traits, [`keyturn_store::store::Store`] and [`keyturn_store::mac::MacKey`], and nothing behind them. No trait here
//! hands a secret back, and only [`Distributor::seal`] takes one.

use async_trait::async_trait;
use keyturn_proto::{ClientId, MlsGroupId, Npub, RotateNotify, ServiceNotify, UnixMs};
use keyturn_store::documents::{ClientDoc, OutboxDoc, RotationDoc};
use keyturn_store::store::StoreError;

use crate::admission::{Admission, Leaf, NotAdmitted, Opened, Permit, Refusal};

/// Time, injected: nothing in the engine reads a clock of its own.
#[async_trait]
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> UnixMs;
    /// Resolves once [`Clock::now`] has reached `at`.
    async fn sleep_until(&self, at: UnixMs);
}

/// The gate before the engine, and the judge of everybody who is to read a secret.
#[async_trait]
pub trait Gate: Send + Sync + 'static {
    /// Judges one request. A refusal is audited.
    async fn admit(&self, opened: &Opened, now: UnixMs) -> Result<Permit, NotAdmitted>;

    /// Whether a recorded reservation may still go on, given the present leaves of its group. Returns the client as it is now.
    async fn recheck(&self, rotation: &RotationDoc, roster: &[Leaf]) -> Result<ClientDoc, Refusal>;

    /// The npubs behind `leaves`, provided that each of them may read this client's secret in the group; otherwise the first who may not.
    async fn authorise_roster(
        &self,
        client: &ClientDoc,
        alias: &str,
        leaves: &[Leaf],
    ) -> Result<Vec<Npub>, (Option<Npub>, Refusal)>;
}

#[async_trait]
impl Gate for Admission {
    async fn admit(&self, opened: &Opened, now: UnixMs) -> Result<Permit, NotAdmitted> {
        Self::admit(self, opened, now).await
    }

    async fn recheck(&self, rotation: &RotationDoc, roster: &[Leaf]) -> Result<ClientDoc, Refusal> {
        Self::recheck(self, rotation, roster).await
    }

    async fn authorise_roster(
        &self,
        client: &ClientDoc,
        alias: &str,
        leaves: &[Leaf],
    ) -> Result<Vec<Npub>, (Option<Npub>, Refusal)> {
        Self::authorise_roster(self, client, alias, leaves).await
    }
}

/// Everybody who would be able to read what is sealed for one group now, each of them authorised for the client in question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    /// The operator's name of the group.
    pub alias: String,
    /// Its id inside MLS.
    pub mls_group_id: MlsGroupId,
    /// Current epoch.
    pub epoch: u64,
    /// Hash over (npub, leaf signature key) of every leaf, hex.
    pub hash: String,
    /// Every leaf but the service's own.
    pub leaves: Vec<Leaf>,
    /// The npubs behind the leaves, once each.
    pub readers: Vec<Npub>,
}

/// The rosters of all admin groups of a client. Only [`Distributor::audience`] makes one, after having checked every leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audience {
    /// Whose groups.
    pub client_id: ClientId,
    /// One per alias of the client, in its order. Never empty.
    pub rosters: Vec<Roster>,
}

impl Audience {
    /// Everybody who can read, once each, in order.
    #[must_use]
    pub fn readers(&self) -> Vec<Npub> {
        let mut readers: Vec<Npub> = self
            .rosters
            .iter()
            .flat_map(|roster| roster.readers.iter().copied())
            .collect();
        readers.sort_unstable();
        readers.dedup();
        readers
    }

    /// The roster of one group.
    #[must_use]
    pub fn roster(&self, alias: &str) -> Option<&Roster> {
        self.rosters.iter().find(|roster| roster.alias == alias)
    }
}

/// One finished, signed 445 event: ciphertext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedEvent {
    /// Alias of the group.
    pub alias: String,
    /// Nostr event id, hex.
    pub event_id: String,
    /// Nostr JSON.
    pub event_json: String,
    /// Epoch it was sealed in.
    pub epoch: u64,
    /// Roster it was sealed for, hex.
    pub roster_hash: String,
}

/// Why a client's secret cannot be sealed now.
#[derive(Debug, thiserror::Error)]
pub enum AudienceError {
    /// The client lists no admin group.
    #[error("the client has no admin group")]
    NoGroup,
    /// A group must not be served; `reason` is the audit word. The alarm and its audit record are already out.
    #[error("group {alias} cannot be sealed to: {reason}")]
    Unfit {
        /// Which.
        alias: String,
        /// A stable machine word, e.g. `group.suspended`, `roster.not_enrolled`.
        reason: &'static str,
    },
    /// It will pass by itself: an epoch settles, a self-update is on its way, the roster changed under our hands.
    #[error("group {alias} is not ready: {reason}")]
    NotYet {
        /// Which.
        alias: String,
        /// A stable machine word.
        reason: &'static str,
        /// When to look again.
        retry_at: UnixMs,
    },
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The service member failed; details are in the log.
    #[error("the service member failed: {0}")]
    Member(&'static str),
}

/// Why an event is not in the relay's database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeliveryError {
    /// The relay will never take it.
    #[error("the relay refuses the event: {0}")]
    Refused(&'static str),
    /// Try again.
    #[error("the relay cannot be reached: {0}")]
    Away(&'static str),
    /// The group may not, or not yet, be written to; see the audit trail.
    #[error("the group cannot be written to: {0}")]
    Group(&'static str),
}

/// The way to the admins: MLS for the content, the relay for the carriage.
#[async_trait]
pub trait Distributor: Send + Sync + 'static {
    /// Checks every leaf of every admin group of the client against the registry. Whoever may not read is an alarm, an audit record and an
    /// error, never a reader.
    async fn audience(&self, client: &ClientDoc) -> Result<Audience, AudienceError>;

    /// Seals `notify` for every group of `audience`, provided that nobody has come or gone since, and leaves nothing on disk that could open
    /// the result.
    async fn seal(
        &self,
        audience: &Audience,
        notify: RotateNotify,
    ) -> Result<Vec<SealedEvent>, AudienceError>;

    /// Resolves once the event can be read back from the relay's database. Repeating it is harmless.
    async fn publish(&self, event: &OutboxDoc) -> Result<(), DeliveryError>;

    /// Whether the event can be read back already.
    async fn is_published(&self, event_id: &str) -> Result<bool, DeliveryError>;

    /// Tells a group something that is no secret.
    async fn announce(&self, alias: &str, notify: &ServiceNotify) -> Result<(), DeliveryError>;

    /// Removes ciphertext from the relay's database.
    async fn withdraw(&self, event_ids: &[String]) -> Result<(), DeliveryError>;
}
