//! The rotation flow: read, ask the lifecycle, write, in one commit each.

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use keyturn_proto::{ClientId, Npub, RotationId, UnixMs, VersionId};

use super::apply::Also;
use super::load;
use super::open::FirestoreStore;
use super::outbox;
use super::paths::Path;
use super::stored::Document;
use super::{decisions, leases, nonces, timers};
use crate::documents::{ActiveRotation, AdminDoc, AuditRecord, ClientDoc, OutboxDoc, RotationDoc};
use crate::lifecycle;
use crate::store::{
    AckResult, ActionResult, Asked, BurnNonce, Burned, Cancel, Decided, Decision, Due, Lease,
    Prepare, RecordAck, Refuse, Reserve, Reserved, Result, Revoke, Rollback, SecretStore,
    StoreError, Withdraw, Withdrawn, WithdrawnAfter,
};

/// Chains of one [`SecretStore::record`] that are written at a time: each is a commit of its own.
const CHAINS_AT_ONCE: usize = 16;

#[async_trait]
impl SecretStore for FirestoreStore {
    async fn burn_nonce(&self, burn: BurnNonce) -> Result<Burned> {
        let turn = self.to_record("burn_nonce", &burn.audit).await?;
        nonces::burn(&turn, burn).await
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
        let turn = self.to_record("totp_failed", &audit).await?;
        let refusal = refuses.map(|refuse| refuse.document());
        loop {
            let mut reading = turn.read();
            let mut first = load::named_by(&reading, &audit)?;
            first.push(Path::admin(&npub)?);
            let place = refusal.as_ref().map(Document::path).transpose()?;
            first.extend(place.clone());
            reading.fetch(first).await?;
            let admin = load::admin(&mut reading, &npub).await?;
            let admin = admin.ok_or(StoreError::NotFound { what: "admin" })?;
            if place.is_some_and(|place| reading.seen(&place).flatten().is_some()) {
                return Ok(admin);
            }
            let audit = audit.clone();
            let verdict = lifecycle::totp_failed(admin, max_failures, lock_ms, now, audit)?;
            let also = Also {
                nonces: refusal.iter().cloned().collect(),
                ..Also::default()
            };
            if let Some(answer) = turn.settle_with(reading, verdict, also).await? {
                return Ok(answer);
            }
        }
    }

    async fn record(&self, decisions: Vec<Decision>) -> Result<()> {
        let chains = decisions::by_chain(decisions, &self.link().instance);
        let written: Vec<Result<()>> = stream::iter(chains.into_values())
            .map(|some| async move {
                let Some(first) = some.first() else {
                    return Ok(());
                };
                let turn = self.to_record("record", &first.audit).await?;
                decisions::record(&turn, &some).await
            })
            .buffer_unordered(CHAINS_AT_ONCE)
            // Every chain is tried: one that cannot be written does not hold back the others.
            .collect()
            .await;
        written.into_iter().collect()
    }

    async fn decided(&self, asked: &[Asked]) -> Result<Vec<Decided>> {
        decisions::decided(&self.to_read("decided"), asked).await
    }

    async fn reserve(&self, reserve: Reserve) -> Result<Reserved> {
        let turn = self.to_record("reserve", &reserve.audit).await?;
        let wanted = &reserve.rotation;
        loop {
            let mut reading = turn.read();
            let mut first = load::named_by(&reading, &reserve.audit)?;
            first.extend([
                Path::rotation(&wanted.rotation_id)?,
                Path::action(&wanted.rotation_id)?,
                Path::client(&wanted.client_id)?,
                Path::admin(&wanted.requested_by)?,
            ]);
            reading.fetch(first).await?;
            let known = load::known(&mut reading, &wanted.rotation_id).await?;
            let family = load::family(&mut reading, &wanted.client_id).await?;
            let active = load::active(&mut reading, &family.client).await?;
            let admin = load::admin(&mut reading, &wanted.requested_by).await?;
            let command = reserve.clone();
            let verdict = lifecycle::reserve(family, known, active, admin.as_ref(), command)?;
            if let Some(answer) = turn.settle(reading, verdict).await? {
                return Ok(answer);
            }
        }
    }

