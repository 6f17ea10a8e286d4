//! Step 6: one admin confirms. The ack that completes the quorum promotes in the same transaction, if `not_before` has come.

use keyturn_proto::UnixMs;

use super::draft::{Draft, conflict};
use super::promote::promote_in;
use super::table::RotationEvent;
use super::{Family, Verdict, consequence, quorum};
use crate::documents::{AckEntry, Actor, AdminDoc, AuditRecord, RotationDoc, RotationState};
use crate::store::{AckResult, RecordAck, Result};

/// `acker` is the enrolment of the npub that acks, as read in the same transaction.
///
/// # Errors
/// [`crate::store::StoreError::Conflict`] when the ack speaks of another version.
pub fn record_ack(
    family: Family,
    mut rotation: RotationDoc,
    acker: Option<&AdminDoc>,
    command: RecordAck,
) -> Result<Verdict<AckResult>> {
    let RecordAck {
        rotation_id: _,
        version_id,
        ack,
        retention_ms,
        now,
        audit,
    } = command;
    if rotation.new_version != Some(version_id) {
        return Err(conflict("ack.wrong_version"));
    }
    let late = rotation.state == RotationState::Prepared && now >= rotation.ack_deadline;
    let over = matches!(
        rotation.state,
        RotationState::Done | RotationState::Reserved
    );
    let reader = rotation.readers.contains(&ack.npub);
    let enrolled = acker.is_some_and(|admin| quorum::enrolled_for(admin, &rotation.client_id));
    if over || late || !reader || !enrolled || !note(&mut rotation, ack.clone()) {
        return Ok(Verdict::unchanged(AckResult {
            rotation,
            counted: false,
            promoted: false,
        }));
    }

    let counted = quorum::counted(&rotation).any(|counted| counted.npub == ack.npub);
    let mut draft = Draft::of(family)?;
    if rotation.state == RotationState::Prepared && quorum::met(&rotation) {
        draft.rotation(&mut rotation, RotationEvent::Quorum, now)?;
    }
    let promoted = rotation.state == RotationState::QuorumMet && now >= rotation.not_before;
    if promoted {
        promote_in(&mut draft, &mut rotation, now)?;
    }
    let (_, mut change) = draft.finish(now);
    let by_relay = promoted_by_relay(&audit, &rotation);
    change.audit.push(audit);
    if promoted {
        change.end(&rotation, UnixMs(now.0.saturating_add(retention_ms)));
        change.audit.push(by_relay);
    } else {
        change.rotations.push(rotation.clone());
    }
    Ok(Verdict {
        answer: AckResult {
            rotation,
            counted,
            promoted,
        },
        change,
    })
}

/// Enters the ack; false if it adds nothing. A proven one replaces an unproven one, never the other way round.
fn note(rotation: &mut RotationDoc, ack: AckEntry) -> bool {
    match rotation
        .quorum
        .acks
        .iter_mut()
        .find(|known| known.npub == ack.npub)
    {
        Some(known) if known.proven || !ack.proven => false,
        Some(known) => {
            *known = ack;
            true
        }
        None => {
            rotation.quorum.acks.push(ack);
            true
        }
    }
}

/// The promotion is the relay's doing, at the admin's ack.
fn promoted_by_relay(ack: &AuditRecord, rotation: &RotationDoc) -> AuditRecord {
    AuditRecord {
        actor: Actor::Relay,
        reason: rotation.reason.clone(),
        ..consequence(
            ack,
            "rotation.promoted",
            Some(&rotation.rotation_id),
            rotation.new_version,
        )
    }
}
