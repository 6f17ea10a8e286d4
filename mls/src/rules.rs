//! Who may commit what. Pure: looks at a group and a staged commit, changes nothing.
//!
//! The rules of the Marmot specification (MIP-03): only admins of the epoch's group data commit, except a
//! pure self-update and a commit of nothing but SelfRemoves; an admin who is a member must remain;
//! identities never change. No pre-shared keys, re-initialisation or joining from outside.

use std::collections::BTreeSet;

use nostr::PublicKey;
use openmls::group::{MlsGroup, StagedCommit};
use openmls::prelude::{Extensions, GroupContext, LeafNodeIndex, Proposal, Sender};

use crate::ids::{Leaf, NostrGroupId, SignatureKey};
use crate::member::leaf_of;
use crate::wire::EXT_GROUP_DATA;
use crate::wire::group_data::{GroupData, GroupDataError};
use crate::wire::key_package_event::identity;

/// Why a commit is not followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommitRefusal {
    /// From outside the group.
    #[error("the committer is not a member")]
    NotMember,
    /// More than a self-update or SelfRemoves, by somebody who is no admin.
    #[error("the committer is not an admin")]
    NotAdmin,
    /// A proposal this profile has no use for (pre-shared key, re-initialisation, external, unknown).
    #[error("a proposal of a type that is not allowed")]
    Proposal,
    /// A leaf would change its npub, or one without a valid npub would join.
    #[error("an identity changes or is not an npub")]
    Identity,
    /// No admin would be left in the group.
    #[error("no admin would remain")]
    NoAdmin,
    /// The new group data is missing or malformed.
    #[error("the group data is missing or malformed")]
    GroupData,
    /// `created_at` and receipt are too far apart.
    #[error("created_at is too far from its receipt")]
    NotFresh,
    /// Its epoch is settled with another commit.
    #[error("the epoch is settled")]
    Settled,
    /// Another commit of the same epoch comes first.
    #[error("another commit of the epoch comes first")]
    Lost,
    /// OpenMLS refuses it.
    #[error("not a valid MLS commit")]
    Invalid,
}

/// What a commit does, once it is known to be allowed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommitFacts {
    /// Who made it.
    pub committer: PublicKey,
    /// The npub and signature key of every leaf that joins.
    pub added: Vec<(PublicKey, SignatureKey)>,
    /// The leaves that go, by removal or on their own.
    pub removed: Vec<Leaf>,
    /// A leaf whose signature key changes: its npub and new key.
    pub rekeyed: Vec<(PublicKey, SignatureKey)>,
    /// The group data after the commit, if it changes.
    pub data: Option<GroupData>,
    /// (before, after), if the commit changes it. The group is frozen until approved.
    pub nostr_group_id: Option<(NostrGroupId, NostrGroupId)>,
}

/// The group data in a group context.
pub(crate) fn group_data(
    extensions: &Extensions<GroupContext>,
) -> Result<GroupData, GroupDataError> {
    let extension = extensions
        .unknown(EXT_GROUP_DATA)
        .ok_or(GroupDataError::Missing)?;
    GroupData::decode(&extension.0)
}

/// Checks `staged`, sent by `sender`, against the group as it is before it.
pub(crate) fn check(
    group: &MlsGroup,
    sender: &Sender,
    staged: &StagedCommit,
) -> Result<CommitFacts, CommitRefusal> {
    let Sender::Member(committer) = sender else {
        return Err(CommitRefusal::NotMember);
    };
    let before = group_data(group.extensions()).map_err(|_| CommitRefusal::GroupData)?;
    let after =
        group_data(staged.group_context().extensions()).map_err(|_| CommitRefusal::GroupData)?;
    let committer = member_at(group, *committer).ok_or(CommitRefusal::NotMember)?;

    let mut facts = CommitFacts {
        committer: committer.npub,
        added: Vec::new(),
        removed: Vec::new(),
        rekeyed: Vec::new(),
        nostr_group_id: (before.nostr_group_id != after.nostr_group_id)
            .then_some((before.nostr_group_id, after.nostr_group_id)),
        data: None,
    };
    let mut only_self_removes = true;
    let mut proposals = 0_usize;
    for queued in staged.queued_proposals() {
        proposals += 1;
        only_self_removes &= matches!(queued.proposal(), Proposal::SelfRemove);
        match queued.proposal() {
            Proposal::Add(add) => {
                let leaf = add.key_package().leaf_node();
                let npub = identity(leaf.credential()).ok_or(CommitRefusal::Identity)?;
                let key = SignatureKey::from_slice(leaf.signature_key().as_slice())
                    .ok_or(CommitRefusal::Identity)?;
                facts.added.push((npub, key));
            }
            Proposal::Remove(remove) => facts
                .removed
                .push(member_at(group, remove.removed()).ok_or(CommitRefusal::Invalid)?),
            Proposal::SelfRemove => {
                let Sender::Member(leaver) = queued.sender() else {
                    return Err(CommitRefusal::NotMember);
                };
                facts
                    .removed
                    .push(member_at(group, *leaver).ok_or(CommitRefusal::Invalid)?);
            }
            Proposal::Update(update) => {
                let Sender::Member(index) = queued.sender() else {
                    return Err(CommitRefusal::NotMember);
                };
                let old = member_at(group, *index).ok_or(CommitRefusal::Invalid)?;
                rekeyed(&mut facts, &old, update.leaf_node())?;
            }
            Proposal::GroupContextExtensions(_) => {}
            _ => return Err(CommitRefusal::Proposal),
        }
    }
    if let Some(leaf) = staged.update_path_leaf_node() {
        rekeyed(&mut facts, &committer, leaf)?;
    }
    let pure_self_update = proposals == 0 && staged.update_path_leaf_node().is_some();
    let self_removes = proposals > 0 && only_self_removes;
    if !before.admins.contains(&committer.npub) && !pure_self_update && !self_removes {
        return Err(CommitRefusal::NotAdmin);
    }
    if !admin_remains(group, &facts, &after) {
        return Err(CommitRefusal::NoAdmin);
    }
    facts.data = (before != after).then_some(after);
    Ok(facts)
}

fn admin_remains(group: &MlsGroup, facts: &CommitFacts, after: &GroupData) -> bool {
    let gone: BTreeSet<u32> = facts.removed.iter().map(|leaf| leaf.index).collect();
    group
        .members()
        .filter(|member| !gone.contains(&member.index.u32()))
        .filter_map(|member| identity(&member.credential))
        .chain(facts.added.iter().map(|(npub, _)| *npub))
        .any(|npub| after.admins.contains(&npub))
}

fn rekeyed(
    facts: &mut CommitFacts,
    old: &Leaf,
    new: &openmls::prelude::LeafNode,
) -> Result<(), CommitRefusal> {
    if identity(new.credential()) != Some(old.npub) {
        return Err(CommitRefusal::Identity);
    }
    let key =
        SignatureKey::from_slice(new.signature_key().as_slice()).ok_or(CommitRefusal::Identity)?;
    if key != old.signature_key {
        facts.rekeyed.push((old.npub, key));
    }
    Ok(())
}

fn member_at(group: &MlsGroup, index: LeafNodeIndex) -> Option<Leaf> {
    leaf_of(&group.member_at(index)?)
}
