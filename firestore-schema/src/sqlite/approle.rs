//! Roles and secret_ids of the embedded issuer. Like the changes of devices that cause them, changes of secret_ids share commits.

use async_trait::async_trait;
use keyturn_proto::{UnixMs, VersionId};
use rusqlite::Transaction;

use super::load::ms;
use super::open::SqliteStore;
use super::{apply, load};
use crate::approle::{AppRoleDoc, AppRoleStore, SecretIdDoc, Spent};
use crate::collections::document_id;
use crate::documents::AuditRecord;
use crate::store::{Result, StoreError};

pub(super) const EXISTS: StoreError = StoreError::Conflict {
    why: "secret_id.exists",
};

#[async_trait]
impl AppRoleStore for SqliteStore {
    async fn ensure_role(&self, fresh: AppRoleDoc, audit: AuditRecord) -> Result<AppRoleDoc> {
        self.writer
            .write(move |tx| {
                document_id("role", &fresh.role)?;
                let sql = "SELECT doc FROM approle_roles WHERE role = ?1";
                if let Some(known) = load::one(tx, "role", sql, [&fresh.role])? {
                    return Ok(known);
                }
                put_role(tx, &fresh)?;
                apply::audit(tx, tx.instance, vec![audit], None)?;
                Ok(fresh)
            })
            .await
    }

    async fn role_by_id(&self, role_id: &str) -> Result<Option<AppRoleDoc>> {
        let role_id = role_id.to_owned();
        self.reader
            .read(move |tx| {
                let sql = "SELECT doc FROM approle_roles WHERE role_id = ?1";
                load::one(tx, "role", sql, [role_id])
            })
            .await
    }

    async fn add_secret_id(&self, doc: SecretIdDoc) -> Result<()> {
        self.writer
            .write_grouped(
                move |tx, _| {
                    if add(tx, &doc)? { Ok(()) } else { Err(EXISTS) }
                },
            )
            .await
    }

    async fn secret_id(&self, accessor: &VersionId) -> Result<Option<SecretIdDoc>> {
        let accessor = *accessor;
        self.reader.read(move |tx| one(tx, &accessor)).await
    }

    async fn spend_secret_id(
        &self,
        accessor: &VersionId,
        now: UnixMs,
        audit: AuditRecord,
    ) -> Result<Spent> {
        let accessor = *accessor;
        self.writer
            .write_grouped(move |tx, instance| {
                let Some(mut doc) = one(tx, &accessor)?.filter(|doc| doc.alive(now)) else {
                    return Ok(Spent::Gone);
                };
                if let Some(uses) = doc.uses_left {
                    let left = uses.saturating_sub(1);
                    doc.uses_left = Some(left);
                    if left == 0 {
                        remove(tx, &doc.role, &accessor)?;
                    } else {
                        let sql = "UPDATE approle_secret_ids SET doc = ?2 WHERE accessor = ?1";
                        let row = (accessor.to_string(), apply::json("secret_id", &doc)?);
                        apply::run(tx, sql, row)?;
                    }
                }
                apply::audit(tx, instance, vec![audit], None)?;
                Ok(Spent::Allowed(Box::new(doc)))
            })
            .await
    }

    async fn destroy_secret_id(&self, role: &str, accessor: &VersionId) -> Result<bool> {
        let (role, accessor) = (role.to_owned(), *accessor);
        self.writer
            .write_grouped(move |tx, _| remove(tx, &role, &accessor))
            .await
    }

    async fn secret_ids_for(
        &self,
        role: &str,
        nonce_hashes: &[String],
        now: UnixMs,
    ) -> Result<Vec<SecretIdDoc>> {
        let (role, nonces) = (role.to_owned(), nonce_hashes.to_vec());
        self.reader
            .read(move |tx| {
                let sql = "SELECT doc FROM approle_secret_ids WHERE role = ?1 AND nonce_hash = ?2";
                let mut found: Vec<SecretIdDoc> = Vec::new();
                for nonce in &nonces {
                    found.extend(load::all(tx, "secret_id", sql, (&role, nonce))?);
                }
                found.retain(|doc| doc.alive(now));
                Ok(found)
            })
            .await
    }

    async fn purge_secret_ids(&self, now: UnixMs, limit: usize) -> Result<usize> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.writer
            .write(move |tx| {
                let sql = "DELETE FROM approle_secret_ids WHERE accessor IN
                    (SELECT accessor FROM approle_secret_ids WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2)";
                apply::run(tx, sql, (ms(now), limit))
            })
            .await
    }
}

pub(super) fn put_role(tx: &Transaction<'_>, doc: &AppRoleDoc) -> Result<()> {
    let sql = "INSERT INTO approle_roles (role, role_id, doc) VALUES (?1, ?2, ?3)";
    let row = (&doc.role, &doc.role_id, apply::json("role", doc)?);
    apply::run(tx, sql, row).map(drop)
}

/// False if its accessor exists.
pub(super) fn add(tx: &Transaction<'_>, doc: &SecretIdDoc) -> Result<bool> {
    let sql = "INSERT INTO approle_secret_ids (accessor, role, nonce_hash, expires_at, doc) VALUES (?1, ?2, ?3, ?4, ?5)
        ON CONFLICT (accessor) DO NOTHING";
    let row = (
        doc.accessor.to_string(),
        &doc.role,
        &doc.nonce_hash,
        ms(doc.expires_at),
        apply::json("secret_id", doc)?,
    );
    Ok(apply::run(tx, sql, row)? == 1)
}

fn one(tx: &Transaction<'_>, accessor: &VersionId) -> Result<Option<SecretIdDoc>> {
    let sql = "SELECT doc FROM approle_secret_ids WHERE accessor = ?1";
    load::one(tx, "secret_id", sql, [accessor.to_string()])
}

fn remove(tx: &Transaction<'_>, role: &str, accessor: &VersionId) -> Result<bool> {
    let sql = "DELETE FROM approle_secret_ids WHERE accessor = ?1 AND role = ?2";
    let rows = apply::run(tx, sql, (accessor.to_string(), role))?;
    Ok(rows == 1)
}
