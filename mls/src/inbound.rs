//! Receiving: what comes in, what is kept for later, what the caller is told.
//!
//! What must hold: each event is one transaction (`opening`), in which the MLS state change and
//! the inbox row go together; what fails or is deferred leaves the MLS state as it was; plaintext is never
//! stored here. A relay may reverse the order of events, so what cannot be opened is kept and tried again
//! after every epoch change and every stored proposal.

use nostr::{Event, EventId};
use openmls::prelude::ContentType;

use crate::error::{ReceiveError, StoreError};
use crate::ids::MlsGroupId;
use crate::member::Member;
use crate::message::{AppMessage, DeferredMessage, Disposition, Inbound};
use crate::opening::{Halt, open, unframe};
use crate::settle::{Receipt, suspect};
use crate::storage::events::{self, Held};
use crate::storage::rows::{self, Freeze};
use crate::storage::work::Work;
use crate::wire::group_event::VerifiedGroupEvent;

/// Asked for every application message.
pub type Decide<'d> = &'d mut dyn FnMut(&AppMessage) -> Disposition;

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
        let mut out = self.receive_kept(decide)?;
        if events::is_seen(&self.db, &event.id)? || events::is_held(&self.db, &event.id)? {
            out.push(Inbound::Duplicate { event_id: event.id });
            return Ok(out);
        }
        let verified = match VerifiedGroupEvent::verify(event) {
            Ok(verified) => verified,
            Err(reason) => {
                out.push(Inbound::Invalid {
                    event_id: event.id,
                    reason: reason.into(),
                });
                return Ok(out);
            }
        };
        let address = verified.group();
        let Some(group) = rows::by_address(&self.db, &address)? else {
            out.push(Inbound::UnknownGroup { address });
            return Ok(out);
        };
        let held = Held {
            event: event.clone(),
            group: group.clone(),
            received_at: receipt.at,
            stored: receipt.stored,
            deferred: None,
        };
        if self.take_in(&held, &verified, decide, &mut out)? {
            self.moved.insert(group);
            out.extend(self.receive_kept(decide)?);
        }
        Ok(out)
    }

    /// Tries the events that were kept, in groups that moved on since. `receive` does it as well; call this
    /// after `commit_published` and after a start, so as not to wait for the next event.
    pub fn receive_kept(&mut self, decide: Decide<'_>) -> Result<Vec<Inbound>, ReceiveError> {
        let mut out = Vec::new();
        while let Some(group) = self.moved.first().cloned() {
            self.retry(&group, decide, &mut out)?;
            self.moved.remove(&group);
        }
        Ok(out)
    }

    /// Whether `event` is an application message of an epoch we have keys for, judged from its outer layer
    /// alone: nothing is opened, nothing changes. Whatever may change the group (a commit, a proposal, an
    /// event we cannot place) is `false`, so that a caller can let it wait until the relay has stored it.
    pub fn is_application(&self, event: &Event) -> Result<bool, StoreError> {
        let Ok(verified) = VerifiedGroupEvent::verify(event) else {
            return Ok(false);
        };
        let Some(group) = rows::by_address(&self.db, &verified.group())? else {
            return Ok(false);
        };
        let message = unframe(&self.db, &group, &verified)?.and_then(|(_, message)| message);
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
        let limits = self.me.held;
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
                self.transact(|work| events::hold(work.db, &deferred, limits))?;
                out.push(Inbound::Deferred(message));
            }
            Halt::Keep { suspicious } => {
                let (frozen, gave_way) = self.transact(|work| {
                    // Tried again and still closed: nothing new was learnt.
                    if events::is_held(work.db, &id)? {
                        return Ok((false, 0));
                    }
                    let gave_way = events::hold(work.db, held, limits)?;
                    Ok::<_, StoreError>((freeze(work, group, suspicious)?, gave_way))
                })?;
                out.push(Inbound::Kept {
                    event_id: id,
                    group: group.clone(),
                    gave_way,
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
