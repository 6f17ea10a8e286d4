//! `outbox/{eventId}`: finished events, ciphertext only.

use keyturn_proto::{RotationId, UnixMs};

use super::apply::Also;
use super::codec::{Fields, time_value};
use super::load;
use super::paths::Path;
use super::query::Ask;
use super::turn::Turn;
use super::writes::Writes;
use crate::documents::OutboxDoc;
use crate::lifecycle::{self, Change, Verdict, due};
use crate::queries::relay;
use crate::store::{Result, StoreError};

/// Events of a rotation's present attempt, in order of their ids.
pub(super) async fn of_rotation(turn: &Turn<'_>, id: &RotationId) -> Result<Vec<OutboxDoc>> {
    let mut reading = turn.read();
    let rotation = load::rotation(&mut reading, id).await?;
    let rotation = rotation.ok_or(StoreError::NotFound { what: "rotation" })?;
    let ask = Ask::new(&relay::OUTBOX_OF_ROTATION).text(id.as_str());
    let mut events: Vec<OutboxDoc> = reading.query(&ask).await?;
    events.retain(|event| event.attempt == rotation.attempt);
    Ok(events)
}

/// Events that were not read back yet and may still be published, oldest first.
pub(super) async fn unpublished(turn: &Turn<'_>) -> Result<Vec<OutboxDoc>> {
    let mut reading = turn.read();
    let events: Vec<OutboxDoc> = reading.query(&Ask::new(&relay::OUTBOX_UNPUBLISHED)).await?;
    let rotations: Vec<Path> = events
        .iter()
        .map(|event| Path::rotation(&event.rotation_id))
        .collect::<Result<_>>()?;
    reading.fetch(rotations).await?;
    let mut waiting = Vec::with_capacity(events.len());
    for event in events {
        let rotation = load::rotation(&mut reading, &event.rotation_id).await?;
        let rotation = rotation.ok_or(StoreError::Damaged { what: "outbox" })?;
        if due::publishable(&rotation, &event) {
            waiting.push(event);
        }
    }
    waiting.sort_by(|a, b| (a.created_at, &a.event_id).cmp(&(b.created_at, &b.event_id)));
    Ok(waiting)
}

/// The first time counts; ids that are not there are left out.
pub(super) async fn mark_published(turn: &Turn<'_>, ids: &[String], now: UnixMs) -> Result<()> {
    let paths = paths(ids)?;
    loop {
        let mut reading = turn.read();
        reading.fetch(paths.clone()).await?;
        let mut marked = Vec::new();
        for path in &paths {
            let event: Option<OutboxDoc> = reading.get(path.clone()).await?;
            if event.is_some_and(|event| event.published_at.is_none()) {
                marked.push(path.clone());
            }
        }
        let mut writes = Writes::new(&reading);
        for path in marked {
            let fields = Fields::from([("published_at".to_owned(), time_value(Some(now)))]);
            writes.patch(path, fields);
        }
        if writes.is_empty() || turn.happened(writes.finish(), None).await? {
            return Ok(());
        }
    }
}

/// Deletes those of these events whose time is over.
pub(super) async fn purge(turn: &Turn<'_>, ids: &[String], now: UnixMs) -> Result<()> {
    let paths = paths(ids)?;
    loop {
        let mut reading = turn.read();
        reading.fetch(paths.clone()).await?;
        let (mut gone, mut over) = (Vec::new(), Vec::new());
        for path in &paths {
            let event: Option<OutboxDoc> = reading.get(path.clone()).await?;
            let is_over = |event: &OutboxDoc| event.delete_after.is_some_and(|end| end <= now);
            if let Some(event) = event.filter(is_over) {
                gone.push(path.clone());
                over.push(event);
            }
        }
        let verdict = Verdict {
            answer: (),
            change: Change {
                audit: lifecycle::purged_records(&over, now),
                ..Change::default()
            },
        };
        let also = Also {
            gone,
            ..Also::default()
        };
        if turn.settle_with(reading, verdict, also).await?.is_some() {
            return Ok(());
        }
    }
}

fn paths(ids: &[String]) -> Result<Vec<Path>> {
    ids.iter().map(|id| Path::outbox(id)).collect()
}
