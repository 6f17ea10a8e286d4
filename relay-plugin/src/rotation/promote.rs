//! Step 7: the pending version becomes current, and the old one enters its grace; then the admins are told, until they have been.

use keyturn_proto::notify::Outcome;
use keyturn_proto::{Npub, ServiceNotify};
use keyturn_store::documents::RotationDoc;

use super::audit::Entry;
use super::engine::Engine;
use super::failure::Failure;
use super::ports::DeliveryError;
use crate::crash;

impl Engine {
    /// The quorum came before `not_before`, and now `not_before` has come. The store judges acks and readers once more, and may cancel instead, or wait.
    pub(super) async fn promote(&self, rotation: &RotationDoc) -> Result<(), Failure> {
        let now = self.now();
        let audit = Entry::of_rotation(now, rotation, "rotation.promoted", &rotation.reason);
        let after = self
            .store()
            .promote(
                &rotation.rotation_id,
                self.settings().retention_ms(),
                self.fenced()?,
                now,
                audit.done(),
            )
            .await?;
        match after.outcome {
            Some(Outcome::Promoted) => {
                promoted();
                crash::point(crash::Point::AfterPromote).await;
            }
            Some(outcome) => {
                tracing::warn!(
                    rotation = %after.rotation_id, client = %after.client_id, outcome = outcome.as_str(),
                    "not promoted: a reader or an ack counts no more"
                );
                super::cancel::counted(outcome);
            }
            None => tracing::warn!(
                rotation = %after.rotation_id, client = %after.client_id, "the quorum is lost: too few acks count any more"
            ),
        }
        self.wake();
        Ok(())
    }

    /// Tells every admin group how a rotation ended. At least once: only afterwards the store is told that it was done; a receiver that has
    /// it twice recognises it by `action_id` and `state`.
    pub(super) async fn announce_end(&self, rotation: &RotationDoc) -> Result<(), Failure> {
        let Some(outcome) = rotation.outcome else {
            return Err(Failure::Again("rotation.not_over"));
        };
        let body = self
            .ended(&rotation.client_id, outcome, rotation.grace_until)
            .await?;
        let notify = ServiceNotify {
            action_id: Some(rotation.rotation_id.clone()),
            client_id: Some(rotation.client_id.clone()),
            in_reply_to: None,
            at: self.now(),
            body,
        };
        for alias in self.groups_of(rotation).await? {
            match self.distributor().announce(&alias, &notify).await {
                Ok(()) => {}
                Err(DeliveryError::Away(reason)) => return Err(Failure::Again(reason)),
                // A group that may not be written to is told nothing; waiting for it would hold up the others for ever.
                Err(DeliveryError::Group(reason) | DeliveryError::Refused(reason)) => {
                    let now = self.now();
                    let entry = Entry::of_rotation(now, rotation, "announcement.withheld", reason);
                    self.store().append(entry.group(&alias).done()).await?;
                }
            }
        }
        self.store()
            .mark_announced(&rotation.rotation_id, self.now())
            .await?;
        tracing::info!(
            rotation = %rotation.rotation_id, client = %rotation.client_id, outcome = outcome.as_str(), "over"
        );
        Ok(())
    }

    async fn groups_of(&self, rotation: &RotationDoc) -> Result<Vec<String>, Failure> {
        let client = self.store().client(&rotation.client_id).await?;
        Ok(client.map_or_else(
            || vec![rotation.mls_group.clone()],
            |client| client.admin_groups,
        ))
    }
}

/// Counts a promotion.
pub(super) fn promoted() {
    metrics::counter!(crate::metrics::ROTATIONS, "outcome" => Outcome::Promoted.as_str())
        .increment(1);
}

/// Proven acks that count towards the quorum of `rotation`.
pub(super) fn counted(rotation: &RotationDoc) -> u32 {
    let counts = |npub: Npub| rotation.quorum.requester_counts || npub != rotation.requested_by;
    let acks = rotation.quorum.acks.iter();
    let counted = acks
        .filter(|ack| counts(ack.npub) && (ack.proven || !rotation.quorum.require_proven))
        .count();
    u32::try_from(counted).unwrap_or(u32::MAX)
}
