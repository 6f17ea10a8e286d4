//! Ends a rotation without promotion. The old secret stays current throughout.

use keyturn_proto::UnixMs;
use keyturn_proto::notify::Outcome;

use super::admins::{Step, take_step};
use super::draft::{Draft, conflict, fenced};
use super::table::{RotationEvent, VersionEvent};
use super::{Change, Family, Verdict, consequence};
use crate::documents::{Actor, AdminDoc, AuditRecord, RotationDoc, RotationState};
use crate::store::{Cancel, Result, StoreError};

/// `admin` is the enrolment that `totp_step` names.
///
/// # Errors
/// [`StoreError::Fenced`] when `only_if` or the fence no longer holds; [`StoreError::Conflict`] when the rotation ended otherwise, or may not expire yet.
pub fn cancel(
    family: Family,
    mut rotation: RotationDoc,
    admin: Option<&AdminDoc>,
    command: Cancel,
) -> Result<Verdict<RotationDoc>> {
    let Cancel {
        rotation_id: _,
        outcome,
        only_if,
        totp_step,
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
    let admin = match totp_step
        .map(|(_, step)| take_step(admin, step, now))
        .transpose()?
    {
        Some(Step::Replayed) => return Err(conflict("totp.replayed")),
        Some(Step::Accepted(admin)) => Some(admin),
        None => None,
    };
    let mut draft = Draft::of(family)?;
    if let Some(version) = rotation.new_version {
        draft.step(version, VersionEvent::Cancel, now)?;
    }
    draft.rotation(&mut rotation, event, now)?;
    let (_, mut change) = draft.finish(now);
    change.end(&rotation, UnixMs(now.0.saturating_add(retention_ms)));
    change.admin = admin;
    change.audit.push(audit);
    Ok(Verdict {
        answer: rotation,
        change,
    })
}

/// The relay ends a rotation by itself, at whatever `cause` was about to do. Its ciphertext is due for deletion at once: nobody needs it any more.
pub(super) fn withdraw(
    family: Family,
    mut rotation: RotationDoc,
    event: RotationEvent,
    reason: &str,
    now: UnixMs,
    cause: &AuditRecord,
) -> Result<(RotationDoc, Change)> {
    let mut draft = Draft::of(family)?;
    if let Some(version) = rotation.new_version {
        draft.step(version, VersionEvent::Cancel, now)?;
    }
    draft.rotation(&mut rotation, event, now)?;
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
    let (_, mut change) = draft.finish(now);
    change.end(&rotation, now);
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
    withdraw(
        family,
        rotation,
        RotationEvent::Cancel,
        "reader.revoked",
        now,
        cause,
    )
}
