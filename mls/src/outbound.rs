//! Sealing: a payload becomes a 445 event that we ourselves cannot open again.
//!
//! What must hold before anything is sealed: the group is not frozen, its epoch is settled (so nothing is
//! kept that could undo it), no commit of ours waits, our leaf is one of our own making. Afterwards the
//! database file and its log hold only the advanced ratchet: [`Member::scrub`].

use nostr::{Event, EventId};
use openmls::group::QueuedProposal;
use openmls_traits::OpenMlsProvider as _;
use tls_codec::Serialize as _;
use zeroize::Zeroizing;

use crate::error::{MlsError, SealError, StoreError};
use crate::ids::{MlsGroupId, UnixMs, timestamp};
use crate::member::Member;
use crate::merge::load;
use crate::settle::{needs_self_update, settle_due};
use crate::stage::current_exporter;
use crate::storage::rows::{self, Freeze, GroupRow};
use crate::storage::work::Work;
use crate::storage::{commits, events, outbox};
use crate::wire::group_event;
use crate::wire::rumor::{self, Payload};

/// A sealed message.
#[derive(Clone, Debug)]
pub struct SealedMessage {
    /// The event to publish, or to keep: ciphertext.
    pub event: Event,
    /// The id of the rumor inside.
    pub rumor_id: EventId,
    /// The epoch it was sealed in.
    pub epoch: u64,
}

impl Member {
    /// Seals `payload` for the group's current members. A crash afterwards costs a ratchet generation and
    /// nothing else.
    pub fn seal(
        &mut self,
        group: &MlsGroupId,
        payload: Payload,
        now: UnixMs,
    ) -> Result<SealedMessage, SealError> {
        // Durable with the checkpoint below, before anything leaves; until then losing it is as if nothing had been sealed.
        let sealed = self.transact_lazily(|work| {
            settle_due(work, now)?;
            let row = rows::group(work.db, group)?
                .ok_or_else(|| SealError::UnknownGroup(group.clone()))?;
            ready(work, &row)?;
            seal(work, &row, &payload, now)
        })?;
        drop(payload);
        self.scrub()?;
        Ok(sealed)
    }

    /// Whether [`Self::seal`] would be refused now, and why.
    pub fn can_seal(&mut self, group: &MlsGroupId, now: UnixMs) -> Result<(), SealError> {
        self.transact(|work| {
            settle_due(work, now)?;
            let row = rows::group(work.db, group)?
                .ok_or_else(|| SealError::UnknownGroup(group.clone()))?;
            ready(work, &row)
        })
    }

    /// Moves the write-ahead log into the database and truncates it, so that no older version of a page
    /// stays on disk. Freed pages are overwritten by `secure_delete`.
    pub fn scrub(&self) -> Result<(), StoreError> {
        let busy: i64 = self
            .db
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if busy == 0 {
            Ok(())
        } else {
            Err(StoreError::Corrupt(
                "the write-ahead log could not be truncated",
            ))
        }
    }
}

fn ready(work: &Work<'_>, row: &GroupRow) -> Result<(), SealError> {
    if row.evicted {
        return Err(SealError::Evicted(row.id.clone()));
    }
    match row.frozen {
        Some(Freeze::Forked) => return Err(SealError::Forked),
        Some(Freeze::AddressChanged) => return Err(SealError::AddressChanged),
        None => {}
    }
    if let Some(pending) = outbox::pending_of(work.db, &row.id)? {
        return Err(SealError::PendingCommit(pending.event.id));
    }
    let unsettled = commits::unsettled(work.db, &row.id)?;
    if let Some(settles_at) = unsettled.iter().map(|commit| commit.settles_at).max() {
        return Err(SealError::Unsettled { settles_at });
    }
    if needs_self_update(work.db, row)? {
        return Err(SealError::NeedsSelfUpdate);
    }
    Ok(())
}

fn seal(
    work: &mut Work<'_>,
    row: &GroupRow,
    payload: &Payload,
    now: UnixMs,
) -> Result<SealedMessage, SealError> {
    let (plaintext, rumor_id) = rumor::write(payload, &work.me.keys.public_key(), timestamp(now))?;
    let mut mls = load(work, &row.id)?;
    // OpenMLS refuses to send application data while proposals wait. A SelfRemove is not ours to commit,
    // so it steps aside and comes back, within this transaction.
    let waiting: Vec<QueuedProposal> = mls.pending_proposals().cloned().collect();
    for proposal in &waiting {
        mls.remove_pending_proposal(work.provider.storage(), proposal.proposal_reference_ref())
            .map_err(MlsError::at("queued proposal"))?;
    }
    let message = mls
        .create_message(&work.provider, &work.me.signer, &plaintext)
        .map_err(MlsError::at("application message"))?;
    drop::<Zeroizing<_>>(plaintext);
    for proposal in waiting {
        mls.store_pending_proposal(work.provider.storage(), proposal)
            .map_err(StoreError::from)?;
    }
    let message = message
        .tls_serialize_detached()
        .map_err(MlsError::at("application message encoding"))?;
    work.keep(&row.id, mls);
    let event = group_event::seal(
        &current_exporter(work, row)?,
        row.nostr_group_id,
        &message,
        timestamp(now),
    )?;
    // Our own event coming back is known by its id; MLS could not open it.
    events::mark_seen(work.db, &event.id)?;
    Ok(SealedMessage {
        event,
        rumor_id,
        epoch: row.epoch,
    })
}
