//! Devices: one document each, many changes in one commit.
//!
//! When thousands of devices ask at once, every change would pay for a disk flush of its own; the changes that wait share one.

use std::time::Duration;

use async_trait::async_trait;
use keyturn_proto::UnixMs;
use keyturn_proto::device::DeviceId;
use rusqlite::Transaction;

use super::apply::{audit, json, run};
use super::approle;
use super::load::{self, ms};
use super::open::SqliteStore;
use crate::audit::Instance;
use crate::devices::lifecycle::{self, Decision};
use crate::devices::{Answer, Change, DeviceDoc, DeviceStore, Mint};
use crate::store::{Early, Result};

fn device(tx: &Transaction<'_>, id: &DeviceId) -> Result<Option<DeviceDoc>> {
    let sql = "SELECT doc FROM devices WHERE device_id = ?1";
    load::one(tx, "device", sql, [id.as_str()])
}

pub(super) fn put(tx: &Transaction<'_>, doc: &DeviceDoc) -> Result<()> {
    let sql = "INSERT INTO devices (device_id, owner, due_at, doc) VALUES (?1, ?2, ?3, ?4)
        ON CONFLICT (device_id) DO UPDATE SET owner = excluded.owner, due_at = excluded.due_at, doc = excluded.doc";
    let row = (
        doc.device_id.as_str(),
        doc.worked_on_by(),
        doc.due_at.map(ms),
        json("device", doc)?,
    );
    run(tx, sql, row).map(drop)
}

fn write(tx: &Transaction<'_>, instance: &Instance, decision: Decision) -> Result<Answer> {
    let Decision {
        answer,
        doc,
        audit: records,
    } = decision;
    if let Some(doc) = &doc {
        put(tx, doc)?;
    }
    if !records.is_empty() {
        audit(tx, instance, records, None)?;
    }
    Ok(answer)
}

#[async_trait]
impl DeviceStore for SqliteStore {
    async fn change_device(&self, id: &DeviceId, change: Change, now: UnixMs) -> Result<Answer> {
        let id = id.clone();
        self.writer
            .write_grouped(move |tx, instance| {
                let known = device(tx, &id)?;
                write(tx, instance, lifecycle::apply(&id, known, change, now))
            })
            .await
    }

    async fn issue_at_once(
        &self,
        id: &DeviceId,
        ask: Change,
        confirm: Duration,
        mut mint: Mint,
        now: UnixMs,
    ) -> Result<Early<Answer>> {
        let id = id.clone();
        self.writer
            .write_early(move |tx, instance| {
                let known = device(tx, &id)?;
                let (decision, secret_id) =
                    lifecycle::at_once(&id, known, ask, confirm, &mut *mint, now);
                if let Some(doc) = &secret_id
                    && !approle::add(tx, doc)?
                {
                    return Err(approle::EXISTS);
                }
                write(tx, instance, decision)
            })
            .await
    }

    async fn device(&self, id: &DeviceId) -> Result<Option<DeviceDoc>> {
        let id = id.clone();
        self.reader.read(move |tx| device(tx, &id)).await
    }

    async fn devices(&self, after: Option<&DeviceId>, limit: usize) -> Result<Vec<DeviceDoc>> {
        // Every device id is greater than the empty text.
        let after = after.map_or(String::new(), |id| id.as_str().to_owned());
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.reader
            .read(move |tx| {
                let sql =
                    "SELECT doc FROM devices WHERE device_id > ?1 ORDER BY device_id LIMIT ?2";
                load::all(tx, "device", sql, (after, limit))
            })
            .await
    }

    async fn devices_due(&self, now: UnixMs, limit: usize) -> Result<Vec<DeviceDoc>> {
        self.reader
            .read(move |tx| {
                let sql =
                    "SELECT device_id, doc, due_at FROM devices WHERE due_at <= ?1 ORDER BY due_at";
                let agrees = |doc: &DeviceDoc, at| doc.due_at.map(ms) == at;
                load::sound(tx, "device", sql, [ms(now)], limit, agrees)
            })
            .await
    }

    async fn devices_of(&self, owner: &str, limit: usize) -> Result<Vec<DeviceDoc>> {
        let owner = owner.to_owned();
        self.reader
            .read(move |tx| {
                let sql = "SELECT device_id, doc, NULL FROM devices WHERE owner = ?1";
                load::sound(tx, "device", sql, [owner], limit, load::any)
            })
            .await
    }
}
