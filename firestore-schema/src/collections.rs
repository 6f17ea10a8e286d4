//! Every collection of the database, and who besides the relay and the verifier may look into it. The security rules, the index file and the tests of both are held
//! to this list.
//!
//! What must always hold: no collection that auditors read has a document that bears a hash of a secret, a seed, or ciphertext.

use crate::store::{Result, StoreError};

/// One collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collection {
    /// Its id, the same wherever it lies.
    pub id: &'static str,
    /// The collection whose documents it lies under; `None` at the root.
    pub parent: Option<&'static str>,
    /// Whether users with the claim `auditor` read it.
    pub auditors: bool,
    /// File in `schema/` that describes its documents; `None` where nothing stays.
    pub schema: Option<&'static str>,
    /// What lies in it.
    pub holds: &'static str,
}

/// `oauth2_clients/{clientId}`.
pub const CLIENTS: &str = "oauth2_clients";
/// `oauth2_clients/{clientId}/secrets/{versionId}`.
pub const VERSIONS: &str = "secrets";
/// `oauth2_rotations/{rotationId}`.
pub const ROTATIONS: &str = "oauth2_rotations";
/// `service_actions/{actionId}`.
pub const ACTIONS: &str = "service_actions";
/// `audit/{id}`.
pub const AUDIT: &str = "audit";
/// `audit_chains/{id}`.
pub const CHAINS: &str = "audit_chains";
/// `admins/{npub}`.
pub const ADMINS: &str = "admins";
/// `admin_groups/{alias}`.
pub const GROUPS: &str = "admin_groups";
/// `outbox/{eventId}`.
pub const OUTBOX: &str = "outbox";
/// `nonces/{hash}`.
pub const NONCES: &str = "nonces";
/// `leases/{name}`.
pub const LEASES: &str = "leases";
/// `revisions/{collection}`.
pub const REVISIONS: &str = "revisions";
/// `probes/{id}`.
pub const PROBES: &str = "probes";
/// `devices/{deviceId}`.
pub const DEVICES: &str = "devices";
/// `approle_roles/{role}`.
pub const APPROLE_ROLES: &str = "approle_roles";
/// `approle_secret_ids/{accessor}`.
pub const APPROLE_SECRET_IDS: &str = "approle_secret_ids";

const fn closed(id: &'static str, schema: &'static str, holds: &'static str) -> Collection {
    Collection {
        id,
        parent: None,
        auditors: false,
        schema: Some(schema),
        holds,
    }
}

const fn audited(id: &'static str, schema: &'static str, holds: &'static str) -> Collection {
    Collection {
        auditors: true,
        ..closed(id, schema, holds)
    }
}

/// All of them.
pub const ALL: &[Collection] = &[
    audited(
        ROTATIONS,
        "rotation.json",
        "Rotations: who asked, who acked, how they ended",
    ),
    audited(ACTIONS, "action.json", "Every action that was admitted"),
    audited(
        AUDIT,
        "audit.json",
        "The audit trail: every decision and every change",
    ),
    audited(
        CHAINS,
        "audit-chain.json",
        "Heads of the audit chains, and with them the state of each client",
    ),
    closed(
        CLIENTS,
        "client.json",
        "Clients, with the hashes of their living secrets",
    ),
    Collection {
        parent: Some(CLIENTS),
        ..closed(VERSIONS, "version.json", "Versions, with their hashes")
    },
    closed(
        ADMINS,
        "admin.json",
        "Admins, with their encrypted TOTP seeds",
    ),
    closed(GROUPS, "admin-group.json", "Bindings of admin groups"),
    closed(OUTBOX, "outbox.json", "Sealed events: ciphertext"),
    closed(
        NONCES,
        "nonce.json",
        "What happens once: uses of nonces and codes, refusals of events",
    ),
    closed(LEASES, "lease.json", "Who does the timed work"),
    closed(DEVICES, "device.json", "Devices that ask for a `secret_id`"),
    closed(
        APPROLE_ROLES,
        "approle-role.json",
        "Roles of the embedded issuer",
    ),
    closed(
        APPROLE_SECRET_IDS,
        "approle-secret-id.json",
        "Each `secret_id` of the embedded issuer, with its hash",
    ),
    closed(
        REVISIONS,
        "revision.json",
        "Change counters of whole collections",
    ),
    Collection {
        schema: None,
        ..closed(PROBES, "", "Written and deleted again by `keyturn doctor`")
    },
];

/// Firestore's limit for one id, bytes.
pub(crate) const ID_BYTES: usize = 1500;

/// Firestore's rules for a document id, and no control characters. Every backend holds to them, so that what lies in one can be copied to the other.
///
/// # Errors
/// [`StoreError::InvalidId`].
pub(crate) fn document_id<'t>(what: &'static str, id: &'t str) -> Result<&'t str> {
    let reserved =
        matches!(id, "." | "..") || (id.len() >= 4 && id.starts_with("__") && id.ends_with("__"));
    let length = (1..=ID_BYTES).contains(&id.len());
    if reserved || !length || id.chars().any(|c| c == '/' || c.is_control()) {
        return Err(StoreError::InvalidId { what });
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_document_that_stays_is_described() {
        let described: BTreeSet<&str> = ALL.iter().filter_map(|it| it.schema).collect();
        let schemas = crate::schema::all();
        let files: BTreeSet<&str> = schemas.iter().map(|(file, _)| *file).collect();
        assert_eq!(described, files);
    }
}
