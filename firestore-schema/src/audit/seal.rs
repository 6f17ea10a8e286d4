//! Turns the records of one change into entries and new heads.

use std::collections::BTreeSet;

use super::chain::{Chain, GENESIS, Instance, MAX_SEQ, chain_of, entry_id};
use super::encode;
use crate::documents::{AuditChainDoc, AuditEntry, AuditRecord, ClientDoc, VersionState};
use crate::store::{Result, StoreError};

/// What to write beside the change itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sealed {
    /// To create; an id that exists already is a conflict.
    pub entries: Vec<AuditEntry>,
    /// To create or replace, on the condition that they are still as they were read.
    pub heads: Vec<AuditChainDoc>,
}

/// The chains that [`seal`] touches: their heads must be loaded in the transaction of the change. `client` is the client that the change writes, if any.
#[must_use]
pub fn chains_of(
    records: &[AuditRecord],
    client: Option<&ClientDoc>,
    instance: &Instance,
) -> BTreeSet<Chain> {
    records
        .iter()
        .map(|record| chain_of(record, instance))
        .chain(client.map(|doc| Chain::Client(doc.client_id.clone())))
        .collect()
}

/// Appends `records` in their order, each to its chain. `heads` are those of [`chains_of`] that exist; `client` is the client as the change writes it, whose
/// summary its head bears from now on.
///
/// # Errors
/// [`StoreError::Conflict`] when a chain is full; [`StoreError::Damaged`] when a head is not what its id says.
pub fn seal(
    heads: Vec<AuditChainDoc>,
    records: Vec<AuditRecord>,
    client: Option<&ClientDoc>,
    instance: &Instance,
) -> Result<Sealed> {
    let mut sealed = Sealed::default();
    for chain in chains_of(&records, client, instance) {
        let (name, id) = (chain.to_string(), chain.id());
        let mut head = match heads.iter().find(|head| head.id == id) {
            Some(head) if head.chain == name => head.clone(),
            Some(_) => {
                return Err(StoreError::Damaged {
                    what: "audit chain",
                });
            }
            None => empty(&chain),
        };
        for record in &records {
            if chain_of(record, instance) == chain {
                sealed.entries.push(append(&mut head, record.clone())?);
            }
        }
        if let Some(doc) = client
            && chain.client() == Some(&doc.client_id)
        {
            summarise(&mut head, doc);
        }
        sealed.heads.push(head);
    }
    Ok(sealed)
}

/// The head of a chain that has no entry yet.
fn empty(chain: &Chain) -> AuditChainDoc {
    AuditChainDoc {
        id: chain.id(),
        chain: chain.to_string(),
        client_id: chain.client().cloned(),
        seq: 0,
        hash: GENESIS.to_owned(),
        updated_at: keyturn_proto::UnixMs(0),
        status: None,
        secret_since: None,
        last_rotation_at: None,
        grace_until: None,
    }
}

fn append(head: &mut AuditChainDoc, record: AuditRecord) -> Result<AuditEntry> {
    let seq = head.seq.saturating_add(1);
    if seq > MAX_SEQ {
        return Err(StoreError::Conflict {
            why: "audit.chain_full",
        });
    }
    let previous = std::mem::take(&mut head.hash);
    head.seq = seq;
    head.hash = encode::hash(&head.chain, seq, &previous, &record);
    head.updated_at = record.at;
    Ok(AuditEntry {
        id: entry_id(&head.id, seq),
        record,
        chain: head.chain.clone(),
        seq,
        previous,
        hash: head.hash.clone(),
    })
}

/// The fields of a client's head that are not what the client document says; auditors believe the head. Both must be of one moment.
#[must_use]
pub fn differences(head: &AuditChainDoc, client: &ClientDoc) -> Vec<&'static str> {
    let mut told = head.clone();
    summarise(&mut told, client);
    // Exhaustive: a new field of the summary has to be compared, or this does not compile.
    let AuditChainDoc {
        id: _,
        chain: _,
        client_id: _,
        seq: _,
        hash: _,
        // Also the time of an entry that changed nothing of the client.
        updated_at: _,
        status,
        secret_since,
        last_rotation_at,
        grace_until,
    } = told;
    let differs = [
        ("status", status != head.status),
        ("secret_since", secret_since != head.secret_since),
        (
            "last_rotation_at",
            last_rotation_at != head.last_rotation_at,
        ),
        ("grace_until", grace_until != head.grace_until),
    ];
    let fields = differs.into_iter().filter(|(_, differs)| *differs);
    fields.map(|(field, _)| field).collect()
}

/// What auditors may know of a client.
fn summarise(head: &mut AuditChainDoc, client: &ClientDoc) {
    let living = |state: VersionState| client.snapshot.iter().find(|entry| entry.state == state);
    head.status = Some(client.status);
    head.secret_since = living(VersionState::Current).map(|entry| entry.not_before);
    head.last_rotation_at = client.last_rotation_at;
    head.grace_until = living(VersionState::Grace).and_then(|entry| entry.not_after);
    head.updated_at = client.updated_at;
}
