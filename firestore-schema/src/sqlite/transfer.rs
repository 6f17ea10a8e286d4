//! Documents in and out, one page at a time.

use async_trait::async_trait;
use rusqlite::Transaction;
use serde::de::DeserializeOwned;

use super::open::SqliteStore;
use super::{apply, approle, devices, error, load};
use crate::collections::{
    ACTIONS, ADMINS, APPROLE_ROLES, APPROLE_SECRET_IDS, AUDIT, CHAINS, CLIENTS, DEVICES, GROUPS,
    LEASES, NONCES, OUTBOX, ROTATIONS,
};
use crate::store::{Result, StoreError};
use crate::transfer::{Import, Item, Page, Transfer, item_of};

/// No client id has it, so a version's key has one reading.
const BETWEEN: char = '/';

/// The column that is the key of a collection's table, and the table.
fn table(collection: &str) -> Result<(&'static str, &'static str)> {
    Ok(match collection {
        LEASES => ("name", "leases"),
        GROUPS => ("alias", "admin_groups"),
        ADMINS => ("npub", "admins"),
        CLIENTS => ("client_id", "clients"),
        ROTATIONS => ("rotation_id", "rotations"),
        ACTIONS => ("action_id", "actions"),
        DEVICES => ("device_id", "devices"),
        APPROLE_ROLES => ("role", "approle_roles"),
        APPROLE_SECRET_IDS => ("accessor", "approle_secret_ids"),
        OUTBOX => ("event_id", "outbox"),
        AUDIT => ("id", "audit"),
        CHAINS => ("id", "audit_chains"),
        _ => return Err(StoreError::Damaged { what: "collection" }),
    })
}

fn parse<T: DeserializeOwned>(what: &'static str, json: &str) -> Result<T> {
    serde_json::from_str(json).map_err(|_| StoreError::Damaged { what })
}

fn page(
    tx: &Transaction<'_>,
    collection: &'static str,
    after: Option<&str>,
    limit: usize,
) -> Result<Page> {
    let rows_wanted = i64::try_from(limit).unwrap_or(i64::MAX);
    // Every key is greater than the empty text.
    let after = after.unwrap_or_default();
    let (above, within) = after.rsplit_once(BETWEEN).unwrap_or_default();
    let (sql, first, second) = match collection {
        crate::collections::VERSIONS => (
            format!(
                "SELECT client_id || '{BETWEEN}' || version_id, doc FROM versions
                 WHERE (client_id, version_id) > (?1, ?2) ORDER BY client_id, version_id LIMIT ?3"
            ),
            above,
            within,
        ),
        NONCES => (
            format!(
                "SELECT nonce_hash, {} FROM nonces WHERE nonce_hash > ?1 AND ?2 = '' ORDER BY nonce_hash LIMIT ?3",
                load::NONCE
            ),
            after,
            "",
        ),
        collection => {
            let (key, table) = table(collection)?;
            (
                format!(
                    "SELECT {key}, doc FROM {table} WHERE {key} > ?1 AND ?2 = '' ORDER BY {key} LIMIT ?3"
                ),
                after,
                "",
            )
        }
    };
    let mut statement = tx.prepare_cached(&sql).map_err(error::sql)?;
    let mut rows = statement
        .query((first, second, rows_wanted))
        .map_err(error::sql)?;
    let mut items = Vec::new();
    let mut last = None;
    while let Some(row) = rows.next().map_err(error::sql)? {
        let json: String = row.get(1).map_err(error::sql)?;
        items.push(item_of!(collection, parse(collection, &json))?);
        last = Some(row.get(0).map_err(error::sql)?);
    }
    let next = if items.len() < limit { None } else { last };
    Ok(Page { items, next })
}

