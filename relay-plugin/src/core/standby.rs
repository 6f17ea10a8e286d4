//! The inbox of an instance that stands by.
//!
//! It opens every request and ack, since nobody can open them later, and keeps them in case the instance that acts dies with them. What must
//! always hold: a row goes when it has been dealt with: its effect is in the store, its sender was answered, or its proof has expired.

use std::time::Duration;

use keyturn_proto::inner::InnerKind;
use keyturn_proto::{Npub, RotateAck};
use keyturn_store::documents::{RotationDoc, RotationState};
use keyturn_store::store::StoreError;

use super::Core;
use crate::admission::hints;
use crate::delivery::inbox::Waiting;
use crate::delivery::service_member::ServiceError;

/// A proof lives five minutes at most (protocol.md §6.2), an ack is repeated by its app: nothing older is of use.
const OLDEST: Duration = Duration::from_secs(600);
/// Rows looked at together.
const PAGE: u32 = 256;
/// How often the store is asked about the rows.
const EVERY: Duration = Duration::from_secs(30);

impl Core {
    /// Deletes the rows that have been dealt with. The store is asked now and then, or `now`.
    pub(super) async fn prune(&self, now: bool) {
        if !now && !self.service.prune_is_due(EVERY) {
            return;
        }
        if let Err(error) = self.prune_once().await {
            tracing::warn!(%error, "the inbox could not be pruned");
        }
    }

    async fn prune_once(&self) -> Result<(), ServiceError> {
        let mut after = 0;
        loop {
            let waiting = self.service.inbox(after, PAGE).await?;
            let last = waiting.len() < PAGE as usize;
            for row in waiting {
                after = row.row;
                if self.is_dealt_with(&row).await? {
                    self.service.done(row.row).await?;
                }
            }
            if last {
                return Ok(());
            }
        }
    }

    async fn is_dealt_with(&self, row: &Waiting) -> Result<bool, StoreError> {
        let opened = &row.opened;
        if self.engine.now().since(opened.received_at) > OLDEST
            || self.service.was_answered(&opened.event_id)
        {
            return Ok(true);
        }
        if row.kind != InnerKind::Ack {
            let (Some(id), _) = hints(opened) else {
                return Ok(false);
            };
            return Ok(self.engine.rotation(&id).await?.is_some());
        }
        let Ok(ack) = serde_json::from_str::<RotateAck>(&opened.json) else {
            return Ok(false);
        };
        let rotation = self.engine.rotation(&ack.rotation_id).await?;
        Ok(rotation.is_some_and(|rotation| has_no_use_for(&rotation, opened.sender, &ack)))
    }
}

/// Whether this ack changes nothing any more.
fn has_no_use_for(rotation: &RotationDoc, sender: Npub, ack: &RotateAck) -> bool {
    let recorded = rotation
        .quorum
        .acks
        .iter()
        .any(|known| known.npub == sender && (known.proven || ack.proof.is_none()));
    let other = rotation
        .new_version
        .is_some_and(|new| new != ack.version_id);
    rotation.state == RotationState::Done || recorded || other
}
