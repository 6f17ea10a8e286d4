//! Step 2: reserves a client for one rotation. Idempotency key, TOTP step, minimum interval and `active_rotation` are judged and written together.

use keyturn_proto::UnixMs;
use keyturn_proto::notify::Outcome;

use super::admins::{Step, take_step};
use super::draft::{Draft, check_fence, conflict};
use super::revoke::revoke_versions;
use super::table::{ROTATION, RotationEvent};
use super::{Change, Family, Known, Verdict, consequence};
use crate::documents::{
    ActionDoc, ActiveRotation, AdminDoc, ClientStatus, RotationDoc, RotationState,
};
use crate::store::{Reserve, Reserved, Result};

/// `active` is the rotation that the client's `active_rotation` names; `admin` the requester's enrolment.
///
/// An emergency (`revoke_living`) does not wait for a rotation that is under way: that one ends as `revoked` here.
///
/// # Errors
/// [`crate::store::StoreError::Conflict`] for a locked or revoked admin or a malformed command;
/// [`crate::store::StoreError::Fenced`].
pub fn reserve(
    family: Family,
    known: Known,
    active: Option<RotationDoc>,
    admin: Option<&AdminDoc>,
    command: Reserve,
) -> Result<Verdict<Reserved>> {
    let Reserve {
        rotation,
        totp_step,
        min_interval_ms,
        revoke_living,
        now,
        audit,
    } = command;

    if let Some(found) = known.rotation {
        // The idempotency key is (client, id, digest); the digest covers the client.
        if found.request_digest != rotation.request_digest || found.client_id != rotation.client_id
        {
            return Ok(Verdict::unchanged(Reserved::IdReused));
        }
        // A repeat after a crash carries the very step that it had accepted; a repeat with a fresh code spends that code.
        let mut verdict = Verdict::unchanged(Reserved::Repeat(Box::new(found)));
        if let Some(step) = totp_step
            && let Ok(Step::Accepted(admin)) = take_step(admin, step, now)
        {
            verdict.change.admin = Some(admin);
            let repeated = consequence(
                &audit,
                "request.repeated",
                Some(&rotation.rotation_id),
                None,
            );
            verdict.change.audit.push(repeated);
        }
        return Ok(verdict);
    }
    if known.action.is_some() {
        return Ok(Verdict::unchanged(Reserved::IdReused));
    }

    check_fence(&family.client, rotation.fence)?;
    let status = family.client.status;
    // After a revoke a rotation is the way back; a suspension by the operator is lifted by the operator alone.
    let rotatable = match status {
        ClientStatus::Active => true,
        ClientStatus::Suspended => !family.client.policy.held,
        ClientStatus::Revoked => false,
    };
    if !rotatable {
        return Ok(Verdict::unchanged(Reserved::NotRotatable(status)));
    }
    if let (Some(busy), false) = (&family.client.active_rotation, revoke_living) {
        return Ok(Verdict::unchanged(Reserved::Busy(busy.rotation_id.clone())));
    }
    if let Some(last) = family.client.last_rotation_at {
        let earliest = UnixMs(last.0.saturating_add(min_interval_ms));
        if now < earliest {
            return Ok(Verdict::unchanged(Reserved::TooSoon(earliest)));
        }
    }
    if admin.is_some_and(|admin| !admin.active) {
        return Err(conflict("admin.inactive"));
    }
    let admin = match totp_step
        .map(|step| take_step(admin, step, now))
        .transpose()?
    {
        Some(Step::Replayed) => return Ok(Verdict::unchanged(Reserved::TotpReplayed)),
        Some(Step::Accepted(admin)) => Some(admin),
        None => None,
    };

    let old_version = family.client.current_version;
    let mut draft = Draft::under(rotation.fence, family)?;
    let mut consequences = Change::default();
    if revoke_living {
        revoke_versions(
            &mut draft,
            active,
            None,
            now,
            now,
            &audit,
            &mut consequences,
        )?;
    }
    let rotation = fresh(rotation, old_version)?;
    if rotation.client_id != draft.client.client_id {
        return Err(conflict("rotation.mismatch"));
    }
    let ours = ActiveRotation {
        rotation_id: rotation.rotation_id.clone(),
        attempt: rotation.attempt,
        fence: rotation.fence,
    };
    draft.client.active_rotation = Some(ours.clone());
    let (_, mut change) = draft.finish(now);
    change.admin = admin;
    change.rotations = consequences.rotations;
    change.actions = consequences.actions;
    change.expire_outbox = consequences.expire_outbox;
    change.actions.push(ActionDoc::of(&rotation));
    change.rotations.push(rotation);
    change.audit.push(audit);
    change.audit.extend(consequences.audit);
    Ok(Verdict {
        answer: Reserved::New(ours),
        change,
    })
}

/// The rotation as it is recorded first, whatever the caller filled in.
fn fresh(
    rotation: RotationDoc,
    old_version: Option<keyturn_proto::VersionId>,
) -> Result<RotationDoc> {
    let state: RotationState = ROTATION
        .next(None, RotationEvent::Reserve)
        .flatten()
        .ok_or(conflict("rotation.state"))?;
    let mut fresh = RotationDoc {
        new_version: None,
        old_version,
        distribution_message_id: None,
        readers: Vec::new(),
        state,
        outcome: None::<Outcome>,
        attempt: 1,
        completed_at: None,
        announced_at: None,
        ..rotation
    };
    fresh.quorum.acks.clear();
    Ok(fresh)
}
