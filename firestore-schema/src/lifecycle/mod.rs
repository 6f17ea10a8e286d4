//! The only changes that stored documents may go through. Pure: documents read, a command and `now` go in; an answer and the change set that makes
//! it true come out. No backend holds a rule of its own: it reads, asks here, and writes the change set in one conditional transaction.
//!
//! What must always hold (property-tested in `tests/lifecycle_invariants`):
//! - one active rotation per client; one recorded version per rotation;
//! - an active client that ever had a version has exactly one current one;
//! - a version that is dead stays dead; the old secret stays current until the promotion;
//! - the verify snapshot says what the version documents say.
//!
//! Read [`table`] first: it holds the states and their edges, and everything else steps through it.

mod ack;
mod admins;
mod cancel;
mod clients;
pub mod diagram;
mod draft;
pub mod due;
mod prepare;
mod promote;
pub mod quorum;
mod reserve;
mod retire;
mod revoke;
mod rollback;
pub mod table;
mod take_over;
mod withdraw;

pub use ack::record_ack;
pub use admins::{bind_group, enrol, lease, prove_key, set_group_state, totp_failed};
pub use cancel::cancel;
pub use clients::{ClientUpdate, create_client, update_client};
pub use draft::snapshot_of;
pub use due::{announced, purged_records};
pub use prepare::prepare;
pub use promote::promote;
pub use quorum::People;
pub use reserve::reserve;
pub use retire::retire;
pub use revoke::revoke;
pub use rollback::rollback;
pub use take_over::take_over;
pub use withdraw::withdraw;

use keyturn_proto::{RotationId, UnixMs, VersionId};

use crate::documents::{
    ActionDoc, Actor, AdminDoc, AuditRecord, ClientDoc, OutboxDoc, RotationDoc, VersionDoc,
};

/// One client with its living versions: exactly those that its snapshot names.
#[derive(Clone, Debug)]
pub struct Family {
    /// The client.
    pub client: ClientDoc,
    /// The versions that its snapshot names, in any order.
    pub living: Vec<VersionDoc>,
}

/// What was recorded before under the id of an incoming operation.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The rotation of that id.
    pub rotation: Option<RotationDoc>,
    /// The action of that id.
    pub action: Option<ActionDoc>,
}

/// What to write, all of it or nothing. Empty when nothing changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The client afterwards.
    pub client: Option<ClientDoc>,
    /// Versions to create or replace.
    pub versions: Vec<VersionDoc>,
    /// Pending versions to delete, because a later attempt makes them void.
    pub voided: Vec<VersionId>,
    /// Rotations to create or replace.
    pub rotations: Vec<RotationDoc>,
    /// Actions to create or replace.
    pub actions: Vec<ActionDoc>,
    /// The admin afterwards.
    pub admin: Option<AdminDoc>,
    /// Outbox events to create.
    pub outbox: Vec<OutboxDoc>,
    /// Rotations whose outbox events get this `delete_after`, unless they have an earlier one.
    pub expire_outbox: Vec<(RotationId, UnixMs)>,
    /// Records to append.
    pub audit: Vec<AuditRecord>,
}

/// An answer, and the change set that makes it true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict<T> {
    /// For the caller.
    pub answer: T,
    /// For the store; nothing may be answered before it is committed.
    pub change: Change,
}

impl<T> Verdict<T> {
    /// An answer that changes nothing: a repeat or a refusal.
    fn unchanged(answer: T) -> Self {
        Self {
            answer,
            change: Change::default(),
        }
    }
}

impl Change {
    /// Records the end of a rotation: the rotation itself, its generic action record, and the end of its ciphertext.
    fn end(&mut self, rotation: &RotationDoc, delete_after: UnixMs) {
        self.rotations.push(rotation.clone());
        self.actions.push(ActionDoc::of(rotation));
        self.expire_outbox
            .push((rotation.rotation_id.clone(), delete_after));
    }
}

/// A record for a consequence of the change that `cause` describes.
fn consequence(
    cause: &AuditRecord,
    event: &str,
    rotation: Option<&RotationId>,
    version: Option<VersionId>,
) -> AuditRecord {
    AuditRecord {
        event: event.to_owned(),
        rotation_id: rotation.cloned(),
        version_id: version,
        ..cause.clone()
    }
}

/// A record of what the relay does by itself.
fn by_relay(at: UnixMs, event: &str, reason: String) -> AuditRecord {
    AuditRecord {
        at,
        actor: Actor::Relay,
        event: event.to_owned(),
        reason,
        client_id: None,
        rotation_id: None,
        version_id: None,
        group: None,
        nostr_event: None,
        device: None,
    }
}
