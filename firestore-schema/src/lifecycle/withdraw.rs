//! The `cancel` action: an admin ends the rotation that the request names, or the one that is under way.
//!
//! What must always hold: a request is decided once. What it ended is written down under its id in the commit that ends it, and so is that there was
//! nothing to end: whoever works off the same request again, after a crash or as another instance, ends nothing that began since.

use keyturn_proto::notify::Outcome;
use keyturn_proto::{Action, UnixMs};

use super::admins::{Step, take_step};
use super::cancel::end;
use super::draft::{check_fence, conflict, fenced};
use super::revoke::{Before, before};
use super::table::RotationEvent;
use super::{Change, Family, Known, Verdict};
use crate::documents::{ActionDoc, ActionState, AdminDoc, AuditRecord, RotationDoc, RotationState};
use crate::store::{Result, Withdraw, Withdrawn};

/// `event` of the record when another request has withdrawn the rotation before.
pub const AGAIN: &str = "rotation.canceled_before";
/// `event` and `reason` of the record when there is nothing to end.
pub const NOTHING: (&str, &str) = ("request.refused", "rotation.none_active");

/// `found` is the rotation that the request names, or else the one under way; `admin` the enrolment that `totp_step` names.
///
/// # Errors
/// [`crate::store::StoreError::Conflict`] for a rotation that ended otherwise, and for a locked admin; [`crate::store::StoreError::Fenced`].
pub fn withdraw(
    family: Family,
    known: Known,
    found: Option<RotationDoc>,
    admin: Option<&AdminDoc>,
    command: Withdraw,
) -> Result<Verdict<Withdrawn>> {
    let Withdraw {
        client_id,
        target: _,
        action_id,
        request_digest,
        totp_step,
        retention_ms,
        fence,
        now,
        audit,
    } = command;
    // Another client's rotation does not exist for this requester.
    let found = found.filter(|rotation| rotation.client_id == client_id);
    let action = ActionDoc {
        action_id,
        client_id,
        action_type: Action::Cancel,
        profile: keyturn_proto::request::PROFILE.to_owned(),
        requester: audit.actor.clone(),
        request_digest,
        state: ActionState::Done,
        outcome: found.as_ref().map(|_| Outcome::Canceled),
        target_rotation_id: found.as_ref().map(|rotation| rotation.rotation_id.clone()),
        created_at: now,
        completed_at: Some(now),
    };
    match before(&known, &action) {
        Some(Before::Same(recorded)) => {
            return Ok(Verdict::unchanged(Withdrawn::Repeat(Box::new(recorded))));
        }
        Some(Before::Other) => return Ok(Verdict::unchanged(Withdrawn::IdReused)),
        None => {}
    }
    check_fence(&family.client, fence)?;
    let over = |rotation: &RotationDoc| rotation.state == RotationState::Done;
    if let Some(rotation) = found.as_ref().filter(|rotation| over(rotation))
        && rotation.outcome != Some(Outcome::Canceled)
    {
        return Err(conflict("rotation.over"));
    }
    let admin = match totp_step
        .map(|(_, step)| take_step(admin, step, now))
        .transpose()?
    {
        Some(Step::Replayed) => return Ok(Verdict::unchanged(Withdrawn::TotpReplayed)),
        Some(Step::Accepted(admin)) => Some(admin),
        None => None,
    };

    let (answer, mut change, audit) = match found {
        None => {
            let (event, reason) = NOTHING;
            let record = AuditRecord {
                event: event.to_owned(),
                reason: reason.to_owned(),
                ..audit
            };
            (Withdrawn::Nothing, Change::default(), record)
        }
        Some(rotation) if over(&rotation) => {
            let record = AuditRecord {
                event: AGAIN.to_owned(),
                rotation_id: Some(rotation.rotation_id.clone()),
                ..audit
            };
            let answer = Withdrawn::Before(Box::new(rotation));
            (answer, Change::default(), record)
        }
        Some(rotation) => {
            let record = AuditRecord {
                rotation_id: Some(rotation.rotation_id.clone()),
                version_id: rotation.new_version,
                ..audit
            };
            let delete_after = UnixMs(now.0.saturating_add(retention_ms));
            let family = fenced(fence, family)?;
            let (rotation, change) =
                end(family, rotation, RotationEvent::Cancel, delete_after, now)?;
            (Withdrawn::Done(Box::new(rotation)), change, record)
        }
    };
    change.actions.push(action);
    change.admin = admin;
    change.audit.push(audit);
    Ok(Verdict { answer, change })
}
