//! Making a group, and leaving one.

use std::collections::BTreeSet;

use nostr::{Event, PublicKey};
use openmls::group::{
    MIXED_CIPHERTEXT_WIRE_FORMAT_POLICY, MIXED_PLAINTEXT_WIRE_FORMAT_POLICY, MlsGroup,
};
use openmls::prelude::{
    CredentialType, Extension, ExtensionType, Extensions, ProposalType,
    RequiredCapabilitiesExtension, SenderRatchetConfiguration, UnknownExtension,
};
use openmls_traits::OpenMlsProvider as _;
use tls_codec::Serialize as _;

use crate::error::{CommitError, MlsError, StoreError};
use crate::ids::{MlsGroupId, NostrGroupId, UnixMs, timestamp};
use crate::keypackage::lifetime;
use crate::member::{GroupInfo, Member};
use crate::merge::{enter, load};
use crate::stage::{Plan, commit, current_exporter, store_welcomes};
use crate::storage::events;
use crate::storage::outbox::{self, PendingWelcome};
use crate::storage::rows::{self, GroupRow};
use crate::welcome::join_config;
use crate::wire::group_data::{GroupData, GroupImage};
use crate::wire::group_event;
use crate::wire::key_package_event::VerifiedKeyPackage;
use crate::wire::{CIPHERSUITE, EXT_GROUP_DATA, FORWARD, OUT_OF_ORDER, PAST_EPOCHS, capabilities};

/// A group to be made. Ids are random unless given.
#[derive(Clone, Debug, Default)]
pub struct GroupSpec {
    /// For people.
    pub name: String,
    /// For people.
    pub description: String,
    /// Who may commit, beside us, the maker.
    pub admins: BTreeSet<PublicKey>,
    /// Where the group's events go.
    pub relays: BTreeSet<String>,
    /// The `h` tag; random if `None`.
    pub nostr_group_id: Option<NostrGroupId>,
}

/// A group that was made.
#[derive(Clone, Debug)]
pub struct CreatedGroup {
    /// The group.
    pub group: GroupInfo,
    /// The invitations to publish; they stay in [`Member::released_welcomes`] until marked as sent.
    pub welcomes: Vec<PendingWelcome>,
}

impl Member {
    /// Makes a group with these members. The commit that adds them is merged at once and never published:
    /// nobody else was there to follow it.
    pub fn create_group(
        &mut self,
        spec: GroupSpec,
        invitees: &[VerifiedKeyPackage],
        now: UnixMs,
    ) -> Result<CreatedGroup, CommitError> {
        let mut nostr_group_id = [0_u8; 32];
        let mut mls_group_id = [0_u8; 16];
        getrandom::fill(&mut nostr_group_id).map_err(group_event::SealEventError::from)?;
        getrandom::fill(&mut mls_group_id).map_err(group_event::SealEventError::from)?;
        let GroupSpec {
            name,
            description,
            mut admins,
            relays,
            nostr_group_id: chosen,
        } = spec;
        admins.insert(self.npub());
        let data = GroupData {
            nostr_group_id: chosen.unwrap_or(NostrGroupId::new(nostr_group_id)),
            name,
            description,
            admins,
            relays,
            image: GroupImage::default(),
        };
        let id = MlsGroupId::from_bytes(&mls_group_id)
            .map_err(|_| StoreError::Corrupt("a random group id"))?;
        let mut names = BTreeSet::from([self.npub()]);
        if let Some(twice) = invitees.iter().find(|one| !names.insert(one.npub())) {
            return Err(CommitError::AlreadyMember(twice.npub()));
        }
        let welcomes = self.transact(|work| {
            let all_leave = invitees
                .iter()
                .all(VerifiedKeyPackage::supports_self_remove);
            let mut mls = MlsGroup::builder()
                .with_group_id(crate::ids::to_openmls(&id))
                .ciphersuite(CIPHERSUITE)
                .with_wire_format_policy(MIXED_CIPHERTEXT_WIRE_FORMAT_POLICY)
                .use_ratchet_tree_extension(true)
                .sender_ratchet_configuration(SenderRatchetConfiguration::new(
                    OUT_OF_ORDER,
                    FORWARD,
                ))
                .max_past_epochs(PAST_EPOCHS)
                .lifetime(lifetime(now))
                .with_capabilities(capabilities())
                .with_group_context_extensions(context(&data, all_leave)?)
                .build(&work.provider, &work.me.signer, work.me.credential())
                .map_err(MlsError::at("new group"))?;
            rows::insert_group(
                work.db,
                &GroupRow {
                    id: id.clone(),
                    nostr_group_id: data.nostr_group_id,
                    epoch: mls.epoch().as_u64(),
                    evicted: false,
                    frozen: None,
                    welcomer: None,
                    // No key package of ours was ever published for this leaf.
                    self_update_epoch: Some(0),
                    rival_epoch: None,
                    joined_at: now,
                },
            )?;
            let mut welcomes = Vec::new();
            if !invitees.is_empty() {
                let plan = Plan {
                    adds: invitees.to_vec(),
                    ..Plan::default()
                };
                let source_epoch = mls.epoch().as_u64();
                let (_, welcome) = commit(work, &mut mls, plan)?;
                mls.merge_pending_commit(&work.provider)
                    .map_err(MlsError::at("merge of the first commit"))?;
                if let Some(message) = welcome {
                    welcomes = store_welcomes(
                        work,
                        &id,
                        source_epoch,
                        &message,
                        invitees,
                        &data,
                        now,
                        true,
                    )?;
                }
            }
            enter(work, &id, &mls)?;
            work.keep(&id, mls);
            Ok::<_, CommitError>(welcomes)
        })?;
        let group = self
            .group_info(&id)?
            .ok_or(StoreError::Corrupt("the new group is missing"))?;
        Ok(CreatedGroup { group, welcomes })
    }

