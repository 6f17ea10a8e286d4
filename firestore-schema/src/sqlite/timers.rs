//! Timed work, read through the `due` indexes: the cost is that of what is due, not of what is stored.
//!
//! What must always hold: a document that cannot be read holds up nothing but itself.

use keyturn_proto::UnixMs;
use rusqlite::{Params, Transaction};

use super::load::{self, ms};
use crate::documents::{OutboxDoc, RotationDoc, VersionDoc};
use crate::lifecycle::due;
use crate::store::{Due, Result};

fn rotations(
    tx: &Transaction<'_>,
    sql: &str,
    params: impl Params,
    limit: usize,
) -> Result<Vec<RotationDoc>> {
    load::sound(tx, "rotation", sql, params, limit, |doc, at| {
        due::rotation_due_at(doc).map(ms) == at
    })
}

fn versions(
    tx: &Transaction<'_>,
    sql: &str,
    params: impl Params,
    limit: usize,
) -> Result<Vec<VersionDoc>> {
    load::sound(tx, "version", sql, params, limit, |doc, at| {
        due::version_due_at(doc).map(ms) == at
    })
}

fn events(
    tx: &Transaction<'_>,
    sql: &str,
    params: impl Params,
    limit: usize,
) -> Result<Vec<OutboxDoc>> {
    load::sound(tx, "outbox", sql, params, limit, |doc: &OutboxDoc, at| {
        doc.delete_after.map(ms) == at
    })
}

/// Oldest first; ciphertext to purge comes as one item, placed by its oldest event.
pub(super) fn due(tx: &Transaction<'_>, now: UnixMs, limit: usize) -> Result<Vec<Due>> {
    let mut found: Vec<(UnixMs, Due)> = Vec::new();

    let sql = "SELECT rotation_id, doc, due_at FROM rotations WHERE due_at <= ?1 ORDER BY due_at";
    for rotation in rotations(tx, sql, [ms(now)], limit)? {
        if let Some(at) = due::rotation_due_at(&rotation) {
            found.extend(due::rotation_due(rotation, now).map(|due| (at, due)));
        }
    }
    let sql = "SELECT version_id, doc, due_at FROM versions WHERE due_at <= ?1 ORDER BY due_at";
    for version in versions(tx, sql, [ms(now)], limit)? {
        if let Some(at) = due::version_due_at(&version) {
            let due = Due::Retire {
                client_id: version.client_id,
                version_id: version.version_id,
            };
            found.push((at, due));
        }
    }
    let sql = "SELECT event_id, doc, delete_after FROM outbox WHERE delete_after <= ?1 ORDER BY delete_after";
    let events = events(tx, sql, [ms(now)], limit)?;
    if let Some(at) = events.first().and_then(|event| event.delete_after) {
        found.push((at, Due::Purge(events)));
    }
    found.sort_by_key(|(at, _)| *at);
    found.truncate(limit);
    Ok(found.into_iter().map(|(_, due)| due).collect())
}

pub(super) fn next_due(tx: &Transaction<'_>) -> Result<Option<UnixMs>> {
    let sql =
        "SELECT rotation_id, doc, due_at FROM rotations WHERE due_at IS NOT NULL ORDER BY due_at";
    let rotation = rotations(tx, sql, [], 1)?;
    let sql =
        "SELECT version_id, doc, due_at FROM versions WHERE due_at IS NOT NULL ORDER BY due_at";
    let version = versions(tx, sql, [], 1)?;
    let sql = "SELECT event_id, doc, delete_after FROM outbox WHERE delete_after IS NOT NULL ORDER BY delete_after";
    let event = events(tx, sql, [], 1)?;
    let times = [
        rotation.first().and_then(due::rotation_due_at),
        version.first().and_then(due::version_due_at),
        event.first().and_then(|event| event.delete_after),
    ];
    Ok(times.into_iter().flatten().min())
}
