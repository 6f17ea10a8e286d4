//! `approle_roles/{role}` and `approle_secret_ids/{accessor}`: what the embedded issuer keeps, with the audit record of each login in the commit that allows it.

use async_trait::async_trait;
use futures::future::try_join_all;
use keyturn_proto::{UnixMs, VersionId};

use super::apply::{Also, recorded};
use super::load;
use super::open::FirestoreStore;
use super::paths::Path;
use super::query::Ask;
use super::writes::Writes;
use crate::approle::{AppRoleDoc, AppRoleStore, SecretIdDoc, Spent};
use crate::documents::AuditRecord;
use crate::queries::relay;
use crate::store::{Result, StoreError};

/// Most documents deleted in one commit.
const BATCH: usize = 400;
/// Nonces that are asked for at once.
const AT_ONCE: usize = 8;

#[async_trait]
impl AppRoleStore for FirestoreStore {
    async fn ensure_role(&self, fresh: AppRoleDoc, audit: AuditRecord) -> Result<AppRoleDoc> {
        let path = Path::approle_role(&fresh.role)?;
        let turn = self.to_write("ensure_role", &fresh.role).await?;
        loop {
            let mut reading = turn.read();
            let mut first = load::named_by(&reading, &audit)?;
            first.push(path.clone());
            reading.fetch(first).await?;
            if let Some(known) = reading.get(path.clone()).await? {
                return Ok(known);
            }
            let also = Also {
                role: Some(fresh.clone()),
                ..Also::default()
            };
            let verdict = recorded(fresh.clone(), &audit);
            if let Some(made) = turn.settle_with(reading, verdict, also).await? {
                return Ok(made);
            }
        }
    }

    async fn role_by_id(&self, role_id: &str) -> Result<Option<AppRoleDoc>> {
        let turn = self.to_read("role_by_id");
        let ask = Ask::new(&relay::ROLE_OF_ID).text(role_id).limit(1);
        Ok(turn.read().query(&ask).await?.pop())
    }

    /// Without a record, so a commit in doubt leaves no mark: the document itself tells, for nobody else can make one of the same accessor and hash.
    async fn add_secret_id(&self, doc: SecretIdDoc) -> Result<()> {
        let path = Path::secret_id(&doc.accessor)?;
        let turn = self
            .to_write("add_secret_id", &doc.accessor.to_string())
            .await?;
        let mut sent = false;
        loop {
            let mut reading = turn.read();
            let known: Option<SecretIdDoc> = reading.get(path.clone()).await?;
            if let Some(known) = known {
                return if sent && known == doc {
                    Ok(())
                } else {
                    Err(StoreError::Conflict {
                        why: "secret_id.exists",
                    })
                };
            }
            let mut writes = Writes::new(&reading);
            writes.put(&doc)?;
            sent = true;
            if turn.happened(writes.finish(), None).await? {
                return Ok(());
            }
        }
    }

    async fn secret_id(&self, accessor: &VersionId) -> Result<Option<SecretIdDoc>> {
        let turn = self.to_read("secret_id");
        turn.read().get(Path::secret_id(accessor)?).await
    }

    async fn spend_secret_id(
        &self,
        accessor: &VersionId,
        now: UnixMs,
        audit: AuditRecord,
    ) -> Result<Spent> {
        let path = Path::secret_id(accessor)?;
        let turn = self
            .to_write("spend_secret_id", &accessor.to_string())
            .await?;
        loop {
            let mut reading = turn.read();
            let mut first = load::named_by(&reading, &audit)?;
            first.push(path.clone());
            reading.fetch(first).await?;
            let known: Option<SecretIdDoc> = reading.get(path.clone()).await?;
            let Some(mut doc) = known.filter(|doc| doc.alive(now)) else {
                return Ok(Spent::Gone);
            };
            let mut also = Also::default();
            match doc.uses_left.map(|uses| uses.saturating_sub(1)) {
                // Whoever destroys it meanwhile must win.
                None => reading.hold(path.clone()),
                Some(0) => {
                    doc.uses_left = Some(0);
                    also.gone.push(path.clone());
                }
                Some(left) => {
                    doc.uses_left = Some(left);
                    also.secret_id = Some(doc.clone());
                }
            }
            let verdict = recorded(Spent::Allowed(Box::new(doc)), &audit);
            if let Some(spent) = turn.settle_with(reading, verdict, also).await? {
                return Ok(spent);
            }
        }
    }

    /// After a commit in doubt a missing document counts as gone before: nothing tells whose deletion it was.
    async fn destroy_secret_id(&self, role: &str, accessor: &VersionId) -> Result<bool> {
        let path = Path::secret_id(accessor)?;
        let turn = self
            .to_write("destroy_secret_id", &accessor.to_string())
            .await?;
        loop {
            let mut reading = turn.read();
            let known: Option<SecretIdDoc> = reading.get(path.clone()).await?;
            if known.is_none_or(|doc| doc.role != role) {
                return Ok(false);
            }
            let mut writes = Writes::new(&reading);
            writes.delete(path.clone());
            if turn.happened(writes.finish(), None).await? {
                return Ok(true);
            }
        }
    }

    async fn secret_ids_for(
        &self,
        role: &str,
        nonce_hashes: &[String],
        now: UnixMs,
    ) -> Result<Vec<SecretIdDoc>> {
        let mut all = Vec::new();
        for some in nonce_hashes.chunks(AT_ONCE) {
            let found = try_join_all(some.iter().map(|hash| self.issued_for(hash))).await?;
            all.extend(found.into_iter().flatten());
        }
        all.retain(|doc| doc.role == role && doc.alive(now));
        Ok(all)
    }

    async fn purge_secret_ids(&self, now: UnixMs, limit: usize) -> Result<usize> {
        let turn = self.to_write("purge_secret_ids", "secret_ids").await?;
        let mut removed = 0;
        while removed < limit {
            let wanted = BATCH.min(limit - removed);
            let ended = Ask::new(&relay::SECRET_IDS_ENDED).time(now).limit(wanted);
            let mut reading = turn.read();
            let found = reading.raw(&ended).await?;
            let paths: Vec<Path> = found.iter().map(|(path, _)| path.clone()).collect();
            if paths.is_empty() {
                break;
            }
            for (path, found) in found {
                reading.remember(path, found);
            }
            let (count, last) = (paths.len(), paths.len() < wanted);
            let mut writes = Writes::new(&reading);
            for path in paths {
                writes.delete(path);
            }
            if turn.happened(writes.finish(), None).await? {
                removed += count;
                if last {
                    break;
                }
            }
        }
        Ok(removed)
    }
}

impl FirestoreStore {
    /// What was issued for one nonce; nearly always one, or none.
    async fn issued_for(&self, nonce_hash: &str) -> Result<Vec<SecretIdDoc>> {
        let turn = self.to_read("secret_ids_for");
        let ask = Ask::new(&relay::SECRET_IDS_OF_NONCE).text(nonce_hash);
        turn.read().query(&ask).await
    }
}
