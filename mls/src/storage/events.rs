//! The rows about received events: seen, held back, delivered to the inbox.
//!
//! Plain functions over a connection, a statement each; they decide nothing. Nothing here is plaintext,
//! except the inbox bodies, which the caller chose.

use nostr::{Event, EventId, JsonUtil, PublicKey};
use rusqlite::{Connection, Row, params};
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

/// How much is kept of a group's deferred events, and of the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeldLimits {
    pub(crate) events: u32,
    pub(crate) bytes: u64,
}

/// Keeps an event; the oldest ones of its sort give way. Returns how many did.
pub(crate) fn hold(db: &Connection, held: &Held, limits: HeldLimits) -> Result<usize, StoreError> {
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
    let gave_way = db
        .prepare_cached(
            "DELETE FROM held WHERE number IN (SELECT number FROM (\
               SELECT number, row_number() OVER newest AS place, \
                 sum(length(CAST(event AS BLOB))) OVER newest AS bytes \
               FROM held WHERE mls_group_id = ?1 AND deferred = ?2 \
               WINDOW newest AS (ORDER BY number DESC)) \
             WHERE place > ?3 OR bytes > ?4)",
        )?
        .execute(params![
            group.as_bytes(),
            deferred.is_some(),
            limits.events,
            i64::try_from(limits.bytes).unwrap_or(i64::MAX),
        ])?;
    Ok(gave_way)
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

pub(crate) fn inbox(db: &Connection, after: i64, limit: u32) -> Result<Vec<InboxRow>, StoreError> {
    db.prepare_cached(
        "SELECT id, mls_group_id, event_id, sender, signature_key, epoch, received_at, body \
         FROM inbox WHERE id > ?1 ORDER BY id LIMIT ?2",
    )?
    .query_and_then(params![after, limit], |row| {
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

/// Deletes the rows of these events of these groups; those that have none are passed over.
pub(crate) fn inbox_answered(
    db: &Connection,
    events: &[(MlsGroupId, EventId)],
) -> Result<(), StoreError> {
    let mut delete =
        db.prepare_cached("DELETE FROM inbox WHERE event_id = ?1 AND mls_group_id = ?2")?;
    for (group, event) in events {
        delete.execute(params![event.as_bytes(), group.as_bytes()])?;
    }
    Ok(())
}

/// Deletes all but the newest `keep` rows of each signature key; whose they were, and their events.
pub(crate) fn trim_inbox(
    db: &Connection,
    keep: u32,
) -> Result<Vec<(PublicKey, EventId)>, StoreError> {
    db.prepare_cached(
        "DELETE FROM inbox WHERE id IN (
             SELECT id FROM (
                 SELECT id, ROW_NUMBER() OVER (PARTITION BY signature_key ORDER BY id DESC) AS place FROM inbox
             ) WHERE place > ?1
         ) RETURNING sender, event_id",
    )?
    .query_and_then(params![keep], |row| {
        Ok((
            npub(&row.get::<_, Vec<u8>>(0)?)?,
            event_id(&row.get::<_, Vec<u8>>(1)?)?,
        ))
    })?
    .collect()
}

pub(crate) fn inbox_done(db: &Connection, id: i64) -> Result<bool, StoreError> {
    Ok(db.execute("DELETE FROM inbox WHERE id = ?1", params![id])? > 0)
}
