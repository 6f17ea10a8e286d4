//! Ends a rotation without promotion: withdrawn by an admin, expired, or given up by the relay. The old secret stays current throughout.

use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_proto::{ClientId, ErrorClass, UnixMs};
use keyturn_store::documents::RotationDoc;
use keyturn_store::store::{Cancel, Withdraw, Withdrawn};

use super::audit::Entry;
use super::engine::Engine;
use super::failure::Failure;
use super::recover::active;
use super::request::Authorised;

impl Engine {
    /// The `cancel` action. The store decides, once per request, which rotation it ends; a repeat reports the first result.
    pub(super) async fn cancel(&self, authorised: Authorised) -> Result<NotifyState, Failure> {
        let permit = authorised.permit();
        let now = self.now();
        let withdrawn = self
            .store()
            .withdraw(Withdraw {
                client_id: permit.client_id().clone(),
                target: permit.params().target_rotation_id.clone(),
                action_id: permit.action_id().clone(),
                request_digest: permit.request_digest().to_owned(),
                totp_step: permit.totp_step().map(|step| (permit.requester(), step)),
                retention_ms: self.settings().retention_ms(),
                fence: authorised.fence(),
                now,
                audit: Entry::of_permit(now, permit, "rotation.canceled").done(),
            })
            .await?;
        let found = match withdrawn {
            Withdrawn::Done(_) => {
                counted(Outcome::Canceled);
                self.wake();
                true
            }
            Withdrawn::Before(_) => true,
            Withdrawn::Nothing => {
                let class = ErrorClass::NotFound.as_str();
                metrics::counter!(crate::metrics::REFUSED_LATE, "class" => class).increment(1);
                false
            }
            Withdrawn::Repeat(action) => action.target_rotation_id.is_some(),
            Withdrawn::IdReused => {
                return Err(Failure::refused(ErrorClass::Conflict, "request.id_reused"));
            }
            Withdrawn::TotpReplayed => {
                let class = ErrorClass::UnauthorizedRequest;
                return Err(Failure::refused(class, "totp.replayed"));
            }
        };
        self.withdrawn(permit.client_id(), found).await
    }

    /// What is told of a withdrawal, as it was recorded. That there was nothing to end is recorded too: it is an answer, not a refusal still to come.
    pub(super) async fn withdrawn(
        &self,
        client: &ClientId,
        found: bool,
    ) -> Result<NotifyState, Failure> {
        if found {
            return self.ended(client, Outcome::Canceled, None).await;
        }
        Ok(NotifyState::Refused {
            error: ErrorClass::NotFound,
            retry_after_ms: None,
        })
    }

    /// The relay ends a rotation: only this very attempt of it, so that a successor's work is never withdrawn.
    pub(super) async fn end(
        &self,
        rotation: &RotationDoc,
        outcome: Outcome,
        reason: &'static str,
    ) -> Result<RotationDoc, Failure> {
        let now = self.now();
        let event = match outcome {
            Outcome::Expired => "rotation.expired",
            _ => "rotation.canceled",
        };
        let ended = self
            .store()
            .cancel(Cancel {
                rotation_id: rotation.rotation_id.clone(),
                outcome,
                only_if: Some(active(rotation)),
                retention_ms: self.settings().retention_ms(),
                fence: Some(self.fenced()?),
                now,
                audit: Entry::of_rotation(now, rotation, event, reason).done(),
            })
            .await?;
        counted(outcome);
        self.wake();
        Ok(ended)
    }

    /// How an action ended, with the client's versions as they are now.
    pub(super) async fn ended(
        &self,
        client: &ClientId,
        outcome: Outcome,
        grace_until: Option<UnixMs>,
    ) -> Result<NotifyState, Failure> {
        let client = self.store().client(client).await?;
        Ok(NotifyState::Done {
            outcome,
            current_version: client.as_ref().and_then(|client| client.current_version),
            previous_version: client.as_ref().and_then(|client| client.previous_version),
            grace_until: grace_until.filter(|_| outcome == Outcome::Promoted),
        })
    }
}

/// Counts an end without promotion.
pub(super) fn counted(outcome: Outcome) {
    metrics::counter!(crate::metrics::ROTATIONS, "outcome" => outcome.as_str()).increment(1);
}
