//! Step 7: the new version becomes current, the old one enters grace, in one transaction.

use keyturn_proto::notify::Outcome;
use keyturn_proto::{UnixMs, VersionId};

use super::cancel::{compromised, give_up};
use super::draft::{Draft, conflict, fenced};
use super::quorum::People;
use super::table::{ClientEvent, RotationEvent, VersionEvent};
use super::{Family, Verdict, consequence, quorum};
use crate::documents::{Actor, AuditRecord, RotationDoc, RotationState, VersionState};
use crate::store::{Result, StoreError};

/// Promotes a rotation whose quorum came before `not_before`, if it still stands: look at the outcome of the answer. `people` holds the enrolments of
/// every reader and the client's groups, as read in the same transaction. A reader who was revoked since ends the rotation; acks that do not count any
/// more are dropped, and without a quorum the rotation waits for others, until its deadline.
///
/// # Errors
/// [`StoreError::Conflict`] without a quorum, before `not_before`, or when the rotation ended otherwise;
/// [`StoreError::Fenced`].
pub fn promote(
    family: Family,
    mut rotation: RotationDoc,
    people: &People,
    retention_ms: u64,
    fence: u64,
    now: UnixMs,
    audit: AuditRecord,
) -> Result<Verdict<RotationDoc>> {
    if rotation.state == RotationState::Done {
        return match rotation.outcome {
            Some(Outcome::Promoted | Outcome::RolledBack) => Ok(Verdict::unchanged(rotation)),
            _ => Err(conflict("rotation.over")),
        };
    }
    let family = fenced(fence, family)?;
    if rotation.state != RotationState::QuorumMet {
        return Err(conflict("promote.no_quorum"));
    }
    if now < rotation.not_before {
        return Err(conflict("promote.too_early"));
    }
    if people.lost_a_reader(&rotation) {
        let (answer, change) = compromised(family, rotation, now, &audit)?;
        return Ok(Verdict { answer, change });
    }
    let acks = &mut rotation.quorum.acks;
    acks.retain(|ack| people.stand_behind(ack, &family.client));
    if !quorum::met(&rotation) {
        return lose_quorum(family, rotation, now, audit);
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

/// Too few acks are left: those that were dropped can be given again, up to the deadline.
fn lose_quorum(
    family: Family,
    mut rotation: RotationDoc,
    now: UnixMs,
    cause: AuditRecord,
) -> Result<Verdict<RotationDoc>> {
    let lost = quorum_lost(&rotation, &cause);
    let mut draft = Draft::of(family.clone())?;
    draft.rotation(&mut rotation, RotationEvent::LoseQuorum, now)?;
    let (answer, mut change) = if now < rotation.ack_deadline {
        let (_, mut change) = draft.finish(now);
        change.rotations.push(rotation.clone());
        (rotation, change)
    } else {
        give_up(
            family,
            rotation,
            RotationEvent::Expire,
            "ack.deadline",
            now,
            &cause,
        )?
    };
    change.audit.insert(0, lost);
    Ok(Verdict { answer, change })
}

pub(super) fn quorum_lost(rotation: &RotationDoc, cause: &AuditRecord) -> AuditRecord {
    AuditRecord {
        actor: Actor::Relay,
        reason: "ack.no_longer_counts".to_owned(),
        ..consequence(
            cause,
            "rotation.quorum_lost",
            Some(&rotation.rotation_id),
            rotation.new_version,
        )
    }
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
