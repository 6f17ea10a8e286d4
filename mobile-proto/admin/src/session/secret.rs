//! The delivered secret: waiting as ciphertext, opened once on request, acked with a proof.
//!
//! What must hold: opening consumes the message's key, so that nobody, this program included, opens it again; the plaintext then lives only
//! in the [`OpenedSecret`] that is returned, zeroised when dropped, and nothing here writes it anywhere.

use keyturn_mls::error::{ReceiveError, SealError, StoreError};
use keyturn_mls::{AppMessage, DeferredMessage, Disposition, Payload};
use keyturn_proto::notify::NotifyHeader;
use keyturn_proto::{
    ClientId, MlsGroupId, Npub, RotateAck, RotateNotify, RotationId, UnixMs, VersionId, kinds,
};
use nostr::{EventId, Kind};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{AdminSession, GroupError, SyncError, Update, npub};
use crate::transport::RelayError;

/// Why a secret could not be opened or acked.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// None waits.
    #[error("no secret is waiting")]
    NoneWaiting,
    /// Not for this rotation.
    #[error("no secret of rotation {0} is waiting; it may have been opened already")]
    NotWaiting(RotationId),
    /// The caller has to choose.
    #[error("more than one secret is waiting; name one of: {}", .0.join(", "))]
    Ambiguous(Vec<String>),
    /// Opened, and worth nothing.
    #[error("the delivered message is not a valid rotate-notify")]
    Malformed,
    /// It stays closed, but its key has been passed over by newer messages.
    #[error("the delivered message can no longer be opened")]
    Gone,
    /// None came until the deadline.
    #[error("no secret arrived in time")]
    Timeout,
    /// The group does not accept messages from us now.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// MLS.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// Catching up.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// A commit that had to come first.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The relay.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// The member database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A secret that was delivered and not opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WaitingSecret {
    /// In which group.
    pub group: MlsGroupId,
    /// From which instance of the service.
    pub from: Npub,
    /// When it was received.
    pub received_at: UnixMs,
    /// What it is for.
    #[serde(flatten)]
    pub about: About,
    #[serde(skip)]
    event: EventId,
}

/// What may be known of a delivered secret without opening it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The operation.
    pub rotation_id: RotationId,
    /// The client.
    pub client_id: ClientId,
    /// The version.
    pub version_id: VersionId,
    /// Earliest promotion.
    pub not_before: UnixMs,
}

impl WaitingSecret {
    /// The note under which a rotate-notify waits: no secret, no hash.
    pub(super) fn label(header: &NotifyHeader) -> String {
        let about = About {
            rotation_id: header.rotation_id.clone(),
            client_id: header.client_id.clone(),
            version_id: header.version_id,
            not_before: header.not_before,
        };
        serde_json::to_string(&about).unwrap_or_default()
    }

    pub(super) fn from_deferred(message: &DeferredMessage) -> Option<Self> {
        Some(Self {
            group: message.group.clone(),
            from: npub(&message.sender),
            received_at: message.received_at,
            about: serde_json::from_str(&message.label).ok()?,
            event: message.event_id,
        })
    }
}

/// A secret, in memory and nowhere else. Show it or use it, ack, drop.
pub struct OpenedSecret {
    /// The group it was delivered in.
    pub group: MlsGroupId,
    /// The message; its secret is zeroised with it.
    pub notify: RotateNotify,
}

impl AdminSession {
    /// The secrets that wait to be opened, oldest first.
    ///
    /// # Errors
    /// [`SecretError::Store`].
    pub fn waiting_secrets(&self) -> Result<Vec<WaitingSecret>, SecretError> {
        let mut waiting = Vec::new();
        for group in self.member.groups()? {
            let deferred = self.member.deferred(&group.id)?;
            waiting.extend(
                deferred
                    .iter()
                    .filter(|message| self.is_service(&message.sender))
                    .filter_map(WaitingSecret::from_deferred),
            );
        }
        waiting.sort_by_key(|secret| secret.received_at);
        Ok(waiting)
    }

