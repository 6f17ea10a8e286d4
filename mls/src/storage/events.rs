//! The rows about events: seen, held back, waiting to be published, delivered to the inbox.
//!
//! Plain functions over a connection, a statement each; they decide nothing. Nothing here is plaintext,
//! except the inbox bodies, which the caller chose.

use nostr::{Event, EventId, JsonUtil, PublicKey};
use rusqlite::{Connection, OptionalExtension, Row, params};
use zeroize::Zeroizing;

use super::rows::{event_id, group_id, npub};
use crate::error::StoreError;
use crate::ids::{MlsGroupId, SignatureKey, UnixMs, from_sql, to_sql};

/// How many event ids are remembered. Older events fail to open anyway: their keys are gone.
const SEEN: i64 = 100_000;

pub(crate) fn is_seen(db: &Connection, id: &EventId) -> Result<bool, StoreError> {
    Ok(db
        .prepare_cached("SELECT 1 FROM seen WHERE event_id = ?1")?
        .exists(params![id.as_bytes()])?)
}

pub(crate) fn mark_seen(db: &Connection, id: &EventId) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR IGNORE INTO seen (event_id) VALUES (?1)")?
        .execute(params![id.as_bytes()])?;
    db.prepare_cached("DELETE FROM seen WHERE number <= (SELECT max(number) FROM seen) - ?1")?
        .execute(params![SEEN])?;
    Ok(())
}

/// An event that waits, as ciphertext.
pub(crate) struct Held {
    pub(crate) event: Event,
    pub(crate) group: MlsGroupId,
    pub(crate) received_at: UnixMs,
    pub(crate) stored: bool,
    pub(crate) deferred: Option<DeferredInfo>,
}

/// What may be known of a deferred message without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeferredInfo {
    pub(crate) sender: PublicKey,
    pub(crate) epoch: u64,
    pub(crate) label: String,
}

const HELD_COLUMNS: &str =
    "event, mls_group_id, received_at, stored, deferred, sender, epoch, label";

fn held_row(row: &Row<'_>) -> Result<Held, StoreError> {
    let event: String = row.get(0)?;
    let deferred = if row.get(4)? {
        Some(DeferredInfo {
            sender: npub(&row.get::<_, Vec<u8>>(5)?)?,
            epoch: row.get(6)?,
            label: row.get(7)?,
        })
    } else {
        None
    };
    Ok(Held {
        event: Event::from_json(event).map_err(|_| StoreError::Corrupt("held.event"))?,
        group: group_id(row.get(1)?)?,
        received_at: from_sql(row.get(2)?),
        stored: row.get(3)?,
        deferred,
    })
}

/// Keeps an event; of the undeferred ones of a group at most `limit`, the oldest giving way.
pub(crate) fn hold(db: &Connection, held: &Held, limit: u32) -> Result<(), StoreError> {
    let Held {
        event,
        group,
        received_at,
        stored,
        deferred,
    } = held;
    db.prepare_cached(
        "INSERT INTO held (event_id, mls_group_id, event, received_at, stored, deferred, sender, epoch, label) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) \
         ON CONFLICT (event_id) DO UPDATE SET deferred = ?6, sender = ?7, epoch = ?8, label = ?9",
    )?
    .execute(params![
        event.id.as_bytes(),
        group.as_bytes(),
        event.as_json(),
        to_sql(*received_at),
        stored,
        deferred.is_some(),
        deferred.as_ref().map(|d| d.sender.as_bytes().as_slice()),
        deferred.as_ref().map(|d| d.epoch),
        deferred.as_ref().map(|d| d.label.as_str()),
    ])?;
    db.prepare_cached(
        "DELETE FROM held WHERE deferred = 0 AND mls_group_id = ?1 AND number <= \
         (SELECT number FROM held WHERE deferred = 0 AND mls_group_id = ?1 \
          ORDER BY number DESC LIMIT 1 OFFSET ?2)",
    )?
    .execute(params![group.as_bytes(), limit])?;
    Ok(())
}

pub(crate) fn unhold(db: &Connection, id: &EventId) -> Result<(), StoreError> {
    db.prepare_cached("DELETE FROM held WHERE event_id = ?1")?
        .execute(params![id.as_bytes()])?;
    Ok(())
}

pub(crate) fn is_held(db: &Connection, id: &EventId) -> Result<bool, StoreError> {
    Ok(db
        .prepare_cached("SELECT 1 FROM held WHERE event_id = ?1")?
        .exists(params![id.as_bytes()])?)
}

/// Held events of a group, in the order they were received.
pub(crate) fn held(
    db: &Connection,
    group: &MlsGroupId,
    deferred: bool,
) -> Result<Vec<Held>, StoreError> {
    db.prepare_cached(&format!(
        "SELECT {HELD_COLUMNS} FROM held WHERE mls_group_id = ?1 AND deferred = ?2 ORDER BY number"
    ))?
    .query_and_then(params![group.as_bytes(), deferred], held_row)?
    .collect()
}

pub(crate) fn held_event(db: &Connection, id: &EventId) -> Result<Option<Held>, StoreError> {
    db.prepare_cached(&format!(
        "SELECT {HELD_COLUMNS} FROM held WHERE event_id = ?1"
    ))?
    .query_and_then(params![id.as_bytes()], held_row)?
    .next()
    .transpose()
}

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

/// One row of the inbox: what the caller asked to keep of an opened message.
pub struct InboxRow {
    /// Names the row for `inbox_done`.
    pub id: i64,
    /// Group it came in.
    pub group: MlsGroupId,
    /// The 445 event.
    pub event_id: EventId,
    /// MLS sender.
    pub sender: PublicKey,
    /// The key that signed it.
    pub signature_key: SignatureKey,
    /// Epoch it was sent in.
    pub epoch: u64,
    /// When the event was received.
    pub received_at: UnixMs,
    /// The caller's bytes.
    pub body: Zeroizing<Vec<u8>>,
}

pub(crate) fn put_inbox(db: &Connection, row: &InboxRow) -> Result<i64, StoreError> {
    db.prepare_cached(
        "INSERT INTO inbox (mls_group_id, event_id, sender, signature_key, epoch, received_at, body) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![
        row.group.as_bytes(),
        row.event_id.as_bytes(),
        row.sender.as_bytes(),
        row.signature_key.as_bytes(),
        row.epoch,
        to_sql(row.received_at),
        row.body.as_slice(),
    ])?;
    Ok(db.last_insert_rowid())
}

pub(crate) fn inbox(db: &Connection) -> Result<Vec<InboxRow>, StoreError> {
    db.prepare_cached(
        "SELECT id, mls_group_id, event_id, sender, signature_key, epoch, received_at, body \
         FROM inbox ORDER BY id",
    )?
    .query_and_then([], |row| {
        Ok(InboxRow {
            id: row.get(0)?,
            group: group_id(row.get(1)?)?,
            event_id: event_id(&row.get::<_, Vec<u8>>(2)?)?,
            sender: npub(&row.get::<_, Vec<u8>>(3)?)?,
            signature_key: SignatureKey::from_slice(&row.get::<_, Vec<u8>>(4)?)
                .ok_or(StoreError::Corrupt("inbox.signature_key"))?,
            epoch: row.get(5)?,
            received_at: from_sql(row.get(6)?),
            body: Zeroizing::new(row.get(7)?),
        })
    })?
    .collect()
}

pub(crate) fn inbox_done(db: &Connection, id: i64) -> Result<bool, StoreError> {
    Ok(db.execute("DELETE FROM inbox WHERE id = ?1", params![id])? > 0)
}
