//! Timed work, read through the `due` indexes: the cost is that of what is due, not of what is stored.

use keyturn_proto::UnixMs;
use rusqlite::Transaction;

use super::error;
use super::load::{self, ms};
use crate::documents::{OutboxDoc, RotationDoc, VersionDoc};
use crate::lifecycle::due;
use crate::store::{Due, Result};

/// Oldest first; ciphertext to purge comes as one item, placed by its oldest event.
pub(super) fn due(tx: &Transaction<'_>, now: UnixMs, limit: usize) -> Result<Vec<Due>> {
    let window = (ms(now), i64::try_from(limit).unwrap_or(i64::MAX));
    let mut found: Vec<(UnixMs, Due)> = Vec::new();

    let sql = "SELECT doc FROM rotations WHERE due_at <= ?1 ORDER BY due_at LIMIT ?2";
    for rotation in load::all::<RotationDoc>(tx, "rotation", sql, window)? {
        if let Some(at) = due::rotation_due_at(&rotation) {
            found.extend(due::rotation_due(rotation, now).map(|due| (at, due)));
        }
    }
    let sql = "SELECT doc FROM versions WHERE due_at <= ?1 ORDER BY due_at LIMIT ?2";
    for version in load::all::<VersionDoc>(tx, "version", sql, window)? {
        if let Some(at) = due::version_due_at(&version) {
            let due = Due::Retire {
                client_id: version.client_id,
                version_id: version.version_id,
            };
            found.push((at, due));
        }
    }
    let sql = "SELECT doc FROM outbox WHERE delete_after <= ?1 ORDER BY delete_after LIMIT ?2";
    let events: Vec<OutboxDoc> = load::all(tx, "outbox", sql, window)?;
    if let Some(at) = events.first().and_then(|event| event.delete_after) {
        found.push((at, Due::Purge(events)));
    }
    found.sort_by_key(|(at, _)| *at);
    found.truncate(limit);
    Ok(found.into_iter().map(|(_, due)| due).collect())
}

pub(super) fn next_due(tx: &Transaction<'_>) -> Result<Option<UnixMs>> {
    let sql = "SELECT min(at) FROM (
        SELECT min(due_at) AS at FROM rotations WHERE due_at IS NOT NULL
        UNION ALL SELECT min(due_at) FROM versions WHERE due_at IS NOT NULL
        UNION ALL SELECT min(delete_after) FROM outbox WHERE delete_after IS NOT NULL)";
    let at: Option<i64> = tx
        .prepare_cached(sql)
        .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
        .map_err(error::sql)?;
    Ok(at.map(|at| UnixMs(u64::try_from(at).unwrap_or(0))))
}
