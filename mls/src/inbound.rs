//! Receiving: unverified event → verified event → opened frame → application message, proposal or commit.
//!
//! What must hold: each event is one transaction, in which the MLS state change and the inbox row go
//! together; what fails or is deferred leaves the MLS state as it was; plaintext is never stored here.
//! A relay may reverse the order of events, so what cannot be opened is kept and tried again after every
//! epoch change and every stored proposal.

use nostr::{Event, EventId};
use openmls::group::{MlsGroup, ProcessMessageError, StageCommitError};
use openmls::prelude::{
    ContentType, MlsMessageIn, ProcessedMessageContent, Proposal, ProtocolMessage, Sender,
};
use openmls_traits::OpenMlsProvider as _;
use tls_codec::DeserializeBytes as _;
use zeroize::Zeroizing;

use crate::commit::load;
use crate::error::{ReceiveError, StoreError};
use crate::ids::MlsGroupId;
use crate::member::Member;
use crate::message::{AppMessage, DeferredMessage, Disposition, Inbound, Invalid};
use crate::settle::{Receipt, suspect, vindicate};
use crate::storage::events::{self, DeferredInfo, Held, InboxRow};
use crate::storage::rows::{self, Freeze, GroupRow};
use crate::storage::work::Work;
use crate::wire::group_event::VerifiedGroupEvent;
use crate::wire::rumor;
use crate::{follow, rules::CommitRefusal};

/// Asked for every application message.
pub type Decide<'d> = &'d mut dyn FnMut(&AppMessage) -> Disposition;

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

impl Member {
    /// Takes in a 445 event. `decide` is asked about every application message that opens, this event's or
    /// one that waited for it; it runs inside the transaction. Bad events are answered, never an error.
    pub fn receive(
        &mut self,
        event: &Event,
        receipt: Receipt,
        decide: Decide<'_>,
    ) -> Result<Vec<Inbound>, ReceiveError> {
        self.settle(receipt.at)?;
        if events::is_seen(&self.db, &event.id)? || events::is_held(&self.db, &event.id)? {
            return Ok(vec![Inbound::Duplicate { event_id: event.id }]);
        }
        let verified = match VerifiedGroupEvent::verify(event) {
            Ok(verified) => verified,
            Err(reason) => {
                return Ok(vec![Inbound::Invalid {
                    event_id: event.id,
                    reason: reason.into(),
                }]);
            }
        };
        let address = verified.group();
        let Some(group) = rows::by_address(&self.db, &address)? else {
            return Ok(vec![Inbound::UnknownGroup { address }]);
        };
        let mut out = Vec::new();
        let held = Held {
            event: event.clone(),
            group: group.clone(),
            received_at: receipt.at,
            stored: receipt.stored,
            deferred: None,
        };
        if self.take_in(&held, &verified, decide, &mut out)? {
            self.retry(&group, decide, &mut out)?;
        }
        Ok(out)
    }

    /// Whether `event` is an application message of an epoch we have keys for, judged from its outer layer alone: nothing is opened, nothing
    /// changes. Whatever may change the group (a commit, a proposal, an event we cannot place) is `false`, so that a caller can let it wait
    /// until the relay has stored it.
    pub fn is_application(&self, event: &Event) -> Result<bool, StoreError> {
        let Ok(verified) = VerifiedGroupEvent::verify(event) else {
            return Ok(false);
        };
        let Some(group) = rows::by_address(&self.db, &verified.group())? else {
            return Ok(false);
        };
        let exporters = rows::exporters(&self.db, &group)?;
        let frame = exporters
            .iter()
            .find_map(|(_, secret)| Some(Zeroizing::new(verified.open(secret)?)));
        let message = frame.and_then(|bytes| {
            MlsMessageIn::tls_deserialize_exact_bytes(&bytes)
                .ok()?
                .try_into_protocol_message()
                .ok()
        });
        Ok(message.is_some_and(|message| message.content_type() == ContentType::Application))
    }

    /// Messages that were deferred, oldest first.
    pub fn deferred(&self, group: &MlsGroupId) -> Result<Vec<DeferredMessage>, StoreError> {
        Ok(events::held(&self.db, group, true)?
            .into_iter()
            .filter_map(|held| {
                held.deferred.map(|info| DeferredMessage {
                    event_id: held.event.id,
                    group: held.group,
                    sender: info.sender,
                    epoch: info.epoch,
                    received_at: held.received_at,
                    label: info.label,
                })
            })
            .collect())
    }

    /// Opens a deferred message now; `decide` is asked again. `None`: nothing is deferred under this id.
    pub fn receive_deferred(
        &mut self,
        event: EventId,
        decide: Decide<'_>,
    ) -> Result<Option<Inbound>, ReceiveError> {
        let Some(held) =
            events::held_event(&self.db, &event)?.filter(|held| held.deferred.is_some())
        else {
            return Ok(None);
        };
        let Ok(verified) = VerifiedGroupEvent::verify(&held.event) else {
            return Err(StoreError::Corrupt("held.event").into());
        };
        let mut out = Vec::new();
        self.take_in(&held, &verified, decide, &mut out)?;
        Ok(out.into_iter().next())
    }

