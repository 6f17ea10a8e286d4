//! Joining: gift wrap → Welcome → member.
//!
//! What must hold: only an accepted welcomer who signed the Welcome as a member gets us in; joining and
//! deleting the key package (the last-resort one too) are one transaction; a Welcome for a group we are in
//! changes nothing unless the caller says so.

use nostr::{Event, EventId, PublicKey};
use openmls::group::{
    MIXED_CIPHERTEXT_WIRE_FORMAT_POLICY, MlsGroupJoinConfig, StagedWelcome, WireFormatPolicy,
};
use openmls::prelude::{MlsMessageBodyIn, MlsMessageIn, SenderRatchetConfiguration, Welcome};
use openmls_traits::OpenMlsProvider as _;
use openmls_traits::storage::StorageProvider as _;
use rusqlite::{Connection, OptionalExtension, params};
use tls_codec::DeserializeBytes as _;

use crate::error::{CommitError, MlsError, StoreError, WelcomeError};
use crate::ids::{Leaf, MlsGroupId, NostrGroupId, UnixMs};
use crate::keypackage;
use crate::member::{GroupInfo, Member, leaf_of, leaves};
use crate::merge::enter;
use crate::rules;
use crate::storage::rows::{self, GroupRow};
use crate::storage::work::Work;
use crate::storage::{events, group_key, snapshot};
use crate::wire::group_data::GroupDataError;
use crate::wire::welcome::{UnwrappedWelcome, unwrap};
use crate::wire::{FORWARD, OUT_OF_ORDER, PAST_EPOCHS};

/// What the caller is asked about a Welcome, before anything changes.
#[derive(Debug)]
pub struct Invitation<'a> {
    /// Who sealed the gift wrap and signed the Welcome.
    pub welcomer: PublicKey,
    /// The id inside MLS.
    pub mls_group_id: &'a MlsGroupId,
    /// What the group says its address is.
    pub nostr_group_id: NostrGroupId,
    /// For people; binds nothing.
    pub name: &'a str,
    /// Everybody in it, us included.
    pub members: &'a [Leaf],
    /// We are in a group of this id already: accepting replaces what we have of it.
    pub served: bool,
}

/// The caller's answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Join. For a served group: change nothing, answer [`WelcomeOutcome::AlreadyServed`].
    Join,
    /// Join, and let a served group of this id go.
    Replace,
    /// Do not join. Nothing changes; the key package stays.
    Refuse,
}

/// What became of a Welcome.
#[derive(Debug)]
pub enum WelcomeOutcome {
    /// We are in. Next: delete `delete_events` from the relay, publish a new key package, self-update.
    Joined(Joined),
    /// This gift wrap was opened before; nothing changed.
    Duplicate(Joined),
    /// We are in this group already; nothing changed.
    AlreadyServed {
        /// Who sent it.
        welcomer: PublicKey,
        /// The group we are in.
        group: MlsGroupId,
    },
    /// The caller refused; nothing changed.
    Refused {
        /// Who sent it.
        welcomer: PublicKey,
        /// The group that was offered.
        group: MlsGroupId,
    },
}

/// A group we joined.
#[derive(Debug)]
pub struct Joined {
    /// The group; `None` if we left it since.
    pub group: Option<GroupInfo>,
    /// Its id.
    pub id: MlsGroupId,
    /// Who welcomed us.
    pub welcomer: PublicKey,
    /// The gift wrap and the key package's events: to be deleted from the relay, so that nobody who gets
    /// hold of our old keys finds what they open.
    pub delete_events: Vec<EventId>,
}

/// How groups are run. The policy is MIXED_CIPHERTEXT but while a SelfRemove is sent.
pub(crate) fn join_config(policy: WireFormatPolicy) -> MlsGroupJoinConfig {
    MlsGroupJoinConfig::builder()
        .wire_format_policy(policy)
        .use_ratchet_tree_extension(true)
        .sender_ratchet_configuration(SenderRatchetConfiguration::new(OUT_OF_ORDER, FORWARD))
        .max_past_epochs(PAST_EPOCHS)
        .build()
}

