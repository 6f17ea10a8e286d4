//! Asking: challenge → proof → sealed request → answer.
//!
//! What must hold: the proof is made for exactly the request that is sent (its nonce binds action, client, parameters, group and our leaf's
//! key); an answer counts only from a configured service and only for this request.

use std::time::Duration;

use keyturn_mls::Payload;
use keyturn_mls::error::{SealError, StoreError};
use keyturn_proto::canonical::request_binding;
use keyturn_proto::notify::{NotifyState, ServiceNotify};
use keyturn_proto::proof::ProofRequest;
use keyturn_proto::request::{Bearer, PROFILE};
use keyturn_proto::{
    Action, ClientId, ErrorClass, Invalid, MlsGroupId, Params, RotationId, ServiceRequest, kinds,
    nonce,
};
use nostr::{EventId, Kind};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{AdminSession, GroupError, SecretError, SyncError, Update};
use crate::challenge::{ChallengeError, fetch_from_any};
use crate::proof::{ProofError, ProofSource};
use crate::transport::RelayError;

/// Why a request brought no answer, or a refusal.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The service refused; nothing was changed.
    #[error("refused: {class}{}", retry(.retry_after))]
    Refused {
        /// Its class, all that is said.
        class: ErrorClass,
        /// When it is worth trying again.
        retry_after: Option<Duration>,
    },
    /// Sent, and no answer until the deadline. Repeating it under the same id is safe.
    #[error("no answer in time; the operation is {0} (repeat it with --id)")]
    NoAnswer(RotationId),
    /// The rotation did not end until the deadline.
    #[error("rotation {0} is not over yet")]
    NotOver(RotationId),
    /// The request itself is wrong.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// No service is in the group, or none is configured.
    #[error("no configured service is a member of group {0}; set `services` and invite it")]
    NoService(MlsGroupId),
    /// No challenge.
    #[error(transparent)]
    Challenge(#[from] ChallengeError),
    /// No proof.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The group does not accept messages from us now.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Which group.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The relay.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// Catching up.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// The group is not settled before the deadline.
    #[error("the group was not ready in time: its last change is still settling")]
    Unsettled,
    /// The member database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn retry(after: &Option<Duration>) -> String {
    after.map_or_else(String::new, |after| {
        format!("; try again in {}", humantime::format_duration(after))
    })
}

impl From<RequestError> for SecretError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Seal(error) => Self::Seal(error),
            RequestError::Group(error) => Self::Group(error),
            RequestError::Relay(error) => Self::Relay(error),
            RequestError::Sync(error) => Self::Sync(error),
            RequestError::Store(error) => Self::Store(error),
            _ => Self::Timeout,
        }
    }
}

/// What is asked for.
pub struct RequestSpec {
    /// The action.
    pub action: Action,
    /// The client.
    pub client: ClientId,
    /// Its parameters.
    pub params: Params,
    /// The idempotency key; fresh if absent.
    pub action_id: Option<RotationId>,
    /// Where to send it: a group of ours with the service in it.
    pub group: MlsGroupId,
    /// RFC 6238 code, if the relay verifies one.
    pub totp: Option<Bearer>,
}

/// A request that was sent, and its first answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The idempotency key; for a rotation its id.
    pub action_id: RotationId,
    /// Where it was sent.
    pub group: MlsGroupId,
    /// The 445 event it travelled in.
    pub event: EventId,
    /// The answer: accepted, done or a status. A refusal is an error.
    pub answer: ServiceNotify,
}

impl AdminSession {
    /// Sends a request and waits for its first answer.
    ///
    /// # Errors
    /// [`RequestError`]; after [`RequestError::NoAnswer`] the same request may be repeated under its id.
    pub async fn request(
        &mut self,
        spec: RequestSpec,
        proof: &dyn ProofSource,
        deadline: Instant,
    ) -> Result<Reply, RequestError> {
        let RequestSpec {
            action,
            client,
            params,
            action_id,
            group,
            totp,
        } = spec;
        let action_id = match action_id {
            Some(id) => id,
            None => RotationId::generate(self.clock.now())?,
        };
        self.ready(&group, deadline).await?;
        let key = self.member.signature_key();
        let binding = request_binding(action, &client, &action_id, &params, &group, key.as_bytes());
        // Checked before anybody is bothered for a proof.
        let mut request = ServiceRequest {
            action_type: action,
            action_id: action_id.clone(),
            client_id: client.clone(),
            profile: PROFILE.to_owned(),
            params: params.clone(),
            jwt_proof: Bearer::new("-"),
            totp,
        };
        request.validate()?;
        let challenge = fetch_from_any(&self.challenges).await?;
        let asked = ProofRequest {
            nonce: nonce::compose(&challenge.challenge, &binding),
            npub: self.npub(),
            mls_group: group.clone(),
            aud: self.audience.clone(),
            action,
            client_id: client,
            action_id: action_id.clone(),
            params,
        };
        request.jwt_proof = proof.prove(&asked).await?;
        request.validate()?;
        // What was heard before it was sent answers an earlier request, under the same id perhaps.
        let heard = self.updates.len();
        let event = self.send(&group, &request, deadline).await?;
        let answer = self
            .first_answer(action, &action_id, event, heard, deadline)
            .await?;
        Ok(Reply {
            action_id,
            group,
            event,
            answer,
        })
    }

