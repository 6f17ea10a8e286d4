//! What the relay and the operator's commands ask.

use super::{
    Audience, Filter, NAME, Op, Operand, Order, Parameter, Query, Scope, ascending, descending,
    filter,
};
use crate::collections::{
    ACTIONS, ADMINS, APPROLE_ROLES, APPROLE_SECRET_IDS, AUDIT, CHAINS, CLIENTS, DEVICES, GROUPS,
    LEASES, NONCES, OUTBOX, ROTATIONS, VERSIONS,
};

const fn query(
    name: &'static str,
    finds: &'static str,
    collection: &'static str,
    filters: &'static [Filter],
    order: &'static [Order],
) -> Query {
    Query {
        name,
        audience: Audience::Relay,
        finds,
        collection,
        scope: Scope::Collection,
        filters,
        order,
        only: &[],
        limit: None,
    }
}

const fn group(query: Query) -> Query {
    Query {
        scope: Scope::CollectionGroup,
        ..query
    }
}

const NOW: Operand = Operand::AnyTime(Parameter {
    name: "now",
    example: "2026-03-02T00:00:00Z",
});

const fn name(op: Op) -> Filter {
    let given = Parameter {
        name: "id",
        example: "a",
    };
    filter(NAME, op, Operand::AnyName(given))
}

