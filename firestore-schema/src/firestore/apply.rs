//! A change set as the writes of one commit: documents, chained audit entries, new heads.

use std::collections::BTreeSet;

use firestore::gcloud_sdk::google::firestore::v1::Write;
use firestore::gcloud_sdk::google::firestore::v1::value::ValueType;
use keyturn_proto::{RotationId, UnixMs};

use super::codec::{self, Fields, time_value};
use super::commit::{self, Mark};
use super::paths::Path;
use super::query::Ask;
use super::reading::Reading;
use super::revision::Revision;
use super::stored::Document as _;
use super::writes::Writes;
use crate::approle::{AppRoleDoc, SecretIdDoc};
use crate::audit::{chains_of, seal};
use crate::devices::DeviceDoc;
use crate::documents::{AdminGroupDoc, AuditChainDoc, AuditRecord, LeaseDoc, NonceDoc, OutboxDoc};
use crate::lifecycle::{Change, Verdict};
use crate::queries::relay;
use crate::store::{Result, StoreError};

/// The end of an outbox event's life.
const DELETE_AFTER: &str = "delete_after";

/// What is written beside a change set of the lifecycle.
#[derive(Default, PartialEq)]
pub(super) struct Also {
    /// A group binding.
    pub(super) group: Option<AdminGroupDoc>,
    /// The revision of a collection that is judged as a whole.
    pub(super) revision: Option<Revision>,
    /// Uses of nonces, refusals of events.
    pub(super) nonces: Vec<NonceDoc>,
    /// A lease that changed hands.
    pub(super) lease: Option<LeaseDoc>,
    /// Sealed events of which only the id stays.
    pub(super) withdrawn: Vec<OutboxDoc>,
    /// A device.
    pub(super) device: Option<DeviceDoc>,
    /// A role of the embedded issuer.
    pub(super) role: Option<AppRoleDoc>,
    /// One of its secret_ids, with a use less.
    pub(super) secret_id: Option<SecretIdDoc>,
    /// A new one.
    pub(super) issued: Option<SecretIdDoc>,
    /// Documents that go.
    pub(super) gone: Vec<Path>,
}

/// The writes of one commit, and the mark that it will leave. What they need beyond what was read already is read here, of the same moment.
pub(super) async fn plan(
    reading: &mut Reading<'_>,
    change: Change,
    also: Also,
) -> Result<(Vec<Write>, Option<Mark>)> {
    let Change {
        client,
        versions,
        voided,
        rotations,
        actions,
        admin,
        outbox,
        expire_outbox,
        audit: records,
    } = change;
    let mut expired: Vec<(Path, UnixMs)> = Vec::new();
    for (rotation, at) in expire_outbox {
        let events = still_kept(reading, &rotation, at).await?;
        expired.extend(events.into_iter().map(|path| (path, at)));
    }
    let instance = &reading.turn().link.instance;
    let heads = heads(reading, chains_of(&records, client.as_ref(), instance)).await?;
    let sealed = seal(heads, records, client.as_ref(), instance)?;

    let mut writes = Writes::new(reading);
    if let Some(doc) = &client {
        writes.put(doc)?;
        for id in voided {
            writes.delete(Path::version(&doc.client_id, &id)?);
        }
    }
    for doc in &versions {
        writes.put(doc)?;
    }
    for doc in &rotations {
        writes.put(doc)?;
    }
    for doc in &actions {
        // The record of a rotation is made of the rotation; an action of its own was looked for, and is created.
        match reading.seen(&doc.path()?) {
            Some(_) => writes.put(doc)?,
            None => writes.derive(doc)?,
        }
    }
    if let Some(doc) = &admin {
        writes.put(doc)?;
    }
    for (path, at) in expired {
        let end =
            time_value(Some(at)).map_err(|_| StoreError::Unrepresentable { what: "outbox" })?;
        writes.patch(path, Fields::from([(DELETE_AFTER.to_owned(), end)]));
    }
    for doc in &outbox {
        writes.create(doc, Fields::new())?;
    }
    if let Some(doc) = &also.group {
        writes.put(doc)?;
    }
    if let Some(doc) = &also.revision {
        writes.put(doc)?;
    }
    for doc in &also.nonces {
        writes.put(doc)?;
    }
    if let Some(doc) = &also.lease {
        writes.put(doc)?;
    }
    for doc in &also.withdrawn {
        writes.put(doc)?;
    }
    if let Some(doc) = &also.device {
        writes.put(doc)?;
    }
    if let Some(doc) = &also.role {
        writes.put(doc)?;
    }
    if let Some(doc) = &also.secret_id {
        writes.put(doc)?;
    }
    if let Some(doc) = &also.issued {
        writes.create(doc, Fields::new())?;
    }
    for path in also.gone {
        writes.delete(path);
    }
    let mut mark = None;
    if let Some(first) = sealed.entries.first() {
        let name = commit::name()?;
        for entry in &sealed.entries {
            writes.create(entry, commit::field(&name))?;
        }
        mark = Some(Mark::new(first.path()?, name));
    }
    for head in &sealed.heads {
        writes.put(head)?;
    }
    Ok((writes.finish(), mark))
}

/// Outbox events of a rotation that would live longer than `at`. Only the one field is read: the rest is ciphertext, and much.
async fn still_kept(
    reading: &mut Reading<'_>,
    rotation: &RotationId,
    at: UnixMs,
) -> Result<Vec<Path>> {
    let ask = Ask::new(&relay::OUTBOX_OF_ROTATION)
        .text(rotation.as_str())
        .only(DELETE_AFTER);
    let damaged = StoreError::Damaged { what: "outbox" };
    let mut kept = Vec::new();
    for (path, found) in reading.raw(&ask).await? {
        let end = match found.fields.get(DELETE_AFTER).map(|v| &v.value_type) {
            Some(Some(ValueType::NullValue(_))) => None,
            Some(Some(ValueType::TimestampValue(stamp))) => {
                Some(codec::unix_ms(*stamp).map_err(|_| damaged.clone())?)
            }
            _ => return Err(damaged),
        };
        if end.is_none_or(|end| end > at) {
            reading.remember(path.clone(), found);
            kept.push(path);
        }
    }
    Ok(kept)
}

async fn heads(
    reading: &mut Reading<'_>,
    chains: BTreeSet<crate::audit::Chain>,
) -> Result<Vec<AuditChainDoc>> {
    let paths: Vec<Path> = chains
        .iter()
        .map(|chain| Path::chain(&chain.id()))
        .collect::<Result<_>>()?;
    reading.fetch(paths.clone()).await?;
    let mut heads = Vec::with_capacity(paths.len());
    for path in paths {
        heads.extend(reading.get::<AuditChainDoc>(path).await?);
    }
    Ok(heads)
}

/// A change that the lifecycle has no part in, with its record.
pub(super) fn recorded<T>(answer: T, audit: &AuditRecord) -> Verdict<T> {
    Verdict {
        answer,
        change: Change {
            audit: vec![audit.clone()],
            ..Change::default()
        },
    }
}
