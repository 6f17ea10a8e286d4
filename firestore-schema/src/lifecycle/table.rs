//! The transition tables: every state, every edge, and nothing else. The diagram in `docs/generated/lifecycle.md` is rendered from them.

use keyturn_proto::notify::Outcome;

use crate::documents::{ClientStatus, RotationState, VersionState};

/// Edges between states; `None` stands for a document that does not exist.
pub struct Table<S: 'static, E: 'static> {
    /// What the states belong to.
    pub title: &'static str,
    /// From, event, to.
    pub edges: &'static [(Option<S>, E, Option<S>)],
}

impl<S: Copy + PartialEq, E: Copy + PartialEq> Table<S, E> {
    /// Where `event` leads from `from`; the outer `None` if it is forbidden there.
    #[must_use]
    pub fn next(&self, from: Option<S>, event: E) -> Option<Option<S>> {
        self.edges
            .iter()
            .find(|(f, e, _)| *f == from && *e == event)
            .map(|(_, _, to)| *to)
    }
}

/// What can happen to a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VersionEvent {
    /// The operator brings a client's first secret.
    Create,
    /// Recorded and sealed.
    Prepare,
    /// A later attempt makes it void.
    Void,
    /// Its rotation was withdrawn, expired or revoked.
    Cancel,
    /// It becomes the one to use.
    Promote,
    /// Another one was promoted, with grace.
    Supersede,
    /// Another one was promoted, without grace; or a second one while it was in grace.
    SupersedeAtOnce,
    /// The end of grace.
    Retire,
    /// Re-promoted within grace.
    Rollback,
    /// Its predecessor was re-promoted.
    Withdraw,
    /// Declared bad.
    Revoke,
}

/// protocol.md §3.
pub const VERSION: Table<VersionState, VersionEvent> = {
    use VersionEvent as E;
    use VersionState::{Cancelled, Current, Grace, Pending, Retired};
    Table {
        title: "A version",
        edges: &[
            (None, E::Create, Some(Current)),
            (None, E::Prepare, Some(Pending)),
            (Some(Pending), E::Void, None),
            (Some(Pending), E::Cancel, Some(Cancelled)),
            (Some(Pending), E::Revoke, Some(Cancelled)),
            (Some(Pending), E::Promote, Some(Current)),
            (Some(Current), E::Supersede, Some(Grace)),
            (Some(Current), E::SupersedeAtOnce, Some(Retired)),
            (Some(Current), E::Withdraw, Some(Retired)),
            (Some(Current), E::Revoke, Some(Retired)),
            (Some(Grace), E::Rollback, Some(Current)),
            (Some(Grace), E::Retire, Some(Retired)),
            (Some(Grace), E::SupersedeAtOnce, Some(Retired)),
            (Some(Grace), E::Revoke, Some(Retired)),
        ],
    }
};

/// What can happen to a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RotationEvent {
    /// Admitted.
    Reserve,
    /// Its version and sealed events are recorded.
    Prepare,
    /// Enough acks.
    Quorum,
    /// Acks of admins or groups that lost the right since count no more, and too few are left.
    LoseQuorum,
    /// Its version is current.
    Promote,
    /// Withdrawn.
    Cancel,
    /// The ack deadline passed.
    Expire,
    /// Its version, or the client, was revoked.
    Revoke,
    /// Recovery starts it again under a new attempt.
    TakeOver,
    /// Undone within grace.
    RollBack,
}

/// protocol.md §3, seen from the operation.
pub const ROTATION: Table<RotationState, RotationEvent> = {
    use RotationEvent as E;
    use RotationState::{Done, Prepared, QuorumMet, Reserved};
    Table {
        title: "A rotation",
        edges: &[
            (None, E::Reserve, Some(Reserved)),
            (Some(Reserved), E::Prepare, Some(Prepared)),
            (Some(Reserved), E::TakeOver, Some(Reserved)),
            (Some(Reserved), E::Cancel, Some(Done)),
            (Some(Reserved), E::Expire, Some(Done)),
            (Some(Reserved), E::Revoke, Some(Done)),
            (Some(Prepared), E::Quorum, Some(QuorumMet)),
            (Some(Prepared), E::TakeOver, Some(Reserved)),
            (Some(Prepared), E::Cancel, Some(Done)),
            (Some(Prepared), E::Expire, Some(Done)),
            (Some(Prepared), E::Revoke, Some(Done)),
            (Some(QuorumMet), E::LoseQuorum, Some(Prepared)),
            (Some(QuorumMet), E::Promote, Some(Done)),
            (Some(QuorumMet), E::TakeOver, Some(Reserved)),
            (Some(QuorumMet), E::Cancel, Some(Done)),
            (Some(QuorumMet), E::Revoke, Some(Done)),
            (Some(Done), E::RollBack, Some(Done)),
        ],
    }
};

impl RotationEvent {
    /// The outcome that a rotation bears after this event.
    #[must_use]
    pub const fn outcome(self) -> Option<Outcome> {
        match self {
            Self::Promote => Some(Outcome::Promoted),
            Self::Cancel => Some(Outcome::Canceled),
            Self::Expire => Some(Outcome::Expired),
            Self::Revoke => Some(Outcome::Revoked),
            Self::RollBack => Some(Outcome::RolledBack),
            Self::Reserve | Self::Prepare | Self::Quorum | Self::LoseQuorum | Self::TakeOver => {
                None
            }
        }
    }
}

/// What can happen to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientEvent {
    /// The operator registers it.
    Create,
    /// Its current version was revoked: there is no living successor.
    RevokeCurrent,
    /// A rotation was promoted.
    Promote,
    /// The operator suspends it.
    Suspend,
    /// The operator lifts a suspension.
    Activate,
    /// The operator ends it for good.
    Revoke,
}

/// The client's status.
pub const CLIENT: Table<ClientStatus, ClientEvent> = {
    use ClientEvent as E;
    use ClientStatus::{Active, Revoked, Suspended};
    Table {
        title: "A client",
        edges: &[
            (None, E::Create, Some(Active)),
            (Some(Active), E::Promote, Some(Active)),
            (Some(Active), E::Activate, Some(Active)),
            (Some(Active), E::RevokeCurrent, Some(Suspended)),
            (Some(Active), E::Suspend, Some(Suspended)),
            (Some(Active), E::Revoke, Some(Revoked)),
            (Some(Suspended), E::Promote, Some(Active)),
            (Some(Suspended), E::Activate, Some(Active)),
            (Some(Suspended), E::RevokeCurrent, Some(Suspended)),
            (Some(Suspended), E::Suspend, Some(Suspended)),
            (Some(Suspended), E::Revoke, Some(Revoked)),
            (Some(Revoked), E::Revoke, Some(Revoked)),
        ],
    }
};
