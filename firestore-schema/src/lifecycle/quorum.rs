//! When enough admins have confirmed (protocol.md §3, §5).

use keyturn_proto::{ClientId, Npub};

use crate::documents::{
    AckEntry, AdminDoc, AdminGroupDoc, ClientDoc, ClientScope, GroupState, RotationDoc,
};

/// Who stands behind a rotation, as read in the same transaction: an ack was given by somebody who may have lost the right since.
#[derive(Clone, Debug, Default)]
pub struct People {
    /// The enrolments of the rotation's readers, and of whoever acks.
    pub admins: Vec<AdminDoc>,
    /// The groups of the client.
    pub groups: Vec<AdminGroupDoc>,
}

impl People {
    fn enrolled(&self, npub: &Npub, client: &ClientId) -> bool {
        self.admins
            .iter()
            .any(|admin| admin.npub == *npub && enrolled_for(admin, client))
    }

    fn suspended(&self, alias: &str) -> bool {
        self.groups
            .iter()
            .any(|group| group.alias == alias && group.status != GroupState::Active)
    }

    /// Whether an ack counts now: its admin is enrolled for the client, and the group it came through is the client's and served.
    #[must_use]
    pub fn stand_behind(&self, ack: &AckEntry, client: &ClientDoc) -> bool {
        self.enrolled(&ack.npub, &client.client_id)
            && ack
                .group
                .as_ref()
                .is_none_or(|alias| client.admin_groups.contains(alias) && !self.suspended(alias))
    }

    /// Whether somebody for whom the pending secret was sealed may not read it any more.
    #[must_use]
    pub fn lost_a_reader(&self, rotation: &RotationDoc) -> bool {
        rotation
            .readers
            .iter()
            .any(|reader| !self.enrolled(reader, &rotation.client_id))
    }
}

/// The acks that count: the requester's own does not, unless the quorum says so.
pub fn counted(rotation: &RotationDoc) -> impl Iterator<Item = &AckEntry> {
    let quorum = &rotation.quorum;
    quorum
        .acks
        .iter()
        .filter(|ack| quorum.requester_counts || ack.npub != rotation.requested_by)
}

/// Whether the quorum is met. A quorum of none does not exist: at least one admin must hold the new secret before it replaces the old one.
#[must_use]
pub fn met(rotation: &RotationDoc) -> bool {
    let required = rotation.quorum.required.max(1) as usize;
    counted(rotation).count() >= required
        && (!rotation.quorum.require_proven || counted(rotation).any(|ack| ack.proven))
}

/// Whether an admin is enrolled for this client now.
#[must_use]
pub fn enrolled_for(admin: &AdminDoc, client: &ClientId) -> bool {
    admin.active
        && match &admin.scope {
            ClientScope::All => true,
            ClientScope::Only(clients) => clients.contains(client),
        }
}
