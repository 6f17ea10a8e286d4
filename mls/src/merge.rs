//! Merging: a commit becomes the group's new epoch, together with what may be needed to undo it.

use openmls::group::MlsGroup;
use openmls::prelude::Sender;
use openmls_traits::OpenMlsProvider as _;
use zeroize::Zeroizing;

use crate::error::{CommitError, MlsError, StoreError};
use crate::ids::{MlsGroupId, UnixMs};
use crate::member::leaves;
use crate::rules;
use crate::storage::commits::{self, CommitRow};
use crate::storage::outbox::{self, Pending};
use crate::storage::rows::{self, Epoch};
use crate::storage::work::Work;
use crate::storage::{events, group_key, snapshot};
use crate::wire::group_event::ExporterSecret;
use crate::wire::{EXPORTER_CONTEXT, EXPORTER_LABEL, EXPORTER_LENGTH};

pub(crate) fn load(work: &mut Work<'_>, group: &MlsGroupId) -> Result<MlsGroup, StoreError> {
    work.take(group)?
        .ok_or(StoreError::Corrupt("a group without MLS state"))
}

/// Remembers what the group is in its new epoch.
pub(crate) fn enter(work: &Work<'_>, id: &MlsGroupId, mls: &MlsGroup) -> Result<(), CommitError> {
    let secret = Zeroizing::new(
        mls.export_secret(
            work.provider.crypto(),
            EXPORTER_LABEL,
            EXPORTER_CONTEXT,
            EXPORTER_LENGTH,
        )
        .map_err(MlsError::at("exporter secret"))?,
    );
    let secret: [u8; EXPORTER_LENGTH] = secret
        .as_slice()
        .try_into()
        .map_err(|_| StoreError::Corrupt("an exporter secret of another length"))?;
    let data = rules::group_data(mls.extensions())?;
    rows::enter_epoch(
        work.db,
        id,
        &Epoch {
            number: mls.epoch().as_u64(),
            exporter: &ExporterSecret::new(secret),
            roster: &leaves(mls)?,
            data: &data.encode()?,
        },
    )?;
    rows::add_address(work.db, &data.nostr_group_id, id)?;
    Ok(())
}

/// Merges our own staged commit. What was before it is kept until it settles.
pub(crate) fn merge_own(
    work: &mut Work<'_>,
    pending: &Pending,
    now: UnixMs,
) -> Result<rules::CommitFacts, CommitError> {
    let Pending {
        group,
        source_epoch,
        event,
        message: _,
        superseded: _,
    } = pending;
    let before = snapshot::take(work.db, &group_key(group)?).map_err(StoreError::from)?;
    let mut mls = load(work, group)?;
    let staged = mls
        .pending_commit()
        .ok_or(StoreError::Corrupt("a pending commit without MLS state"))?;
    let facts = rules::check(&mls, &Sender::Member(mls.own_leaf_index()), staged)
        .map_err(MlsError::at("own commit"))?;
    let alone = mls.members().nth(1).is_none();
    mls.merge_pending_commit(&work.provider)
        .map_err(MlsError::at("merge of own commit"))?;
    record(
        work,
        group,
        &CommitRow {
            source_epoch: *source_epoch,
            event_id: event.id,
            created_at: event.created_at.as_secs(),
            settles_at: now.plus(work.me.settle),
            settled: alone || !facts.removed.is_empty(),
        },
        &before,
    )?;
    enter(work, group, &mls)?;
    rows::note_self_update(work.db, group, mls.epoch().as_u64())?;
    if let Some((_, after)) = &facts.nostr_group_id {
        // A change of address that we made ourselves is approved.
        rows::set_nostr_group_id(work.db, group, after)?;
    }
    work.keep(group, mls);
    outbox::supersede(work.db, group, *source_epoch, true)?;
    outbox::release_welcomes(work.db, group, *source_epoch)?;
    events::mark_seen(work.db, &event.id)?;
    Ok(facts)
}

/// Records the commit that was applied, with what is needed to undo it if it may still lose.
pub(crate) fn record(
    work: &Work<'_>,
    group: &MlsGroupId,
    commit: &CommitRow,
    before: &[u8],
) -> Result<(), StoreError> {
    if commit.settled {
        commits::put_commit(work.db, group, commit, None)?;
        commits::settle_through(work.db, group, commit.source_epoch)
    } else {
        commits::put_commit(work.db, group, commit, Some(before))
    }
}
