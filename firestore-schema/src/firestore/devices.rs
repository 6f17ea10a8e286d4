//! `devices/{deviceId}`: one document and its audit records in one commit.

use std::future::ready;
use std::time::Duration;

use async_trait::async_trait;
use keyturn_proto::UnixMs;
use keyturn_proto::device::DeviceId;

use super::apply::Also;
use super::open::FirestoreStore;
use super::paths::Path;
use super::query::Ask;
use super::stored;
use super::writes::Writes;
use crate::audit::Chain;
use crate::devices::lifecycle::{self, Decision};
use crate::devices::{Answer, Change, DeviceDoc, DeviceStore, Mint};
use crate::lifecycle::{self as documents, Verdict};
use crate::queries::relay;
use crate::store::{Early, Result};

#[async_trait]
impl DeviceStore for FirestoreStore {
    /// A commit in doubt without records is settled by the repeat: every change tells its own.
    async fn change_device(&self, id: &DeviceId, change: Change, now: UnixMs) -> Result<Answer> {
        let chain = Chain::Device(id.clone());
        let turn = self.to_write("change_device", &chain.to_string()).await?;
        loop {
            let mut reading = turn.read();
            reading
                .fetch([Path::device(id)?, Path::chain(&chain.id())?])
                .await?;
            let known: Option<DeviceDoc> = reading.get(Path::device(id)?).await?;
            let Decision { answer, doc, audit } = lifecycle::apply(id, known, change.clone(), now);
            let Some(doc) = doc else {
                return Ok(answer);
            };
            if audit.is_empty() {
                let mut writes = Writes::new(&reading);
                writes.put(&doc)?;
                if turn.happened(writes.finish(), None).await? {
                    return Ok(answer);
                }
                continue;
            }
            let also = Also {
                device: Some(doc),
                ..Also::default()
            };
            let verdict = Verdict {
                answer,
                change: documents::Change {
                    audit,
                    ..documents::Change::default()
                },
            };
            if let Some(answer) = turn.settle_with(reading, verdict, also).await? {
                return Ok(answer);
            }
        }
    }

    /// Durable as soon as it is committed. An accessor that exists fails the commit, and another one is made.
    async fn issue_at_once(
        &self,
        id: &DeviceId,
        ask: Change,
        confirm: Duration,
        mut mint: Mint,
        now: UnixMs,
    ) -> Result<Early<Answer>> {
        let chain = Chain::Device(id.clone());
        let turn = self.to_write("issue_at_once", &chain.to_string()).await?;
        loop {
            let mut reading = turn.read();
            reading
                .fetch([Path::device(id)?, Path::chain(&chain.id())?])
                .await?;
            let known: Option<DeviceDoc> = reading.get(Path::device(id)?).await?;
            let (decision, secret_id) =
                lifecycle::at_once(id, known, ask.clone(), confirm, &mut *mint, now);
            let Decision { answer, doc, audit } = decision;
            if doc.is_none() {
                return Ok(Early::new(answer, ready(Ok(()))));
            }
            let also = Also {
                device: doc,
                issued: secret_id,
                ..Also::default()
            };
            let verdict = Verdict {
                answer,
                change: documents::Change {
                    audit,
                    ..documents::Change::default()
                },
            };
            if let Some(answer) = turn.settle_with(reading, verdict, also).await? {
                return Ok(Early::new(answer, ready(Ok(()))));
            }
        }
    }

    async fn device(&self, id: &DeviceId) -> Result<Option<DeviceDoc>> {
        let turn = self.to_read("device");
        turn.read().get(Path::device(id)?).await
    }

    async fn devices(&self, after: Option<&DeviceId>, limit: usize) -> Result<Vec<DeviceDoc>> {
        let turn = self.to_read("devices");
        let ask = match after {
            Some(id) => Ask::new(&relay::DEVICES_AFTER).name(turn.link.name(&Path::device(id)?)),
            None => Ask::new(&relay::DEVICES_ALL),
        };
        turn.read().query(&ask.limit(limit)).await
    }

    async fn devices_due(&self, now: UnixMs, limit: usize) -> Result<Vec<DeviceDoc>> {
        let turn = self.to_read("devices_due");
        let ask = Ask::new(&relay::DEVICES_DUE).time(now).limit(limit);
        turn.read().sound(&ask, stored::any).await
    }

    async fn devices_of(&self, owner: &str, limit: usize) -> Result<Vec<DeviceDoc>> {
        let turn = self.to_read("devices_of");
        let ask = Ask::new(&relay::DEVICES_OF_RELAY).text(owner).limit(limit);
        turn.read().sound(&ask, stored::agrees).await
    }
}