    /// Forgets a deferred message without opening it.
    pub fn discard_deferred(&mut self, event: EventId) -> Result<bool, StoreError> {
        self.transact(|work| {
            let there =
                events::held_event(work.db, &event)?.is_some_and(|held| held.deferred.is_some());
            if there {
                events::unhold(work.db, &event)?;
                events::mark_seen(work.db, &event)?;
            }
            Ok(there)
        })
    }

    /// Tries what was kept, until nothing more opens.
    fn retry(
        &mut self,
        group: &MlsGroupId,
        decide: Decide<'_>,
        out: &mut Vec<Inbound>,
    ) -> Result<(), ReceiveError> {
        loop {
            let mut moved = false;
            for held in events::held(&self.db, group, false)? {
                let Ok(verified) = VerifiedGroupEvent::verify(&held.event) else {
                    return Err(StoreError::Corrupt("held.event").into());
                };
                let before = out.len();
                moved |= self.take_in(&held, &verified, decide, out)?;
                // Still closed: that was said when it came.
                if let Some(Inbound::Kept { .. }) = out.get(before) {
                    out.truncate(before);
                }
            }
            if !moved {
                return Ok(());
            }
        }
    }

    /// One event, one transaction (or, if that is undone, another that notes why). `true` if others may be
    /// openable now.
    fn take_in(
        &mut self,
        held: &Held,
        event: &VerifiedGroupEvent,
        decide: Decide<'_>,
        out: &mut Vec<Inbound>,
    ) -> Result<bool, ReceiveError> {
        let group = &held.group;
        let id = held.event.id;
        let opened = self.transact(|work| {
            let opened = open(work, held, event, decide)?;
            events::mark_seen(work.db, &id)?;
            events::unhold(work.db, &id)?;
            Ok::<_, Halt>(opened)
        });
        let halt = match opened {
            Ok(opened) => {
                out.push(opened.inbound);
                if opened.thawed {
                    out.push(Inbound::Thawed {
                        group: group.clone(),
                    });
                }
                return Ok(opened.moved);
            }
            Err(halt) => halt,
        };
        let limit = self.me.max_held;
        let drop_event = |work: &mut Work<'_>| {
            events::mark_seen(work.db, &id)?;
            events::unhold(work.db, &id)
        };
        match halt {
            Halt::Error(error) => return Err(*error),
            Halt::Drop(inbound) => {
                self.transact(drop_event)?;
                out.push(*inbound);
            }
            Halt::Refuse(inbound, rival) => {
                self.transact(|work| {
                    if let Some(epoch) = rival {
                        suspect(work.db, group, epoch)?;
                    }
                    drop_event(work)
                })?;
                tracing::warn!(%group, event = %id, ?inbound, "commit refused");
                out.push(*inbound);
            }
            Halt::Defer(info) => {
                let message = DeferredMessage {
                    event_id: id,
                    group: group.clone(),
                    sender: info.sender,
                    epoch: info.epoch,
                    received_at: held.received_at,
                    label: info.label.clone(),
                };
                let deferred = Held {
                    event: held.event.clone(),
                    group: group.clone(),
                    received_at: held.received_at,
                    stored: held.stored,
                    deferred: Some(*info),
                };
                self.transact(|work| events::hold(work.db, &deferred, limit))?;
                out.push(Inbound::Deferred(message));
            }
            Halt::Keep { suspicious } => {
                let frozen = self.transact(|work| {
                    events::hold(work.db, held, limit)?;
                    freeze(work, group, suspicious)
                })?;
                out.push(Inbound::Kept {
                    event_id: id,
                    group: group.clone(),
                });
                if frozen {
                    tracing::error!(%group, "peers follow another branch: group frozen");
                    out.push(Inbound::Frozen {
                        group: group.clone(),
                    });
                }
            }
        }
        Ok(false)
    }
}

/// An event that fits none of our keys, after a commit was refused that peers may have followed.
fn freeze(work: &Work<'_>, group: &MlsGroupId, suspicious: bool) -> Result<bool, StoreError> {
    let row = rows::group(work.db, group)?.ok_or(StoreError::Corrupt("held without a group"))?;
    let freezes = suspicious && row.rival_epoch.is_some() && row.frozen.is_none();
    if freezes {
        rows::set_frozen(work.db, group, Some(Freeze::Forked))?;
    }
    Ok(freezes)
}

fn invalid(held: &Held, reason: Invalid) -> Halt {
    Halt::Drop(Box::new(Inbound::Invalid {
        event_id: held.event.id,
        reason,
    }))
}

/// Opens the outer layer and hands over by content type.
fn open(
    work: &mut Work<'_>,
    held: &Held,
    event: &VerifiedGroupEvent,
    decide: Decide<'_>,
) -> Result<Opened, Halt> {
    let row = rows::group(work.db, &held.group)?
        .ok_or(StoreError::Corrupt("an address without a group"))?;
    if let Some(own) = events::pending_by_event(work.db, &held.event.id)? {
        return follow::own(work, &row, held, &own);
    }
    if row.evicted {
        return Err(invalid(held, Invalid::Evicted));
    }
    let frame = rows::exporters(work.db, &row.id)?
        .iter()
        .find_map(|(epoch, secret)| Some((*epoch, Zeroizing::new(event.open(secret)?))));
    let Some((epoch, bytes)) = frame else {
        return Err(Halt::Keep { suspicious: true });
    };
    let message = MlsMessageIn::tls_deserialize_exact_bytes(&bytes)
        .ok()
        .and_then(|message| message.try_into_protocol_message().ok())
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
