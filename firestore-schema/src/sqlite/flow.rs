//! The rotation flow: read, ask the lifecycle, write, in one transaction each.

use async_trait::async_trait;
use keyturn_proto::{ClientId, Npub, RotationId, UnixMs, VersionId};
use rusqlite::OptionalExtension as _;

use super::load::ms;
use super::open::SqliteStore;
use super::worker::Tx;
use super::{apply, error, load, timers};
use crate::documents::{
    ActiveRotation, AdminDoc, AuditRecord, ClientDoc, NonceDoc, OutboxDoc, RotationDoc,
};
use crate::lifecycle::due::{self, Purged};
use crate::lifecycle::{self, Known, Verdict};
use crate::store::{
    AckResult, ActionResult, Asked, BurnNonce, Burned, Cancel, Decided, Decision, Due, Lease,
    Prepare, RecordAck, Refuse, Reserve, Reserved, Result, Revoke, Rollback, SecretStore,
    StoreError, Withdraw, Withdrawn, WithdrawnAfter,
};

/// Commits a verdict's change set and hands out its answer.
pub(super) fn settle<T>(tx: &Tx<'_>, verdict: Verdict<T>) -> Result<T> {
    apply::change(tx, verdict.change)?;
    Ok(verdict.answer)
}

#[async_trait]
impl SecretStore for SqliteStore {
    async fn burn_nonce(&self, burn: BurnNonce) -> Result<Burned> {
        self.writer
            .write(move |tx| {
                let used = NonceDoc {
                    nonce_hash: burn.nonce_hash.clone(),
                    owner_event: burn.owner_event.clone(),
                    expires_at: burn.expires_at,
                    refused: None,
                };
                if apply::nonce(tx, &used)? {
                    apply::audit(tx, tx.instance, vec![burn.audit], None)?;
                    return Ok(Burned::Fresh);
                }
                let owner: Option<String> = tx
                    .prepare_cached("SELECT owner_event FROM nonces WHERE nonce_hash = ?1")
                    .and_then(|mut statement| {
                        statement
                            .query_row([&burn.nonce_hash], |row| row.get(0))
                            .optional()
                    })
                    .map_err(error::sql)?;
                Ok(if owner.as_ref() == Some(&burn.owner_event) {
                    Burned::Fresh
                } else {
                    Burned::Reused
                })
            })
            .await
    }

    async fn totp_failed(
        &self,
        npub: Npub,
        max_failures: u32,
        lock_ms: u64,
        now: UnixMs,
        audit: AuditRecord,
        refuses: Option<Refuse>,
    ) -> Result<AdminDoc> {
        self.writer
            .write(move |tx| {
                let admin =
                    load::admin(tx, &npub)?.ok_or(StoreError::NotFound { what: "admin" })?;
                if let Some(refuse) = &refuses
                    && !apply::nonce(tx, &refuse.document())?
                {
                    return Ok(admin);
                }
                let verdict = lifecycle::totp_failed(admin, max_failures, lock_ms, now, audit)?;
                settle(tx, verdict)
            })
            .await
    }

    async fn record(&self, decisions: Vec<Decision>) -> Result<()> {
        self.writer
            .write(move |tx| {
                let mut records = Vec::with_capacity(decisions.len());
                for Decision { audit, refuses } in decisions {
                    let news = match refuses {
                        Some(refuse) => apply::nonce(tx, &refuse.document())?,
                        None => true,
                    };
                    records.extend(news.then_some(audit));
                }
                apply::audit(tx, tx.instance, records, None)
            })
            .await
    }

    async fn decided(&self, asked: &[Asked]) -> Result<Vec<Decided>> {
        let asked = asked.to_vec();
        self.reader
            .read(move |tx| {
                let decided = asked.iter().map(
                    |Asked {
                         event_id,
                         operation,
                     }| {
                        let refusal = load::nonce(tx, &NonceDoc::refusal_id(event_id))?;
                        Ok(Decided {
                            refused: refusal.and_then(|doc| doc.refused),
                            known: match operation {
                                Some(id) => load::known(tx, id)?,
                                None => Known::default(),
                            },
                        })
                    },
                );
                decided.collect()
            })
            .await
    }

    async fn reserve(&self, reserve: Reserve) -> Result<Reserved> {
        self.writer
            .write(move |tx| {
                let known = load::known(tx, &reserve.rotation.rotation_id)?;
                let family = load::family(tx, &reserve.rotation.client_id)?;
                let active = load::active(tx, &family.client)?;
                let admin = load::admin(tx, &reserve.rotation.requested_by)?;
                let verdict = lifecycle::reserve(family, known, active, admin.as_ref(), reserve)?;
                settle(tx, verdict)
            })
            .await
    }

    async fn prepare(&self, prepare: Prepare) -> Result<RotationDoc> {
        self.writer
            .write(move |tx| {
                let (rotation, family) =
                    load::rotation_and_family(tx, &prepare.active.rotation_id)?;
                let id = prepare.version.version_id.to_string();
                let exists = load::version(tx, &rotation.client_id, &id)?.is_some();
                settle(tx, lifecycle::prepare(family, rotation, exists, prepare)?)
            })
            .await
    }