/// Rotations at which something is due.
pub const ROTATIONS_DUE: Query = query(
    "rotations-due",
    "rotations at which something is due, the most urgent first",
    ROTATIONS,
    &[filter("due_at", Op::NotAfter, NOW)],
    &[ascending("due_at")],
);
/// The rotation that is due next.
pub const ROTATIONS_NEXT: Query = query(
    "rotations-next",
    "the rotation at which something is due next",
    ROTATIONS,
    &[filter("due_at", Op::NotBefore, Operand::Epoch)],
    &[ascending("due_at")],
);
/// Rotations under way.
pub const ROTATIONS_ACTIVE: Query = query(
    "rotations-active",
    "rotations that are not done",
    ROTATIONS,
    &[filter(
        "state",
        Op::In,
        Operand::Texts(&["reserved", "prepared", "quorum_met"]),
    )],
    &[],
);
/// Versions whose grace is over.
pub const VERSIONS_DUE: Query = group(query(
    "versions-due",
    "versions of any client whose grace is over",
    VERSIONS,
    &[filter("due_at", Op::NotAfter, NOW)],
    &[ascending("due_at")],
));
/// The version whose grace ends next.
pub const VERSIONS_NEXT: Query = group(query(
    "versions-next",
    "the version of any client whose grace ends next",
    VERSIONS,
    &[filter("due_at", Op::NotBefore, Operand::Epoch)],
    &[ascending("due_at")],
));
/// Versions of one client.
pub const VERSIONS_OF_CLIENT: Query = query(
    "versions-of-client",
    "every version of a client",
    VERSIONS,
    &[],
    &[],
);
/// Versions of one client that were ever current.
pub const VERSIONS_EVER_CURRENT: Query = query(
    "versions-ever-current",
    "versions of a client that were current at some time",
    VERSIONS,
    &[filter(
        "state",
        Op::In,
        Operand::Texts(&["current", "grace", "retired"]),
    )],
    &[],
);
/// Ciphertext past its retention.
pub const OUTBOX_DUE: Query = query(
    "outbox-due",
    "sealed events past their retention, the oldest first",
    OUTBOX,
    &[filter("delete_after", Op::NotAfter, NOW)],
    &[ascending("delete_after")],
);
/// The ciphertext whose retention ends next.
pub const OUTBOX_NEXT: Query = query(
    "outbox-next",
    "the sealed event whose retention ends next",
    OUTBOX,
    &[filter("delete_after", Op::NotBefore, Operand::Epoch)],
    &[ascending("delete_after")],
);
/// Sealed events of one rotation.
pub const OUTBOX_OF_ROTATION: Query = query(
    "outbox-of-rotation",
    "sealed events of a rotation",
    OUTBOX,
    &[filter(
        "rotation_id",
        Op::Is,
        Operand::AnyText(Parameter {
            name: "rotation",
            example: "01JM8VEZ9G0000000000000000",
        }),
    )],
    &[],
);
/// Sealed events that were not withdrawn.
pub const OUTBOX_KEPT: Query = query(
    "outbox-kept",
    "sealed events that were not withdrawn, in order of their ids",
    OUTBOX,
    &[filter("withdrawn_at", Op::IsNull, Operand::Nothing)],
    &[],
);
/// Sealed events that were not withdrawn, from a given one on.
pub const OUTBOX_KEPT_AFTER: Query = query(
    "outbox-kept-after",
    "sealed events that were not withdrawn, in order of their ids, after a given one",
    OUTBOX,
    &[
        filter("withdrawn_at", Op::IsNull, Operand::Nothing),
        name(Op::After),
    ],
    &[],
);
/// What was withdrawn.
pub const OUTBOX_WITHDRAWN: Query = query(
    "outbox-withdrawn",
    "sealed events that were withdrawn at a time or later, the first one first",
    OUTBOX,
    &[filter("withdrawn_at", Op::NotBefore, NOW)],
    &[ascending("withdrawn_at")],
);
/// Nonces that may be forgotten.
pub const NONCES_EXPIRED: Query = query(
    "nonces-expired",
    "nonces that may be forgotten",
    NONCES,
    &[filter("expires_at", Op::NotAfter, NOW)],
    &[ascending("expires_at")],
);
/// Clients from the first one on.
pub const CLIENTS_ALL: Query = query(
    "clients",
    "clients in order of their ids",
    CLIENTS,
    &[],
    &[],
);
/// Clients from a given one on.
pub const CLIENTS_AFTER: Query = query(
    "clients-after",
    "clients in order of their ids, after a given one",
    CLIENTS,
    &[name(Op::After)],
    &[],
);
/// Admins.
pub const ADMINS_ALL: Query = query("admins", "every admin", ADMINS, &[], &[]);
/// Groups.
pub const GROUPS_ALL: Query = query("admin-groups", "every group binding", GROUPS, &[], &[]);
/// Heads of the audit chains.
pub const CHAINS_ALL: Query = query("chains", "heads of the audit chains", CHAINS, &[], &[]);
/// Heads from a given one on.
pub const CHAINS_AFTER: Query = query(
    "chains-after",
    "heads of the audit chains, after a given one",
    CHAINS,
    &[name(Op::After)],
    &[],
);
/// The whole trail, chain by chain.
pub const AUDIT_ALL: Query = query(
    "audit",
    "entries of the audit trail, chain by chain",
    AUDIT,
    &[],
    &[],
);
/// The whole trail from a given entry on.
pub const AUDIT_AFTER: Query = query(
    "audit-after",
    "entries of the audit trail, chain by chain, after a given one",
    AUDIT,
    &[name(Op::After)],
    &[],
);
/// One chain. The entries' ids sort as `seq` does, so that the key of the documents serves and no index is needed.
pub const AUDIT_OF_CHAIN: Query = query(
    "audit-of-chain",
    "entries of one chain, from one id up to another",
    AUDIT,
    &[name(Op::NotBefore), name(Op::Before)],
    &[],
);
/// The newest entries.
pub const AUDIT_NEWEST: Query = query(
    "audit-newest",
    "entries of the audit trail, the newest first",
    AUDIT,
    &[],
    &[descending("at")],
);

/// Devices from the first one on.
pub const DEVICES_ALL: Query = query(
    "devices",
    "devices in order of their ids",
    DEVICES,
    &[],
    &[],
);
/// Devices from a given one on.
pub const DEVICES_AFTER: Query = query(
    "devices-after",
    "devices in order of their ids, after a given one",
    DEVICES,
    &[name(Op::After)],
    &[],
);
/// Devices at which something is due.
pub const DEVICES_DUE: Query = query(
    "devices-due",
    "devices at which something is due, the most urgent first",
    DEVICES,
    &[filter("due_at", Op::NotAfter, NOW)],
    &[ascending("due_at")],
);
/// Devices that a relay works on.
pub const DEVICES_OF_RELAY: Query = query(
    "devices-of-relay",
    "devices whose request a relay works on",
    DEVICES,
    &[filter(
        "worked_on_by",
        Op::Is,
        Operand::AnyText(Parameter {
            name: "relay",
            example: "npub1",
        }),
    )],
    &[],
);

