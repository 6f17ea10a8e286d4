//! The audit trail.

use async_trait::async_trait;
use keyturn_proto::ClientId;

use super::open::SqliteStore;
use super::{apply, error, load};
use crate::documents::AuditRecord;
use crate::store::{AuditTrail, Result};

#[async_trait]
impl AuditTrail for SqliteStore {
    async fn append(&self, record: AuditRecord) -> Result<()> {
        self.writer.write(move |tx| apply::audit(tx, &record)).await
    }

    async fn read(&self, client: Option<&ClientId>, limit: usize) -> Result<Vec<AuditRecord>> {
        let client = client.cloned();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.reader
            .read(move |tx| {
                // The newest ones, turned round.
                let mut records: Vec<AuditRecord> = match client {
                    Some(id) => {
                        let sql =
                            "SELECT doc FROM audit WHERE client_id = ?1 ORDER BY seq DESC LIMIT ?2";
                        load::all(tx, "audit", sql, (id.as_str(), limit))?
                    }
                    None => {
                        let sql = "SELECT doc FROM audit ORDER BY seq DESC LIMIT ?1";
                        load::all(tx, "audit", sql, [limit])?
                    }
                };
                records.reverse();
                Ok(records)
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
