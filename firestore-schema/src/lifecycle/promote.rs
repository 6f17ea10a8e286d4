//! Step 7: the new version becomes current, the old one enters grace, in one transaction.

use keyturn_proto::notify::Outcome;
use keyturn_proto::{UnixMs, VersionId};

use super::draft::{Draft, conflict};
use super::table::{ClientEvent, RotationEvent, VersionEvent};
use super::{Family, Verdict, quorum};
use crate::documents::{AuditRecord, RotationDoc, RotationState, VersionState};
use crate::store::{Result, StoreError};

/// Promotes a rotation whose quorum came before `not_before`.
///
/// # Errors
/// [`StoreError::Conflict`] without a quorum, before `not_before`, or when the rotation ended otherwise.
pub fn promote(
    family: Family,
    mut rotation: RotationDoc,
    retention_ms: u64,
    now: UnixMs,
    audit: AuditRecord,
) -> Result<Verdict<RotationDoc>> {
    if rotation.state == RotationState::Done {
        return match rotation.outcome {
            Some(Outcome::Promoted | Outcome::RolledBack) => Ok(Verdict::unchanged(rotation)),
            _ => Err(conflict("rotation.over")),
        };
    }
    let mut draft = Draft::of(family)?;
    promote_in(&mut draft, &mut rotation, now)?;
    let (_, mut change) = draft.finish(now);
    change.end(&rotation, UnixMs(now.0.saturating_add(retention_ms)));
    change.audit.push(audit);
    Ok(Verdict {
        answer: rotation,
        change,
    })
}

/// The promotion itself. Whatever was in grace before is retired: there is one previous version, not two.
pub(super) fn promote_in(draft: &mut Draft, rotation: &mut RotationDoc, now: UnixMs) -> Result<()> {
    if rotation.state != RotationState::QuorumMet || !quorum::met(rotation) {
        return Err(conflict("promote.no_quorum"));
    }
    if now < rotation.not_before {
        return Err(conflict("promote.too_early"));
    }
    let new: VersionId = rotation
        .new_version
        .ok_or(StoreError::Damaged { what: "rotation" })?;
    if let Some(earlier) = draft
        .in_state(VersionState::Grace)
        .map(|doc| doc.version_id)
    {
        draft.step(earlier, VersionEvent::SupersedeAtOnce, now)?;
    }
    let old = draft
        .in_state(VersionState::Current)
        .map(|doc| doc.version_id);
    rotation.old_version = old.or(rotation.old_version);
    rotation.grace_until = None;
    if let Some(old) = old {
        if rotation.grace_duration_ms == 0 {
            // Not "grace until now": the verifier's clock tolerance would keep that alive for two more seconds.
            draft.step(old, VersionEvent::SupersedeAtOnce, now)?;
        } else {
            let end = UnixMs(now.0.saturating_add(rotation.grace_duration_ms));
            draft.step(old, VersionEvent::Supersede, now)?;
            draft.end_grace_at(old, end);
            rotation.grace_until = Some(end);
        }
    }
    draft.step(new, VersionEvent::Promote, now)?;
    draft.status(ClientEvent::Promote)?;
    draft.client.last_rotation_at = Some(now);
    draft.rotation(rotation, RotationEvent::Promote, now)
}