    /// The secret of `rotation`, or the only one that waits.
    ///
    /// # Errors
    /// [`SecretError::NoneWaiting`], [`SecretError::NotWaiting`], [`SecretError::Ambiguous`].
    pub fn waiting_secret(
        &self,
        rotation: Option<&RotationId>,
    ) -> Result<WaitingSecret, SecretError> {
        let mut waiting = self.waiting_secrets()?;
        if let Some(rotation) = rotation {
            // The newest: a recovered rotation is delivered again.
            return waiting
                .into_iter()
                .rfind(|secret| secret.about.rotation_id == *rotation)
                .ok_or_else(|| SecretError::NotWaiting(rotation.clone()));
        }
        match (waiting.pop(), waiting.is_empty()) {
            (Some(only), true) => Ok(only),
            (None, _) => Err(SecretError::NoneWaiting),
            (Some(last), false) => {
                waiting.push(last);
                let ids = waiting
                    .iter()
                    .map(|secret| secret.about.rotation_id.to_string());
                Err(SecretError::Ambiguous(ids.collect()))
            }
        }
    }

    /// Waits until the secret of `rotation` is delivered. It stays closed.
    ///
    /// # Errors
    /// [`SecretError::Timeout`], [`SecretError::Sync`].
    pub async fn await_secret(
        &mut self,
        rotation: &RotationId,
        deadline: Instant,
    ) -> Result<WaitingSecret, SecretError> {
        match self.waiting_secret(Some(rotation)) {
            Err(SecretError::NotWaiting(_)) => {}
            answer => return answer,
        }
        let wanted = |update: &Update| matches!(update, Update::Secret(secret) if secret.about.rotation_id == *rotation);
        match self.wait_for(wanted, deadline).await? {
            Some(Update::Secret(secret)) => Ok(secret),
            _ => Err(SecretError::Timeout),
        }
    }

    /// Opens a delivered secret, once and for all. Call [`Self::ready`] before if it is going to be acked.
    ///
    /// # Errors
    /// [`SecretError::Malformed`], [`SecretError::Gone`], [`SecretError::NotWaiting`].
    pub fn open_secret(&mut self, waiting: &WaitingSecret) -> Result<OpenedSecret, SecretError> {
        let mut opened = None;
        let mut decide = |message: &AppMessage| {
            let parsed = std::str::from_utf8(&message.body)
                .ok()
                .and_then(|json| RotateNotify::parse(json).ok());
            opened = Some(parsed);
            Disposition::Consume
        };
        let inbound = self.member.receive_deferred(waiting.event, &mut decide)?;
        match (inbound, opened) {
            (_, Some(Some(notify))) => Ok(OpenedSecret {
                group: waiting.group.clone(),
                notify,
            }),
            (_, Some(None)) => Err(SecretError::Malformed),
            (Some(_), None) => Err(SecretError::Gone),
            (None, None) => Err(SecretError::NotWaiting(waiting.about.rotation_id.clone())),
        }
    }

    /// Proves to the service that the secret has arrived. Sent, and stored by the relay, when this returns.
    ///
    /// # Errors
    /// [`SecretError::Seal`], [`SecretError::Relay`].
    pub async fn ack(
        &mut self,
        secret: &OpenedSecret,
        deadline: Instant,
    ) -> Result<EventId, SecretError> {
        self.ready(&secret.group, deadline).await?;
        let now = self.clock.now();
        let ack = RotateAck::proven(&secret.notify, self.npub(), &secret.group, now);
        let content = serde_json::to_string(&ack).map_err(|_| SecretError::Malformed)?;
        let payload = Payload {
            kind: Kind::from(kinds::ROTATE_ACK),
            tags: Vec::new(),
            content: Zeroizing::new(content),
        };
        let sealed = self.member.seal(&secret.group, payload, now)?;
        self.relay
            .publish_stored(&sealed.event, self.step(deadline))
            .await?;
        Ok(sealed.event.id)
    }
}