/// Leaves the transaction without a change.
enum Halt {
    Outcome(Box<WelcomeOutcome>),
    Error(Box<WelcomeError>),
}

impl<E: Into<WelcomeError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Error(Box::new(error.into()))
    }
}

impl Member {
    /// Opens a gift wrap and joins, if `decide` accepts. `decide` runs inside the transaction, once, after
    /// every signature was checked; it must not block for long.
    pub fn open_welcome(
        &mut self,
        gift_wrap: &Event,
        decide: impl FnOnce(&Invitation<'_>) -> Decision,
        now: UnixMs,
    ) -> Result<WelcomeOutcome, WelcomeError> {
        if let Some(joined) = self.opened_before(&gift_wrap.id)? {
            return Ok(WelcomeOutcome::Duplicate(joined));
        }
        let unwrapped = unwrap(gift_wrap, &self.me.keys)?;
        let welcome = parse(&unwrapped.message)?;
        let joined =
            self.transact(|work| join(work, gift_wrap.id, &unwrapped, welcome, decide, now));
        match joined {
            Ok((id, welcomer, delete_events)) => {
                // The key package's secrets are gone from the file and the log as well.
                self.scrub()?;
                Ok(WelcomeOutcome::Joined(Joined {
                    group: self.group_info(&id)?,
                    id,
                    welcomer,
                    delete_events,
                }))
            }
            Err(Halt::Outcome(outcome)) => Ok(*outcome),
            Err(Halt::Error(error)) => Err(*error),
        }
    }

    fn opened_before(&self, gift_wrap: &EventId) -> Result<Option<Joined>, WelcomeError> {
        let row: Option<(Vec<u8>, Vec<u8>, Vec<u8>)> = self
            .db
            .query_row(
                "SELECT mls_group_id, welcomer, delete_events FROM joined WHERE gift_wrap = ?1",
                params![gift_wrap.as_bytes()],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .optional()
            .map_err(StoreError::from)?;
        let Some((group, welcomer, ids)) = row else {
            return Ok(None);
        };
        let id = rows::group_id(group)?;
        Ok(Some(Joined {
            group: self.group_info(&id)?,
            id,
            welcomer: rows::npub(&welcomer)?,
            delete_events: ids
                .chunks(32)
                .map(rows::event_id)
                .collect::<Result<_, _>>()?,
        }))
    }
}

fn parse(message: &[u8]) -> Result<Welcome, WelcomeError> {
    let message =
        MlsMessageIn::tls_deserialize_exact_bytes(message).map_err(|_| WelcomeError::Malformed)?;
    match message.extract() {
        MlsMessageBodyIn::Welcome(welcome) => Ok(welcome),
        _ => Err(WelcomeError::Malformed),
    }
}

type JoinedRow = (MlsGroupId, PublicKey, Vec<EventId>);

fn join(
    work: &mut Work<'_>,
    gift_wrap: EventId,
    unwrapped: &UnwrappedWelcome,
    welcome: Welcome,
    decide: impl FnOnce(&Invitation<'_>) -> Decision,
    now: UnixMs,
) -> Result<JoinedRow, Halt> {
    let references: Vec<_> = welcome
        .secrets()
        .iter()
        .map(openmls::prelude::EncryptedGroupSecrets::new_member)
        .collect();
    // Lifetimes of other leaves are not judged here: a member who slept for three months must not keep
    // everybody else from joining. Who may be in the group is decided by the roster.
    let staged = StagedWelcome::build_from_welcome(
        &work.provider,
        &join_config(MIXED_CIPHERTEXT_WIRE_FORMAT_POLICY),
        welcome,
    )
    .map_err(MlsError::at("Welcome"))?
    .skip_lifetime_validation()
    .replace_old_group()
    .build()
    .map_err(MlsError::at("Welcome"))?;
    let id = MlsGroupId::from_bytes(staged.group_context().group_id().as_slice())
        .map_err(|_| WelcomeError::Malformed)?;
    let data =
        rules::group_data(staged.group_context().extensions()).map_err(WelcomeError::GroupData)?;
    let members = staged
        .members()
        .map(|member| leaf_of(&member).ok_or(WelcomeError::Malformed))
        .collect::<Result<Vec<_>, _>>()?;
    if !members.iter().any(|leaf| data.admins.contains(&leaf.npub)) {
        return Err(WelcomeError::GroupData(GroupDataError::Admins).into());
    }
    let signer = staged.welcome_sender_index().u32();
    let welcomer = unwrapped.welcomer;
    if !members
        .iter()
        .any(|leaf| leaf.index == signer && leaf.npub == welcomer)
    {
        return Err(WelcomeError::NotTheSigner(welcomer).into());
    }
    let served = rows::group(work.db, &id)?;
    let decision = decide(&Invitation {
        welcomer,
        mls_group_id: &id,
        nostr_group_id: data.nostr_group_id,
        name: &data.name,
        members: &members,
        served: served.is_some(),
    });
    match (decision, served.is_some()) {
        (Decision::Refuse, _) => {
            return Err(Halt::Outcome(Box::new(WelcomeOutcome::Refused {
                welcomer,
                group: id,
            })));
        }
        (Decision::Join, true) => {
            return Err(Halt::Outcome(Box::new(WelcomeOutcome::AlreadyServed {
                welcomer,
                group: id,
            })));
        }
        (Decision::Join, false) => {}
        (Decision::Replace, _) => {
            work.forget(&id);
            snapshot::erase(work.db, &group_key(&id)?).map_err(StoreError::from)?;
            rows::delete_group(work.db, &id)?;
        }
    }
    if let Some(other) = rows::by_address(work.db, &data.nostr_group_id)? {
        return Err(WelcomeError::AddressTaken(other).into());
    }
    let mls = staged
        .into_group(&work.provider)
        .map_err(MlsError::at("joining"))?;
    leaves(&mls)?;
    rows::insert_group(
        work.db,
        &GroupRow {
            id: id.clone(),
            nostr_group_id: data.nostr_group_id,
            epoch: mls.epoch().as_u64(),
            evicted: false,
            frozen: None,
            welcomer: Some(welcomer),
            self_update_epoch: None,
            rival_epoch: None,
            joined_at: now,
        },
    )?;
    enter(work, &id, &mls).map_err(entering)?;
    work.keep(&id, mls);

    let mut delete_events = vec![gift_wrap];
    for reference in &references {
        // OpenMLS keeps a last-resort key package for the next Welcome; here it goes as well.
        work.provider
            .storage()
            .delete_key_package(reference)
            .map_err(StoreError::from)?;
        delete_events.extend(keypackage::take_events(work.db, reference.as_slice())?);
    }
    remember(work.db, &gift_wrap, unwrapped, &id, &delete_events)?;
    events::mark_seen(work.db, &gift_wrap)?;
    Ok((id, welcomer, delete_events))
}

fn entering(error: CommitError) -> WelcomeError {
    match error {
        CommitError::GroupData(error) => WelcomeError::GroupData(error),
        CommitError::Mls(error) => WelcomeError::Mls(error),
        CommitError::Store(error) => WelcomeError::Store(error),
        _ => WelcomeError::Malformed,
    }
}

fn remember(
    db: &Connection,
    gift_wrap: &EventId,
    unwrapped: &UnwrappedWelcome,
    id: &MlsGroupId,
    delete_events: &[EventId],
) -> Result<(), StoreError> {
    let ids: Vec<u8> = delete_events.iter().flat_map(|id| *id.as_bytes()).collect();
    db.execute(
        "INSERT INTO joined (gift_wrap, rumor, mls_group_id, welcomer, delete_events) \
         VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            gift_wrap.as_bytes(),
            unwrapped.rumor_id.as_bytes(),
            id.as_bytes(),
            unwrapped.welcomer.as_bytes(),
            ids,
        ],
    )?;
    Ok(())
}