    async fn prepare(&self, prepare: Prepare) -> Result<RotationDoc> {
        let turn = self.to_record("prepare", &prepare.audit).await?;
        let version = &prepare.version;
        loop {
            let mut reading = turn.read();
            let mut first = load::named_by(&reading, &prepare.audit)?;
            first.extend([
                Path::rotation(&prepare.active.rotation_id)?,
                Path::client(&version.client_id)?,
                Path::version(&version.client_id, &version.version_id)?,
            ]);
            reading.fetch(first).await?;
            let id = &prepare.active.rotation_id;
            let (rotation, family) = load::rotation_and_family(&mut reading, id).await?;
            let exists =
                load::version(&mut reading, &rotation.client_id, &version.version_id).await?;
            let exists = exists.is_some();
            let verdict = lifecycle::prepare(family, rotation, exists, prepare.clone())?;
            if let Some(answer) = turn.settle(reading, verdict).await? {
                return Ok(answer);
            }
        }
    }

    async fn record_ack(&self, ack: RecordAck) -> Result<AckResult> {
        let turn = self.to_record("record_ack", &ack.audit).await?;
        loop {
            let mut reading = turn.read();
            let mut first = load::named_by(&reading, &ack.audit)?;
            first.extend([
                Path::rotation(&ack.rotation_id)?,
                Path::admin(&ack.ack.npub)?,
            ]);
            reading.fetch(first).await?;
            let (rotation, family) =
                load::rotation_and_family(&mut reading, &ack.rotation_id).await?;
            load::admin(&mut reading, &ack.ack.npub).await?;
            let also = Some(&ack.ack.npub);
            let (people, paths) =
                load::people(&mut reading, &family.client, &rotation, also).await?;
            let verdict = lifecycle::record_ack(family, rotation, &people, ack.clone())?;
            // An ack rests on its own admin; a promotion on everybody who can read the secret.
            if verdict.answer.promoted {
                paths.into_iter().for_each(|path| reading.hold(path));
            }
            if let Some(answer) = turn.settle(reading, verdict).await? {
                return Ok(answer);
            }
        }
    }

    async fn promote(
        &self,
        rotation_id: &RotationId,
        retention_ms: u64,
        fence: u64,
        now: UnixMs,
        audit: AuditRecord,
    ) -> Result<RotationDoc> {
        let turn = self.to_record("promote", &audit).await?;
        loop {
            let mut reading = turn.read();
            let first = load::named_by(&reading, &audit)?;
            reading
                .fetch(first.into_iter().chain([Path::rotation(rotation_id)?]))
                .await?;
            let (rotation, family) = load::rotation_and_family(&mut reading, rotation_id).await?;
            let audit = audit.clone();
            let (people, paths) =
                load::people(&mut reading, &family.client, &rotation, None).await?;
            paths.into_iter().for_each(|path| reading.hold(path));
            let verdict =
                lifecycle::promote(family, rotation, &people, retention_ms, fence, now, audit)?;
            if let Some(answer) = turn.settle(reading, verdict).await? {
                return Ok(answer);
            }
        }
    }

    async fn cancel(&self, cancel: Cancel) -> Result<RotationDoc> {
        let turn = self.to_record("cancel", &cancel.audit).await?;
        loop {
            let mut reading = turn.read();
            let mut first = load::named_by(&reading, &cancel.audit)?;
            first.push(Path::rotation(&cancel.rotation_id)?);
            reading.fetch(first).await?;
            let (rotation, family) =
                load::rotation_and_family(&mut reading, &cancel.rotation_id).await?;
            let verdict = lifecycle::cancel(family, rotation, cancel.clone())?;
            if let Some(answer) = turn.settle(reading, verdict).await? {
                return Ok(answer);
            }
        }
    }

