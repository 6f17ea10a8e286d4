//! Commits of ours: staged → published → merged.
//!
//! What must hold: the staged commit, its event and its Welcomes are in the database before the caller
//! sees the event; it is merged only after a relay has it (`commit_published`, or the event coming back);
//! a start after a crash finds it in `pending_commits`.

use std::collections::BTreeSet;

use nostr::{Event, EventId, PublicKey};
use openmls::group::MlsGroup;
use openmls::prelude::{
    Extension, Extensions, GroupContext, LeafNodeIndex, Proposal, UnknownExtension,
};
use openmls_traits::OpenMlsProvider as _;
use tls_codec::Serialize as _;

use crate::error::{CommitError, MlsError, StoreError};
use crate::ids::{MlsGroupId, UnixMs, timestamp};
use crate::member::{Member, leaves};
use crate::rules;
use crate::settle::settle_due;
use crate::storage::events::{self, CommitRow, Pending, PendingWelcome};
use crate::storage::rows::{self, Epoch, GroupRow};
use crate::storage::work::Work;
use crate::storage::{group_key, snapshot};
use crate::wire::group_data::GroupData;
use crate::wire::group_event::{self, ExporterSecret};
use crate::wire::key_package_event::{VerifiedKeyPackage, reference};
use crate::wire::welcome;
use crate::wire::{EXPORTER_CONTEXT, EXPORTER_LABEL, EXPORTER_LENGTH, EXT_GROUP_DATA};

/// A commit that waits for publication. Publish `event`, wait for the relay's OK, call
/// [`Member::commit_published`]; then send the Welcomes it returns.
#[derive(Clone, Debug)]
pub struct StagedCommit {
    /// Which group.
    pub group: MlsGroupId,
    /// The kind 445 event.
    pub event: Event,
    /// How many Welcomes follow once it is accepted.
    pub welcomes: usize,
}

/// What a commit of ours does.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) adds: Vec<VerifiedKeyPackage>,
    pub(crate) removes: Vec<LeafNodeIndex>,
    pub(crate) data: Option<GroupData>,
    pub(crate) self_removes: bool,
}

/// A change of the group's data. `None` leaves a field as it is.
#[derive(Clone, Debug, Default)]
pub struct GroupChange {
    /// New name.
    pub name: Option<String>,
    /// New description.
    pub description: Option<String>,
    /// New admins.
    pub admins: Option<BTreeSet<PublicKey>>,
    /// New relays.
    pub relays: Option<BTreeSet<String>>,
    /// New address. Peers of ours freeze the group until their operators approve it.
    pub nostr_group_id: Option<crate::ids::NostrGroupId>,
}

impl Member {
    /// Invites the owners of these key packages.
    pub fn invite(
        &mut self,
        group: &MlsGroupId,
        invitees: &[VerifiedKeyPackage],
        now: UnixMs,
    ) -> Result<StagedCommit, CommitError> {
        let members = self.members(group)?;
        for invitee in invitees {
            if members.iter().any(|leaf| leaf.npub == invitee.npub()) {
                return Err(CommitError::AlreadyMember(invitee.npub()));
            }
        }
        if invitees.is_empty() {
            return Err(CommitError::Nothing);
        }
        self.stage_as_admin(group, now, |_| {
            Ok(Plan {
                adds: invitees.to_vec(),
                ..Plan::default()
            })
        })
    }

    /// Removes every leaf of these npubs; those who were admins are no admins afterwards.
    pub fn remove(
        &mut self,
        group: &MlsGroupId,
        npubs: &[PublicKey],
        now: UnixMs,
    ) -> Result<StagedCommit, CommitError> {
        if npubs.contains(&self.npub()) {
            return Err(CommitError::OwnLeaf);
        }
        let members = self.members(group)?;
        let mut removes = Vec::new();
        for npub in npubs {
            let before = removes.len();
            removes.extend(
                members
                    .iter()
                    .filter(|leaf| leaf.npub == *npub)
                    .map(|leaf| LeafNodeIndex::new(leaf.index)),
            );
            if removes.len() == before {
                return Err(CommitError::NotMember(*npub));
            }
        }
        if removes.is_empty() {
            return Err(CommitError::Nothing);
        }
        self.stage_as_admin(group, now, |data| {
            let mut after = data.clone();
            after.admins.retain(|admin| !npubs.contains(admin));
            Ok(Plan {
                removes,
                data: (after != *data).then_some(after),
                ..Plan::default()
            })
        })
    }

