//! Checking chains: in the store, or in an exported file.
//!
//! Entries are read before the head. A head is written together with the entries it stands for, so at the moment it is read all entries up to it are there, and whatever
//! is appended later is left for the next check.

use std::collections::{BTreeMap, VecDeque};
use std::io::BufRead;

use keyturn_proto::ClientId;
use keyturn_store::audit::{Chain, ChainCheck, Finding, chain_id, differences, is_chain_id, place};
use keyturn_store::documents::{AuditChainDoc, AuditEntry};
use keyturn_store::store::{Store, StoreError, Stored};
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

/// Checks every chain, those that no head names as well, and every client against its chain; `tell` gets each report as soon as it is there. What lies in the way
/// (an id that is none, a document that does not read) is a finding, never an end.
///
/// Ids sort chain by chain, so one pass over all entries meets every one of them, planted ones included, and the heads are gone through beside it.
///
/// # Errors
/// The store's; `tell`'s.
pub async fn verify_all(
    store: &dyn Store,
    noted: &[Noted],
    mut tell: impl FnMut(ChainReport) -> Result<(), OperatorError>,
) -> Result<(), OperatorError> {
    let mut notes = Notes::new(noted);
    let mut heads = Heads::of(store);
    let mut open: Option<ChainCheck> = None;
    let mut after: Option<String> = None;
    loop {
        let entries = store.entries(after.as_deref(), PAGE).await?;
        let Some(last) = entries.last() else { break };
        after = Some(last.id.clone());
        for entry in entries {
            let Some((id, _)) = place(&entry.id) else {
                tell(stray(&entry.id))?;
                continue;
            };
            if let Some(check) = open.take_if(|check| check.id() != id) {
                tell(finish(store, check).await?)?;
            }
            if open.is_none() {
                heads.before(Some(id), &mut notes, &mut tell).await?;
                let mut check = ChainCheck::new(id);
                notes.expect(id, &mut check);
                heads.checked = Some(id.to_owned());
                open = Some(check);
            }
            if let Some(check) = &mut open {
                check.push(&entry);
            }
        }
    }
    if let Some(check) = open {
        tell(finish(store, check).await?)?;
    }
    heads.before(None, &mut notes, &mut tell).await?;
    clients(store, &mut tell).await?;
    for note in notes.left() {
        tell(ChainReport::lost(&note))?;
    }
    Ok(())
}

/// The heads in the order of their ids, page by page, to find those that no entry belongs to.
struct Heads<'s> {
    store: &'s dyn Store,
    page: VecDeque<String>,
    after: Option<String>,
    end: bool,
    /// The chain that is checked by its entries.
    checked: Option<String>,
}

impl<'s> Heads<'s> {
    fn of(store: &'s dyn Store) -> Self {
        Self {
            store,
            page: VecDeque::new(),
            after: None,
            end: false,
            checked: None,
        }
    }

    async fn first(&mut self) -> Result<Option<&String>, OperatorError> {
        if self.page.is_empty() && !self.end {
            let page = self.store.chains(self.after.as_deref(), PAGE).await?;
            self.end = page.is_empty();
            self.after = page.last().map(|head| head.id.clone());
            self.page.extend(page.into_iter().map(|head| head.id));
        }
        Ok(self.page.front())
    }

    /// Checks the chains whose heads come before the chain `id`, or all that are left.
    async fn before(
        &mut self,
        id: Option<&str>,
        notes: &mut Notes,
        tell: &mut impl FnMut(ChainReport) -> Result<(), OperatorError>,
    ) -> Result<(), OperatorError> {
        while let Some(head) = self.first().await?.cloned() {
            let is_one = is_chain_id(&head);
            if is_one && id.is_some_and(|id| *head >= *id) {
                break;
            }
            self.page.pop_front();
            if !is_one {
                tell(stray(&head))?;
            } else if self.checked.as_ref() != Some(&head) {
                tell(verify_one(self.store, &head, notes).await?)?;
            }
        }
        Ok(())
    }
}