    /// Waits until a rotation is over; its last report. A refusal that answers one message (somebody else used its id, say) is none.
    ///
    /// # Errors
    /// [`RequestError::NotOver`] at the deadline; [`RequestError::Refused`] if it failed.
    pub async fn await_done(
        &mut self,
        rotation: &RotationId,
        deadline: Instant,
    ) -> Result<ServiceNotify, RequestError> {
        let wanted = |update: &Update| {
            matches!(
                update,
                Update::Report { notify, .. }
                    if notify.action_id.as_ref() == Some(rotation)
                        && match notify.body {
                            NotifyState::Done { .. } => true,
                            NotifyState::Refused { .. } => notify.in_reply_to.is_none(),
                            _ => false,
                        }
            )
        };
        match self.wait_for(wanted, deadline).await? {
            Some(Update::Report { notify, .. }) => not_refused(notify),
            _ => Err(RequestError::NotOver(rotation.clone())),
        }
    }

    /// Waits for the service's word on the ack that travelled in event `ack`: how many count, or that the rotation is over. Others' acks and
    /// refusals under the same rotation are not ours.
    ///
    /// # Errors
    /// [`RequestError::NotOver`] at the deadline; [`RequestError::Refused`].
    pub async fn await_acked(
        &mut self,
        rotation: &RotationId,
        ack: &EventId,
        deadline: Instant,
    ) -> Result<ServiceNotify, RequestError> {
        let ack = ack.to_hex();
        let wanted = |update: &Update| {
            matches!(
                update,
                Update::Report { notify, .. }
                    if notify.action_id.as_ref() == Some(rotation)
                        && match notify.body {
                            NotifyState::Done { .. } => true,
                            NotifyState::Acked { .. } | NotifyState::Refused { .. } => {
                                notify.in_reply_to.as_deref() == Some(&ack)
                            }
                            _ => false,
                        }
            )
        };
        match self.wait_for(wanted, deadline).await? {
            Some(Update::Report { notify, .. }) => not_refused(notify),
            _ => Err(RequestError::NotOver(rotation.clone())),
        }
    }

    /// Waits until something can be sealed in `group`: commits finished and settled, our leaf renewed.
    ///
    /// # Errors
    /// [`RequestError::Unsettled`] at the deadline; [`RequestError::Seal`] when waiting cannot help; [`RequestError::NoService`].
    pub async fn ready(
        &mut self,
        group: &MlsGroupId,
        deadline: Instant,
    ) -> Result<(), RequestError> {
        loop {
            self.catch_up(deadline).await?;
            let now = self.clock.now();
            match self.member.can_seal(group, now) {
                Ok(()) => break,
                Err(SealError::Unsettled { settles_at }) => {
                    if Instant::now() >= deadline {
                        return Err(RequestError::Unsettled);
                    }
                    // Rounded up: settling is due from that millisecond on.
                    let wait = settles_at.since(now) + Duration::from_millis(1);
                    self.pump(deadline.min(Instant::now() + wait)).await?;
                }
                Err(SealError::NeedsSelfUpdate) => self.self_update(group, deadline).await?,
                Err(SealError::PendingCommit(_)) => self.finish_commits(deadline).await?,
                Err(error) => return Err(error.into()),
            }
        }
        for service in &self.services {
            if self.is_member(group, service)? {
                return Ok(());
            }
        }
        Err(RequestError::NoService(group.clone()))
    }

    async fn send(
        &mut self,
        group: &MlsGroupId,
        request: &ServiceRequest,
        deadline: Instant,
    ) -> Result<EventId, RequestError> {
        let mut content = Zeroizing::new(Vec::with_capacity(
            ServiceRequest::MAX_PROOF + 4 * ServiceRequest::MAX_REASON + 2048,
        ));
        serde_json::to_writer(&mut *content, request)
            .map_err(|_| Invalid::new("service-request", "serialisable"))?;
        let content = std::str::from_utf8(&content)
            .map(|text| Zeroizing::new(text.to_owned()))
            .map_err(|_| Invalid::new("service-request", "UTF-8"))?;
        let payload = Payload {
            kind: Kind::from(kinds::SERVICE_REQUEST),
            tags: Vec::new(),
            content,
        };
        let sealed = self.member.seal(group, payload, self.clock.now())?;
        self.relay
            .publish_stored(&sealed.event, self.step(deadline))
            .await?;
        Ok(sealed.event.id)
    }

    /// A rotation may be over before we hear that it was accepted: then its end is the first answer, and stays for [`Self::await_done`].
    async fn first_answer(
        &mut self,
        action: Action,
        action_id: &RotationId,
        event: EventId,
        heard: usize,
        deadline: Instant,
    ) -> Result<ServiceNotify, RequestError> {
        let event = event.to_hex();
        let wanted = |update: &Update| matches!(update, Update::Report { notify, .. } if answers(notify, action_id, &event));
        match self.wait_past(heard, wanted, deadline).await? {
            Some(Update::Report {
                group,
                from,
                notify,
            }) => {
                let rotates = matches!(action, Action::Rotation | Action::Emergency);
                if rotates && matches!(notify.body, NotifyState::Done { .. }) {
                    let notify = notify.clone();
                    self.updates.push_front(Update::Report {
                        group,
                        from,
                        notify,
                    });
                }
                not_refused(notify)
            }
            _ => Err(RequestError::NoAnswer(action_id.clone())),
        }
    }
}

/// An answer that names an event must name ours: a report about somebody else's request under the same id is not for us.
fn answers(notify: &ServiceNotify, action_id: &RotationId, event: &str) -> bool {
    match &notify.in_reply_to {
        Some(replied) => replied == event,
        None => notify.action_id.as_ref() == Some(action_id),
    }
}

fn not_refused(notify: ServiceNotify) -> Result<ServiceNotify, RequestError> {
    match notify.body {
        NotifyState::Refused {
            error,
            retry_after_ms,
        } => Err(RequestError::Refused {
            class: error,
            retry_after: retry_after_ms.map(Duration::from_millis),
        }),
        _ => Ok(notify),
    }
}