    /// Changes names, admins, relays or the address.
    pub fn update_group(
        &mut self,
        group: &MlsGroupId,
        change: GroupChange,
        now: UnixMs,
    ) -> Result<StagedCommit, CommitError> {
        self.stage_as_admin(group, now, |data| {
            let GroupChange {
                name,
                description,
                admins,
                relays,
                nostr_group_id,
            } = change;
            let after = GroupData {
                name: name.unwrap_or_else(|| data.name.clone()),
                description: description.unwrap_or_else(|| data.description.clone()),
                admins: admins.unwrap_or_else(|| data.admins.clone()),
                relays: relays.unwrap_or_else(|| data.relays.clone()),
                nostr_group_id: nostr_group_id.unwrap_or(data.nostr_group_id),
                image: data.image.clone(),
            };
            if after == *data {
                return Err(CommitError::Nothing);
            }
            Ok(Plan {
                data: Some(after),
                ..Plan::default()
            })
        })
    }

    /// Commits the SelfRemoves that wait: lets the leavers go.
    pub fn commit_leavers(
        &mut self,
        group: &MlsGroupId,
        now: UnixMs,
    ) -> Result<StagedCommit, CommitError> {
        self.stage_as_admin(group, now, |_| {
            Ok(Plan {
                self_removes: true,
                ..Plan::default()
            })
        })
    }

    /// Renews our leaf. The one commit that a member who is no admin may make.
    pub fn self_update(
        &mut self,
        group: &MlsGroupId,
        now: UnixMs,
    ) -> Result<StagedCommit, CommitError> {
        self.transact(|work| {
            let row = operational(work, group, now)?;
            stage(work, &row, Plan::default(), now)
        })
    }

    /// Our commits that were staged and neither accepted nor rejected yet. After a restart: ask the relay
    /// for each event; if it is there, [`Self::commit_published`], otherwise publish it again (see
    /// [`Self::renew_pending`]).
    pub fn pending_commits(&self) -> Result<Vec<StagedCommit>, StoreError> {
        events::all_pending(&self.db)?
            .into_iter()
            .map(|pending| {
                Ok(StagedCommit {
                    welcomes: events::count_welcomes(
                        &self.db,
                        &pending.group,
                        pending.source_epoch,
                    )?,
                    group: pending.group,
                    event: pending.event,
                })
            })
            .collect()
    }

    /// Wraps a pending commit in a new event dated `now`, for a commit whose first event was never
    /// accepted: peers refuse a commit much older than its receipt.
    pub fn renew_pending(
        &mut self,
        event: EventId,
        now: UnixMs,
    ) -> Result<StagedCommit, CommitError> {
        self.transact(|work| {
            let mut pending = waiting(work, event)?;
            let row = rows::group(work.db, &pending.group)?
                .ok_or_else(|| CommitError::UnknownGroup(pending.group.clone()))?;
            pending.event = wrap(work, &row, &pending.message, now)?;
            events::put_pending(work.db, &pending)?;
            Ok(StagedCommit {
                welcomes: events::count_welcomes(work.db, &pending.group, pending.source_epoch)?,
                group: pending.group,
                event: pending.event,
            })
        })
    }

    /// A relay has our commit: it is merged, and its Welcomes may be sent (they stay in
    /// [`Self::released_welcomes`] until [`Self::welcome_sent`]). Again for the same event: the same
    /// answer, nothing changes.
    pub fn commit_published(
        &mut self,
        event: EventId,
        now: UnixMs,
    ) -> Result<Vec<PendingWelcome>, CommitError> {
        self.transact(|work| {
            settle_due(work.db, now)?;
            let pending = events::pending_by_event(work.db, &event)?;
            let Some(pending) = pending else {
                return if events::is_seen(work.db, &event)? {
                    Ok(Vec::new())
                } else {
                    Err(CommitError::NotPending(event))
                };
            };
            if !pending.superseded {
                merge_own(work, &pending, now)?;
            }
            Ok(events::released_welcomes_of(
                work.db,
                &pending.group,
                pending.source_epoch,
            )?)
        })
    }

