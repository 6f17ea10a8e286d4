//! The rows about groups: who and where they are, their recent epochs and commits.
//!
//! Plain functions over a connection, a statement each; they decide nothing.

use std::str::FromStr;

use nostr::{EventId, PublicKey};
use rusqlite::{Connection, OptionalExtension, Row, params};
use zeroize::Zeroizing;

use crate::error::StoreError;
use crate::ids::{Leaf, MlsGroupId, NostrGroupId, SignatureKey, UnixMs, from_sql, to_sql};
use crate::wire::PAST_EPOCHS;
use crate::wire::group_data::GroupData;
use crate::wire::group_event::ExporterSecret;

/// Why nothing is sealed or committed in a group until somebody looked at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Freeze {
    /// A commit we had to refuse seems to have been followed by peers.
    Forked,
    /// A commit changed the nostr_group_id.
    AddressChanged,
}

impl Freeze {
    fn as_str(self) -> &'static str {
        match self {
            Self::Forked => "forked",
            Self::AddressChanged => "nostr_group_id",
        }
    }
}

impl FromStr for Freeze {
    type Err = StoreError;
    fn from_str(text: &str) -> Result<Self, StoreError> {
        match text {
            "forked" => Ok(Self::Forked),
            "nostr_group_id" => Ok(Self::AddressChanged),
            _ => Err(StoreError::Corrupt("groups.frozen")),
        }
    }
}

pub(crate) struct GroupRow {
    pub(crate) id: MlsGroupId,
    pub(crate) nostr_group_id: NostrGroupId,
    pub(crate) epoch: u64,
    pub(crate) evicted: bool,
    pub(crate) frozen: Option<Freeze>,
    pub(crate) welcomer: Option<PublicKey>,
    pub(crate) self_update_epoch: Option<u64>,
    pub(crate) rival_epoch: Option<u64>,
    pub(crate) joined_at: UnixMs,
}

const GROUP_COLUMNS: &str = "mls_group_id, nostr_group_id, epoch, evicted, frozen, welcomer, \
                             self_update_epoch, rival_epoch, joined_at";

fn group_row(row: &Row<'_>) -> Result<GroupRow, StoreError> {
    let frozen: Option<String> = row.get(4)?;
    Ok(GroupRow {
        id: group_id(row.get(0)?)?,
        nostr_group_id: nostr_group_id(row.get(1)?)?,
        epoch: row.get(2)?,
        evicted: row.get(3)?,
        frozen: frozen.as_deref().map(str::parse).transpose()?,
        welcomer: row
            .get::<_, Option<Vec<u8>>>(5)?
            .map(|bytes| npub(&bytes))
            .transpose()?,
        self_update_epoch: row.get(6)?,
        rival_epoch: row.get(7)?,
        joined_at: from_sql(row.get(8)?),
    })
}

pub(crate) fn group_id(bytes: Vec<u8>) -> Result<MlsGroupId, StoreError> {
    MlsGroupId::from_bytes(&bytes).map_err(|_| StoreError::Corrupt("an MLS group id"))
}

fn nostr_group_id(bytes: Vec<u8>) -> Result<NostrGroupId, StoreError> {
    NostrGroupId::from_slice(&bytes).ok_or(StoreError::Corrupt("a nostr_group_id"))
}

pub(crate) fn npub(bytes: &[u8]) -> Result<PublicKey, StoreError> {
    PublicKey::from_slice(bytes).map_err(|_| StoreError::Corrupt("an npub"))
}

pub(crate) fn event_id(bytes: &[u8]) -> Result<EventId, StoreError> {
    EventId::from_slice(bytes).map_err(|_| StoreError::Corrupt("an event id"))
}

pub(crate) fn group(db: &Connection, id: &MlsGroupId) -> Result<Option<GroupRow>, StoreError> {
    let sql = format!("SELECT {GROUP_COLUMNS} FROM groups WHERE mls_group_id = ?1");
    db.prepare_cached(&sql)?
        .query_and_then(params![id.as_bytes()], group_row)?
        .next()
        .transpose()
}

pub(crate) fn groups(db: &Connection) -> Result<Vec<GroupRow>, StoreError> {
    let sql = format!("SELECT {GROUP_COLUMNS} FROM groups ORDER BY joined_at, mls_group_id");
    db.prepare_cached(&sql)?
        .query_and_then([], group_row)?
        .collect()
}

