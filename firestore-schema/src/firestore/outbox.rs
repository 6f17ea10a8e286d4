//! `outbox/{eventId}`: finished events, ciphertext only.

use keyturn_proto::{RotationId, UnixMs};

use super::apply::Also;
use super::load;
use super::paths::Path;
use super::query::Ask;
use super::stored;
use super::turn::Turn;
use crate::documents::OutboxDoc;
use crate::lifecycle::due::{self, Purged};
use crate::lifecycle::{self, Change, Verdict};
use crate::queries::relay;
use crate::store::{Result, StoreError, WithdrawnAfter};

/// Events of a rotation's present attempt, in order of their ids.
pub(super) async fn of_rotation(turn: &Turn<'_>, id: &RotationId) -> Result<Vec<OutboxDoc>> {
    let mut reading = turn.read();
    let rotation = load::rotation(&mut reading, id).await?;
    let rotation = rotation.ok_or(StoreError::NotFound { what: "rotation" })?;
    let ask = Ask::new(&relay::OUTBOX_OF_ROTATION).text(id.as_str());
    let mut events: Vec<OutboxDoc> = reading.query(&ask).await?;
    events.retain(|event| event.attempt == rotation.attempt && event.withdrawn_at.is_none());
    Ok(events)
}

/// A page of what was not withdrawn.
pub(super) async fn page(
    turn: &Turn<'_>,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<OutboxDoc>> {
    let ask = match after {
        Some(id) => Ask::new(&relay::OUTBOX_KEPT_AFTER).name(turn.link.name(&Path::outbox(id)?)),
        None => Ask::new(&relay::OUTBOX_KEPT),
    };
    turn.read().sound(&ask.limit(limit), stored::any).await
}

/// What was withdrawn after `after`. The query begins with everything of that very millisecond; what was seen of it is left out here.
pub(super) async fn withdrawn(
    turn: &Turn<'_>,
    after: &WithdrawnAfter,
    limit: usize,
) -> Result<Vec<OutboxDoc>> {
    let ask = Ask::new(&relay::OUTBOX_WITHDRAWN).time(after.at);
    let mut wanted = limit;
    loop {
        let ask = ask.clone().limit(wanted);
        let mut events: Vec<OutboxDoc> = turn.read().sound(&ask, stored::any).await?;
        let all = events.len() < wanted;
        let is_later = |event: &OutboxDoc| {
            let place = (event.withdrawn_at, event.event_id.as_str());
            place > (Some(after.at), after.event_id.as_str())
        };
        events.retain(is_later);
        if all || events.len() >= limit {
            events.truncate(limit);
            return Ok(events);
        }
        wanted = wanted.saturating_add(limit);
    }
}

/// Deletes those of these events whose time is over, or keeps just their ids for a while.
pub(super) async fn purge(
    turn: &Turn<'_>,
    ids: &[String],
    keep_until: Option<UnixMs>,
    now: UnixMs,
) -> Result<()> {
    let paths = paths(ids)?;
    loop {
        let mut reading = turn.read();
        reading.fetch(paths.clone()).await?;
        let mut also = Also::default();
        let mut ended = Vec::new();
        for path in &paths {
            let event: Option<OutboxDoc> = reading.get(path.clone()).await?;
            let Some(event) = event else { continue };
            match due::purged(event.clone(), keep_until, now) {
                Purged::Stays => continue,
                Purged::Forgotten => also.gone.push(path.clone()),
                Purged::Withdrawn(event) => also.withdrawn.push(event),
            }
            ended.push(event);
        }
        let verdict = Verdict {
            answer: (),
            change: Change {
                audit: lifecycle::purged_records(&ended, now),
                ..Change::default()
            },
        };
        if turn.settle_with(reading, verdict, also).await?.is_some() {
            return Ok(());
        }
    }
}

fn paths(ids: &[String]) -> Result<Vec<Path>> {
    ids.iter().map(|id| Path::outbox(id)).collect()
}
