//! Writing a change set: all of it, inside the caller's transaction.

use keyturn_proto::ClientId;
use rusqlite::{Params, Transaction};
use serde::Serialize;

use super::error;
use super::load::{self, ms};
use super::worker::Tx;
use crate::audit::{self, Instance};
use crate::documents::{
    ActionDoc, AdminDoc, AdminGroupDoc, AuditChainDoc, AuditEntry, AuditRecord, ClientDoc,
    LeaseDoc, NonceDoc, OutboxDoc, RotationDoc, RotationState, VersionDoc, VersionState,
};
use crate::fits;
use crate::lifecycle::{Change, due};
use crate::store::{Result, StoreError};

pub(super) fn run(tx: &Transaction<'_>, sql: &str, params: impl Params) -> Result<usize> {
    tx.prepare_cached(sql)
        .and_then(|mut statement| statement.execute(params))
        .map_err(error::sql)
}

pub(super) fn json<T: Serialize>(what: &'static str, doc: &T) -> Result<String> {
    let unrepresentable = |_| StoreError::Unrepresentable { what };
    fits::document(what, &serde_json::to_value(doc).map_err(unrepresentable)?)?;
    serde_json::to_string(doc).map_err(unrepresentable)
}

/// Writes everything that the lifecycle decided.
pub(super) fn change(tx: &Tx<'_>, change: Change) -> Result<()> {
    let Change {
        client: client_doc,
        mut versions,
        voided,
        rotations,
        actions,
        admin: admin_doc,
        outbox,
        expire_outbox,
        audit: records,
    } = change;
    if let Some(doc) = &client_doc {
        client(tx, doc)?;
        for id in voided {
            let sql = "DELETE FROM versions WHERE client_id = ?1 AND version_id = ?2 AND state = 'pending'";
            run(tx, sql, (doc.client_id.as_str(), id.to_string()))?;
        }
    }
    // The unique indexes are checked row by row: a place is vacated before it is taken.
    versions.sort_by_key(|doc| match doc.state {
        VersionState::Retired | VersionState::Cancelled => 0u8,
        VersionState::Grace => 1,
        VersionState::Current => 2,
        VersionState::Pending => 3,
    });
    for doc in &versions {
        version(tx, doc)?;
    }
    // For the same reason ended rotations go before the one that is active now.
    let (done, active): (Vec<_>, Vec<_>) = rotations
        .iter()
        .partition(|doc| doc.state == RotationState::Done);
    for doc in done.into_iter().chain(active) {
        rotation(tx, doc)?;
    }
    for doc in &actions {
        action(tx, doc)?;
    }
    if let Some(doc) = &admin_doc {
        admin(tx, doc)?;
    }
    for (rotation, at) in expire_outbox {
        let sql = "SELECT doc FROM outbox WHERE rotation_id = ?1 AND (delete_after IS NULL OR delete_after > ?2)";
        let docs: Vec<OutboxDoc> = load::all(tx, "outbox", sql, (rotation.as_str(), ms(at)))?;
        for mut doc in docs {
            doc.delete_after = Some(at);
            outbox_event(tx, &doc)?;
        }
    }
    for doc in &outbox {
        outbox_event(tx, doc)?;
    }
    audit(tx, tx.instance, records, client_doc.as_ref())
}

pub(super) fn client(tx: &Transaction<'_>, doc: &ClientDoc) -> Result<()> {
    let sql = "INSERT INTO clients (client_id, doc) VALUES (?1, ?2)
        ON CONFLICT (client_id) DO UPDATE SET doc = excluded.doc";
    run(tx, sql, (doc.client_id.as_str(), json("client", doc)?)).map(drop)
}

pub(super) fn version(tx: &Transaction<'_>, doc: &VersionDoc) -> Result<()> {
    let sql = "INSERT INTO versions (client_id, version_id, state, rotation_id, due_at, doc) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
        ON CONFLICT (client_id, version_id) DO UPDATE SET state = excluded.state, due_at = excluded.due_at, doc = excluded.doc";
    let state = match doc.state {
        VersionState::Pending => "pending",
        VersionState::Current => "current",
        VersionState::Grace => "grace",
        VersionState::Retired => "retired",
        VersionState::Cancelled => "cancelled",
    };
    let row = (
        doc.client_id.as_str(),
        doc.version_id.to_string(),
        state,
        doc.rotation_id.as_ref().map(|id| id.as_str()),
        due::version_due_at(doc).map(ms),
        json("version", doc)?,
    );
    run(tx, sql, row).map(drop)
}

pub(super) fn rotation(tx: &Transaction<'_>, doc: &RotationDoc) -> Result<()> {
    let sql = "INSERT INTO rotations (rotation_id, client_id, done, due_at, doc) VALUES (?1, ?2, ?3, ?4, ?5)
        ON CONFLICT (rotation_id) DO UPDATE SET done = excluded.done, due_at = excluded.due_at, doc = excluded.doc";
    let row = (
        doc.rotation_id.as_str(),
        doc.client_id.as_str(),
        doc.state == RotationState::Done,
        due::rotation_due_at(doc).map(ms),
        json("rotation", doc)?,
    );
    run(tx, sql, row).map(drop)
}

