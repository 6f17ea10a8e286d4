//! The copy: refuse what must not be copied, copy, verify, record.
//!
//! Every step can be repeated: a copy that was cut off anywhere goes on where it was, since what is there and equal is left as it is.

use std::ops::ControlFlow;

use keyturn_proto::UnixMs;
use serde::Serialize;

use super::compare;
use super::{COLLECTIONS, Import, Item, Transfer};
use crate::collections::LEASES;
use crate::documents::{Actor, AuditRecord, LeaseDoc};
use crate::store::{Result, StoreError};

/// Documents in one page, unless the caller says otherwise.
const PAGE: usize = 200;

/// How to copy.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Only looks; writes nothing.
    pub dry_run: bool,
    /// Documents in one page.
    pub page: usize,
    /// Now.
    pub now: UnixMs,
}

impl Options {
    /// The usual ones.
    #[must_use]
    pub const fn at(now: UnixMs) -> Self {
        Self {
            dry_run: false,
            page: PAGE,
            now,
        }
    }
}

/// Where the copy is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// The collection.
    pub collection: &'static str,
    /// Documents of it that are over there by now.
    pub done: u64,
    /// Of how many.
    pub total: u64,
}

/// What became of one collection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// Which.
    pub collection: &'static str,
    /// Created by this run; for a dry run what it would create.
    pub copied: u64,
    /// Equal already.
    pub already_there: u64,
    /// Compared afterwards, both sides; 0 for a dry run.
    pub verified: u64,
}

/// What a copy did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Nothing was written.
    pub dry_run: bool,
    /// By collection, in the order of copying.
    pub collections: Vec<Copied>,
    /// Audit chains that were checked at the destination.
    pub chains_verified: u64,
}

/// Why nothing, or not everything, was copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A relay works on the source.
    #[error("a relay works on the source (its lease has not run out): stop every relay first")]
    InUse,
    /// The destination was served since.
    #[error(
        "a relay has worked on the destination: its lease has a higher fencing number than the source's"
    )]
    Served,
    /// Documents that are not equal.
    #[error("{count} documents of {collection} at the destination differ from the source's")]
    Differs {
        /// Which collection.
        collection: &'static str,
        /// How many.
        count: u64,
    },
    /// Documents that the source does not have.
    #[error("{count} documents of {collection} at the destination are not in the source")]
    Foreign {
        /// Which collection.
        collection: &'static str,
        /// How many.
        count: u64,
    },
    /// Documents are missing after the copy: the source changed meanwhile, or the destination did.
    #[error("{collection}: {there} documents at the destination, {here} in the source")]
    Count {
        /// Which collection.
        collection: &'static str,
        /// In the source.
        here: u64,
        /// At the destination.
        there: u64,
    },
    /// An audit trail does not verify.
    #[error(
        "the audit chains of the {side} do not verify: {count} findings; `keyturn audit verify` names them"
    )]
    Touched {
        /// Source or destination.
        side: &'static str,
        /// How many findings.
        count: usize,
    },
    /// The caller stopped it.
    #[error("stopped; the same command goes on from here")]
    Stopped,
}

impl CopyError {
    /// Whether the two stores contradict each other, and nothing but looking at them will help.
    #[must_use]
    pub const fn is_contradiction(&self) -> bool {
        matches!(
            self,
            Self::Served
                | Self::Differs { .. }
                | Self::Foreign { .. }
                | Self::Count { .. }
                | Self::Touched { .. }
        )
    }
}

