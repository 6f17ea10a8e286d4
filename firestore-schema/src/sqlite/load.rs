//! Reading documents.

use keyturn_proto::{ClientId, Npub, RotationId, UnixMs};
use rusqlite::{OptionalExtension as _, Params, Transaction};
use serde::de::DeserializeOwned;

use super::error;
use crate::damage;
use crate::documents::{
    ActionDoc, AdminDoc, AdminGroupDoc, AuditChainDoc, ClientDoc, LeaseDoc, NonceDoc, RotationDoc,
    VersionDoc,
};
use crate::lifecycle::{Family, Known, People};
use crate::store::{Result, StoreError, Stored};

/// A time as SQLite holds it: 63 bits are 292 million years.
pub(super) fn ms(time: UnixMs) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}

fn parse<T: DeserializeOwned>(what: &'static str, json: &str) -> Result<T> {
    // serde's message can quote the value, so only the kind of document goes on.
    serde_json::from_str(json).map_err(|_| StoreError::Damaged { what })
}

/// The one document that `sql` selects.
pub(super) fn one<T: DeserializeOwned>(
    tx: &Transaction<'_>,
    what: &'static str,
    sql: &str,
    params: impl Params,
) -> Result<Option<T>> {
    let json: Option<String> = tx
        .prepare_cached(sql)
        .map_err(error::sql)?
        .query_row(params, |row| row.get(0))
        .optional()
        .map_err(error::sql)?;
    json.map(|json| parse(what, &json)).transpose()
}

/// All documents that `sql` selects.
pub(super) fn all<T: DeserializeOwned>(
    tx: &Transaction<'_>,
    what: &'static str,
    sql: &str,
    params: impl Params,
) -> Result<Vec<T>> {
    let mut statement = tx.prepare_cached(sql).map_err(error::sql)?;
    let mut rows = statement.query(params).map_err(error::sql)?;
    let mut docs = Vec::new();
    while let Some(row) = rows.next().map_err(error::sql)? {
        let json = row
            .get_ref(0)
            .map_err(error::sql)?
            .as_str()
            .map_err(|_| StoreError::Damaged { what })?;
        docs.push(parse(what, json)?);
    }
    Ok(docs)
}

/// The first `limit` documents of the rows (id, doc, time) that `sql` selects, for whoever looks through what belongs to many: one that cannot be read, or that
/// `holds` finds kept under another time than its own, is set aside, and stops nobody.
pub(super) fn sound<T: DeserializeOwned>(
    tx: &Transaction<'_>,
    what: &'static str,
    sql: &str,
    params: impl Params,
    limit: usize,
    holds: impl Fn(&T, Option<i64>) -> bool,
) -> Result<Vec<T>> {
    let mut statement = tx.prepare_cached(sql).map_err(error::sql)?;
    let mut rows = statement.query(params).map_err(error::sql)?;
    let mut found = Vec::new();
    while found.len() < limit {
        let Some(row) = rows.next().map_err(error::sql)? else {
            break;
        };
        let at: Option<i64> = row.get(2).map_err(error::sql)?;
        let text = row.get_ref(1).map_err(error::sql)?.as_str().ok();
        let doc: Option<T> = text.and_then(|text| serde_json::from_str(text).ok());
        match doc.filter(|doc| holds(doc, at)) {
            Some(doc) => found.push(doc),
            None => {
                let id: String = row.get(0).map_err(error::sql)?;
                damage::set_aside(what, &id);
            }
        }
    }
    Ok(found)
}

/// For documents that are found by nothing but their ids.
pub(super) fn any<T>(_: &T, _: Option<i64>) -> bool {
    true
}

/// All rows (id, doc) that `sql` selects, the ones that do not read as documents as well.
pub(super) fn stored<T: DeserializeOwned>(
    tx: &Transaction<'_>,
    sql: &str,
    params: impl Params,
) -> Result<Vec<Stored<T>>> {
    let mut statement = tx.prepare_cached(sql).map_err(error::sql)?;
    let mut rows = statement.query(params).map_err(error::sql)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(error::sql)? {
        let text = row.get_ref(1).map_err(error::sql)?.as_str().ok();
        found.push(Stored {
            id: row.get(0).map_err(error::sql)?,
            doc: text.and_then(|text| serde_json::from_str(text).ok()),
        });
    }
    Ok(found)
}

pub(super) fn client(tx: &Transaction<'_>, id: &ClientId) -> Result<Option<ClientDoc>> {
    let sql = "SELECT doc FROM clients WHERE client_id = ?1";
    one(tx, "client", sql, [id.as_str()])
}