pub(super) fn action(tx: &Transaction<'_>, doc: &ActionDoc) -> Result<()> {
    let sql = "INSERT INTO actions (action_id, client_id, doc) VALUES (?1, ?2, ?3)
        ON CONFLICT (action_id) DO UPDATE SET doc = excluded.doc";
    let row = (
        doc.action_id.as_str(),
        doc.client_id.as_str(),
        json("action", doc)?,
    );
    run(tx, sql, row).map(drop)
}

pub(super) fn outbox_event(tx: &Transaction<'_>, doc: &OutboxDoc) -> Result<()> {
    let sql = "INSERT INTO outbox (event_id, rotation_id, withdrawn_at, delete_after, doc) VALUES (?1, ?2, ?3, ?4, ?5)
        ON CONFLICT (event_id) DO UPDATE SET withdrawn_at = excluded.withdrawn_at, delete_after = excluded.delete_after, doc = excluded.doc";
    let row = (
        doc.event_id.as_str(),
        doc.rotation_id.as_str(),
        doc.withdrawn_at.map(ms),
        doc.delete_after.map(ms),
        json("outbox", doc)?,
    );
    run(tx, sql, row).map(drop)
}

pub(super) fn admin(tx: &Transaction<'_>, doc: &AdminDoc) -> Result<()> {
    let sql = "INSERT INTO admins (npub, doc) VALUES (?1, ?2)
        ON CONFLICT (npub) DO UPDATE SET doc = excluded.doc";
    run(tx, sql, (doc.npub.to_hex(), json("admin", doc)?)).map(drop)
}

pub(super) fn group(tx: &Transaction<'_>, doc: &AdminGroupDoc) -> Result<()> {
    let sql = "INSERT INTO admin_groups (alias, doc) VALUES (?1, ?2)
        ON CONFLICT (alias) DO UPDATE SET doc = excluded.doc";
    run(tx, sql, (doc.alias.as_str(), json("admin group", doc)?)).map(drop)
}

pub(super) fn lease(tx: &Transaction<'_>, doc: &LeaseDoc) -> Result<()> {
    let sql = "INSERT INTO leases (name, doc) VALUES (?1, ?2)
        ON CONFLICT (name) DO UPDATE SET doc = excluded.doc";
    run(tx, sql, (doc.name.as_str(), json("lease", doc)?)).map(drop)
}

/// Creates a nonce record; false if it was there.
pub(super) fn nonce(tx: &Transaction<'_>, doc: &NonceDoc) -> Result<bool> {
    let sql =
        "INSERT INTO nonces (nonce_hash, owner_event, expires_at, refused) VALUES (?1, ?2, ?3, ?4)
        ON CONFLICT (nonce_hash) DO NOTHING";
    let refused = doc.refused.as_ref();
    let row = (
        doc.nonce_hash.as_str(),
        doc.owner_event.as_str(),
        ms(fits::time("nonce", doc.expires_at)?),
        refused.map(|doc| json("nonce", doc)).transpose()?,
    );
    run(tx, sql, row).map(|rows| rows == 1)
}

/// Seals records into their chains; `client` is the client that the same change writes, if any.
pub(super) fn audit(
    tx: &Transaction<'_>,
    instance: &Instance,
    records: Vec<AuditRecord>,
    client: Option<&ClientDoc>,
) -> Result<()> {
    let mut heads = Vec::new();
    for chain in audit::chains_of(&records, client, instance) {
        heads.extend(load::chain_head(tx, &chain.id())?);
    }
    let sealed = audit::seal(heads, records, client, instance)?;
    for entry in &sealed.entries {
        audit_entry(tx, entry)?;
    }
    for head in &sealed.heads {
        chain_head(tx, head)?;
    }
    Ok(())
}

/// Creates: an id that exists is refused by the table.
pub(super) fn audit_entry(tx: &Transaction<'_>, entry: &AuditEntry) -> Result<()> {
    let sql = "INSERT INTO audit (id, client_id, doc) VALUES (?1, ?2, ?3)";
    let row = (
        entry.id.as_str(),
        entry.record.client_id.as_ref().map(ClientId::as_str),
        json("audit", entry)?,
    );
    run(tx, sql, row).map(drop)
}

pub(super) fn chain_head(tx: &Transaction<'_>, head: &AuditChainDoc) -> Result<()> {
    let sql = "INSERT INTO audit_chains (id, doc) VALUES (?1, ?2)
        ON CONFLICT (id) DO UPDATE SET doc = excluded.doc";
    run(tx, sql, (head.id.as_str(), json("audit chain", head)?)).map(drop)
}
