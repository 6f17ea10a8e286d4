//! The audit trail.

use async_trait::async_trait;
use keyturn_proto::ClientId;

use super::open::SqliteStore;
use super::{apply, error, load};
use crate::audit::entry_id;
use crate::documents::{AuditChainDoc, AuditEntry, AuditRecord, ClientDoc};
use crate::store::{AuditTrail, Result, Stored};

#[async_trait]
impl AuditTrail for SqliteStore {
    async fn append(&self, record: AuditRecord) -> Result<()> {
        self.writer
            .write(move |tx| apply::audit(tx, tx.instance, vec![record], None))
            .await
    }

    async fn read(&self, client: Option<&ClientId>, limit: usize) -> Result<Vec<AuditRecord>> {
        let client = client.cloned();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.reader
            .read(move |tx| {
                // The newest ones, turned round.
                let mut records: Vec<AuditRecord> = match client {
                    Some(id) => {
                        let sql = "SELECT doc FROM audit WHERE client_id = ?1 ORDER BY position DESC LIMIT ?2";
                        load::all(tx, "audit", sql, (id.as_str(), limit))?
                    }
                    None => {
                        let sql = "SELECT doc FROM audit ORDER BY position DESC LIMIT ?1";
                        load::all(tx, "audit", sql, [limit])?
                    }
                };
                records.reverse();
                Ok(records)
            })
            .await
    }

    async fn chains(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Stored<AuditChainDoc>>> {
        let page = page(after, limit);
        self.reader
            .read(move |tx| {
                let sql = "SELECT id, doc FROM audit_chains WHERE id > ?1 ORDER BY id LIMIT ?2";
                load::stored(tx, sql, page)
            })
            .await
    }

    async fn chain_head(&self, id: &str) -> Result<Option<Stored<AuditChainDoc>>> {
        let id = id.to_owned();
        self.reader
            .read(move |tx| {
                let sql = "SELECT id, doc FROM audit_chains WHERE id = ?1";
                Ok(load::stored(tx, sql, [id])?.pop())
            })
            .await
    }

    async fn chain(
        &self,
        id: &str,
        from_seq: u64,
        limit: usize,
    ) -> Result<Vec<Stored<AuditEntry>>> {
        // The ids of one chain are those that begin with its id; ':' follows the digits.
        let (first, end) = (entry_id(id, from_seq), format!("{id}-:"));
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.reader
            .read(move |tx| {
                let sql =
                    "SELECT id, doc FROM audit WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT ?3";
                load::stored(tx, sql, (first, end, limit))
            })
            .await
    }

    async fn entries(&self, after: Option<&str>, limit: usize) -> Result<Vec<Stored<AuditEntry>>> {
        let page = page(after, limit);
        self.reader
            .read(move |tx| {
                let sql = "SELECT id, doc FROM audit WHERE id > ?1 ORDER BY id LIMIT ?2";
                load::stored(tx, sql, page)
            })
            .await
    }

    async fn stored_clients(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Stored<ClientDoc>>> {
        let page = page(after, limit);
        self.reader
            .read(move |tx| {
                let sql =
                    "SELECT client_id, doc FROM clients WHERE client_id > ?1 ORDER BY client_id LIMIT ?2";
                let mut found: Vec<Stored<ClientDoc>> = load::stored(tx, sql, page)?;
                for stored in &mut found {
                    let id = &stored.id;
                    stored.doc.take_if(|doc| doc.client_id.as_str() != id);
                }
                Ok(found)
            })
            .await
    }

    async fn ping(&self) -> Result<()> {
        // Takes the write lock and lets it go: a store that cannot write is not ready.
        self.writer
            .write(|tx| tx.query_row("SELECT 1", [], |_| Ok(())).map_err(error::sql))
            .await
    }
}

/// Every id is greater than the empty text.
fn page(after: Option<&str>, limit: usize) -> (String, i64) {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    (after.unwrap_or_default().to_owned(), limit)
}
