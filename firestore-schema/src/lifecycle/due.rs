//! Timed work, found from the documents alone: no deadline lives in memory.

use std::collections::BTreeMap;

use keyturn_proto::notify::Outcome;
use keyturn_proto::{RotationId, UnixMs};

use super::draft::conflict;
use super::{Verdict, by_relay};
use crate::documents::{
    AuditRecord, OutboxDoc, RotationDoc, RotationState, VersionDoc, VersionState,
};
use crate::store::{Due, Result};

/// When a rotation next needs the timer: a reservation at the end of its proof, a prepared one at its ack deadline, one with a quorum at `not_before`,
/// one that has ended until its end is announced.
#[must_use]
pub fn rotation_due_at(rotation: &RotationDoc) -> Option<UnixMs> {
    match rotation.state {
        RotationState::Reserved => Some(rotation.proof_expires_at.min(rotation.ack_deadline)),
        RotationState::Prepared => Some(rotation.ack_deadline),
        RotationState::QuorumMet => Some(rotation.not_before),
        // Told to the admins once it is over.
        RotationState::Done if rotation.announced_at.is_none() => rotation.completed_at,
        RotationState::Done => None,
    }
}

/// What is to be done with a rotation at `now`.
#[must_use]
pub fn rotation_due(rotation: RotationDoc, now: UnixMs) -> Option<Due> {
    if now < rotation_due_at(&rotation)? {
        return None;
    }
    match rotation.state {
        RotationState::Reserved => Some(Due::StaleReservation(rotation)),
        RotationState::Prepared => Some(Due::Expire(rotation)),
        RotationState::QuorumMet => Some(Due::Promote(rotation)),
        RotationState::Done => Some(Due::Announce(rotation)),
    }
}

/// When a version is to be retired.
#[must_use]
pub fn version_due_at(version: &VersionDoc) -> Option<UnixMs> {
    match version.state {
        VersionState::Grace => version.not_after,
        VersionState::Pending
        | VersionState::Current
        | VersionState::Retired
        | VersionState::Cancelled => None,
    }
}

/// Whether an event may still be published: sealed in the present attempt of a rotation that is under way or was promoted (an admin
/// whose group gets its event a little after the quorum of another group still needs the secret), and not past its retention.
#[must_use]
pub fn publishable(rotation: &RotationDoc, event: &OutboxDoc, now: UnixMs) -> bool {
    event.attempt == rotation.attempt
        && kept(event, now)
        && rotation.state != RotationState::Reserved
        && matches!(rotation.outcome, None | Some(Outcome::Promoted))
}

/// Whether the ciphertext of an event is not to be deleted yet.
#[must_use]
pub fn kept(event: &OutboxDoc, now: UnixMs) -> bool {
    event.withdrawn_at.is_none() && event.delete_after.is_none_or(|end| now < end)
}

/// What a purge makes of an outbox event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purged {
    /// Its time has not come.
    Stays,
    /// Delete the document.
    Forgotten,
    /// Replace the document: the id without the ciphertext.
    Withdrawn(OutboxDoc),
}

/// See [`crate::store::SecretStore::purge`].
#[must_use]
pub fn purged(event: OutboxDoc, keep_until: Option<UnixMs>, now: UnixMs) -> Purged {
    if event.delete_after.is_none_or(|end| now < end) {
        return Purged::Stays;
    }
    match keep_until.filter(|end| event.withdrawn_at.is_none() && now < *end) {
        None => Purged::Forgotten,
        Some(end) => Purged::Withdrawn(OutboxDoc {
            event_json: String::new(),
            withdrawn_at: Some(now),
            delete_after: Some(end),
            ..event
        }),
    }
}

/// The end of a rotation was announced; the first time counts.
///
/// # Errors
/// [`crate::store::StoreError::Conflict`] while the rotation is under way.
pub fn announced(mut rotation: RotationDoc, now: UnixMs) -> Result<Verdict<()>> {
    if rotation.state != RotationState::Done {
        return Err(conflict("rotation.under_way"));
    }
    let mut verdict = Verdict::unchanged(());
    if rotation.announced_at.is_none() {
        rotation.announced_at = Some(now);
        let outcome = rotation.outcome.map_or("", Outcome::as_str);
        verdict.change.audit.push(AuditRecord {
            client_id: Some(rotation.client_id.clone()),
            rotation_id: Some(rotation.rotation_id.clone()),
            version_id: rotation.new_version,
            ..by_relay(now, "rotation.announced", outcome.to_owned())
        });
        verdict.change.rotations.push(rotation);
    }
    Ok(verdict)
}

/// What is remembered of ciphertext that is deleted: one record per rotation. `events` are those that go now; of one that was withdrawn
/// before, only the id is left to go.
#[must_use]
pub fn purged_records(events: &[OutboxDoc], now: UnixMs) -> Vec<AuditRecord> {
    let mut count: BTreeMap<&RotationId, u32> = BTreeMap::new();
    for event in events.iter().filter(|event| event.withdrawn_at.is_none()) {
        *count.entry(&event.rotation_id).or_default() += 1;
    }
    let record = |(id, n): (&RotationId, u32)| AuditRecord {
        rotation_id: Some(id.clone()),
        ..by_relay(now, "outbox.purged", format!("{n} events"))
    };
    count.into_iter().map(record).collect()
}
