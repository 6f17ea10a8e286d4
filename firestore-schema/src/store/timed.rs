//! What is due, what was withdrawn, and who does it.

use keyturn_proto::{ClientId, UnixMs, VersionId};

use crate::documents::{OutboxDoc, RotationDoc};

/// Timed work that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// Reserved but never prepared, and its proof has expired.
    StaleReservation(RotationDoc),
    /// The ack deadline has passed without a quorum.
    Expire(RotationDoc),
    /// Quorum met and `not_before` reached.
    Promote(RotationDoc),
    /// The grace window is over.
    Retire {
        /// Whose.
        client_id: ClientId,
        /// Which version.
        version_id: VersionId,
    },
    /// Over, and its end was not announced yet (`announced_at` is empty); due from `completed_at` on.
    Announce(RotationDoc),
    /// Ciphertext past its retention.
    Purge(Vec<OutboxDoc>),
}

/// Where a listing of withdrawn events goes on: after this time and, within it, after this event id.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WithdrawnAfter {
    /// `withdrawn_at` of the last event seen.
    pub at: UnixMs,
    /// Its id.
    pub event_id: String,
}

/// A lease with its fencing number (strictly increasing with every change of owner).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Fencing number.
    pub fence: u64,
    /// Until when it is held.
    pub until: UnixMs,
}
