//! The inbox of an instance that stands by.
//!
//! It opens every request and ack, since nobody can open them later, and keeps them in case the instance that acts dies with them. What must
//! always hold: a row goes when it has been dealt with (its effect is in the store, or its sender was answered) or is too old ([`KEPT`]); no leaf
//! has more than [`PER_LEAF`] rows for long; and neither taking in events nor taking over waits for the store because of rows that wait here.

use std::time::Duration;

use keyturn_proto::inner::InnerKind;
use keyturn_proto::{Npub, RotateAck, UnixMs};
use keyturn_store::documents::{RotationDoc, RotationState};
use keyturn_store::store::{Asked, Decided};

use super::Core;
use crate::admission::hints;
use crate::delivery::inbox::Waiting;
use crate::delivery::service_member::ServiceError;
use crate::rotation::repeat::is_reserved;

/// A proof lives five minutes at most (protocol.md §6.2): nothing that was asked for longer ago than this is begun.
pub(super) const OLDEST: Duration = Duration::from_secs(600);
/// How long a row waits where nobody may act: whoever acts refuses what is older than [`OLDEST`] aloud, and has had as long again to do so.
pub(super) const KEPT: Duration = Duration::from_secs(1200);
/// Rows looked at together, with one look into the store.
const PAGE: u32 = 256;
/// How often the store is asked about the rows.
pub(super) const EVERY: Duration = Duration::from_secs(30);
/// Waiting rows of one leaf: more than an admin sends until somebody acts, and little enough to be looked at. Beyond it the oldest go; whoever acts has
/// most likely dealt with them.
pub(super) const PER_LEAF: u32 = 64;

impl Core {
    /// Deletes the rows that have been dealt with, as the store says. Beside the intake, for as long as the store takes.
    pub(super) async fn prune(&self) {
        if let Err(error) = self.prune_rows(Look::Store).await {
            tracing::warn!(%error, "the inbox could not be pruned");
        }
    }

    /// Before this instance acts: deletes what is answered, and asks nobody. The store is asked about each of the others when it is worked off; what has
    /// waited too long is refused then, with a record and an answer.
    pub(super) async fn prune_before_acting(&self) {
        if let Err(error) = self.prune_rows(Look::Here).await {
            tracing::warn!(%error, "the inbox could not be pruned");
        }
    }

    /// Keeps any one leaf from filling the inbox.
    pub(super) async fn trim(&self) {
        if let Err(error) = self.service.trim_inbox(PER_LEAF).await {
            tracing::warn!(%error, "the inbox could not be trimmed");
        }
    }

    async fn prune_rows(&self, look: Look) -> Result<(), ServiceError> {
        let mut after = 0;
        loop {
            let waiting = self.service.inbox(after, PAGE).await?;
            let last = waiting.len() < PAGE as usize;
            after = waiting.last().map_or(after, |row| row.row);
            let now = self.engine.now();
            let (gone, open): (Vec<Waiting>, Vec<Waiting>) = waiting
                .into_iter()
                .partition(|row| self.is_of_no_use(row, look, now));
            for row in gone {
                self.service.done(row.row).await?;
            }
            if look == Look::Store && !open.is_empty() {
                let asked: Vec<Asked> = open.iter().map(asked).collect();
                let decided = self.engine.decided(&asked).await?;
                for (row, decided) in open.iter().zip(&decided) {
                    if is_dealt_with(row, decided) {
                        self.service.done(row.row).await?;
                    }
                }
            }
            if last {
                return Ok(());
            }
        }
    }

    fn is_of_no_use(&self, row: &Waiting, look: Look, now: UnixMs) -> bool {
        let opened = &row.opened;
        let too_old = look == Look::Store && now.since(opened.received_at) > KEPT;
        too_old || self.service.was_answered(opened)
    }
}

/// Who is asked what has become of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Here,
    Store,
}

fn ack(row: &Waiting) -> Option<RotateAck> {
    serde_json::from_str(&row.opened.json).ok()
}

fn asked(row: &Waiting) -> Asked {
    Asked {
        event_id: row.opened.event_id.clone(),
        operation: match row.kind {
            InnerKind::Ack => ack(row).map(|ack| ack.rotation_id),
            _ => hints(&row.opened).0,
        },
    }
}

/// Whether nothing is left to do. What took effect or was refused, but was not answered yet, waits for that: its sender is told by whoever lives. (How a
/// rotation goes on and ends is told from the store.)
fn is_dealt_with(row: &Waiting, decided: &Decided) -> bool {
    if row.kind != InnerKind::Ack {
        return is_reserved(&row.opened, &decided.known);
    }
    match (ack(row), &decided.known.rotation) {
        (Some(ack), Some(rotation)) => has_no_use_for(rotation, row.opened.sender, &ack),
        _ => false,
    }
}

/// Whether this ack changes nothing any more.
fn has_no_use_for(rotation: &RotationDoc, sender: Npub, ack: &RotateAck) -> bool {
    let recorded = rotation
        .quorum
        .acks
        .iter()
        .any(|known| known.npub == sender && (known.proven || ack.proof.is_none()));
    let other = rotation
        .new_version
        .is_some_and(|new| new != ack.version_id);
    rotation.state == RotationState::Done || recorded || other
}
