//! A client under change: its versions step through the table, and its pointers and snapshot are derived from them at the end, so that they
//! cannot disagree.

use keyturn_proto::{UnixMs, VersionId};

use super::table::{CLIENT, ClientEvent, ROTATION, RotationEvent, VERSION, VersionEvent};
use super::{Change, Family};
use crate::documents::{ClientDoc, RotationDoc, SnapshotEntry, VersionDoc, VersionState};
use crate::store::{Result, StoreError};

/// Work in progress on one client.
pub(super) struct Draft {
    pub(super) client: ClientDoc,
    slots: Vec<Slot>,
}

struct Slot {
    doc: VersionDoc,
    touched: bool,
    voided: bool,
}

pub(super) const fn conflict(why: &'static str) -> StoreError {
    StoreError::Conflict { why }
}

/// Whether a change under `fence` comes too late: somebody with a higher one has changed the client since.
///
/// # Errors
/// [`StoreError::Fenced`].
pub(super) fn check_fence(client: &ClientDoc, fence: u64) -> Result<()> {
    if fence < client.fence {
        Err(StoreError::Fenced)
    } else {
        Ok(())
    }
}

/// A family that is changed by an instance that holds the lease under `fence`.
///
/// # Errors
/// [`StoreError::Fenced`].
pub(super) fn fenced(fence: u64, mut family: Family) -> Result<Family> {
    check_fence(&family.client, fence)?;
    family.client.fence = fence;
    Ok(family)
}

impl Draft {
    /// A change by an instance that holds the lease under `fence`.
    ///
    /// # Errors
    /// As [`Draft::of`], and [`StoreError::Fenced`].
    pub(super) fn under(fence: u64, family: Family) -> Result<Self> {
        Self::of(fenced(fence, family)?)
    }

    /// A change by the operator, who needs no lease.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] unless the living versions are exactly those of the snapshot.
    pub(super) fn of(family: Family) -> Result<Self> {
        let Family { client, living } = family;
        if snapshot_of(&living) != client.snapshot {
            return Err(StoreError::Damaged { what: "client" });
        }
        let slots = living
            .into_iter()
            .map(|doc| Slot {
                doc,
                touched: false,
                voided: false,
            })
            .collect();
        Ok(Self { client, slots })
    }

    /// Adds a version that did not exist.
    pub(super) fn create(&mut self, mut doc: VersionDoc, event: VersionEvent) -> Result<()> {
        let state = VERSION
            .next(None, event)
            .flatten()
            .ok_or(conflict("version.state"))?;
        if doc.state != state || doc.client_id != self.client.client_id {
            return Err(conflict("version.mismatch"));
        }
        doc.state = state;
        self.slots.push(Slot {
            doc,
            touched: true,
            voided: false,
        });
        Ok(())
    }

    /// Steps one living version through the table. A version that dies is valid no longer than `now`.
    pub(super) fn step(
        &mut self,
        version: VersionId,
        event: VersionEvent,
        now: UnixMs,
    ) -> Result<()> {
        let slot = self
            .slots
            .iter_mut()
            .find(|slot| slot.doc.version_id == version && !slot.voided)
            .ok_or(conflict("version.dead"))?;
        let next = VERSION
            .next(Some(slot.doc.state), event)
            .ok_or(conflict("version.state"))?;
        slot.touched = true;
        let Some(state) = next else {
            slot.voided = true;
            return Ok(());
        };
        slot.doc.state = state;
        match state {
            VersionState::Current => slot.doc.not_after = None,
            VersionState::Retired | VersionState::Cancelled => {
                slot.doc.not_after = Some(slot.doc.not_after.map_or(now, |end| end.min(now)));
            }
            VersionState::Pending | VersionState::Grace => {}
        }
        Ok(())
    }

    /// The living version in `state`; the table keeps it to one.
    pub(super) fn in_state(&self, state: VersionState) -> Option<&VersionDoc> {
        self.slots
            .iter()
            .filter(|slot| !slot.voided)
            .map(|slot| &slot.doc)
            .find(|doc| doc.state == state)
    }

    /// Sets the end of a version that has just entered grace.
    pub(super) fn end_grace_at(&mut self, version: VersionId, end: UnixMs) {
        for slot in &mut self.slots {
            if slot.doc.version_id == version {
                slot.doc.not_after = Some(end);
            }
        }
    }

    /// Steps the client's status through the table.
    pub(super) fn status(&mut self, event: ClientEvent) -> Result<()> {
        self.client.status = CLIENT
            .next(Some(self.client.status), event)
            .flatten()
            .ok_or(conflict("client.status"))?;
        Ok(())
    }

    /// Steps a rotation through the table; when it ends, the client is free again.
    pub(super) fn rotation(
        &mut self,
        rotation: &mut RotationDoc,
        event: RotationEvent,
        now: UnixMs,
    ) -> Result<()> {
        rotation.state = ROTATION
            .next(Some(rotation.state), event)
            .flatten()
            .ok_or(conflict("rotation.state"))?;
        if let Some(outcome) = event.outcome() {
            rotation.outcome = Some(outcome);
            rotation.completed_at = Some(now);
            let ours = |active: &crate::documents::ActiveRotation| {
                active.rotation_id == rotation.rotation_id
            };
            if self.client.active_rotation.as_ref().is_some_and(ours) {
                self.client.active_rotation = None;
            }
        }
        Ok(())
    }

    /// The change set: touched versions, and the client with pointers and snapshot derived from all of them.
    pub(super) fn finish(self, now: UnixMs) -> (ClientDoc, Change) {
        let pointer = |state| self.in_state(state).map(|doc| doc.version_id);
        let (current, previous) = (pointer(VersionState::Current), pointer(VersionState::Grace));
        let mut client = self.client;
        let mut change = Change::default();
        let mut kept = Vec::with_capacity(self.slots.len());
        for slot in self.slots {
            if slot.voided {
                change.voided.push(slot.doc.version_id);
                continue;
            }
            if slot.touched {
                change.versions.push(slot.doc.clone());
            }
            kept.push(slot.doc);
        }
        client.current_version = current;
        client.previous_version = previous;
        client.snapshot = snapshot_of(&kept);
        client.updated_at = now;
        change.client = Some(client.clone());
        (client, change)
    }
}

/// The verify snapshot of these versions: the living ones, current first, then grace, then pending.
#[must_use]
pub fn snapshot_of(versions: &[VersionDoc]) -> Vec<SnapshotEntry> {
    let rank = |state: VersionState| match state {
        VersionState::Current => Some(0u8),
        VersionState::Grace => Some(1),
        VersionState::Pending => Some(2),
        VersionState::Retired | VersionState::Cancelled => None,
    };
    let mut living: Vec<(u8, &VersionDoc)> = versions
        .iter()
        .filter_map(|doc| rank(doc.state).map(|rank| (rank, doc)))
        .collect();
    living.sort_by_key(|(rank, doc)| (*rank, doc.version_id));
    living
        .into_iter()
        .map(|(_, doc)| SnapshotEntry {
            version_id: doc.version_id,
            state: doc.state,
            not_before: doc.not_before,
            not_after: doc.not_after,
            secret_hash: doc.secret_hash.clone(),
            mac_key_ref: doc.mac_key_ref.clone(),
            prefilter: doc.prefilter.clone(),
            prehash: doc.prehash.clone(),
        })
        .collect()
}
