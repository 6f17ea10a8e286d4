//! Opening one event: outer layer → MLSMessage → application message, proposal or commit.
//!
//! What must hold: whatever is not fully accepted leaves by [`Halt`], which undoes the transaction.

use openmls::group::{MlsGroup, ProcessMessageError, StageCommitError};
use openmls::prelude::{
    ContentType, MlsMessageIn, ProcessedMessageContent, Proposal, ProtocolMessage, Sender,
};
use openmls_traits::OpenMlsProvider as _;
use rusqlite::Connection;
use tls_codec::DeserializeBytes as _;
use zeroize::Zeroizing;

use crate::error::{ReceiveError, StoreError};
use crate::follow;
use crate::ids::MlsGroupId;
use crate::inbound::Decide;
use crate::merge::load;
use crate::message::{AppMessage, Disposition, Inbound, Invalid};
use crate::rules::CommitRefusal;
use crate::settle::vindicate;
use crate::storage::events::{self, DeferredInfo, Held, InboxRow};
use crate::storage::outbox;
use crate::storage::rows::{self, GroupRow};
use crate::storage::work::Work;
use crate::wire::group_event::VerifiedGroupEvent;
use crate::wire::rumor;

/// Why the transaction of an event is undone.
pub(crate) enum Halt {
    /// The event is worth nothing: remember its id, change nothing else.
    Drop(Box<Inbound>),
    /// A refused commit; `Some(epoch)` if peers may follow it.
    Refuse(Box<Inbound>, Option<u64>),
    /// Not openable yet. `suspicious`: none of our keys fits.
    Keep { suspicious: bool },
    /// The caller does not want it now.
    Defer(Box<DeferredInfo>),
    /// Our own failure.
    Error(Box<ReceiveError>),
}

impl<E: Into<ReceiveError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Error(Box::new(error.into()))
    }
}

/// What an opened event led to.
pub(crate) struct Opened {
    pub(crate) inbound: Inbound,
    /// Others may be openable now.
    pub(crate) moved: bool,
    pub(crate) thawed: bool,
}

fn invalid(held: &Held, reason: Invalid) -> Halt {
    Halt::Drop(Box::new(Inbound::Invalid {
        event_id: held.event.id,
        reason,
    }))
}

/// Opens the outer layer with the keys of the epochs we remember: the epoch whose key fits, and the
/// MLSMessage inside, if it is one. `None`: no key fits.
pub(crate) fn unframe(
    db: &Connection,
    group: &MlsGroupId,
    event: &VerifiedGroupEvent,
) -> Result<Option<(u64, Option<ProtocolMessage>)>, StoreError> {
    let frame = rows::exporters(db, group)?
        .iter()
        .find_map(|(epoch, secret)| Some((*epoch, Zeroizing::new(event.open(secret)?))));
    Ok(frame.map(|(epoch, bytes)| {
        let message = MlsMessageIn::tls_deserialize_exact_bytes(&bytes)
            .ok()
            .and_then(|message| message.try_into_protocol_message().ok());
        (epoch, message)
    }))
}

/// Opens the outer layer and hands over by content type.
pub(crate) fn open(
    work: &mut Work<'_>,
    held: &Held,
    event: &VerifiedGroupEvent,
    decide: Decide<'_>,
) -> Result<Opened, Halt> {
    let row = rows::group(work.db, &held.group)?
        .ok_or(StoreError::Corrupt("an address without a group"))?;
    if let Some(own) = outbox::pending_by_event(work.db, &held.event.id)? {
        return follow::own(work, &row, held, &own);
    }
    if row.evicted {
        return Err(invalid(held, Invalid::Evicted));
    }
    let Some((epoch, message)) = unframe(work.db, &row.id, event)? else {
        return Err(Halt::Keep { suspicious: true });
    };
    let message = message
        .filter(|message| {
            message.group_id().as_slice() == row.id.as_bytes() && message.epoch().as_u64() == epoch
        })
        .ok_or_else(|| invalid(held, Invalid::Mls))?;
    match message.content_type() {
        ContentType::Application => application(work, &row, held, message, decide),
        ContentType::Proposal if epoch == row.epoch => proposal(work, &row, held, message),
        ContentType::Proposal => Err(invalid(held, Invalid::Proposal)),
        ContentType::Commit => follow::theirs(work, &row, held, message),
    }
}

/// Lets OpenMLS authenticate a message. A commit whose proposal has not arrived yet is kept.
pub(crate) fn process(
    work: &Work<'_>,
    mls: &mut MlsGroup,
    held: &Held,
    message: ProtocolMessage,
) -> Result<(Sender, ProcessedMessageContent), Halt> {
    let commit = message.content_type() == ContentType::Commit;
    match mls.process_message(&work.provider, message) {
        Ok(processed) => Ok((processed.sender().clone(), processed.into_content())),
        Err(ProcessMessageError::StorageError(error)) => Err(StoreError::from(error).into()),
        Err(ProcessMessageError::InvalidCommit(StageCommitError::MissingProposal)) => {
            Err(Halt::Keep { suspicious: false })
        }
        Err(error) => {
            tracing::debug!(group = %held.group, event = %held.event.id, %error, "refused by MLS");
            Err(if commit {
                refused(held, CommitRefusal::Invalid, None)
            } else {
                invalid(held, Invalid::Unauthentic)
            })
        }
    }
}

