//! Checking chains: in the store, or in an exported file.
//!
//! Entries are read before the head. A head is written together with the entries it stands for, so at the moment it is read all entries up to it are there, and whatever
//! is appended later is left for the next check.

use std::collections::BTreeMap;
use std::io::BufRead;

use keyturn_proto::ClientId;
use keyturn_store::audit::{Chain, ChainCheck, Finding, chain_id, entry_id};
use keyturn_store::documents::{AuditChainDoc, AuditEntry};
use keyturn_store::store::{Store, Stored};
use serde::Serialize;

use super::noted::{Noted, Notes};
use super::{PAGE, page};
use crate::operator::OperatorError;

/// What was found in one chain.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct ChainReport {
    /// Its name; `None` if nothing readable told it.
    pub chain: Option<String>,
    /// Document id of its head.
    pub id: String,
    /// The last entry.
    pub seq: u64,
    /// The hash of the last entry; `None` if there is none that can be read.
    pub hash: Option<String>,
    /// Empty for a chain that nobody touched.
    pub findings: Vec<Finding>,
}

impl ChainReport {
    fn of(check: &ChainCheck, id: &str, name: Option<&str>) -> Self {
        Self {
            chain: check.name().or(name).map(ToOwned::to_owned),
            id: id.to_owned(),
            seq: check.last(),
            hash: check
                .last_hash()
                .filter(|_| check.last() > 0)
                .map(ToOwned::to_owned),
            findings: Vec::new(),
        }
    }

    /// A chain that is not there at all.
    fn lost(note: &Noted) -> Self {
        Self {
            chain: Some(note.chain.clone()),
            id: chain_id(&note.chain),
            seq: 0,
            hash: None,
            findings: vec![Finding::Rewritten { seq: note.seq }],
        }
    }
}

/// Checks every chain, those that no head names as well; `tell` gets each report as soon as it is there.
///
/// # Errors
/// The store's; `tell`'s.
pub async fn verify_all(
    store: &dyn Store,
    noted: &[Noted],
    mut tell: impl FnMut(ChainReport) -> Result<(), OperatorError>,
) -> Result<(), OperatorError> {
    let mut notes = Notes::new(noted);
    let mut after: Option<String> = None;
    loop {
        let page = store.chains(after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.id.clone());
        for head in page {
            tell(verify_one(store, &head.id, &mut notes).await?)?;
        }
    }
    // From each chain on to the next: one entry is read of each, and its head is asked for.
    let mut after: Option<String> = None;
    while let Some(entry) = store.entries(after.as_deref(), 1).await?.pop() {
        let Some((id, _)) = entry.id.split_once('-') else {
            tell(stray(&entry.id))?;
            after = Some(entry.id);
            continue;
        };
        if entry.id < entry_id(id, 0) {
            tell(stray(&entry.id))?;
            after = Some(entry.id);
            continue;
        }
        if store.chain_head(id).await?.is_none() {
            tell(verify_one(store, id, &mut notes).await?)?;
        }
        // ':' follows the digits.
        after = Some(format!("{id}-:").max(entry.id));
    }
    for note in notes.left() {
        tell(ChainReport::lost(&note))?;
    }
    Ok(())
}

/// Checks the chain of one client.
///
/// # Errors
/// [`OperatorError::Unknown`] for a client that no record names; the store's.
pub async fn verify_client(
    store: &dyn Store,
    client: &ClientId,
    noted: &[Noted],
) -> Result<ChainReport, OperatorError> {
    let name = Chain::Client(client.clone()).to_string();
    let mut notes = Notes::new(noted);
    let report = verify_one(store, &chain_id(&name), &mut notes).await?;
    if report.seq == 0 && report.findings.is_empty() {
        return Err(OperatorError::Unknown {
            what: "client",
            name: client.to_string(),
        });
    }
    Ok(report)
}

async fn verify_one(
    store: &dyn Store,
    id: &str,
    notes: &mut Notes,
) -> Result<ChainReport, OperatorError> {
    let mut check = ChainCheck::new(id);
    notes.expect(id, &mut check);
    let mut after: Option<String> = None;
    loop {
        let entries = page(store, id, after.as_deref()).await?;
        entries.iter().for_each(|entry| check.push(entry));
        match entries.last() {
            Some(last) if entries.len() == PAGE => after = Some(last.id.clone()),
            _ => break,
        }
    }
    let head = store.chain_head(id).await?;
    let unreadable = head.as_ref().is_some_and(|head| head.doc.is_none());
    let head: Option<AuditChainDoc> = head.and_then(|head| head.doc);
    // What was appended between the two readings belongs to it.
    while let Some(end) = head
        .as_ref()
        .map(|head| head.seq)
        .filter(|end| check.last() < *end)
    {
        let before = check.last();
        let page = store.chain(id, before + 1, PAGE).await?;
        for entry in page.iter().filter(|entry| within(entry, end)) {
            check.push(entry);
        }
        if check.last() == before {
            break;
        }
    }
    let name = head.as_ref().map(|head| head.chain.as_str());
    let mut report = ChainReport::of(&check, id, name);
    if unreadable {
        report.findings = check.finish_without_head();
        report
            .findings
            .push(Finding::Unreadable { id: id.to_owned() });
    } else {
        report.findings = check.finish(head.as_ref());
    }
    Ok(report)
}

fn within(entry: &Stored<AuditEntry>, end: u64) -> bool {
    let place = entry
        .id
        .rsplit_once('-')
        .and_then(|(_, seq)| seq.parse::<u64>().ok());
    place.is_none_or(|seq| seq <= end)
}

/// A document whose id is none of an entry's.
fn stray(id: &str) -> ChainReport {
    ChainReport {
        chain: None,
        id: id.to_owned(),
        seq: 0,
        hash: None,
        findings: vec![Finding::Foreign { id: id.to_owned() }],
    }
}

/// Checks exported lines. There is no head in a file: what was cut off at its end is found by what was noted. With `partial` a chain may begin anywhere.
///
/// # Errors
/// The reader's.
pub fn verify_file(
    file: impl BufRead,
    partial: bool,
    noted: &[Noted],
) -> std::io::Result<Vec<ChainReport>> {
    let mut notes = Notes::new(noted);
    let mut checks: BTreeMap<String, ChainCheck> = BTreeMap::new();
    let mut strays = Vec::new();
    for (number, line) in file.lines().enumerate() {
        let line = line?;
        let Ok(entry) = serde_json::from_str::<AuditEntry>(&line) else {
            let id = format!("line {}", number + 1);
            strays.push(ChainReport {
                findings: vec![Finding::Unreadable { id: id.clone() }],
                ..stray(&id)
            });
            continue;
        };
        let id = chain_id(&entry.chain);
        let check = checks.entry(id.clone()).or_insert_with(|| {
            let mut check = if partial {
                ChainCheck::partial(&id)
            } else {
                ChainCheck::new(&id)
            };
            notes.expect(&id, &mut check);
            check
        });
        check.push(&Stored {
            id: entry.id.clone(),
            doc: Some(entry),
        });
    }
    let finished = checks.into_iter().map(|(id, check)| {
        let report = ChainReport::of(&check, &id, None);
        ChainReport {
            findings: check.finish_without_head(),
            ..report
        }
    });
    let reports: Vec<ChainReport> = finished.chain(strays).collect();
    let lost: Vec<ChainReport> = notes.left().map(|note| ChainReport::lost(&note)).collect();
    Ok(reports.into_iter().chain(lost).collect())
}