    async fn record_ack(&self, ack: RecordAck) -> Result<AckResult> {
        self.writer
            .write(move |tx| {
                let (rotation, family) = load::rotation_and_family(tx, &ack.rotation_id)?;
                let people = load::people(tx, &family.client, &rotation, Some(&ack.ack.npub))?;
                settle(tx, lifecycle::record_ack(family, rotation, &people, ack)?)
            })
            .await
    }

    async fn promote(
        &self,
        rotation_id: &RotationId,
        retention_ms: u64,
        fence: u64,
        now: UnixMs,
        audit: AuditRecord,
    ) -> Result<RotationDoc> {
        let id = rotation_id.clone();
        self.writer
            .write(move |tx| {
                let (rotation, family) = load::rotation_and_family(tx, &id)?;
                let people = load::people(tx, &family.client, &rotation, None)?;
                let verdict =
                    lifecycle::promote(family, rotation, &people, retention_ms, fence, now, audit)?;
                settle(tx, verdict)
            })
            .await
    }

    async fn cancel(&self, cancel: Cancel) -> Result<RotationDoc> {
        self.writer
            .write(move |tx| {
                let (rotation, family) = load::rotation_and_family(tx, &cancel.rotation_id)?;
                settle(tx, lifecycle::cancel(family, rotation, cancel)?)
            })
            .await
    }

    async fn withdraw(&self, withdraw: Withdraw) -> Result<Withdrawn> {
        self.writer
            .write(move |tx| {
                let known = load::known(tx, &withdraw.action_id)?;
                let family = load::family(tx, &withdraw.client_id)?;
                let found = match &withdraw.target {
                    Some(id) => load::rotation(tx, id)?,
                    None => load::active(tx, &family.client)?,
                };
                let admin = match &withdraw.totp_step {
                    Some((npub, _)) => load::admin(tx, npub)?,
                    None => None,
                };
                let verdict = lifecycle::withdraw(family, known, found, admin.as_ref(), withdraw)?;
                settle(tx, verdict)
            })
            .await
    }

    async fn mark_announced(&self, rotation_id: &RotationId, now: UnixMs) -> Result<()> {
        let id = rotation_id.clone();
        self.writer
            .write(move |tx| {
                let rotation =
                    load::rotation(tx, &id)?.ok_or(StoreError::NotFound { what: "rotation" })?;
                settle(tx, lifecycle::announced(rotation, now)?)
            })
            .await
    }

    async fn retire(
        &self,
        client: &ClientId,
        version: &VersionId,
        fence: u64,
        now: UnixMs,
        audit: AuditRecord,
    ) -> Result<ClientDoc> {
        let (client, version) = (client.clone(), *version);
        self.writer
            .write(move |tx| {
                let family = load::family(tx, &client)?;
                let state = load::version(tx, &client, &version.to_string())?
                    .ok_or(StoreError::NotFound { what: "version" })?
                    .state;
                let verdict = lifecycle::retire(family, version, state, fence, now, audit)?;
                settle(tx, verdict)
            })
            .await
    }

    async fn rollback(&self, rollback: Rollback) -> Result<ActionResult> {
        self.writer
            .write(move |tx| {
                let known = load::known(tx, &rollback.action_id)?;
                let family = load::family(tx, &rollback.client_id)?;
                let current = family.client.current_version;
                let made_by = family
                    .living
                    .iter()
                    .find(|doc| Some(doc.version_id) == current)
                    .and_then(|doc| doc.rotation_id.clone());
                let made_current = match made_by {
                    Some(id) => load::rotation(tx, &id)?,
                    None => None,
                };
                let admin = match &rollback.totp_step {
                    Some((npub, _)) => load::admin(tx, npub)?,
                    None => None,
                };
                let verdict =
                    lifecycle::rollback(family, known, made_current, admin.as_ref(), rollback)?;
                settle(tx, verdict)
            })
            .await
    }

    async fn revoke(&self, revoke: Revoke) -> Result<ActionResult> {
        self.writer
            .write(move |tx| {
                let known = load::known(tx, &revoke.action_id)?;
                let family = load::family(tx, &revoke.client_id)?;
                let active = load::active(tx, &family.client)?;
                let exists = match &revoke.version_id {
                    Some(id) => load::version(tx, &revoke.client_id, &id.to_string())?.is_some(),
                    None => true,
                };
                let admin = match &revoke.totp_step {
                    Some((npub, _)) => load::admin(tx, npub)?,
                    None => None,
                };
                let verdict =
                    lifecycle::revoke(family, known, active, exists, admin.as_ref(), revoke)?;
                settle(tx, verdict)
            })
            .await
    }

    async fn take_over(
        &self,
        active: &ActiveRotation,
        fence: u64,
        now: UnixMs,
        audit: AuditRecord,
    ) -> Result<ActiveRotation> {
        let active = active.clone();
        self.writer
            .write(move |tx| {
                let (rotation, family) = load::rotation_and_family(tx, &active.rotation_id)?;
                let verdict = lifecycle::take_over(family, rotation, &active, fence, now, audit)?;
                settle(tx, verdict)
            })
            .await
    }