/// Every client has a chain: it was made with its first entry.
async fn clients(
    store: &dyn Store,
    tell: &mut impl FnMut(ChainReport) -> Result<(), OperatorError>,
) -> Result<(), OperatorError> {
    let mut after: Option<String> = None;
    loop {
        let page = store.stored_clients(after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = Some(last.id.clone());
        for Stored { id, doc } in page {
            let finding = match doc {
                None => Finding::Unreadable { id: id.clone() },
                Some(client) => {
                    let chain = Chain::Client(client.client_id).id();
                    if store.chain_head(&chain).await?.is_some() {
                        continue;
                    }
                    Finding::ChainMissing
                }
            };
            let name = format!("client:{id}");
            tell(ChainReport {
                id: chain_id(&name),
                chain: Some(name),
                seq: 0,
                hash: None,
                findings: vec![finding],
            })?;
        }
    }
}

/// How often a client and its head are read again when they differ. They are written together: between two readings of the same head they were read as they
/// are, and a relay that works on the client meanwhile is no finding.
const LOOKS: usize = 20;

/// What the head says of its client, against the client document.
async fn summary(
    store: &dyn Store,
    head: &AuditChainDoc,
) -> Result<Option<Finding>, OperatorError> {
    // Which client it is follows from the chain's name; the field is for those who query.
    let named = head.chain.strip_prefix("client:");
    if head.client_id.as_ref().map(ClientId::as_str) != named {
        let fields = vec!["client_id"];
        return Ok(Some(Finding::SummaryDiffers { fields }));
    }
    let Some(id) = head.client_id.clone() else {
        return Ok(None);
    };
    let mut head = head.clone();
    for _ in 0..LOOKS {
        let found = match store.client(&id).await {
            // Told where the clients are gone through.
            Err(StoreError::Damaged { .. } | StoreError::InvalidId { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
            Ok(None) => head.status.map(|_| Finding::ClientMissing),
            Ok(Some(client)) => {
                let fields = differences(&head, &client);
                (!fields.is_empty()).then_some(Finding::SummaryDiffers { fields })
            }
        };
        if found.is_none() {
            return Ok(None);
        }
        let again = store.chain_head(&head.id).await?.and_then(|head| head.doc);
        match again {
            Some(again) if again != head => head = again,
            _ => return Ok(found),
        }
    }
    // It never stood still; the next check meets it at rest.
    Ok(None)
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
        let (entries, next) = page(store, id, after.as_deref()).await?;
        entries.iter().for_each(|entry| check.push(entry));
        after = next;
        if after.is_none() {
            break;
        }
    }
    finish(store, check).await
}

/// Reads the head, whatever was appended meanwhile, and the client.
async fn finish(store: &dyn Store, mut check: ChainCheck) -> Result<ChainReport, OperatorError> {
    let id = check.id().to_owned();
    let head = store.chain_head(&id).await?;
    let unreadable = head.as_ref().is_some_and(|head| head.doc.is_none());
    let head: Option<AuditChainDoc> = head.and_then(|head| head.doc);
    // What was appended between the two readings belongs to it.
    while let Some(end) = head
        .as_ref()
        .map(|head| head.seq)
        .filter(|end| check.last() < *end)
    {
        let before = check.last();
        let page = store.chain(&id, before + 1, PAGE).await?;
        for entry in page.iter().filter(|entry| within(entry, end)) {
            check.push(entry);
        }
        if check.last() == before {
            break;
        }
    }
    let name = head.as_ref().map(|head| head.chain.as_str());
    let mut report = ChainReport::of(&check, &id, name);
    if unreadable {
        report.findings = check.finish_without_head();
        report.findings.push(Finding::Unreadable { id });
    } else {
        report.findings = check.finish(head.as_ref());
    }
    if let Some(head) = head.filter(|head| head.id == report.id) {
        report.findings.extend(summary(store, &head).await?);
    }
    Ok(report)
}

/// Whether an entry was there when the head was written. What has no place at all is told by the pass over all entries.
fn within(entry: &Stored<AuditEntry>, end: u64) -> bool {
    place(&entry.id).is_some_and(|(_, seq)| seq <= end)
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
