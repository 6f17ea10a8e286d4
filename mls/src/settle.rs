//! Which of two commits for one epoch counts, and until when that may change.
//!
//! Marmot's rule: the lower `created_at` wins, then the lower event id; the loser rolls back. Alone, that
//! rule lets a removed admin publish a backdated rival and un-remove himself. So here it is narrower:
//!
//! - a commit settles N after its receipt, at once if it removes somebody; settling an epoch settles all
//!   before it;
//! - no epoch settles past the receipt of an event that was received and not taken in yet
//!   ([`crate::Backlog`]);
//! - a settled epoch never rolls back: what was kept to undo it is destroyed;
//! - a commit whose `created_at` is further than N from its receipt is refused (its own setting,
//!   `freshness`, the same by default);
//! - nothing is sealed while an epoch is unsettled.
//!
//! A refused commit that peers under Marmot's plain rule would follow is remembered (`groups.rival_epoch`).
//! If then an event arrives that none of our keys opens, the group freezes. It thaws by itself when a peer
//! proves to be on our branch: an authentic message from an epoch after the rival's.

use std::time::Duration;

use nostr::EventId;
use rusqlite::{Connection, OptionalExtension, params};

use crate::error::StoreError;
use crate::ids::{MlsGroupId, UnixMs, from_sql, to_sql};
use crate::member::Member;
use crate::storage::rows::{self, Freeze};
use crate::storage::work::Work;
use crate::storage::{commits, group_key, snapshot};

/// How an event came to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Receipt {
    pub(crate) at: UnixMs,
    pub(crate) stored: bool,
}

impl Receipt {
    /// It arrived just now, as part of a running subscription.
    pub fn live(at: UnixMs) -> Self {
        Self { at, stored: false }
    }

    /// It was read back from a relay's store, after we were away: its `created_at` says nothing about its
    /// receipt and is not compared with it, and it settles N after `created_at`. Feed such events in the
    /// order (`created_at`, id), so that of two commits the right one comes first.
    pub fn stored(at: UnixMs) -> Self {
        Self { at, stored: true }
    }

    /// Whether `created_at`, which names a whole second, is within `freshness` of the receipt.
    pub(crate) fn is_fresh(self, created_at: u64, freshness: Duration) -> bool {
        let from = UnixMs::from_secs(created_at);
        let until = UnixMs(from.0.saturating_add(999));
        let distance = self.at.since(until).max(from.since(self.at));
        self.stored || distance <= freshness
    }

    pub(crate) fn settles_at(self, created_at: u64, settle: Duration) -> UnixMs {
        if self.stored {
            UnixMs::from_secs(created_at).min(self.at).plus(settle)
        } else {
            self.at.plus(settle)
        }
    }
}

/// Marmot's order: whether `a` comes before `b`.
pub(crate) fn comes_first(a: (u64, &EventId), b: (u64, &EventId)) -> bool {
    (a.0, a.1.as_bytes()) < (b.0, b.1.as_bytes())
}

impl Member {
    /// Settles every epoch that is due. Call it from a timer; everything that needs it also does it.
    pub fn settle(&mut self, now: UnixMs) -> Result<(), StoreError> {
        if next(&self.db)?.is_some_and(|at| at <= now) {
            self.transact(|work| settle_due(work, now))?;
        }
        Ok(())
    }

    /// When the next epoch settles by itself.
    pub fn next_settle(&self) -> Result<Option<UnixMs>, StoreError> {
        next(&self.db)
    }

    /// When the group's current epoch is settled; `None` if it is.
    pub fn settles_at(&self, group: &MlsGroupId) -> Result<Option<UnixMs>, StoreError> {
        Ok(commits::unsettled(&self.db, group)?
            .iter()
            .map(|commit| commit.settles_at)
            .max())
    }

    /// Whether we still have to renew the leaf we joined with: true until a commit of ours was accepted
    /// and has settled. Nothing is sealed before that.
    pub fn needs_self_update(&self, group: &MlsGroupId) -> Result<bool, StoreError> {
        let Some(row) = rows::group(&self.db, group)? else {
            return Ok(false);
        };
        needs_self_update(&self.db, &row)
    }
}

pub(crate) fn needs_self_update(db: &Connection, row: &rows::GroupRow) -> Result<bool, StoreError> {
    let Some(epoch) = row.self_update_epoch else {
        return Ok(true);
    };
    Ok(match epoch.checked_sub(1) {
        Some(source) => {
            commits::commit_at(db, &row.id, source)?.is_some_and(|commit| !commit.settled)
        }
        None => false,
    })
}

fn next(db: &Connection) -> Result<Option<UnixMs>, StoreError> {
    Ok(db
        .prepare_cached("SELECT min(settles_at) FROM commits WHERE settled = 0")?
        .query_row([], |row| row.get::<_, Option<i64>>(0))?
        .map(from_sql))
}

pub(crate) fn settle_due(work: &Work<'_>, now: UnixMs) -> Result<(), StoreError> {
    let db = work.db;
    let now = work.me.backlog.settled_by(now);
    let due: Vec<(Vec<u8>, u64)> = db
        .prepare_cached(
            "SELECT mls_group_id, max(source_epoch) FROM commits \
             WHERE settled = 0 AND settles_at <= ?1 GROUP BY mls_group_id",
        )?
        .query_map(params![to_sql(now)], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    for (group, epoch) in due {
        commits::settle_through(db, &rows::group_id(group)?, epoch)?;
    }
    Ok(())
}

/// Goes back to before the commit of `epoch`. `false` if nothing was kept to go back to.
pub(crate) fn roll_back(
    work: &mut Work<'_>,
    group: &MlsGroupId,
    epoch: u64,
) -> Result<bool, StoreError> {
    let Some(kept) = commits::snapshot_at(work.db, group, epoch)? else {
        return Ok(false);
    };
    snapshot::restore(work.db, &group_key(group)?, &kept)?;
    work.forget(group);
    rows::return_to_epoch(work.db, group, epoch)?;
    Ok(true)
}

/// Remembers a refused commit that peers may follow.
pub(crate) fn suspect(
    db: &Connection,
    group: &MlsGroupId,
    source_epoch: u64,
) -> Result<(), StoreError> {
    let known: Option<u64> = db
        .prepare_cached("SELECT rival_epoch FROM groups WHERE mls_group_id = ?1")?
        .query_row(params![group.as_bytes()], |row| row.get(0))
        .optional()?
        .flatten();
    if known.is_none_or(|epoch| epoch < source_epoch) {
        rows::set_rival(db, group, Some(source_epoch))?;
    }
    Ok(())
}

/// A peer's authentic message of `epoch`: he is on our branch if it is later than the suspected fork.
/// `true` if that thaws the group.
pub(crate) fn vindicate(
    db: &Connection,
    row: &rows::GroupRow,
    epoch: u64,
) -> Result<bool, StoreError> {
    let Some(rival) = row.rival_epoch.filter(|rival| epoch > *rival) else {
        return Ok(false);
    };
    tracing::info!(group = %row.id, rival, epoch, "a peer is on our branch");
    rows::set_rival(db, &row.id, None)?;
    let thaws = row.frozen == Some(Freeze::Forked);
    if thaws {
        rows::set_frozen(db, &row.id, None)?;
    }
    Ok(thaws)
}