pub(crate) fn insert_group(db: &Connection, row: &GroupRow) -> Result<(), StoreError> {
    let GroupRow {
        id,
        nostr_group_id,
        epoch,
        evicted,
        frozen,
        welcomer,
        self_update_epoch,
        rival_epoch,
        joined_at,
    } = row;
    db.prepare_cached(&format!(
        "INSERT INTO groups ({GROUP_COLUMNS}) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9)"
    ))?
    .execute(params![
        id.as_bytes(),
        nostr_group_id.as_bytes(),
        epoch,
        evicted,
        frozen.map(Freeze::as_str),
        welcomer.as_ref().map(|key| key.as_bytes().as_slice()),
        self_update_epoch,
        rival_epoch,
        to_sql(*joined_at),
    ])?;
    add_address(db, nostr_group_id, id)
}

pub(crate) fn delete_group(db: &Connection, id: &MlsGroupId) -> Result<(), StoreError> {
    db.execute(
        "DELETE FROM groups WHERE mls_group_id = ?1",
        params![id.as_bytes()],
    )?;
    Ok(())
}

/// Events with this `h` go to this group, unless another group has it already.
pub(crate) fn add_address(
    db: &Connection,
    address: &NostrGroupId,
    id: &MlsGroupId,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT OR IGNORE INTO addresses (nostr_group_id, mls_group_id) VALUES (?1, ?2)",
    )?
    .execute(params![address.as_bytes(), id.as_bytes()])?;
    Ok(())
}

pub(crate) fn by_address(
    db: &Connection,
    address: &NostrGroupId,
) -> Result<Option<MlsGroupId>, StoreError> {
    db.prepare_cached("SELECT mls_group_id FROM addresses WHERE nostr_group_id = ?1")?
        .query_row(params![address.as_bytes()], |row| row.get::<_, Vec<u8>>(0))
        .optional()?
        .map(group_id)
        .transpose()
}

pub(crate) fn set_frozen(
    db: &Connection,
    id: &MlsGroupId,
    frozen: Option<Freeze>,
) -> Result<(), StoreError> {
    db.prepare_cached("UPDATE groups SET frozen = ?2 WHERE mls_group_id = ?1")?
        .execute(params![id.as_bytes(), frozen.map(Freeze::as_str)])?;
    Ok(())
}

pub(crate) fn set_rival(
    db: &Connection,
    id: &MlsGroupId,
    epoch: Option<u64>,
) -> Result<(), StoreError> {
    db.prepare_cached("UPDATE groups SET rival_epoch = ?2 WHERE mls_group_id = ?1")?
        .execute(params![id.as_bytes(), epoch])?;
    Ok(())
}

/// Our leaf has been of our own making since that epoch, unless it has been for longer.
pub(crate) fn note_self_update(
    db: &Connection,
    id: &MlsGroupId,
    epoch: u64,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "UPDATE groups SET self_update_epoch = coalesce(self_update_epoch, ?2) \
         WHERE mls_group_id = ?1",
    )?
    .execute(params![id.as_bytes(), epoch])?;
    Ok(())
}

pub(crate) fn set_evicted(db: &Connection, id: &MlsGroupId) -> Result<(), StoreError> {
    db.prepare_cached("UPDATE groups SET evicted = 1 WHERE mls_group_id = ?1")?
        .execute(params![id.as_bytes()])?;
    Ok(())
}

pub(crate) fn set_nostr_group_id(
    db: &Connection,
    id: &MlsGroupId,
    address: &NostrGroupId,
) -> Result<(), StoreError> {
    db.execute(
        "UPDATE groups SET nostr_group_id = ?2 WHERE mls_group_id = ?1",
        params![id.as_bytes(), address.as_bytes()],
    )?;
    Ok(())
}

/// What is remembered of one epoch beside OpenMLS's own state.
pub(crate) struct Epoch<'a> {
    pub(crate) number: u64,
    pub(crate) exporter: &'a ExporterSecret,
    pub(crate) roster: &'a [Leaf],
    pub(crate) data: &'a [u8],
}

/// Makes `epoch` the current one and forgets the ones too old to matter.
pub(crate) fn enter_epoch(
    db: &Connection,
    id: &MlsGroupId,
    epoch: &Epoch<'_>,
) -> Result<(), StoreError> {
    let mut roster = Vec::with_capacity(epoch.roster.len() * 68);
    for leaf in epoch.roster {
        roster.extend_from_slice(&leaf.index.to_be_bytes());
        roster.extend_from_slice(leaf.npub.as_bytes());
        roster.extend_from_slice(leaf.signature_key.as_bytes());
    }
    db.prepare_cached(
        "INSERT OR REPLACE INTO epochs (mls_group_id, epoch, exporter, roster, group_data) \
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        id.as_bytes(),
        epoch.number,
        epoch.exporter.as_bytes(),
        roster,
        epoch.data,
    ])?;
    let oldest = epoch.number.saturating_sub(PAST_EPOCHS as u64);
    db.prepare_cached("DELETE FROM epochs WHERE mls_group_id = ?1 AND epoch < ?2")?
        .execute(params![id.as_bytes(), oldest])?;
    db.prepare_cached("DELETE FROM commits WHERE mls_group_id = ?1 AND source_epoch < ?2")?
        .execute(params![id.as_bytes(), oldest])?;
    db.prepare_cached("UPDATE groups SET epoch = ?2 WHERE mls_group_id = ?1")?
        .execute(params![id.as_bytes(), epoch.number])?;
    Ok(())
}