/// A client with the versions that its snapshot names.
pub(super) fn family(tx: &Transaction<'_>, id: &ClientId) -> Result<Family> {
    let client = client(tx, id)?.ok_or(StoreError::NotFound { what: "client" })?;
    let sql = "SELECT doc FROM versions WHERE client_id = ?1 AND version_id = ?2";
    let mut living = Vec::with_capacity(client.snapshot.len());
    for entry in &client.snapshot {
        let key = [id.as_str(), &entry.version_id.to_string()];
        living.push(one(tx, "version", sql, key)?.ok_or(StoreError::Damaged { what: "client" })?);
    }
    Ok(Family { client, living })
}

pub(super) fn rotation(tx: &Transaction<'_>, id: &RotationId) -> Result<Option<RotationDoc>> {
    let sql = "SELECT doc FROM rotations WHERE rotation_id = ?1";
    one(tx, "rotation", sql, [id.as_str()])
}

/// A rotation that must exist, and its client's family.
pub(super) fn rotation_and_family(
    tx: &Transaction<'_>,
    id: &RotationId,
) -> Result<(RotationDoc, Family)> {
    let rotation = rotation(tx, id)?.ok_or(StoreError::NotFound { what: "rotation" })?;
    let family = family(tx, &rotation.client_id)?;
    Ok((rotation, family))
}

/// The rotation that the client's `active_rotation` names.
pub(super) fn active(tx: &Transaction<'_>, client: &ClientDoc) -> Result<Option<RotationDoc>> {
    let Some(active) = &client.active_rotation else {
        return Ok(None);
    };
    rotation(tx, &active.rotation_id)?
        .ok_or(StoreError::Damaged { what: "client" })
        .map(Some)
}

/// A nonce record, which has columns only, as its document.
pub(super) const NONCE: &str = "json_object('nonce_hash', nonce_hash, 'owner_event', owner_event, 'expires_at', expires_at, 'refused', json(refused))";

/// What was used, or refused, under this hash.
pub(super) fn nonce(tx: &Transaction<'_>, hash: &str) -> Result<Option<NonceDoc>> {
    let sql = format!("SELECT {NONCE} FROM nonces WHERE nonce_hash = ?1");
    one(tx, "nonce", &sql, [hash])
}

/// What was recorded before under this id.
pub(super) fn known(tx: &Transaction<'_>, id: &RotationId) -> Result<Known> {
    let sql = "SELECT doc FROM actions WHERE action_id = ?1";
    let action: Option<ActionDoc> = one(tx, "action", sql, [id.as_str()])?;
    Ok(Known {
        rotation: rotation(tx, id)?,
        action,
    })
}

pub(super) fn version(
    tx: &Transaction<'_>,
    client: &ClientId,
    version: &str,
) -> Result<Option<VersionDoc>> {
    let sql = "SELECT doc FROM versions WHERE client_id = ?1 AND version_id = ?2";
    one(tx, "version", sql, [client.as_str(), version])
}

pub(super) fn versions(tx: &Transaction<'_>, client: &ClientId) -> Result<Vec<VersionDoc>> {
    let sql = "SELECT doc FROM versions WHERE client_id = ?1";
    let mut docs: Vec<VersionDoc> = all(tx, "version", sql, [client.as_str()])?;
    docs.sort_by_key(|doc| (doc.created_at, doc.version_id));
    Ok(docs)
}

pub(super) fn admin(tx: &Transaction<'_>, npub: &Npub) -> Result<Option<AdminDoc>> {
    let sql = "SELECT doc FROM admins WHERE npub = ?1";
    one(tx, "admin", sql, [npub.to_hex()])
}

/// Who stands behind a rotation: its readers, `also`, and the groups of its client.
pub(super) fn people(
    tx: &Transaction<'_>,
    client: &ClientDoc,
    rotation: &RotationDoc,
    also: Option<&Npub>,
) -> Result<People> {
    let mut people = People::default();
    for npub in rotation.readers.iter().chain(also) {
        people.admins.extend(admin(tx, npub)?);
    }
    people.groups = groups(tx)?;
    people
        .groups
        .retain(|group| client.admin_groups.contains(&group.alias));
    Ok(people)
}

/// To be judged together before one is written: one that cannot be read might hold the very key.
pub(super) fn admins(tx: &Transaction<'_>) -> Result<Vec<AdminDoc>> {
    all(tx, "admin", "SELECT doc FROM admins ORDER BY npub", [])
}

/// Likewise.
pub(super) fn groups(tx: &Transaction<'_>) -> Result<Vec<AdminGroupDoc>> {
    let sql = "SELECT doc FROM admin_groups ORDER BY alias";
    all(tx, "admin group", sql, [])
}

pub(super) fn lease(tx: &Transaction<'_>, name: &str) -> Result<Option<LeaseDoc>> {
    one(
        tx,
        "lease",
        "SELECT doc FROM leases WHERE name = ?1",
        [name],
    )
}

pub(super) fn chain_head(tx: &Transaction<'_>, id: &str) -> Result<Option<AuditChainDoc>> {
    let sql = "SELECT doc FROM audit_chains WHERE id = ?1";
    one(tx, "audit chain", sql, [id])
}
