//! The rows about what goes out: our staged commits and the Welcomes that follow them.
//!
//! Plain functions over a connection, a statement each; they decide nothing. Both survive a kill until
//! somebody says that a relay has them.

use nostr::{Event, EventId, JsonUtil, PublicKey};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::rows::{event_id, group_id, npub};
use crate::error::StoreError;
use crate::ids::MlsGroupId;

/// A commit of ours that is not merged (or was overtaken and may still win).
pub(crate) struct Pending {
    pub(crate) group: MlsGroupId,
    pub(crate) source_epoch: u64,
    pub(crate) event: Event,
    pub(crate) message: Vec<u8>,
    pub(crate) superseded: bool,
}

fn pending_row(row: &Row<'_>) -> Result<Pending, StoreError> {
    let event: String = row.get(2)?;
    Ok(Pending {
        group: group_id(row.get(0)?)?,
        source_epoch: row.get(1)?,
        event: Event::from_json(event).map_err(|_| StoreError::Corrupt("pending.event"))?,
        message: row.get(3)?,
        superseded: row.get(4)?,
    })
}

const PENDING_COLUMNS: &str = "mls_group_id, source_epoch, event, message, superseded";

pub(crate) fn put_pending(db: &Connection, pending: &Pending) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT OR REPLACE INTO pending \
         (mls_group_id, source_epoch, event_id, event, message, superseded) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        pending.group.as_bytes(),
        pending.source_epoch,
        pending.event.id.as_bytes(),
        pending.event.as_json(),
        pending.message,
        pending.superseded,
    ])?;
    Ok(())
}

pub(crate) fn pending_by_event(
    db: &Connection,
    id: &EventId,
) -> Result<Option<Pending>, StoreError> {
    db.prepare_cached(&format!(
        "SELECT {PENDING_COLUMNS} FROM pending WHERE event_id = ?1"
    ))?
    .query_and_then(params![id.as_bytes()], pending_row)?
    .next()
    .transpose()
}

/// The commit of ours that waits in the current epoch of the group.
pub(crate) fn pending_of(
    db: &Connection,
    group: &MlsGroupId,
) -> Result<Option<Pending>, StoreError> {
    db.prepare_cached(&format!(
        "SELECT {PENDING_COLUMNS} FROM pending WHERE mls_group_id = ?1 AND superseded = 0"
    ))?
    .query_and_then(params![group.as_bytes()], pending_row)?
    .next()
    .transpose()
}

pub(crate) fn all_pending(db: &Connection) -> Result<Vec<Pending>, StoreError> {
    db.prepare_cached(&format!(
        "SELECT {PENDING_COLUMNS} FROM pending WHERE superseded = 0 ORDER BY mls_group_id"
    ))?
    .query_and_then([], pending_row)?
    .collect()
}

/// Marks our commit of that epoch as overtaken (or, when it wins after all, as the one that counts).
pub(crate) fn supersede(
    db: &Connection,
    group: &MlsGroupId,
    source_epoch: u64,
    superseded: bool,
) -> Result<Option<EventId>, StoreError> {
    db.prepare_cached(
        "UPDATE pending SET superseded = ?3 WHERE mls_group_id = ?1 AND source_epoch = ?2 \
         RETURNING event_id",
    )?
    .query_row(params![group.as_bytes(), source_epoch, superseded], |row| {
        row.get::<_, Vec<u8>>(0)
    })
    .optional()?
    .map(|bytes| event_id(&bytes))
    .transpose()
}

pub(crate) fn delete_pending(
    db: &Connection,
    group: &MlsGroupId,
    source_epoch: u64,
) -> Result<(), StoreError> {
    db.prepare_cached("DELETE FROM pending WHERE mls_group_id = ?1 AND source_epoch = ?2")?
        .execute(params![group.as_bytes(), source_epoch])?;
    Ok(())
}

/// A Welcome that waits for its commit, or for being sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingWelcome {
    /// The gift wrap, ready to publish.
    pub event: Event,
    /// Whom it invites.
    pub recipient: PublicKey,
    /// Into which group.
    pub group: MlsGroupId,
}

pub(crate) fn put_welcome(
    db: &Connection,
    welcome: &PendingWelcome,
    source_epoch: u64,
    released: bool,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO welcomes (event_id, mls_group_id, source_epoch, released, recipient, event) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        welcome.event.id.as_bytes(),
        welcome.group.as_bytes(),
        source_epoch,
        released,
        welcome.recipient.as_bytes(),
        welcome.event.as_json(),
    ])?;
    Ok(())
}

pub(crate) fn release_welcomes(
    db: &Connection,
    group: &MlsGroupId,
    source_epoch: u64,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "UPDATE welcomes SET released = 1 WHERE mls_group_id = ?1 AND source_epoch = ?2",
    )?
    .execute(params![group.as_bytes(), source_epoch])?;
    Ok(())
}

pub(crate) fn released_welcomes(db: &Connection) -> Result<Vec<PendingWelcome>, StoreError> {
    db.prepare_cached(
        "SELECT event, recipient, mls_group_id FROM welcomes WHERE released = 1 ORDER BY rowid",
    )?
    .query_and_then([], welcome_row)?
    .collect()
}

fn welcome_row(row: &Row<'_>) -> Result<PendingWelcome, StoreError> {
    let event: String = row.get(0)?;
    Ok(PendingWelcome {
        event: Event::from_json(event).map_err(|_| StoreError::Corrupt("welcomes.event"))?,
        recipient: npub(&row.get::<_, Vec<u8>>(1)?)?,
        group: group_id(row.get(2)?)?,
    })
}

/// Released Welcomes of one commit.
pub(crate) fn released_welcomes_of(
    db: &Connection,
    group: &MlsGroupId,
    source_epoch: u64,
) -> Result<Vec<PendingWelcome>, StoreError> {
    db.prepare_cached(
        "SELECT event, recipient, mls_group_id FROM welcomes \
         WHERE released = 1 AND mls_group_id = ?1 AND source_epoch = ?2 ORDER BY rowid",
    )?
    .query_and_then(params![group.as_bytes(), source_epoch], welcome_row)?
    .collect()
}

pub(crate) fn count_welcomes(
    db: &Connection,
    group: &MlsGroupId,
    source_epoch: u64,
) -> Result<usize, StoreError> {
    Ok(db
        .prepare_cached(
            "SELECT count(*) FROM welcomes WHERE mls_group_id = ?1 AND source_epoch = ?2",
        )?
        .query_row(params![group.as_bytes(), source_epoch], |row| row.get(0))?)
}

/// The Welcomes of a commit that no relay will have.
pub(crate) fn drop_welcomes(
    db: &Connection,
    group: &MlsGroupId,
    source_epoch: u64,
) -> Result<(), StoreError> {
    db.prepare_cached("DELETE FROM welcomes WHERE mls_group_id = ?1 AND source_epoch = ?2")?
        .execute(params![group.as_bytes(), source_epoch])?;
    Ok(())
}

pub(crate) fn delete_welcome(db: &Connection, id: &EventId) -> Result<(), StoreError> {
    db.execute(
        "DELETE FROM welcomes WHERE event_id = ?1",
        params![id.as_bytes()],
    )?;
    Ok(())
}