/// The role that a login names.
pub const ROLE_OF_ID: Query = query(
    "role-of-id",
    "the role of the embedded issuer that has an id",
    APPROLE_ROLES,
    &[filter(
        "role_id",
        Op::Is,
        Operand::AnyText(Parameter {
            name: "role_id",
            example: "00000000000000000000000000000000",
        }),
    )],
    &[],
);
/// Secret_ids that were issued for a nonce.
pub const SECRET_IDS_OF_NONCE: Query = query(
    "secret-ids-of-nonce",
    "secret_ids that were issued for a nonce",
    APPROLE_SECRET_IDS,
    &[filter(
        "nonce_hash",
        Op::Is,
        Operand::AnyText(Parameter {
            name: "nonce_hash",
            example: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        }),
    )],
    &[],
);
/// Secret_ids that have ended.
pub const SECRET_IDS_ENDED: Query = query(
    "secret-ids-ended",
    "secret_ids that have ended, the oldest first",
    APPROLE_SECRET_IDS,
    &[filter("expires_at", Op::NotAfter, NOW)],
    &[ascending("expires_at")],
);

/// For a copy of the store: leases in order of their ids.
pub const LEASES_ALL: Query = query("leases", "leases in order of their ids", LEASES, &[], &[]);
/// For a copy of the store: rotations in order of their ids.
pub const ROTATIONS_ALL: Query = query(
    "rotations",
    "rotations in order of their ids",
    ROTATIONS,
    &[],
    &[],
);
/// For a copy of the store: actions in order of their ids.
pub const ACTIONS_ALL: Query = query(
    "actions",
    "actions in order of their ids",
    ACTIONS,
    &[],
    &[],
);
/// For a copy of the store: sealed events in order of their ids.
pub const OUTBOX_ALL: Query = query(
    "outbox",
    "sealed events in order of their ids",
    OUTBOX,
    &[],
    &[],
);
/// For a copy of the store: nonces in order of their ids.
pub const NONCES_ALL: Query = query("nonces", "nonces in order of their ids", NONCES, &[], &[]);
/// For a copy of the store: roles of the embedded issuer in order of their names.
pub const ROLES_ALL: Query = query(
    "roles",
    "roles of the embedded issuer in order of their names",
    APPROLE_ROLES,
    &[],
    &[],
);
/// For a copy of the store: secret_ids of the embedded issuer in order of their accessors.
pub const SECRET_IDS_ALL: Query = query(
    "secret-ids",
    "secret_ids of the embedded issuer in order of their accessors",
    APPROLE_SECRET_IDS,
    &[],
    &[],
);
/// For a copy of the store: versions of every client.
pub const VERSIONS_ALL: Query = group(query(
    "versions",
    "versions of every client, client by client",
    VERSIONS,
    &[],
    &[],
));

/// All of them.
pub const ALL: &[&Query] = &[
    &ROTATIONS_DUE,
    &ROTATIONS_NEXT,
    &ROTATIONS_ACTIVE,
    &VERSIONS_DUE,
    &VERSIONS_NEXT,
    &VERSIONS_OF_CLIENT,
    &VERSIONS_EVER_CURRENT,
    &OUTBOX_DUE,
    &OUTBOX_NEXT,
    &OUTBOX_OF_ROTATION,
    &OUTBOX_KEPT,
    &OUTBOX_KEPT_AFTER,
    &OUTBOX_WITHDRAWN,
    &NONCES_EXPIRED,
    &CLIENTS_ALL,
    &CLIENTS_AFTER,
    &ADMINS_ALL,
    &GROUPS_ALL,
    &CHAINS_ALL,
    &CHAINS_AFTER,
    &AUDIT_ALL,
    &AUDIT_AFTER,
    &AUDIT_OF_CHAIN,
    &AUDIT_NEWEST,
    &DEVICES_ALL,
    &DEVICES_AFTER,
    &DEVICES_DUE,
    &DEVICES_OF_RELAY,
    &ROLE_OF_ID,
    &SECRET_IDS_OF_NONCE,
    &SECRET_IDS_ENDED,
    &LEASES_ALL,
    &ROTATIONS_ALL,
    &ACTIONS_ALL,
    &OUTBOX_ALL,
    &NONCES_ALL,
    &ROLES_ALL,
    &SECRET_IDS_ALL,
    &VERSIONS_ALL,
];
