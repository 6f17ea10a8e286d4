//! Ends a rotation without promotion. The old secret stays current throughout.

use keyturn_proto::UnixMs;
use keyturn_proto::notify::Outcome;

use super::draft::{Draft, conflict, fenced};
use super::table::{RotationEvent, VersionEvent};
use super::{Change, Family, Verdict, consequence};
use crate::documents::{Actor, AuditRecord, RotationDoc, RotationState};
use crate::store::{Cancel, Result, StoreError};

/// By the relay's or the operator's own decision; an admin's action is [`super::withdraw`].
///
/// # Errors
/// [`StoreError::Fenced`] when `only_if` or the fence no longer holds; [`StoreError::Conflict`] when the rotation ended otherwise, or may not expire yet.
pub fn cancel(
    family: Family,
    rotation: RotationDoc,
    command: Cancel,
) -> Result<Verdict<RotationDoc>> {
    let Cancel {
        rotation_id: _,
        outcome,
        only_if,
        retention_ms,
        fence,
        now,
        audit,
    } = command;
    let event = match outcome {
        Outcome::Canceled => RotationEvent::Cancel,
        Outcome::Expired => RotationEvent::Expire,
        Outcome::Promoted | Outcome::RolledBack | Outcome::Revoked => {
            return Err(conflict("cancel.outcome"));
        }
    };
    if rotation.state == RotationState::Done {
        return if rotation.outcome == Some(outcome) {
            Ok(Verdict::unchanged(rotation))
        } else {
            Err(conflict("rotation.over"))
        };
    }
    let family = match fence {
        Some(fence) => fenced(fence, family)?,
        None => family,
    };
    if only_if.is_some_and(|ours| family.client.active_rotation != Some(ours)) {
        return Err(StoreError::Fenced);
    }
    if event == RotationEvent::Expire && now < rotation.ack_deadline {
        return Err(conflict("expire.too_early"));
    }
    let delete_after = UnixMs(now.0.saturating_add(retention_ms));
    let (rotation, mut change) = end(family, rotation, event, delete_after, now)?;
    change.audit.push(audit);
    Ok(Verdict {
        answer: rotation,
        change,
    })
}

/// Ends a rotation that is under way, and its pending version with it.
pub(super) fn end(
    family: Family,
    mut rotation: RotationDoc,
    event: RotationEvent,
    delete_after: UnixMs,
    now: UnixMs,
) -> Result<(RotationDoc, Change)> {
    let mut draft = Draft::of(family)?;
    if let Some(version) = rotation.new_version {
        draft.step(version, VersionEvent::Cancel, now)?;
    }
    draft.rotation(&mut rotation, event, now)?;
    let (_, mut change) = draft.finish(now);
    change.end(&rotation, delete_after);
    Ok((rotation, change))
}

/// The relay ends a rotation by itself, at whatever `cause` was about to do. Its ciphertext is due for deletion at once: nobody needs it any more.
pub(super) fn give_up(
    family: Family,
    rotation: RotationDoc,
    event: RotationEvent,
    reason: &str,
    now: UnixMs,
    cause: &AuditRecord,
) -> Result<(RotationDoc, Change)> {
    let (rotation, mut change) = end(family, rotation, event, now, now)?;
    let word = match event {
        RotationEvent::Expire => "rotation.expired",
        _ => "rotation.canceled",
    };
    let record = AuditRecord {
        actor: Actor::Relay,
        reason: reason.to_owned(),
        ..consequence(
            cause,
            word,
            Some(&rotation.rotation_id),
            rotation.new_version,
        )
    };
    change.audit.push(record);
    Ok((rotation, change))
}

/// A reader was revoked: the pending secret is known to somebody who is not trusted any more, so it must never become current.
pub(super) fn compromised(
    family: Family,
    rotation: RotationDoc,
    now: UnixMs,
    cause: &AuditRecord,
) -> Result<(RotationDoc, Change)> {
    give_up(
        family,
        rotation,
        RotationEvent::Cancel,
        "reader.revoked",
        now,
        cause,
    )
}
