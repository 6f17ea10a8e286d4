//! Recovery: a rotation starts again under a new attempt, so that no write of the old one can land any more.

use keyturn_proto::UnixMs;

use super::draft::{Draft, conflict};
use super::table::{RotationEvent, VersionEvent};
use super::{Family, Verdict};
use crate::documents::{ActiveRotation, AuditRecord, RotationDoc};
use crate::store::{Result, StoreError};

/// The version that the old attempt recorded is deleted, its ciphertext is void from now on, and acks for it count no more.
///
/// # Errors
/// [`StoreError::Fenced`] when somebody else took over, or when `fence` is older than the one recorded.
pub fn take_over(
    family: Family,
    mut rotation: RotationDoc,
    active: &ActiveRotation,
    fence: u64,
    now: UnixMs,
    audit: AuditRecord,
) -> Result<Verdict<ActiveRotation>> {
    let next = ActiveRotation {
        rotation_id: active.rotation_id.clone(),
        attempt: active
            .attempt
            .checked_add(1)
            .ok_or(conflict("attempt.exhausted"))?,
        fence,
    };
    let holder = family.client.active_rotation.as_ref();
    if holder == Some(&next) {
        // The repeat of a commit whose answer was lost. Two of us under one fence stay safe: only one can prepare this attempt.
        return Ok(Verdict::unchanged(next));
    }
    if holder != Some(active) || fence < active.fence {
        return Err(StoreError::Fenced);
    }
    let mut draft = Draft::under(fence, family)?;
    draft.rotation(&mut rotation, RotationEvent::TakeOver, now)?;
    if let Some(version) = rotation.new_version.take() {
        draft.step(version, VersionEvent::Void, now)?;
    }
    rotation.distribution_message_id = None;
    rotation.readers.clear();
    rotation.quorum.acks.clear();
    rotation.attempt = next.attempt;
    rotation.fence = next.fence;
    draft.client.active_rotation = Some(next.clone());
    let (_, mut change) = draft.finish(now);
    change
        .expire_outbox
        .push((rotation.rotation_id.clone(), now));
    change.rotations.push(rotation);
    change.audit.push(audit);
    Ok(Verdict {
        answer: next,
        change,
    })
}
