//! Documents in and out, one page at a time.
//!
//! What must always hold: a document is created on the condition that there is none; nothing is replaced.

use async_trait::async_trait;

use super::codec::Fields;
use super::open::FirestoreStore;
use super::paths::Path;
use super::query::Ask;
use super::stored::{self, Document};
use super::writes::Writes;
use crate::collections::{
    ACTIONS, ADMINS, APPROLE_ROLES, APPROLE_SECRET_IDS, AUDIT, CHAINS, CLIENTS, DEVICES, GROUPS,
    LEASES, NONCES, OUTBOX, ROTATIONS, VERSIONS,
};
use crate::queries::{Query, relay};
use crate::store::{Result, StoreError};
use crate::transfer::{Import, Item, Page, Transfer, each, item_of};

/// Most documents in one commit.
const WRITES: usize = 200;

/// Most bytes in one commit, roughly; Firestore takes 10 MiB.
const BYTES: usize = 6 * 1024 * 1024;

fn query(collection: &str) -> Result<&'static Query> {
    Ok(match collection {
        LEASES => &relay::LEASES_ALL,
        GROUPS => &relay::GROUPS_ALL,
        ADMINS => &relay::ADMINS_ALL,
        CLIENTS => &relay::CLIENTS_ALL,
        VERSIONS => &relay::VERSIONS_ALL,
        ROTATIONS => &relay::ROTATIONS_ALL,
        ACTIONS => &relay::ACTIONS_ALL,
        NONCES => &relay::NONCES_ALL,
        DEVICES => &relay::DEVICES_ALL,
        APPROLE_ROLES => &relay::ROLES_ALL,
        APPROLE_SECRET_IDS => &relay::SECRET_IDS_ALL,
        OUTBOX => &relay::OUTBOX_ALL,
        AUDIT => &relay::AUDIT_ALL,
        CHAINS => &relay::CHAINS_ALL,
        _ => return Err(StoreError::Damaged { what: "collection" }),
    })
}

fn collection_of(item: &Item) -> &'static str {
    match item {
        Item::Lease(_) => LEASES,
        Item::Group(_) => GROUPS,
        Item::Admin(_) => ADMINS,
        Item::Client(_) => CLIENTS,
        Item::Version(_) => VERSIONS,
        Item::Rotation(_) => ROTATIONS,
        Item::Action(_) => ACTIONS,
        Item::Nonce(_) => NONCES,
        Item::Device(_) => DEVICES,
        Item::AppRole(_) => APPROLE_ROLES,
        Item::SecretId(_) => APPROLE_SECRET_IDS,
        Item::Outbox(_) => OUTBOX,
        Item::Audit(_) => AUDIT,
        Item::Chain(_) => CHAINS,
    }
}

fn path(item: &Item) -> Result<Path> {
    each!(item, doc => doc.path())
}

fn parse(collection: &str, path: &Path, fields: Fields) -> Result<Item> {
    item_of!(collection, stored::parse(path, fields))
}

/// Roughly, and never less than the text in it.
fn size(item: &Item) -> usize {
    each!(item, doc => serde_json::to_vec(doc).map_or(BYTES, |json| json.len()))
}

/// As many as fit into one commit; at least one.
fn batch(items: &[Item]) -> usize {
    let mut bytes = 0;
    let fit = items
        .iter()
        .take(WRITES)
        .take_while(|item| {
            bytes += size(item);
            bytes <= BYTES
        })
        .count();
    fit.max(1).min(items.len())
}

impl FirestoreStore {
    async fn import_some(&self, items: &[Item]) -> Result<Vec<Import>> {
        let turn = self.to_write("import", "import").await?;
        let paths: Vec<Path> = items.iter().map(path).collect::<Result<_>>()?;
        loop {
            let mut reading = turn.read();
            reading.fetch(paths.iter().cloned()).await?;
            let mut writes = Writes::new(&reading);
            let mut outcomes = Vec::with_capacity(items.len());
            for (item, path) in items.iter().zip(&paths) {
                let outcome = match reading.seen(path).flatten() {
                    None => {
                        each!(item, doc => writes.create(doc, Fields::new()))?;
                        Import::Created
                    }
                    Some(found) => {
                        let known = parse(collection_of(item), path, found.fields.clone())?;
                        if known == *item {
                            Import::Same
                        } else {
                            Import::Different
                        }
                    }
                };
                outcomes.push(outcome);
            }
            // Nothing of a batch in which something differs.
            if writes.is_empty() || outcomes.contains(&Import::Different) {
                return Ok(outcomes);
            }
            if turn.happened(writes.finish(), None).await? {
                return Ok(outcomes);
            }
        }
    }
}

#[async_trait]
impl Transfer for FirestoreStore {
    async fn export(
        &self,
        collection: &'static str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page> {
        let turn = self.to_read("export");
        let documents = turn.link.documents();
        let after = after.and_then(|it| Path::of_name(&format!("{documents}/{it}"), documents));
        let ask = Ask::new(query(collection)?).limit(limit);
        let found = turn.read().beyond(&ask, after).await?;
        let whole = found.len() < ask.limit;
        let last = found.last().map(|(path, _)| path.as_str().to_owned());
        let items = found
            .into_iter()
            .map(|(path, found)| parse(collection, &path, found.fields))
            .collect::<Result<_>>()?;
        Ok(Page {
            items,
            next: if whole { None } else { last },
        })
    }

    async fn look_up(&self, items: &[Item]) -> Result<Vec<Option<Item>>> {
        let turn = self.to_read("look_up");
        let mut reading = turn.read();
        let paths: Vec<Path> = items.iter().map(path).collect::<Result<_>>()?;
        reading.fetch(paths.iter().cloned()).await?;
        items
            .iter()
            .zip(&paths)
            .map(|(item, path)| {
                let found = reading.seen(path).flatten();
                found
                    .map(|found| parse(collection_of(item), path, found.fields.clone()))
                    .transpose()
            })
            .collect()
    }

    async fn import(&self, items: &[Item]) -> Result<Vec<Import>> {
        let mut outcomes = Vec::with_capacity(items.len());
        let mut rest = items;
        while !rest.is_empty() {
            let (some, others) = rest.split_at(batch(rest));
            outcomes.extend(self.import_some(some).await?);
            rest = others;
        }
        Ok(outcomes)
    }
}
