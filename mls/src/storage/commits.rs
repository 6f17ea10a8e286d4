//! The rows about the commits that were applied to recent epochs, and what it takes to undo them.
//!
//! Plain functions over a connection, a statement each; they decide nothing. A snapshot is there only
//! while its commit is unsettled.

use nostr::EventId;
use rusqlite::{Connection, OptionalExtension, Row, params};
use zeroize::Zeroizing;

use super::rows::event_id;
use crate::error::StoreError;
use crate::ids::{MlsGroupId, UnixMs, from_sql, to_sql};

/// The commit applied to one epoch.
pub(crate) struct CommitRow {
    pub(crate) source_epoch: u64,
    pub(crate) event_id: EventId,
    pub(crate) created_at: u64,
    pub(crate) settles_at: UnixMs,
    pub(crate) settled: bool,
}

fn commit_row(row: &Row<'_>) -> Result<CommitRow, StoreError> {
    Ok(CommitRow {
        source_epoch: row.get(0)?,
        event_id: event_id(&row.get::<_, Vec<u8>>(1)?)?,
        created_at: row.get(2)?,
        settles_at: from_sql(row.get(3)?),
        settled: row.get(4)?,
    })
}

const COMMIT_COLUMNS: &str = "source_epoch, event_id, created_at, settles_at, settled";

pub(crate) fn put_commit(
    db: &Connection,
    group: &MlsGroupId,
    commit: &CommitRow,
    snapshot: Option<&[u8]>,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT OR REPLACE INTO commits \
         (mls_group_id, source_epoch, event_id, created_at, settles_at, settled, snapshot) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![
        group.as_bytes(),
        commit.source_epoch,
        commit.event_id.as_bytes(),
        commit.created_at,
        to_sql(commit.settles_at),
        commit.settled,
        snapshot,
    ])?;
    Ok(())
}

pub(crate) fn commit_at(
    db: &Connection,
    group: &MlsGroupId,
    source_epoch: u64,
) -> Result<Option<CommitRow>, StoreError> {
    db.prepare_cached(&format!(
        "SELECT {COMMIT_COLUMNS} FROM commits WHERE mls_group_id = ?1 AND source_epoch = ?2"
    ))?
    .query_and_then(params![group.as_bytes(), source_epoch], commit_row)?
    .next()
    .transpose()
}

/// The commits that may still lose, oldest epoch first.
pub(crate) fn unsettled(db: &Connection, group: &MlsGroupId) -> Result<Vec<CommitRow>, StoreError> {
    db.prepare_cached(&format!(
        "SELECT {COMMIT_COLUMNS} FROM commits WHERE mls_group_id = ?1 AND settled = 0 \
         ORDER BY source_epoch"
    ))?
    .query_and_then(params![group.as_bytes()], commit_row)?
    .collect()
}

pub(crate) fn snapshot_at(
    db: &Connection,
    group: &MlsGroupId,
    source_epoch: u64,
) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
    Ok(db
        .prepare_cached(
            "SELECT snapshot FROM commits WHERE mls_group_id = ?1 AND source_epoch = ?2",
        )?
        .query_row(params![group.as_bytes(), source_epoch], |row| {
            row.get::<_, Option<Vec<u8>>>(0)
        })
        .optional()?
        .flatten()
        .map(Zeroizing::new))
}

/// Settles every commit up to and including that epoch and destroys what was kept to undo them.
pub(crate) fn settle_through(
    db: &Connection,
    group: &MlsGroupId,
    source_epoch: u64,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "UPDATE commits SET settled = 1, snapshot = NULL \
         WHERE mls_group_id = ?1 AND source_epoch <= ?2 AND settled = 0",
    )?
    .execute(params![group.as_bytes(), source_epoch])?;
    db.prepare_cached(
        "DELETE FROM welcomes WHERE mls_group_id = ?1 AND source_epoch <= ?2 AND released = 0",
    )?
    .execute(params![group.as_bytes(), source_epoch])?;
    db.prepare_cached(
        "DELETE FROM pending WHERE mls_group_id = ?1 AND source_epoch <= ?2 AND superseded = 1",
    )?
    .execute(params![group.as_bytes(), source_epoch])?;
    Ok(())
}
