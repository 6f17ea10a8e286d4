//! Commits of ours: what is asked for, and when it becomes real: staged → published → merged.
//!
//! What must hold: the staged commit, its event and its Welcomes are in the database before the caller
//! sees the event ([`crate::stage`]); it is merged only after a relay has it (`commit_published`, or the
//! event coming back, [`crate::merge`]); a start after a crash finds it in `pending_commits`.

use std::collections::BTreeSet;

use nostr::{Event, EventId, PublicKey};
use openmls::prelude::LeafNodeIndex;
use openmls_traits::OpenMlsProvider as _;

use crate::error::{CommitError, ReceiveError, StoreError};
use crate::follow;
use crate::ids::{MlsGroupId, UnixMs};
use crate::member::Member;
use crate::merge::load;
use crate::opening::Halt;
use crate::stage::{Plan, operational, stage, wrap};
use crate::storage::events::{self, Held};
use crate::storage::outbox::{self, Pending, PendingWelcome};
use crate::storage::work::Work;
use crate::storage::{commits, rows};
use crate::wire::group_data::GroupData;
use crate::wire::key_package_event::VerifiedKeyPackage;

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
        outbox::all_pending(&self.db)?
            .into_iter()
            .map(|pending| {
                Ok(StagedCommit {
                    welcomes: outbox::count_welcomes(
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
            outbox::put_pending(work.db, &pending)?;
            Ok(StagedCommit {
                welcomes: outbox::count_welcomes(work.db, &pending.group, pending.source_epoch)?,
                group: pending.group,
                event: pending.event,
            })
        })
    }

    /// A relay has our commit: it is merged, and its Welcomes may be sent (they stay in
    /// [`Self::released_welcomes`] until [`Self::welcome_sent`]). Again for the same event: the same
    /// answer, nothing changes. [`CommitError::Overtaken`]: another commit of the epoch comes first; stage
    /// it again if it is still wanted. Afterwards call [`Self::receive_kept`], for what peers sent
    /// meanwhile.
    pub fn commit_published(
        &mut self,
        event: EventId,
        now: UnixMs,
    ) -> Result<Vec<PendingWelcome>, CommitError> {
        self.settle(now)?;
        let Some(pending) = outbox::pending_by_event(&self.db, &event)? else {
            return if events::is_seen(&self.db, &event)? {
                Ok(Vec::new())
            } else {
                Err(CommitError::NotPending(event))
            };
        };
        let (group, source_epoch) = (pending.group.clone(), pending.source_epoch);
        let merged = commits::commit_at(&self.db, &group, source_epoch)?
            .is_some_and(|commit| commit.event_id == event);
        if !merged {
            let held = Held {
                event: pending.event.clone(),
                group: group.clone(),
                received_at: now,
                stored: false,
                deferred: None,
            };
            self.transact(|work| {
                let row = rows::group(work.db, &group)?
                    .ok_or_else(|| CommitError::UnknownGroup(group.clone()))?;
                follow::own(work, &row, &held, &pending).map_err(|halt| match halt {
                    Halt::Error(error) => match *error {
                        ReceiveError::Mls(error) => CommitError::Mls(error),
                        ReceiveError::Store(error) => CommitError::Store(error),
                    },
                    _ => CommitError::Overtaken(event),
                })
            })?;
            self.moved.insert(group.clone());
        }
        Ok(outbox::released_welcomes_of(
            &self.db,
            &group,
            source_epoch,
        )?)
    }

    /// No relay will have our commit: it is dropped, and the group can commit again.
    pub fn commit_rejected(&mut self, event: EventId) -> Result<(), CommitError> {
        self.transact(|work| {
            let pending = waiting(work, event)?;
            let mut mls = load(work, &pending.group)?;
            mls.clear_pending_commit(work.provider.storage())
                .map_err(StoreError::from)?;
            work.keep(&pending.group, mls);
            outbox::drop_welcomes(work.db, &pending.group, pending.source_epoch)?;
            outbox::delete_pending(work.db, &pending.group, pending.source_epoch)?;
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
    outbox::pending_by_event(work.db, &event)?
        .filter(|pending| !pending.superseded)
        .ok_or(CommitError::NotPending(event))
}
