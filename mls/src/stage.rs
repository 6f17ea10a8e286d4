//! Staging a commit: OpenMLS prepares it, the database keeps it, the caller gets an event to publish.
//!
//! What must hold: a commit that our own rules would refuse from others is not staged.

use nostr::Event;
use openmls::group::MlsGroup;
use openmls::prelude::{
    Extension, Extensions, GroupContext, LeafNodeIndex, Proposal, Sender, UnknownExtension,
};
use openmls_traits::OpenMlsProvider as _;
use tls_codec::Serialize as _;

use crate::commit::StagedCommit;
use crate::error::{CommitError, MlsError, StoreError};
use crate::ids::{MlsGroupId, UnixMs, timestamp};
use crate::merge::load;
use crate::rules;
use crate::settle::settle_due;
use crate::storage::outbox::{self, Pending, PendingWelcome};
use crate::storage::rows::{self, GroupRow};
use crate::storage::work::Work;
use crate::wire::group_data::GroupData;
use crate::wire::group_event::{self, ExporterSecret};
use crate::wire::key_package_event::{VerifiedKeyPackage, reference};
use crate::wire::{EXT_GROUP_DATA, welcome};

/// What a commit of ours does.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) adds: Vec<VerifiedKeyPackage>,
    pub(crate) removes: Vec<LeafNodeIndex>,
    pub(crate) data: Option<GroupData>,
    pub(crate) self_removes: bool,
}

/// The group, if a commit may be staged in it now.
pub(crate) fn operational(
    work: &mut Work<'_>,
    group: &MlsGroupId,
    now: UnixMs,
) -> Result<GroupRow, CommitError> {
    settle_due(work, now)?;
    let row =
        rows::group(work.db, group)?.ok_or_else(|| CommitError::UnknownGroup(group.clone()))?;
    if row.evicted {
        return Err(CommitError::Evicted(group.clone()));
    }
    if row.frozen.is_some() {
        return Err(CommitError::Frozen);
    }
    if let Some(pending) = outbox::pending_of(work.db, group)? {
        return Err(CommitError::Pending(pending.event.id));
    }
    Ok(row)
}

/// Stages the commit and stores everything that must survive a crash before it is published.
pub(crate) fn stage(
    work: &mut Work<'_>,
    row: &GroupRow,
    plan: Plan,
    now: UnixMs,
) -> Result<StagedCommit, CommitError> {
    let mut mls = load(work, &row.id)?;
    let invitees = plan.adds.clone();
    let (message, welcome) = commit(work, &mut mls, plan)?;
    let facts = mls
        .pending_commit()
        .map(|staged| rules::check(&mls, &Sender::Member(mls.own_leaf_index()), staged));
    match facts {
        Some(Ok(_)) => {}
        Some(Err(rules::CommitRefusal::NoAdmin)) => return Err(CommitError::NoAdmin),
        Some(Err(refusal)) => return Err(MlsError::at("own commit")(refusal).into()),
        None => return Err(CommitError::Nothing),
    }
    work.keep(&row.id, mls);
    let event = wrap(work, row, &message, now)?;
    outbox::put_pending(
        work.db,
        &Pending {
            group: row.id.clone(),
            source_epoch: row.epoch,
            event: event.clone(),
            message,
            superseded: false,
        },
    )?;
    if let Some(welcome) = welcome {
        let data = rows::group_data(work.db, row)?;
        store_welcomes(
            work, &row.id, row.epoch, &welcome, &invitees, &data, now, false,
        )?;
    }
    Ok(StagedCommit {
        group: row.id.clone(),
        event,
        welcomes: invitees.len(),
    })
}