    async fn withdraw(&self, withdraw: Withdraw) -> Result<Withdrawn> {
        let turn = self.to_record("withdraw", &withdraw.audit).await?;
        let npub = withdraw.totp_step.map(|(npub, _)| npub);
        loop {
            let mut reading = turn.read();
            let mut first = load::named_by(&reading, &withdraw.audit)?;
            first.extend([
                Path::rotation(&withdraw.action_id)?,
                Path::action(&withdraw.action_id)?,
                Path::client(&withdraw.client_id)?,
            ]);
            if let Some(target) = &withdraw.target {
                first.push(Path::rotation(target)?);
            }
            reading.fetch(first).await?;
            let known = load::known(&mut reading, &withdraw.action_id).await?;
            let family = load::family(&mut reading, &withdraw.client_id).await?;
            let found = match &withdraw.target {
                Some(id) => load::rotation(&mut reading, id).await?,
                None => load::active(&mut reading, &family.client).await?,
            };
            let admin = match &npub {
                Some(npub) => load::admin(&mut reading, npub).await?,
                None => None,
            };
            let command = withdraw.clone();
            let verdict = lifecycle::withdraw(family, known, found, admin.as_ref(), command)?;
            if let Some(answer) = turn.settle(reading, verdict).await? {
                return Ok(answer);
            }
        }
    }

    async fn mark_announced(&self, rotation_id: &RotationId, now: UnixMs) -> Result<()> {
        let turn = self
            .to_write("mark_announced", rotation_id.as_str())
            .await?;
        loop {
            let mut reading = turn.read();
            let rotation = load::rotation(&mut reading, rotation_id).await?;
            let rotation = rotation.ok_or(StoreError::NotFound { what: "rotation" })?;
            let verdict = lifecycle::announced(rotation, now)?;
            if let Some(answer) = turn.settle(reading, verdict).await? {
                return Ok(answer);
            }
        }
    }

    async fn retire(
        &self,
        client: &ClientId,
        version: &VersionId,
        fence: u64,
        now: UnixMs,
        audit: AuditRecord,
    ) -> Result<ClientDoc> {
        let turn = self.to_record("retire", &audit).await?;
        loop {
            let mut reading = turn.read();
            let mut first = load::named_by(&reading, &audit)?;
            first.extend([Path::client(client)?, Path::version(client, version)?]);
            reading.fetch(first).await?;
            let family = load::family(&mut reading, client).await?;
            let known = load::version(&mut reading, client, version).await?;
            let state = known.ok_or(StoreError::NotFound { what: "version" })?.state;
            let verdict = lifecycle::retire(family, *version, state, fence, now, audit.clone())?;
            if let Some(answer) = turn.settle(reading, verdict).await? {
                return Ok(answer);
            }
        }
    }

    async fn rollback(&self, rollback: Rollback) -> Result<ActionResult> {
        let turn = self.to_record("rollback", &rollback.audit).await?;
        let npub = rollback.totp_step.map(|(npub, _)| npub);
        loop {
            let mut reading = turn.read();
            let mut first = load::named_by(&reading, &rollback.audit)?;
            first.extend([
                Path::rotation(&rollback.action_id)?,
                Path::action(&rollback.action_id)?,
                Path::client(&rollback.client_id)?,
            ]);
            reading.fetch(first).await?;
            let known = load::known(&mut reading, &rollback.action_id).await?;
            let family = load::family(&mut reading, &rollback.client_id).await?;
            let current = family.client.current_version;
            let made_by = family
                .living
                .iter()
                .find(|doc| Some(doc.version_id) == current)
                .and_then(|doc| doc.rotation_id.clone());
            let made_current = match made_by {
                Some(id) => load::rotation(&mut reading, &id).await?,
                None => None,
            };
            let admin = match &npub {
                Some(npub) => load::admin(&mut reading, npub).await?,
                None => None,
            };
            let command = rollback.clone();
            let verdict =
                lifecycle::rollback(family, known, made_current, admin.as_ref(), command)?;
            if let Some(answer) = turn.settle(reading, verdict).await? {
                return Ok(answer);
            }
        }
    }

