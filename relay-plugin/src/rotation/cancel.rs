//! Ends a rotation without promotion: withdrawn by an admin, expired, or given up by the relay. The old secret stays current throughout.

use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_proto::{ClientId, ErrorClass, UnixMs};
use keyturn_store::documents::{RotationDoc, RotationState};
use keyturn_store::store::Cancel;

use super::audit::Entry;
use super::engine::Engine;
use super::failure::Failure;
use super::recover::active;
use super::request::Authorised;

impl Engine {
    /// The `cancel` action. A repeat reports the first result.
    pub(super) async fn cancel(&self, authorised: Authorised) -> Result<NotifyState, Failure> {
        let permit = authorised.permit();
        let none = || Failure::refused(ErrorClass::NotFound, "rotation.none_active");
        let target = match &permit.params().target_rotation_id {
            Some(target) => target.clone(),
            None => {
                let client = self.store().client(permit.client_id()).await?;
                client
                    .and_then(|client| client.active_rotation)
                    .ok_or_else(none)?
                    .rotation_id
            }
        };
        let rotation = self.store().rotation(&target).await?.ok_or_else(none)?;
        // Another client's rotation does not exist for this requester.
        if rotation.client_id != *permit.client_id() {
            return Err(none());
        }
        if rotation.state == RotationState::Done && rotation.outcome != Some(Outcome::Canceled) {
            return Err(Failure::refused(ErrorClass::Conflict, "rotation.over"));
        }
        let now = self.now();
        let audit = Entry::of_permit(now, permit, "rotation.canceled").rotation(&target);
        let cancelled = self
            .store()
            .cancel(Cancel {
                rotation_id: target,
                outcome: Outcome::Canceled,
                only_if: None,
                totp_step: permit.totp_step().map(|step| (permit.requester(), step)),
                retention_ms: self.settings().retention_ms(),
                fence: Some(authorised.fence()),
                now,
                audit: audit.done(),
            })
            .await?;
        // A repeat changed nothing.
        if rotation.state != RotationState::Done {
            counted(Outcome::Canceled);
        }
        self.wake();
        self.ended(&cancelled.client_id, Outcome::Canceled, None)
            .await
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
                totp_step: None,
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
