//! Both sides, page by page.

use std::collections::BTreeMap;

use super::{COLLECTIONS, CopyError, Item, Transfer};
use crate::audit::{Chain, ChainCheck, Instance};
use crate::collections::AUDIT;
use crate::documents::{Actor, AuditChainDoc, AuditEntry};
use crate::store::{AuditTrail, Result, Stored};

/// The word that a finished copy leaves in the operator's chain at the destination.
pub(super) const COPIED: &str = "store.copied";

/// What lies at the destination, against the source.
#[derive(Clone, Debug, Default)]
pub(super) struct Compared {
    /// Equal on both sides, by collection.
    pub(super) equal: BTreeMap<&'static str, u64>,
    /// Records of earlier copies.
    pub(super) earlier_copies: u64,
}

/// Compares every document of the destination.
///
/// # Errors
/// [`CopyError::Differs`] or [`CopyError::Foreign`] for the first collection in which documents are not the source's.
pub(super) async fn against(
    from: &dyn Transfer,
    to: &dyn Transfer,
    page: usize,
) -> std::result::Result<Compared, CopyError> {
    let mut compared = Compared::default();
    let mut ours = Ours::find(from, to, page).await?;
    for collection in COLLECTIONS {
        let (mut equal, mut differ, mut foreign) = (0, 0, 0);
        let mut after = None;
        loop {
            let there = to.export(collection, after.as_deref(), page).await?;
            let known = from.look_up(&there.items).await?;
            for (item, known) in there.items.iter().zip(known) {
                match known {
                    _ if ours.made(item) => {}
                    Some(known) if known == *item => equal += 1,
                    // Its head follows from our own entries, and is checked with the chain.
                    Some(_) if ours.leads(item) => equal += 1,
                    Some(_) => differ += 1,
                    None => foreign += 1,
                }
            }
            after = there.next;
            if after.is_none() {
                break;
            }
        }
        if differ > 0 {
            return Err(CopyError::Differs {
                collection,
                count: differ,
            });
        }
        if foreign > 0 {
            return Err(CopyError::Foreign {
                collection,
                count: foreign,
            });
        }
        compared.equal.insert(collection, equal);
    }
    compared.earlier_copies = std::mem::take(&mut ours.entries).len() as u64;
    Ok(compared)
}

/// What earlier copies appended to the operator's chain at the destination, beyond the source's chain.
struct Ours {
    chain: String,
    entries: Vec<AuditEntry>,
    /// Whether the source has the chain at all.
    begun: bool,
}

impl Ours {
    async fn find(from: &dyn Transfer, to: &dyn Transfer, page: usize) -> Result<Self> {
        let chain = Chain::Instance(Instance::operator()).id();
        let head = |stored: Option<Stored<AuditChainDoc>>| stored.and_then(|it| it.doc);
        let known = head(from.chain_head(&chain).await?);
        let mut ours = Self {
            begun: known.is_some(),
            entries: Vec::new(),
            chain,
        };
        let first = known.map_or(0, |head| head.seq) + 1;
        let mut next = first;
        loop {
            let found = to.chain(&ours.chain, next, page).await?;
            let last = found.len() < page;
            for entry in found {
                next += 1;
                match entry.doc {
                    Some(entry) if is_copied(&entry) => ours.entries.push(entry),
                    // Somebody else's: then none of it is ours.
                    _ => {
                        ours.entries.clear();
                        return Ok(ours);
                    }
                }
            }
            if last {
                return Ok(ours);
            }
        }
    }

    /// Whether a copy made it, and the source has none.
    fn made(&self, item: &Item) -> bool {
        match item {
            Item::Audit(entry) => self.entries.contains(entry),
            Item::Chain(_) => !self.begun && self.leads(item),
            _ => false,
        }
    }

    /// Whether it is the head that our last entry made.
    fn leads(&self, item: &Item) -> bool {
        match (item, self.entries.last()) {
            (Item::Chain(head), Some(last)) => {
                head.id == self.chain && head.seq == last.seq && head.hash == last.hash
            }
            _ => false,
        }
    }
}

fn is_copied(entry: &AuditEntry) -> bool {
    entry.record.event == COPIED && entry.record.actor == Actor::Operator
}

/// How many documents the source has, by collection.
pub(super) async fn count(
    store: &dyn Transfer,
    page: usize,
) -> Result<BTreeMap<&'static str, u64>> {
    let mut counts = BTreeMap::new();
    for collection in COLLECTIONS {
        counts.insert(collection, count_of(store, collection, page).await?);
    }
    Ok(counts)
}

async fn count_of(store: &dyn Transfer, collection: &'static str, page: usize) -> Result<u64> {
    let mut count = 0;
    let mut after = None;
    loop {
        let found = store.export(collection, after.as_deref(), page).await?;
        count += found.items.len() as u64;
        after = found.next;
        if after.is_none() {
            return Ok(count);
        }
    }
}

/// Checks every audit chain, and that every entry belongs to one; the number of chains.
///
/// # Errors
/// [`CopyError::Touched`].
pub(super) async fn chains(
    store: &dyn Transfer,
    side: &'static str,
    page: usize,
) -> std::result::Result<u64, CopyError> {
    let (mut chains, mut findings, mut seen) = (0, 0, 0);
    let mut after: Option<String> = None;
    loop {
        let heads = AuditTrail::chains(store, after.as_deref(), page).await?;
        for head in &heads {
            let mut check = ChainCheck::new(&head.id);
            let mut next = 1;
            loop {
                let entries = store.chain(&head.id, next, page).await?;
                entries.iter().for_each(|entry| check.push(entry));
                seen += entries.len() as u64;
                // What does not move the check on is a finding already.
                if entries.len() < page || check.last() < next {
                    break;
                }
                next = check.last() + 1;
            }
            findings += check.finish(head.doc.as_ref()).len();
            findings += usize::from(head.doc.is_none());
            chains += 1;
        }
        if heads.len() < page {
            break;
        }
        after = heads.last().map(|head| head.id.clone());
    }
    // Entries of a chain that has no head are in none of the above.
    let all = count_of(store, AUDIT, page).await?;
    findings += usize::from(all != seen);
    match findings {
        0 => Ok(chains),
        count => Err(CopyError::Touched { side, count }),
    }
}
