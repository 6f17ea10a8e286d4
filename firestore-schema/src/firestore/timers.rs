//! Timed work, found by indexed queries on the stored `due_at` and `delete_after`: the cost is that of what is due, not of what is stored.
//!
//! What must always hold: a document that cannot be read holds up nothing but itself.

use keyturn_proto::UnixMs;

use super::query::Ask;
use super::stored;
use super::turn::Turn;
use crate::documents::{OutboxDoc, RotationDoc, VersionDoc};
use crate::lifecycle::due;
use crate::queries::relay;
use crate::store::{Due, Result};

/// Oldest first; ciphertext to purge comes as one item, placed by its oldest event.
pub(super) async fn due(turn: &Turn<'_>, now: UnixMs, limit: usize) -> Result<Vec<Due>> {
    let mut reading = turn.read();
    let mut found: Vec<(UnixMs, Due)> = Vec::new();

    let ask = Ask::new(&relay::ROTATIONS_DUE).time(now).limit(limit);
    for rotation in reading.sound::<RotationDoc>(&ask, stored::agrees).await? {
        if let Some(at) = due::rotation_due_at(&rotation) {
            found.extend(due::rotation_due(rotation, now).map(|due| (at, due)));
        }
    }
    let ask = Ask::new(&relay::VERSIONS_DUE).time(now).limit(limit);
    for version in reading.sound::<VersionDoc>(&ask, stored::agrees).await? {
        if let Some(at) = due::version_due_at(&version) {
            let due = Due::Retire {
                client_id: version.client_id,
                version_id: version.version_id,
            };
            found.push((at, due));
        }
    }
    let ask = Ask::new(&relay::OUTBOX_DUE).time(now).limit(limit);
    let events: Vec<OutboxDoc> = reading.sound(&ask, stored::any).await?;
    if let Some(at) = events.first().and_then(|event| event.delete_after) {
        found.push((at, Due::Purge(events)));
    }
    found.sort_by_key(|(at, _)| *at);
    found.truncate(limit);
    Ok(found.into_iter().map(|(_, due)| due).collect())
}

pub(super) async fn next_due(turn: &Turn<'_>) -> Result<Option<UnixMs>> {
    let mut reading = turn.read();
    let ask = Ask::new(&relay::ROTATIONS_NEXT).limit(1);
    let rotation = reading.sound::<RotationDoc>(&ask, stored::agrees).await?;
    let ask = Ask::new(&relay::VERSIONS_NEXT).limit(1);
    let version = reading.sound::<VersionDoc>(&ask, stored::agrees).await?;
    let ask = Ask::new(&relay::OUTBOX_NEXT).limit(1);
    let event = reading.sound::<OutboxDoc>(&ask, stored::any).await?;
    let times = [
        rotation.first().and_then(due::rotation_due_at),
        version.first().and_then(due::version_due_at),
        event.first().and_then(|event| event.delete_after),
    ];
    Ok(times.into_iter().flatten().min())
}

/// Every rotation that is not done, oldest first.
pub(super) async fn active_rotations(turn: &Turn<'_>) -> Result<Vec<RotationDoc>> {
    let ask = Ask::new(&relay::ROTATIONS_ACTIVE);
    let mut rotations: Vec<RotationDoc> = turn.read().sound(&ask, stored::any).await?;
    rotations.sort_by(|a, b| (a.created_at, &a.rotation_id).cmp(&(b.created_at, &b.rotation_id)));
    Ok(rotations)
}