    async fn rotation(&self, id: &RotationId) -> Result<Option<RotationDoc>> {
        let id = id.clone();
        self.reader.read(move |tx| load::rotation(tx, &id)).await
    }

    async fn active_rotations(&self) -> Result<Vec<RotationDoc>> {
        self.reader
            .read(|tx| {
                let sql = "SELECT rotation_id, doc, NULL FROM rotations WHERE done = 0";
                let mut docs: Vec<RotationDoc> =
                    load::sound(tx, "rotation", sql, [], usize::MAX, load::any)?;
                docs.sort_by(|a, b| {
                    (a.created_at, &a.rotation_id).cmp(&(b.created_at, &b.rotation_id))
                });
                Ok(docs)
            })
            .await
    }

    async fn due(&self, now: UnixMs, limit: usize) -> Result<Vec<Due>> {
        self.reader
            .read(move |tx| timers::due(tx, now, limit))
            .await
    }

    async fn next_due(&self) -> Result<Option<UnixMs>> {
        self.reader.read(timers::next_due).await
    }

    async fn outbox(&self, rotation: &RotationId) -> Result<Vec<OutboxDoc>> {
        let id = rotation.clone();
        self.reader
            .read(move |tx| {
                let rotation =
                    load::rotation(tx, &id)?.ok_or(StoreError::NotFound { what: "rotation" })?;
                let sql = "SELECT doc FROM outbox WHERE rotation_id = ?1 AND withdrawn_at IS NULL ORDER BY event_id";
                let mut docs: Vec<OutboxDoc> = load::all(tx, "outbox", sql, [id.as_str()])?;
                docs.retain(|doc| doc.attempt == rotation.attempt);
                Ok(docs)
            })
            .await
    }

    async fn outbox_page(&self, after: Option<&str>, limit: usize) -> Result<Vec<OutboxDoc>> {
        let after = after.unwrap_or_default().to_owned();
        self.reader
            .read(move |tx| {
                let sql = "SELECT event_id, doc, NULL FROM outbox WHERE withdrawn_at IS NULL AND event_id > ?1 ORDER BY event_id";
                load::sound(tx, "outbox", sql, [after], limit, load::any)
            })
            .await
    }

    async fn purge(
        &self,
        event_ids: &[String],
        keep_until: Option<UnixMs>,
        now: UnixMs,
    ) -> Result<()> {
        let ids = event_ids.to_vec();
        self.writer
            .write(move |tx| {
                let mut ended: Vec<OutboxDoc> = Vec::new();
                for id in &ids {
                    let sql = "SELECT doc FROM outbox WHERE event_id = ?1";
                    let found: Option<OutboxDoc> = load::one(tx, "outbox", sql, [id])?;
                    let Some(event) = found else { continue };
                    match due::purged(event.clone(), keep_until, now) {
                        Purged::Stays => continue,
                        Purged::Forgotten => {
                            apply::run(tx, "DELETE FROM outbox WHERE event_id = ?1", [id])?;
                        }
                        Purged::Withdrawn(event) => apply::outbox_event(tx, &event)?,
                    }
                    ended.push(event);
                }
                let records = lifecycle::purged_records(&ended, now);
                apply::audit(tx, tx.instance, records, None)
            })
            .await
    }

    async fn forget_nonces(&self, now: UnixMs, limit: usize) -> Result<u64> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.writer
            .write(move |tx| {
                let sql = "DELETE FROM nonces WHERE nonce_hash IN
                    (SELECT nonce_hash FROM nonces WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2)";
                let gone = apply::run(tx, sql, (ms(now), limit))?;
                Ok(u64::try_from(gone).unwrap_or(u64::MAX))
            })
            .await
    }

    async fn withdrawn(&self, after: &WithdrawnAfter, limit: usize) -> Result<Vec<OutboxDoc>> {
        let WithdrawnAfter { at, event_id } = after.clone();
        self.reader
            .read(move |tx| {
                let sql = "SELECT event_id, doc, withdrawn_at FROM outbox WHERE (withdrawn_at, event_id) > (?1, ?2) ORDER BY withdrawn_at, event_id";
                let agrees = |doc: &OutboxDoc, at| doc.withdrawn_at.map(ms) == at;
                load::sound(tx, "outbox", sql, (ms(at), event_id), limit, agrees)
            })
            .await
    }

    async fn lease(&self, name: &str, owner: &str, ttl_ms: u64, now: UnixMs) -> Result<Lease> {
        let (name, owner) = (name.to_owned(), owner.to_owned());
        self.writer
            .write(move |tx| {
                let known = load::lease(tx, &name)?;
                let (lease, record) = lifecycle::lease(known.as_ref(), &name, &owner, ttl_ms, now)?;
                apply::lease(tx, &lease)?;
                apply::audit(tx, tx.instance, record.into_iter().collect(), None)?;
                Ok(Lease {
                    fence: lease.fence,
                    until: lease.until,
                })
            })
            .await
    }
}
