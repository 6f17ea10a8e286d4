//! When enough admins have confirmed (protocol.md §3, §5).

use crate::documents::{AckEntry, AdminDoc, ClientScope, RotationDoc};
use keyturn_proto::ClientId;

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
