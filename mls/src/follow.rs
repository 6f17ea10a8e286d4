//! Following commits: the first of an epoch, a better one while the epoch is unsettled, our own coming back.
//!
//! The rules are in [`crate::rules`] (who may) and [`crate::settle`] (which counts). What must hold: a
//! refused commit leaves everything as it was, also when it was tried on an earlier epoch.

use openmls::group::StagedCommit;
use openmls::prelude::{ProcessedMessageContent, ProtocolMessage};

use crate::error::{CommitError, MlsError, ReceiveError, StoreError};
use crate::merge::{enter, load, merge_own, record};
use crate::message::{CommitApplied, Inbound};
use crate::opening::{Halt, Opened, process, refused};
use crate::rules::{self, CommitRefusal};
use crate::settle::{Receipt, comes_first, roll_back, vindicate};
use crate::storage::commits::{self, CommitRow};
use crate::storage::events::Held;
use crate::storage::outbox::{self, Pending};
use crate::storage::rows::{self, Freeze, GroupRow};
use crate::storage::work::Work;
use crate::storage::{group_key, snapshot};

/// No more epochs than this wait for settling at a time; beyond it the oldest settles early.
const MAX_UNSETTLED: usize = 16;

fn receipt(held: &Held) -> Receipt {
    if held.stored {
        Receipt::stored(held.received_at)
    } else {
        Receipt::live(held.received_at)
    }
}

/// A commit of somebody else.
pub(crate) fn theirs(
    work: &mut Work<'_>,
    row: &GroupRow,
    held: &Held,
    message: ProtocolMessage,
) -> Result<Opened, Halt> {
    let epoch = message.epoch().as_u64();
    let receipt = receipt(held);
    let created_at = held.event.created_at.as_secs();
    let fresh = receipt.is_fresh(created_at, work.me.freshness);
    let undone = contend(work, row, held, epoch, fresh)?;
    let before = snapshot::take(work.db, &group_key(&row.id)?).map_err(StoreError::from)?;
    let mut mls = load(work, &row.id)?;
    let (sender, content) = process(work, &mut mls, held, message)?;
    let ProcessedMessageContent::StagedCommitMessage(staged) = content else {
        // Our own, under an id we do not know: it cannot be staged from here.
        return Err(refused(held, CommitRefusal::Invalid, None));
    };
    let facts =
        rules::check(&mls, &sender, &staged).map_err(|reason| refused(held, reason, None))?;
    let evicted = staged.self_removed();
    let settles_at = receipt.settles_at(created_at, work.me.settle);
    let settled = !facts.removed.is_empty() || evicted;
    let staged: StagedCommit = *staged;
    mls.merge_staged_commit(&work.provider, staged)
        .map_err(MlsError::at("merge of a commit"))?;
    let own_lost = outbox::supersede(work.db, &row.id, epoch, true)?;
    record(
        work,
        &row.id,
        &CommitRow {
            source_epoch: epoch,
            event_id: held.event.id,
            created_at,
            settles_at,
            settled,
        },
        &before,
    )?;
    if evicted {
        rows::set_evicted(work.db, &row.id)?;
    } else {
        enter(work, &row.id, &mls).map_err(entering)?;
        limit(work, row)?;
    }
    if facts.nostr_group_id.is_some() {
        rows::set_frozen(work.db, &row.id, Some(Freeze::AddressChanged))?;
    }
    let thawed = vindicate(work.db, row, epoch)?;
    let reached = mls.epoch().as_u64();
    work.keep(&row.id, mls);
    Ok(Opened {
        inbound: Inbound::Commit(Box::new(CommitApplied {
            event_id: held.event.id,
            group: row.id.clone(),
            epoch: reached,
            facts,
            own: false,
            evicted,
            settles_at: (!settled).then_some(settles_at),
            undone,
            own_lost,
        })),
        moved: true,
        thawed,
    })
}

/// A commit of ours comes back: accepted by a relay, whatever else we know.
pub(crate) fn own(
    work: &mut Work<'_>,
    row: &GroupRow,
    held: &Held,
    pending: &Pending,
) -> Result<Opened, Halt> {
    // However long ago it was published: peers judged it when it reached them.
    let undone = contend(work, row, held, pending.source_epoch, true)?;
    let facts = merge_own(work, pending, held.received_at).map_err(entering)?;
    limit(work, row)?;
    let commit = commits::commit_at(work.db, &row.id, pending.source_epoch)?
        .ok_or(StoreError::Corrupt("a merged commit without a row"))?;
    Ok(Opened {
        inbound: Inbound::Commit(Box::new(CommitApplied {
            event_id: held.event.id,
            group: row.id.clone(),
            epoch: pending.source_epoch + 1,
            facts,
            own: true,
            evicted: false,
            settles_at: (!commit.settled).then_some(commit.settles_at),
            undone,
            own_lost: None,
        })),
        moved: true,
        thawed: false,
    })
}

/// Decides whether the commit may be applied to `epoch`, and makes that epoch the current one if it is
/// not. Returns the commit that was undone for it.
fn contend(
    work: &mut Work<'_>,
    row: &GroupRow,
    held: &Held,
    epoch: u64,
    fresh: bool,
) -> Result<Option<nostr::EventId>, Halt> {
    let created_at = held.event.created_at.as_secs();
    if epoch >= row.epoch {
        return if fresh {
            Ok(None)
        } else {
            Err(refused(held, CommitRefusal::NotFresh, Some(epoch)))
        };
    }
    let applied = commits::commit_at(work.db, &row.id, epoch)?;
    let better = applied.as_ref().is_none_or(|applied| {
        comes_first(
            (created_at, &held.event.id),
            (applied.created_at, &applied.event_id),
        )
    });
    let Some(applied) = applied.filter(|applied| !applied.settled) else {
        return Err(refused(
            held,
            CommitRefusal::Settled,
            better.then_some(epoch),
        ));
    };
    if !better {
        return Err(refused(held, CommitRefusal::Lost, None));
    }
    if !fresh {
        return Err(refused(held, CommitRefusal::NotFresh, Some(epoch)));
    }
    if roll_back(work, &row.id, epoch)? {
        Ok(Some(applied.event_id))
    } else {
        Err(StoreError::Corrupt("an unsettled commit without a snapshot").into())
    }
}

/// Bounds what is kept for undoing.
fn limit(work: &Work<'_>, row: &GroupRow) -> Result<(), StoreError> {
    let unsettled = commits::unsettled(work.db, &row.id)?;
    if let Some(excess) = unsettled.len().checked_sub(MAX_UNSETTLED + 1)
        && let Some(commit) = unsettled.get(excess)
    {
        commits::settle_through(work.db, &row.id, commit.source_epoch)?;
    }
    Ok(())
}

fn entering(error: CommitError) -> ReceiveError {
    match error {
        CommitError::Mls(error) => ReceiveError::Mls(error),
        CommitError::Store(error) => ReceiveError::Store(error),
        other => ReceiveError::Mls(MlsError {
            step: "new epoch",
            source: Box::new(other),
        }),
    }
}