    async fn revoke(&self, revoke: Revoke) -> Result<ActionResult> {
        let turn = self.to_record("revoke", &revoke.audit).await?;
        let npub = revoke.totp_step.map(|(npub, _)| npub);
        loop {
            let mut reading = turn.read();
            let mut first = load::named_by(&reading, &revoke.audit)?;
            first.extend([
                Path::rotation(&revoke.action_id)?,
                Path::action(&revoke.action_id)?,
                Path::client(&revoke.client_id)?,
            ]);
            reading.fetch(first).await?;
            let known = load::known(&mut reading, &revoke.action_id).await?;
            let family = load::family(&mut reading, &revoke.client_id).await?;
            let active = load::active(&mut reading, &family.client).await?;
            let exists = match &revoke.version_id {
                Some(id) => load::version(&mut reading, &revoke.client_id, id)
                    .await?
                    .is_some(),
                None => true,
            };
            let admin = match &npub {
                Some(npub) => load::admin(&mut reading, npub).await?,
                None => None,
            };
            let command = revoke.clone();
            let verdict =
                lifecycle::revoke(family, known, active, exists, admin.as_ref(), command)?;
            if let Some(answer) = turn.settle(reading, verdict).await? {
                return Ok(answer);
            }
        }
    }

    async fn take_over(
        &self,
        active: &ActiveRotation,
        fence: u64,
        now: UnixMs,
        audit: AuditRecord,
    ) -> Result<ActiveRotation> {
        let turn = self.to_record("take_over", &audit).await?;
        loop {
            let mut reading = turn.read();
            let mut first = load::named_by(&reading, &audit)?;
            first.push(Path::rotation(&active.rotation_id)?);
            reading.fetch(first).await?;
            let (rotation, family) =
                load::rotation_and_family(&mut reading, &active.rotation_id).await?;
            let audit = audit.clone();
            let verdict = lifecycle::take_over(family, rotation, active, fence, now, audit)?;
            if let Some(answer) = turn.settle(reading, verdict).await? {
                return Ok(answer);
            }
        }
    }

    async fn rotation(&self, id: &RotationId) -> Result<Option<RotationDoc>> {
        let turn = self.to_read("rotation");
        load::rotation(&mut turn.read(), id).await
    }

    async fn active_rotations(&self) -> Result<Vec<RotationDoc>> {
        timers::active_rotations(&self.to_read("active_rotations")).await
    }

    async fn due(&self, now: UnixMs, limit: usize) -> Result<Vec<Due>> {
        timers::due(&self.to_read("due"), now, limit).await
    }

    async fn next_due(&self) -> Result<Option<UnixMs>> {
        timers::next_due(&self.to_read("next_due")).await
    }

    async fn outbox(&self, rotation: &RotationId) -> Result<Vec<OutboxDoc>> {
        outbox::of_rotation(&self.to_read("outbox"), rotation).await
    }

    async fn outbox_page(&self, after: Option<&str>, limit: usize) -> Result<Vec<OutboxDoc>> {
        outbox::page(&self.to_read("outbox_page"), after, limit).await
    }

    async fn purge(
        &self,
        event_ids: &[String],
        keep_until: Option<UnixMs>,
        now: UnixMs,
    ) -> Result<()> {
        let turn = self.to_write("purge", "purge").await?;
        outbox::purge(&turn, event_ids, keep_until, now).await
    }

    async fn forget_nonces(&self, now: UnixMs, limit: usize) -> Result<u64> {
        let turn = self.to_write("forget_nonces", "nonces").await?;
        nonces::forget(&turn, now, limit).await
    }

    async fn withdrawn(&self, after: &WithdrawnAfter, limit: usize) -> Result<Vec<OutboxDoc>> {
        outbox::withdrawn(&self.to_read("withdrawn"), after, limit).await
    }

    async fn lease(&self, name: &str, owner: &str, ttl_ms: u64, now: UnixMs) -> Result<Lease> {
        let turn = self.to_write("lease", name).await?;
        leases::lease(&turn, name, owner, ttl_ms, now).await
    }
}
