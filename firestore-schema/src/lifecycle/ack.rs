//! Step 6: one admin confirms. The ack that completes the quorum promotes in the same transaction, if `not_before` has come.
//!
//! Who acked may have lost the right since: only acks that stand now count, and a reader who was revoked ends the rotation.

use keyturn_proto::UnixMs;

use super::cancel::compromised;
use super::draft::{Draft, conflict, fenced};
use super::promote::{promote_in, quorum_lost};
use super::quorum::People;
use super::table::RotationEvent;
use super::{Family, Verdict, consequence, quorum};
use crate::documents::{AckEntry, Actor, AuditRecord, RotationDoc, RotationState};
use crate::store::{AckResult, RecordAck, Result};

/// `people` holds the enrolments of whoever acks and of every reader, and the client's groups, as read in the same transaction.
///
/// # Errors
/// [`crate::store::StoreError::Conflict`] when the ack speaks of another version; [`crate::store::StoreError::Fenced`].
pub fn record_ack(
    family: Family,
    mut rotation: RotationDoc,
    people: &People,
    command: RecordAck,
) -> Result<Verdict<AckResult>> {
    let RecordAck {
        rotation_id: _,
        version_id,
        ack,
        retention_ms,
        fence,
        now,
        audit,
    } = command;
    let family = fenced(fence, family)?;
    if rotation.new_version != Some(version_id) {
        return Err(conflict("ack.wrong_version"));
    }
    let late = rotation.state == RotationState::Prepared && now >= rotation.ack_deadline;
    let over = matches!(
        rotation.state,
        RotationState::Done | RotationState::Reserved
    );
    let reader = rotation.readers.contains(&ack.npub);
    let unchanged = |rotation| {
        Ok(Verdict::unchanged(AckResult {
            rotation,
            counted: false,
            promoted: false,
        }))
    };
    if over || late || !reader || !people.stand_behind(&ack, &family.client) {
        return unchanged(rotation);
    }
    if people.lost_a_reader(&rotation) {
        let (rotation, change) = compromised(family, rotation, now, &audit)?;
        return Ok(Verdict {
            answer: AckResult {
                rotation,
                counted: false,
                promoted: false,
            },
            change,
        });
    }
    if !note(&mut rotation, ack.clone()) {
        return unchanged(rotation);
    }
    let acks = &mut rotation.quorum.acks;
    acks.retain(|known| people.stand_behind(known, &family.client));

    let counted = quorum::counted(&rotation).any(|counted| counted.npub == ack.npub);
    let mut draft = Draft::of(family)?;
    let mut lost = None;
    if rotation.state == RotationState::Prepared && quorum::met(&rotation) {
        draft.rotation(&mut rotation, RotationEvent::Quorum, now)?;
    } else if rotation.state == RotationState::QuorumMet && !quorum::met(&rotation) {
        draft.rotation(&mut rotation, RotationEvent::LoseQuorum, now)?;
        lost = Some(quorum_lost(&rotation, &audit));
    }
    let promoted = rotation.state == RotationState::QuorumMet && now >= rotation.not_before;
    if promoted {
        promote_in(&mut draft, &mut rotation, now)?;
    }
    let (_, mut change) = draft.finish(now);
    let by_relay = promoted_by_relay(&audit, &rotation);
    change.audit.push(audit);
    change.audit.extend(lost);
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