/// What lies in the place of `item`.
fn in_place_of(tx: &Transaction<'_>, item: &Item) -> Result<Option<Item>> {
    fn at<T: DeserializeOwned>(
        tx: &Transaction<'_>,
        collection: &'static str,
        id: &str,
    ) -> Result<Option<T>> {
        let (key, table) = table(collection)?;
        let sql = format!("SELECT doc FROM {table} WHERE {key} = ?1");
        load::one(tx, collection, &sql, [id])
    }
    Ok(match item {
        Item::Lease(doc) => at(tx, LEASES, &doc.name)?.map(Item::Lease),
        Item::Group(doc) => at(tx, GROUPS, &doc.alias)?.map(Item::Group),
        Item::Admin(doc) => load::admin(tx, &doc.npub)?.map(Item::Admin),
        Item::Client(doc) => load::client(tx, &doc.client_id)?.map(Item::Client),
        Item::Version(doc) => {
            load::version(tx, &doc.client_id, &doc.version_id.to_string())?.map(Item::Version)
        }
        Item::Rotation(doc) => load::rotation(tx, &doc.rotation_id)?.map(Item::Rotation),
        Item::Action(doc) => at(tx, ACTIONS, doc.action_id.as_str())?.map(Item::Action),
        Item::Nonce(doc) => load::nonce(tx, &doc.nonce_hash)?.map(Item::Nonce),
        Item::Device(doc) => at(tx, DEVICES, doc.device_id.as_str())?.map(Item::Device),
        Item::AppRole(doc) => at(tx, APPROLE_ROLES, &doc.role)?.map(Item::AppRole),
        Item::SecretId(doc) => {
            at(tx, APPROLE_SECRET_IDS, &doc.accessor.to_string())?.map(Item::SecretId)
        }
        Item::Outbox(doc) => at(tx, OUTBOX, &doc.event_id)?.map(Item::Outbox),
        Item::Audit(doc) => at(tx, AUDIT, &doc.id)?.map(Item::Audit),
        Item::Chain(doc) => at(tx, CHAINS, &doc.id)?.map(Item::Chain),
    })
}

fn create(tx: &Transaction<'_>, item: &Item) -> Result<()> {
    match item {
        Item::Lease(doc) => apply::lease(tx, doc),
        Item::Group(doc) => apply::group(tx, doc),
        Item::Admin(doc) => apply::admin(tx, doc),
        Item::Client(doc) => apply::client(tx, doc),
        Item::Version(doc) => apply::version(tx, doc),
        Item::Rotation(doc) => apply::rotation(tx, doc),
        Item::Action(doc) => apply::action(tx, doc),
        Item::Nonce(doc) => apply::nonce(tx, doc).map(drop),
        Item::Device(doc) => devices::put(tx, doc),
        Item::AppRole(doc) => approle::put_role(tx, doc),
        Item::SecretId(doc) => approle::add(tx, doc).map(drop),
        Item::Outbox(doc) => apply::outbox_event(tx, doc),
        Item::Audit(doc) => apply::audit_entry(tx, doc),
        Item::Chain(doc) => apply::chain_head(tx, doc),
    }
}

#[async_trait]
impl Transfer for SqliteStore {
    async fn export(
        &self,
        collection: &'static str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page> {
        let after = after.map(str::to_owned);
        self.reader
            .read(move |tx| page(tx, collection, after.as_deref(), limit))
            .await
    }

    async fn look_up(&self, items: &[Item]) -> Result<Vec<Option<Item>>> {
        let items = items.to_vec();
        self.reader
            .read(move |tx| items.iter().map(|item| in_place_of(tx, item)).collect())
            .await
    }

    async fn import(&self, items: &[Item]) -> Result<Vec<Import>> {
        let items = items.to_vec();
        self.writer
            .write(move |tx| {
                let mut outcomes = Vec::with_capacity(items.len());
                for item in &items {
                    outcomes.push(match in_place_of(tx, item)? {
                        Some(known) if known == *item => Import::Same,
                        Some(_) => Import::Different,
                        None => {
                            create(tx, item)?;
                            Import::Created
                        }
                    });
                }
                Ok(outcomes)
            })
            .await
    }
}