    /// Asks to be let go: a SelfRemove proposal, which an admin has to commit. Publish the event; the
    /// group stays until the commit comes.
    pub fn leave(&mut self, group: &MlsGroupId, now: UnixMs) -> Result<Event, CommitError> {
        self.transact(|work| {
            let row = rows::group(work.db, group)?
                .ok_or_else(|| CommitError::UnknownGroup(group.clone()))?;
            if row.evicted {
                return Err(CommitError::Evicted(group.clone()));
            }
            if let Some(pending) = outbox::pending_of(work.db, group)? {
                return Err(CommitError::Pending(pending.event.id));
            }
            let data = rows::group_data(work.db, &row)?;
            let me = work.me.keys.public_key();
            let another_admin = rows::roster(work.db, group, row.epoch)?
                .unwrap_or_default()
                .iter()
                .any(|leaf| leaf.npub != me && data.admins.contains(&leaf.npub));
            if !another_admin {
                return Err(CommitError::NoAdmin);
            }
            let mut mls = load(work, group)?;
            // SelfRemove travels as PublicMessage, alone of all; OpenMLS derives that from the policy.
            let policy = |mls: &mut MlsGroup, policy| {
                mls.set_configuration(work.provider.storage(), &join_config(policy))
                    .map_err(StoreError::from)
            };
            policy(&mut mls, MIXED_PLAINTEXT_WIRE_FORMAT_POLICY)?;
            let message = mls
                .leave_group_via_self_remove(&work.provider, &work.me.signer)
                .map_err(MlsError::at("SelfRemove"))?
                .tls_serialize_detached()
                .map_err(MlsError::at("SelfRemove encoding"))?;
            policy(&mut mls, MIXED_CIPHERTEXT_WIRE_FORMAT_POLICY)?;
            work.keep(group, mls);
            let exporter = current_exporter(work, &row)?;
            let event =
                group_event::seal(&exporter, data.nostr_group_id, &message, timestamp(now))?;
            events::mark_seen(work.db, &event.id)?;
            Ok(event)
        })
    }
}

fn context(
    data: &GroupData,
    self_remove: bool,
) -> Result<Extensions<openmls::prelude::GroupContext>, CommitError> {
    let proposals: &[ProposalType] = if self_remove {
        &[ProposalType::SelfRemove]
    } else {
        &[]
    };
    let required = RequiredCapabilitiesExtension::new(
        &[ExtensionType::Unknown(EXT_GROUP_DATA)],
        proposals,
        &[] as &[CredentialType],
    );
    let extensions = Extensions::from_vec(vec![
        Extension::RequiredCapabilities(required),
        Extension::Unknown(EXT_GROUP_DATA, UnknownExtension(data.encode()?)),
    ])
    .map_err(MlsError::at("group context"))?;
    Ok(extensions)
}
