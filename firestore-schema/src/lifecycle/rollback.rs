//! Rollback within grace: the previous version is current again, the withdrawn one dies at once (protocol.md §3).

use keyturn_proto::Action;

use super::admins::{Step, take_step};
use super::draft::{Draft, check_fence, conflict};
use super::revoke::repeated;
use super::table::{RotationEvent, VersionEvent};
use super::{Family, Known, Verdict};
use crate::documents::{ActionDoc, ActionState, AdminDoc, ClientStatus, RotationDoc, VersionState};
use crate::store::{ActionResult, Result, Rollback, StoreError};

/// `made_current` is the rotation that made the current version, if one did. A rotation under way is not touched: it will replace whichever version is
/// current then.
///
/// # Errors
/// [`StoreError::Conflict`] outside grace, for a client that is not active, or when `target` did not make the current version;
/// [`StoreError::Fenced`].
pub fn rollback(
    family: Family,
    known: Known,
    made_current: Option<RotationDoc>,
    admin: Option<&AdminDoc>,
    command: Rollback,
) -> Result<Verdict<ActionResult>> {
    let Rollback {
        client_id,
        target,
        action_id,
        request_digest,
        totp_step,
        fence,
        now,
        audit,
    } = command;
    let action = ActionDoc {
        action_id,
        client_id,
        action_type: Action::Rollback,
        profile: keyturn_proto::request::PROFILE.to_owned(),
        requester: audit.actor.clone(),
        request_digest,
        state: ActionState::Done,
        outcome: None,
        target_rotation_id: None,
        created_at: now,
        completed_at: Some(now),
    };
    if let Some(answer) = repeated(&family, &known, &action) {
        return Ok(Verdict::unchanged(answer));
    }
    check_fence(&family.client, fence)?;
    if family.client.status != ClientStatus::Active {
        return Err(conflict("rollback.client_not_active"));
    }
    let mut draft = Draft::under(fence, family)?;
    let current = draft
        .in_state(VersionState::Current)
        .ok_or(conflict("rollback.no_current"))?;
    let (withdrawn, made_by) = (current.version_id, current.rotation_id.clone());
    if target.is_some() && target != made_by {
        return Err(conflict("rollback.not_latest"));
    }
    let previous = draft
        .in_state(VersionState::Grace)
        .ok_or(conflict("rollback.no_previous"))?;
    let end = previous
        .not_after
        .ok_or(StoreError::Damaged { what: "version" })?;
    if now >= end {
        return Err(conflict("rollback.grace_over"));
    }
    let previous = previous.version_id;
    let admin = match totp_step
        .map(|(_, step)| take_step(admin, step, now))
        .transpose()?
    {
        Some(Step::Replayed) => return Ok(Verdict::unchanged(ActionResult::TotpReplayed)),
        Some(Step::Accepted(admin)) => Some(admin),
        None => None,
    };

    draft.step(withdrawn, VersionEvent::Withdraw, now)?;
    draft.step(previous, VersionEvent::Rollback, now)?;
    let mut undone =
        made_current.filter(|rotation| made_by.as_ref() == Some(&rotation.rotation_id));
    if let Some(rotation) = &mut undone {
        draft.rotation(rotation, RotationEvent::RollBack, now)?;
        rotation.grace_until = None;
    }
    let (client, mut change) = draft.finish(now);
    if let Some(rotation) = undone {
        change.actions.push(ActionDoc::of(&rotation));
        change.rotations.push(rotation);
    }
    change.actions.push(action);
    change.admin = admin;
    change.audit.push(audit);
    Ok(Verdict {
        answer: ActionResult::Done(Box::new(client)),
        change,
    })
}
