//! Every collection of the database, and who besides the relay and the verifier may look into it. The security rules, the index file and the tests of both are held
//! to this list.
//!
//! What must always hold: no collection that auditors read has a document that bears a hash of a secret, a seed, or ciphertext.

/// One collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collection {
    /// Its id, the same wherever it lies.
    pub id: &'static str,
    /// The collection whose documents it lies under; `None` at the root.
    pub parent: Option<&'static str>,
    /// Whether users with the claim `auditor` read it.
    pub auditors: bool,
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

const fn closed(id: &'static str, holds: &'static str) -> Collection {
    Collection {
        id,
        parent: None,
        auditors: false,
        holds,
    }
}

const fn audited(id: &'static str, holds: &'static str) -> Collection {
    Collection {
        auditors: true,
        ..closed(id, holds)
    }
}

/// All of them.
pub const ALL: &[Collection] = &[
    audited(ROTATIONS, "rotations: who asked, who acked, how they ended"),
    audited(ACTIONS, "every admitted action"),
    audited(AUDIT, "the audit trail: every decision and every change"),
    audited(
        CHAINS,
        "heads of the audit chains, and the state of each client",
    ),
    closed(CLIENTS, "clients, with the hashes of their living secrets"),
    Collection {
        parent: Some(CLIENTS),
        ..closed(VERSIONS, "versions, with their hashes")
    },
    closed(ADMINS, "admins, with their encrypted TOTP seeds"),
    closed(GROUPS, "bindings of admin groups"),
    closed(OUTBOX, "sealed events, ciphertext"),
    closed(NONCES, "used nonces"),
    closed(LEASES, "who does the timed work"),
    closed(REVISIONS, "change counters of whole collections"),
    closed(PROBES, "written and deleted by keyturn doctor"),
    closed(DEVICES, "devices that ask for a secret_id"),
    closed(APPROLE_ROLES, "roles of the embedded issuer"),
    closed(
        APPROLE_SECRET_IDS,
        "secret_ids of the embedded issuer, with their hashes",
    ),
];
