//! The audit trail. Ids sort chain by chain and by `seq`, so a chain is a range of ids, and needs no index of its own.

use async_trait::async_trait;
use keyturn_proto::ClientId;

use super::load;
use super::open::FirestoreStore;
use super::paths::Path;
use super::query::Ask;
use super::stored::{self, Document};
use super::turn::Turn;
use crate::audit::{Chain, entry_id};
use crate::collections::{AUDIT, CHAINS, CLIENTS};
use crate::documents::{AuditChainDoc, AuditEntry, AuditRecord, ClientDoc};
use crate::lifecycle::{Change, Verdict};
use crate::queries::relay;
use crate::store::{AuditTrail, Result, Stored};

#[async_trait]
impl AuditTrail for FirestoreStore {
    async fn append(&self, record: AuditRecord) -> Result<()> {
        let turn = self.to_record("append", &record).await?;
        loop {
            let reading = turn.read();
            let verdict = Verdict {
                answer: (),
                change: Change {
                    audit: vec![record.clone()],
                    ..Change::default()
                },
            };
            if let Some(answer) = turn.settle(reading, verdict).await? {
                return Ok(answer);
            }
        }
    }

    async fn read(&self, client: Option<&ClientId>, limit: usize) -> Result<Vec<AuditRecord>> {
        let turn = self.to_read("audit");
        let entries = match client {
            Some(id) => newest_of(&turn, &Chain::Client(id.clone()), limit).await?,
            None => newest(&turn, limit).await?,
        };
        Ok(entries.into_iter().map(|entry| entry.record).collect())
    }

    async fn chains(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Stored<AuditChainDoc>>> {
        let turn = self.to_read("audit_chains");
        let ask = match after {
            Some(id) => Ask::new(&relay::CHAINS_AFTER).name(turn.link.name(&Path::met(CHAINS, id))),
            None => Ask::new(&relay::CHAINS_ALL),
        };
        found(&turn, &ask.limit(limit)).await
    }

    async fn chain_head(&self, id: &str) -> Result<Option<Stored<AuditChainDoc>>> {
        let turn = self.to_read("audit_chain");
        let mut reading = turn.read();
        let path = Path::chain(id)?;
        reading.fetch([path.clone()]).await?;
        Ok(reading.seen(&path).flatten().map(|found| Stored {
            id: id.to_owned(),
            doc: stored::parse(&path, found.fields.clone()).ok(),
        }))
    }

    async fn chain(
        &self,
        id: &str,
        from_seq: u64,
        limit: usize,
    ) -> Result<Vec<Stored<AuditEntry>>> {
        let turn = self.to_read("audit");
        found(&turn, &of_chain(&turn, id, from_seq, limit)?).await
    }

    async fn entries(&self, after: Option<&str>, limit: usize) -> Result<Vec<Stored<AuditEntry>>> {
        let turn = self.to_read("audit");
        let ask = match after {
            Some(id) => Ask::new(&relay::AUDIT_AFTER).name(turn.link.name(&Path::met(AUDIT, id))),
            None => Ask::new(&relay::AUDIT_ALL),
        };
        found(&turn, &ask.limit(limit)).await
    }

    async fn stored_clients(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Stored<ClientDoc>>> {
        let turn = self.to_read("clients");
        let ask = match after {
            Some(id) => {
                Ask::new(&relay::CLIENTS_AFTER).name(turn.link.name(&Path::met(CLIENTS, id)))
            }
            None => Ask::new(&relay::CLIENTS_ALL),
        };
        found(&turn, &ask.limit(limit)).await
    }

    async fn ping(&self) -> Result<()> {
        let turn = self.to_read("ping");
        let id = "-ping-"
            .parse()
            .map_err(|_| crate::store::StoreError::InvalidId { what: "client" })?;
        load::client(&mut turn.read(), &id).await.map(drop)
    }
}

/// The entries of a chain from `from_seq` on: ':' follows the digits.
fn of_chain(turn: &Turn<'_>, id: &str, from_seq: u64, limit: usize) -> Result<Ask> {
    let first = Path::audit(&entry_id(id, from_seq))?;
    let end = Path::audit(&format!("{id}-:"))?;
    Ok(Ask::new(&relay::AUDIT_OF_CHAIN)
        .name(turn.link.name(&first))
        .name(turn.link.name(&end))
        .limit(limit))
}

/// The newest entries of a chain: its head says where they begin.
async fn newest_of(turn: &Turn<'_>, chain: &Chain, limit: usize) -> Result<Vec<AuditEntry>> {
    let mut reading = turn.read();
    let head: Option<AuditChainDoc> = reading.get(Path::chain(&chain.id())?).await?;
    let Some(head) = head else {
        return Ok(Vec::new());
    };
    let limit = u64::try_from(limit).unwrap_or(u64::MAX);
    let from = head.seq.saturating_sub(limit).saturating_add(1);
    let ask = of_chain(turn, &head.id, from, usize::MAX)?;
    reading.query(&ask).await
}

/// The newest entries of all chains by their time; those of one time chain by chain.
async fn newest(turn: &Turn<'_>, limit: usize) -> Result<Vec<AuditEntry>> {
    let ask = Ask::new(&relay::AUDIT_NEWEST).limit(limit);
    let mut entries: Vec<AuditEntry> = turn.read().query(&ask).await?;
    entries.reverse();
    Ok(entries)
}

/// Documents as they lie there, damaged ones too.
pub(super) async fn found<T: Document>(turn: &Turn<'_>, ask: &Ask) -> Result<Vec<Stored<T>>> {
    let found = turn.read().raw(ask).await?;
    Ok(found
        .into_iter()
        .map(|(path, found)| Stored {
            id: path.id().to_owned(),
            doc: stored::parse(&path, found.fields).ok(),
        })
        .collect())
}