    /// No relay will have our commit: it is dropped, and the group can commit again.
    pub fn commit_rejected(&mut self, event: EventId) -> Result<(), CommitError> {
        self.transact(|work| {
            let pending = waiting(work, event)?;
            let mut mls = load(work, &pending.group)?;
            mls.clear_pending_commit(work.provider.storage())
                .map_err(StoreError::from)?;
            work.keep(&pending.group, mls);
            events::drop_welcomes(work.db, &pending.group, pending.source_epoch)?;
            events::delete_pending(work.db, &pending.group, pending.source_epoch)?;
            Ok(())
        })
    }

    fn stage_as_admin(
        &mut self,
        group: &MlsGroupId,
        now: UnixMs,
        plan: impl FnOnce(&GroupData) -> Result<Plan, CommitError>,
    ) -> Result<StagedCommit, CommitError> {
        self.transact(|work| {
            let row = operational(work, group, now)?;
            let data = rows::group_data(work.db, &row)?;
            if !data.admins.contains(&work.me.keys.public_key()) {
                return Err(CommitError::NotAdmin);
            }
            let plan = plan(&data)?;
            stage(work, &row, plan, now)
        })
    }
}

fn waiting(work: &Work<'_>, event: EventId) -> Result<Pending, CommitError> {
    events::pending_by_event(work.db, &event)?
        .filter(|pending| !pending.superseded)
        .ok_or(CommitError::NotPending(event))
}

pub(crate) fn load(work: &mut Work<'_>, group: &MlsGroupId) -> Result<MlsGroup, StoreError> {
    work.take(group)?
        .ok_or(StoreError::Corrupt("a group without MLS state"))
}

/// The group, if a commit may be staged in it now.
fn operational(
    work: &mut Work<'_>,
    group: &MlsGroupId,
    now: UnixMs,
) -> Result<GroupRow, CommitError> {
    settle_due(work.db, now)?;
    let row =
        rows::group(work.db, group)?.ok_or_else(|| CommitError::UnknownGroup(group.clone()))?;
    if row.evicted {
        return Err(CommitError::Evicted(group.clone()));
    }
    if row.frozen.is_some() {
        return Err(CommitError::Frozen);
    }
    if let Some(pending) = events::pending_of(work.db, group)? {
        return Err(CommitError::Pending(pending.event.id));
    }
    Ok(row)
}

/// Stages the commit and stores everything that must survive a crash before it is published.
fn stage(
    work: &mut Work<'_>,
    row: &GroupRow,
    plan: Plan,
    now: UnixMs,
) -> Result<StagedCommit, CommitError> {
    let mut mls = load(work, &row.id)?;
    let invitees = plan.adds.clone();
    let (message, welcome) = commit(work, &mut mls, plan)?;
    let facts = mls.pending_commit().map(|staged| {
        rules::check(
            &mls,
            &openmls::prelude::Sender::Member(mls.own_leaf_index()),
            staged,
        )
    });
    match facts {
        Some(Ok(_)) => {}
        Some(Err(rules::CommitRefusal::NoAdmin)) => return Err(CommitError::NoAdmin),
        Some(Err(refusal)) => return Err(MlsError::at("own commit")(refusal).into()),
        None => return Err(CommitError::Nothing),
    }
    work.keep(&row.id, mls);
    let event = wrap(work, row, &message, now)?;
    events::put_pending(
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
        events::put_welcome(work.db, &welcome, source_epoch, released)?;
        stored.push(welcome);
    }
    Ok(stored)
}

/// The 445 event of a handshake message: sealed under the current epoch (for a commit: the one before it).
fn wrap(
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

/// Remembers what the group is in its new epoch.
pub(crate) fn enter(work: &Work<'_>, id: &MlsGroupId, mls: &MlsGroup) -> Result<(), CommitError> {
    let secret = zeroize::Zeroizing::new(
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
    let facts = rules::check(
        &mls,
        &openmls::prelude::Sender::Member(mls.own_leaf_index()),
        staged,
    )
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
    rows::set_self_update(work.db, group, Some(mls.epoch().as_u64()))?;
    if let Some((_, after)) = &facts.nostr_group_id {
        // A change of address that we made ourselves is approved.
        rows::set_nostr_group_id(work.db, group, after)?;
    }
    work.keep(group, mls);
    events::supersede(work.db, group, *source_epoch, true)?;
    events::release_welcomes(work.db, group, *source_epoch)?;
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
        events::put_commit(work.db, group, commit, None)?;
        events::settle_through(work.db, group, commit.source_epoch)
    } else {
        events::put_commit(work.db, group, commit, Some(before))
    }
}