/// Makes `epoch` the current one again and forgets everything after it.
pub(crate) fn return_to_epoch(
    db: &Connection,
    id: &MlsGroupId,
    epoch: u64,
) -> Result<(), StoreError> {
    db.execute(
        "DELETE FROM epochs WHERE mls_group_id = ?1 AND epoch > ?2",
        params![id.as_bytes(), epoch],
    )?;
    db.execute(
        "DELETE FROM commits WHERE mls_group_id = ?1 AND source_epoch >= ?2",
        params![id.as_bytes(), epoch],
    )?;
    // What we staged on an abandoned epoch has lost its base; Welcomes wait for their commit again.
    db.execute(
        "DELETE FROM pending WHERE mls_group_id = ?1 AND source_epoch > ?2",
        params![id.as_bytes(), epoch],
    )?;
    db.execute(
        "DELETE FROM welcomes WHERE mls_group_id = ?1 AND source_epoch > ?2",
        params![id.as_bytes(), epoch],
    )?;
    db.execute(
        "UPDATE welcomes SET released = 0 WHERE mls_group_id = ?1 AND source_epoch = ?2",
        params![id.as_bytes(), epoch],
    )?;
    db.execute(
        "UPDATE groups SET epoch = ?2, evicted = 0, \
         self_update_epoch = iif(self_update_epoch > ?2, NULL, self_update_epoch) \
         WHERE mls_group_id = ?1",
        params![id.as_bytes(), epoch],
    )?;
    Ok(())
}

/// The outer keys still kept, newest first.
pub(crate) fn exporters(
    db: &Connection,
    id: &MlsGroupId,
) -> Result<Vec<(u64, ExporterSecret)>, StoreError> {
    db.prepare_cached(
        "SELECT epoch, exporter FROM epochs WHERE mls_group_id = ?1 ORDER BY epoch DESC",
    )?
    .query_and_then(params![id.as_bytes()], |row| {
        let bytes = Zeroizing::new(row.get::<_, [u8; 32]>(1)?);
        Ok((row.get(0)?, ExporterSecret::new(*bytes)))
    })?
    .collect()
}

/// Who was in the group in that epoch; `None` if it is not remembered.
pub(crate) fn roster(
    db: &Connection,
    id: &MlsGroupId,
    epoch: u64,
) -> Result<Option<Vec<Leaf>>, StoreError> {
    let bytes: Option<Vec<u8>> = db
        .prepare_cached("SELECT roster FROM epochs WHERE mls_group_id = ?1 AND epoch = ?2")?
        .query_row(params![id.as_bytes(), epoch], |row| row.get(0))
        .optional()?;
    let Some(bytes) = bytes else { return Ok(None) };
    let (leaves, rest) = bytes.as_chunks::<68>();
    if !rest.is_empty() {
        return Err(StoreError::Corrupt("epochs.roster"));
    }
    leaves.iter().map(leaf).collect::<Result<_, _>>().map(Some)
}

fn leaf(bytes: &[u8; 68]) -> Result<Leaf, StoreError> {
    let corrupt = StoreError::Corrupt("epochs.roster");
    let (index, rest) = bytes.split_first_chunk::<4>().ok_or(corrupt)?;
    let (identity, key) = rest.split_at(32);
    Ok(Leaf {
        index: u32::from_be_bytes(*index),
        npub: npub(identity)?,
        signature_key: SignatureKey::from_slice(key).ok_or(StoreError::Corrupt("epochs.roster"))?,
    })
}

/// The group data of the current epoch.
pub(crate) fn group_data(db: &Connection, row: &GroupRow) -> Result<GroupData, StoreError> {
    let bytes: Vec<u8> = db
        .prepare_cached("SELECT group_data FROM epochs WHERE mls_group_id = ?1 AND epoch = ?2")?
        .query_row(params![row.id.as_bytes(), row.epoch], |row| row.get(0))?;
    GroupData::decode(&bytes).map_err(|_| StoreError::Corrupt("epochs.group_data"))
}
