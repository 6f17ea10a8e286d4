//! What a group's OpenMLS state was before a commit, so that a better commit for the same epoch can still
//! be followed.
//!
//! A snapshot holds secrets of its epoch. It lives in `commits.snapshot` inside the encrypted database,
//! and only while the commit may still lose; see [`crate::settle`].

use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, params, params_from_iter};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::codec::Cbor;
use openmls_sqlite_storage::Codec as _;

/// The tables of openmls_sqlite_storage that hold state per group, with the column to leave out.
const TABLES: [(&str, &str); 4] = [
    (
        "openmls_group_data",
        "provider_version, group_id, data_type, group_data",
    ),
    (
        "openmls_epoch_keys_pairs",
        "provider_version, group_id, epoch_id, leaf_index, key_pairs",
    ),
    (
        "openmls_own_leaf_nodes",
        "provider_version, group_id, leaf_node",
    ),
    (
        "openmls_proposals",
        "provider_version, group_id, proposal_ref, proposal",
    ),
];

#[derive(Serialize, Deserialize)]
enum Cell {
    Null,
    Integer(i64),
    Text(String),
    #[serde(with = "bytes")]
    Blob(Vec<u8>),
}

/// CBOR byte strings instead of arrays of numbers.
mod bytes {
    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: Error>(self, v: &[u8]) -> Result<Self::Value, E> {
                Ok(v.to_vec())
            }
            fn visit_byte_buf<E: Error>(self, v: Vec<u8>) -> Result<Self::Value, E> {
                Ok(v)
            }
        }
        d.deserialize_byte_buf(Bytes)
    }
}

type Rows = Vec<Vec<Vec<Cell>>>;

/// Everything OpenMLS stores for the group under `key` (its id as the codec writes it).
pub(crate) fn take(
    connection: &Connection,
    key: &[u8],
) -> Result<Zeroizing<Vec<u8>>, rusqlite::Error> {
    let mut tables: Rows = Vec::with_capacity(TABLES.len());
    for (table, columns) in TABLES {
        let mut statement = connection.prepare_cached(&format!(
            "SELECT {columns} FROM {table} WHERE group_id = ?1"
        ))?;
        let width = statement.column_count();
        let rows = statement
            .query_map(params![key], |row| {
                (0..width).map(|i| row.get_ref(i).map(cell)).collect()
            })?
            .collect::<Result<Vec<Vec<Cell>>, _>>()?;
        tables.push(rows);
    }
    Cbor::to_vec(&tables)
        .map(Zeroizing::new)
        .map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}

/// Puts back what [`take`] took, in place of what is there now.
pub(crate) fn restore(
    connection: &Connection,
    key: &[u8],
    snapshot: &[u8],
) -> Result<(), rusqlite::Error> {
    let tables: Rows = Cbor::from_slice(snapshot)
        .map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
    erase(connection, key)?;
    for ((table, columns), rows) in TABLES.into_iter().zip(tables) {
        let marks = vec!["?"; columns.split(',').count()].join(",");
        let mut statement = connection
            .prepare_cached(&format!("INSERT INTO {table} ({columns}) VALUES ({marks})"))?;
        for row in rows {
            statement.execute(params_from_iter(row.into_iter().map(value)))?;
        }
    }
    Ok(())
}

/// Removes everything OpenMLS stores for the group.
pub(crate) fn erase(connection: &Connection, key: &[u8]) -> Result<(), rusqlite::Error> {
    for (table, _) in TABLES {
        connection
            .prepare_cached(&format!("DELETE FROM {table} WHERE group_id = ?1"))?
            .execute(params![key])?;
    }
    Ok(())
}

fn cell(value: ValueRef<'_>) -> Cell {
    match value {
        ValueRef::Null | ValueRef::Real(_) => Cell::Null,
        ValueRef::Integer(number) => Cell::Integer(number),
        ValueRef::Text(text) => Cell::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(blob) => Cell::Blob(blob.to_vec()),
    }
}

fn value(cell: Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Integer(number) => Value::Integer(number),
        Cell::Text(text) => Value::Text(text),
        Cell::Blob(blob) => Value::Blob(blob),
    }
}