/// Copies everything, and verifies it. `progress` is told after every page and may stop the copy.
///
/// # Errors
/// [`CopyError`].
pub async fn copy(
    from: &dyn Transfer,
    to: &dyn Transfer,
    options: Options,
    mut progress: impl FnMut(Progress) -> ControlFlow<()> + Send,
) -> std::result::Result<Report, CopyError> {
    let page = options.page.max(1);
    if !options.dry_run {
        at_rest(from, options.now).await?;
    }
    not_served(from, to).await?;
    if !options.dry_run {
        // Under a running relay heads and entries are not of one moment.
        compare::chains(from, "source", page).await?;
    }
    let before = compare::against(from, to, page).await?;
    let totals = compare::count(from, page).await?;
    let mut report = Report {
        dry_run: options.dry_run,
        collections: Vec::new(),
        chains_verified: 0,
    };
    for collection in COLLECTIONS {
        let total = totals.get(collection).copied().unwrap_or(0);
        let mut copied = Copied {
            collection,
            copied: 0,
            already_there: before.equal.get(collection).copied().unwrap_or(0),
            verified: 0,
        };
        if options.dry_run {
            copied.copied = total.saturating_sub(copied.already_there);
        } else {
            // A head that an earlier copy's record moved on is no document to create.
            let whole = copied.already_there >= total;
            if !whole {
                copied.copied = one(from, to, collection, page, total, &mut progress).await?;
            }
        }
        report.collections.push(copied);
    }
    if options.dry_run {
        return Ok(report);
    }
    verify(from, to, page, &mut report).await?;
    // A relay that came meanwhile may have changed what was copied before.
    at_rest(from, options.now).await?;
    not_served(from, to).await?;
    let created = report.collections.iter().any(|it| it.copied > 0);
    if created || before.earlier_copies == 0 {
        to.append(audit("store.copied", "verified", options.now))
            .await?;
    }
    report.chains_verified = compare::chains(to, "destination", page).await?;
    Ok(report)
}

/// Copies one collection; how many were created.
async fn one(
    from: &dyn Transfer,
    to: &dyn Transfer,
    collection: &'static str,
    page: usize,
    total: u64,
    progress: &mut (impl FnMut(Progress) -> ControlFlow<()> + Send),
) -> std::result::Result<u64, CopyError> {
    let (mut created, mut done, mut differ) = (0, 0, 0);
    let mut after = None;
    loop {
        let some = from.export(collection, after.as_deref(), page).await?;
        for outcome in to.import(&some.items).await? {
            match outcome {
                Import::Created => created += 1,
                Import::Same => {}
                Import::Different => differ += 1,
            }
        }
        if differ > 0 {
            return Err(CopyError::Differs {
                collection,
                count: differ,
            });
        }
        done += some.items.len() as u64;
        let told = progress(Progress {
            collection,
            done,
            total,
        });
        if told.is_break() {
            return Err(CopyError::Stopped);
        }
        after = some.next;
        if after.is_none() {
            return Ok(created);
        }
    }
}

/// Every document of the destination is the source's, and there are as many: so they are the same.
async fn verify(
    from: &dyn Transfer,
    to: &dyn Transfer,
    page: usize,
    report: &mut Report,
) -> std::result::Result<(), CopyError> {
    let there = compare::against(from, to, page).await?;
    let here = compare::count(from, page).await?;
    for copied in &mut report.collections {
        let collection = copied.collection;
        let here = here.get(collection).copied().unwrap_or(0);
        let there = there.equal.get(collection).copied().unwrap_or(0);
        if here != there {
            return Err(CopyError::Count {
                collection,
                here,
                there,
            });
        }
        copied.verified = there;
    }
    compare::chains(to, "destination", page).await.map(drop)
}

async fn leases(store: &dyn Transfer) -> Result<Vec<LeaseDoc>> {
    let mut leases = Vec::new();
    let mut after = None;
    loop {
        let page = store.export(LEASES, after.as_deref(), PAGE).await?;
        leases.extend(page.items.into_iter().filter_map(|item| match item {
            Item::Lease(lease) => Some(lease),
            _ => None,
        }));
        after = page.next;
        if after.is_none() {
            return Ok(leases);
        }
    }
}

/// Nobody holds a lease.
async fn at_rest(store: &dyn Transfer, now: UnixMs) -> std::result::Result<(), CopyError> {
    let held = leases(store).await?.iter().any(|lease| lease.until > now);
    if held { Err(CopyError::InUse) } else { Ok(()) }
}

async fn not_served(from: &dyn Transfer, to: &dyn Transfer) -> std::result::Result<(), CopyError> {
    let known = leases(from).await?;
    let ahead = leases(to).await?.into_iter().any(|there| {
        let here = known.iter().find(|here| here.name == there.name);
        here.is_none_or(|here| there.fence > here.fence)
    });
    if ahead {
        Err(CopyError::Served)
    } else {
        Ok(())
    }
}

fn audit(event: &str, reason: &str, now: UnixMs) -> AuditRecord {
    AuditRecord {
        at: now,
        actor: Actor::Operator,
        event: event.to_owned(),
        reason: reason.to_owned(),
        client_id: None,
        rotation_id: None,
        version_id: None,
        group: None,
        nostr_event: None,
        device: None,
    }
}
