//! Revoke: at once, waiting for nobody (protocol.md §3).

use keyturn_proto::{Action, UnixMs, VersionId};

use super::admins::{Step, take_step};
use super::draft::{Draft, check_fence};
use super::table::{ClientEvent, RotationEvent, VersionEvent};
use super::{Change, Family, Known, Verdict, consequence};
use crate::documents::{ActionDoc, ActionState, AdminDoc, AuditRecord, RotationDoc, VersionState};
use crate::store::{ActionResult, Result, Revoke, StoreError};

/// `exists` says whether the version named belongs to the client at all; `active` is the rotation under way; `admin` the enrolment that `totp_step` names.
///
/// # Errors
/// [`StoreError::NotFound`] for a version that the client never had; [`StoreError::Conflict`] for a locked admin; [`StoreError::Fenced`].
pub fn revoke(
    family: Family,
    known: Known,
    active: Option<RotationDoc>,
    exists: bool,
    admin: Option<&AdminDoc>,
    command: Revoke,
) -> Result<Verdict<ActionResult>> {
    let Revoke {
        client_id,
        version_id,
        action_id,
        request_digest,
        totp_step,
        retention_ms,
        fence,
        now,
        audit,
    } = command;
    let action = ActionDoc {
        action_id,
        client_id,
        action_type: Action::Revoke,
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
    if version_id.is_some() && !exists {
        return Err(StoreError::NotFound { what: "version" });
    }
    let admin = match totp_step
        .map(|(_, step)| take_step(admin, step, now))
        .transpose()?
    {
        Some(Step::Replayed) => return Ok(Verdict::unchanged(ActionResult::TotpReplayed)),
        Some(Step::Accepted(admin)) => Some(admin),
        None => None,
    };

    let mut draft = Draft::under(fence, family)?;
    let mut consequences = Change::default();
    let delete_after = UnixMs(now.0.saturating_add(retention_ms));
    revoke_versions(
        &mut draft,
        active,
        version_id,
        delete_after,
        now,
        &audit,
        &mut consequences,
    )?;
    let (client, mut change) = draft.finish(now);
    change.rotations = consequences.rotations;
    change.actions = consequences.actions;
    change.expire_outbox = consequences.expire_outbox;
    change.actions.push(action);
    change.admin = admin;
    change.audit.push(audit);
    change.audit.extend(consequences.audit);
    Ok(Verdict {
        answer: ActionResult::Done(Box::new(client)),
        change,
    })
}

/// Retires `only`, or everything that lives. Losing the current version suspends the client: a version in grace is no successor of it (whoever
/// wants to go back to that one asks for a rollback). Losing the pending version ends its rotation as `revoked`; revoking everything ends also
/// a rotation that has recorded nothing yet, so that nothing asked for before can follow.
pub(super) fn revoke_versions(
    draft: &mut Draft,
    active: Option<RotationDoc>,
    only: Option<VersionId>,
    delete_after: UnixMs,
    now: UnixMs,
    audit: &AuditRecord,
    out: &mut Change,
) -> Result<()> {
    for state in [
        VersionState::Pending,
        VersionState::Grace,
        VersionState::Current,
    ] {
        let Some(version) = draft.in_state(state).map(|doc| doc.version_id) else {
            continue;
        };
        if only.is_some_and(|only| only != version) {
            continue;
        }
        draft.step(version, VersionEvent::Revoke, now)?;
        out.audit
            .push(consequence(audit, "version.revoked", None, Some(version)));
        if state == VersionState::Current {
            draft.status(ClientEvent::RevokeCurrent)?;
        }
    }
    let Some(mut rotation) = active else {
        return Ok(());
    };
    if only.is_none() || rotation.new_version.is_some_and(|new| Some(new) == only) {
        draft.rotation(&mut rotation, RotationEvent::Revoke, now)?;
        out.end(&rotation, delete_after);
        out.audit.push(consequence(
            audit,
            "rotation.revoked",
            Some(&rotation.rotation_id),
            rotation.new_version,
        ));
    }
    Ok(())
}

/// What an id was used for before.
pub(super) enum Before {
    /// The same request, and what was recorded of it.
    Same(ActionDoc),
    /// Another one.
    Other,
}

/// Whether the id of `action` was used before.
pub(super) fn before(known: &Known, action: &ActionDoc) -> Option<Before> {
    if known.rotation.is_some() {
        return Some(Before::Other);
    }
    let found = known.action.as_ref()?;
    let same = found.request_digest == action.request_digest
        && found.client_id == action.client_id
        && found.action_type == action.action_type;
    Some(if same {
        Before::Same(found.clone())
    } else {
        Before::Other
    })
}

/// The answer to an id that was used before.
pub(super) fn repeated(family: &Family, known: &Known, action: &ActionDoc) -> Option<ActionResult> {
    Some(match before(known, action)? {
        Before::Same(_) => ActionResult::Repeat(Box::new(family.client.clone())),
        Before::Other => ActionResult::IdReused,
    })
}