/// Lets OpenMLS stage the commit. Returns the MLSMessage and, with adds, the Welcome's MLSMessage.
pub(crate) fn commit(
    work: &Work<'_>,
    mls: &mut MlsGroup,
    plan: Plan,
) -> Result<(Vec<u8>, Option<Vec<u8>>), CommitError> {
    let Plan {
        adds,
        removes,
        data,
        self_removes,
    } = plan;
    if self_removes && !mls.has_pending_proposals() {
        return Err(CommitError::Nothing);
    }
    let extensions = data
        .map(|data| replace_group_data(mls.extensions(), &data))
        .transpose()?;
    // A stored SelfRemove must not ride along: it would make a plain self-update illegal. Every commit of
    // ours renews our leaf.
    let mut builder = mls
        .commit_builder()
        .consume_proposal_store(self_removes)
        .force_self_update(!self_removes)
        .propose_adds(adds.iter().map(|invitee| invitee.key_package().clone()))
        .propose_removals(removes);
    if let Some(extensions) = extensions {
        builder = builder
            .propose_group_context_extensions(extensions)
            .map_err(MlsError::at("group data"))?;
    }
    let bundle = builder
        .load_psks(work.provider.storage())
        .map_err(MlsError::at("commit"))?
        .build(
            work.provider.rand(),
            work.provider.crypto(),
            &work.me.signer,
            |proposal| !self_removes || matches!(proposal.proposal(), Proposal::SelfRemove),
        )
        .map_err(MlsError::at("commit"))?
        .stage_commit(&work.provider)
        .map_err(MlsError::at("commit"))?;
    let message = bundle
        .commit()
        .tls_serialize_detached()
        .map_err(MlsError::at("commit encoding"))?;
    let welcome = bundle
        .to_welcome_msg()
        .map(|welcome| welcome.tls_serialize_detached())
        .transpose()
        .map_err(MlsError::at("Welcome encoding"))?;
    Ok((message, welcome))
}

/// The group context's extensions with other group data in them.
fn replace_group_data(
    extensions: &Extensions<GroupContext>,
    data: &GroupData,
) -> Result<Extensions<GroupContext>, CommitError> {
    let mut extensions = extensions.clone();
    extensions
        .add_or_replace(Extension::Unknown(
            EXT_GROUP_DATA,
            UnknownExtension(data.encode()?),
        ))
        .map_err(MlsError::at("group data"))?;
    Ok(extensions)
}

#[expect(
    clippy::too_many_arguments,
    reason = "private; each argument is one fact of the commit"
)]
pub(crate) fn store_welcomes(
    work: &Work<'_>,
    group: &MlsGroupId,
    source_epoch: u64,
    message: &[u8],
    invitees: &[VerifiedKeyPackage],
    data: &GroupData,
    now: UnixMs,
    released: bool,
) -> Result<Vec<PendingWelcome>, CommitError> {
    let relays: Vec<String> = data.relays.iter().cloned().collect();
    let mut stored = Vec::with_capacity(invitees.len());
    for invitee in invitees {
        let reference = reference(invitee.key_package(), work.provider.crypto())
            .map_err(MlsError::at("key package reference"))?;
        let own = welcome::only_for(message, &reference)?;
        let event = welcome::wrap(
            &own,
            &invitee.npub(),
            invitee.event_id(),
            &relays,
            &work.me.keys,
            timestamp(now),
        )?;
        let welcome = PendingWelcome {
            event,
            recipient: invitee.npub(),
            group: group.clone(),
        };
        outbox::put_welcome(work.db, &welcome, source_epoch, released)?;
        stored.push(welcome);
    }
    Ok(stored)
}

/// The 445 event of a handshake message: sealed under the current epoch (for a commit: the one before it).
pub(crate) fn wrap(
    work: &Work<'_>,
    row: &GroupRow,
    message: &[u8],
    now: UnixMs,
) -> Result<Event, CommitError> {
    let data = rows::group_data(work.db, row)?;
    let exporter = current_exporter(work, row)?;
    Ok(group_event::seal(
        &exporter,
        data.nostr_group_id,
        message,
        timestamp(now),
    )?)
}

pub(crate) fn current_exporter(
    work: &Work<'_>,
    row: &GroupRow,
) -> Result<ExporterSecret, StoreError> {
    rows::exporters(work.db, &row.id)?
        .into_iter()
        .find_map(|(epoch, secret)| (epoch == row.epoch).then_some(secret))
        .ok_or(StoreError::Corrupt("the current epoch has no outer key"))
}