pub(crate) fn refused(held: &Held, reason: CommitRefusal, rival: Option<u64>) -> Halt {
    Halt::Refuse(
        Box::new(Inbound::CommitRefused {
            event_id: held.event.id,
            group: held.group.clone(),
            reason,
            peers_may_follow: rival.is_some(),
        }),
        rival,
    )
}

fn application(
    work: &mut Work<'_>,
    row: &GroupRow,
    held: &Held,
    message: ProtocolMessage,
    decide: Decide<'_>,
) -> Result<Opened, Halt> {
    let epoch = message.epoch().as_u64();
    let mut mls = load(work, &row.id)?;
    let (sender, content) = process(work, &mut mls, held, message)?;
    let bytes = match content {
        ProcessedMessageContent::ApplicationMessage(message) => {
            Zeroizing::new(message.into_bytes())
        }
        ProcessedMessageContent::OwnPrivateMessage => {
            work.keep(&row.id, mls);
            return Ok(unmoved(Inbound::Duplicate {
                event_id: held.event.id,
            }));
        }
        _ => return Err(invalid(held, Invalid::Mls)),
    };
    let Sender::Member(index) = sender else {
        return Err(invalid(held, Invalid::Unauthentic));
    };
    let leaf = rows::roster(work.db, &row.id, epoch)?
        .and_then(|leaves| leaves.into_iter().find(|leaf| leaf.index == index.u32()))
        .ok_or(StoreError::Corrupt("a sender who is not in the roster"))?;
    let still_member = rows::roster(work.db, &row.id, row.epoch)?
        .unwrap_or_default()
        .iter()
        .any(|now| now.npub == leaf.npub && now.signature_key == leaf.signature_key);
    let thawed = vindicate(work.db, row, epoch)?;
    work.keep(&row.id, mls);
    let (rumor, body) = match rumor::read(bytes, &leaf.npub) {
        Ok(rumor::Opened { rumor, body }) => (rumor, body),
        // Authentic, and of no use: its key is consumed like any other's.
        Err(reason) => {
            return Ok(Opened {
                inbound: Inbound::Invalid {
                    event_id: held.event.id,
                    reason: reason.into(),
                },
                moved: false,
                thawed,
            });
        }
    };
    let message = AppMessage {
        group: row.id.clone(),
        event_id: held.event.id,
        sender: leaf.npub,
        signature_key: leaf.signature_key,
        still_member,
        epoch,
        received_at: held.received_at,
        rumor,
        body,
    };
    let inbox = match decide(&message) {
        Disposition::Consume => None,
        Disposition::Inbox(body) => Some(events::put_inbox(
            work.db,
            &InboxRow {
                id: 0,
                group: row.id.clone(),
                event_id: held.event.id,
                sender: leaf.npub,
                signature_key: leaf.signature_key,
                epoch,
                received_at: held.received_at,
                body: Zeroizing::new(body),
            },
        )?),
        Disposition::Defer { label } => {
            return Err(Halt::Defer(Box::new(DeferredInfo {
                sender: leaf.npub,
                epoch,
                label,
            })));
        }
    };
    Ok(Opened {
        inbound: Inbound::Message {
            event_id: held.event.id,
            group: row.id.clone(),
            sender: leaf.npub,
            epoch,
            inbox,
        },
        moved: false,
        thawed,
    })
}

fn proposal(
    work: &mut Work<'_>,
    row: &GroupRow,
    held: &Held,
    message: ProtocolMessage,
) -> Result<Opened, Halt> {
    let mut mls = load(work, &row.id)?;
    let (sender, content) = process(work, &mut mls, held, message)?;
    let ProcessedMessageContent::ProposalMessage(queued) = content else {
        return Err(invalid(held, Invalid::Proposal));
    };
    let (Proposal::SelfRemove, Sender::Member(index)) = (queued.proposal(), &sender) else {
        return Err(invalid(held, Invalid::Proposal));
    };
    let leaf = rows::roster(work.db, &row.id, row.epoch)?
        .and_then(|leaves| leaves.into_iter().find(|leaf| leaf.index == index.u32()))
        .ok_or(StoreError::Corrupt("a sender who is not in the roster"))?;
    mls.store_pending_proposal(work.provider.storage(), *queued)
        .map_err(StoreError::from)?;
    work.keep(&row.id, mls);
    let thawed = vindicate(work.db, row, row.epoch)?;
    Ok(Opened {
        inbound: Inbound::SelfRemove {
            group: row.id.clone(),
            leaf,
        },
        moved: true,
        thawed,
    })
}

fn unmoved(inbound: Inbound) -> Opened {
    Opened {
        inbound,
        moved: false,
        thawed: false,
    }
}
