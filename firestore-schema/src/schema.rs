//! JSON Schemas of the documents, generated from the types into `schema/`.

use schemars::{Schema, schema_for};

use crate::documents;

/// Every document with its file name in `schema/`.
#[must_use]
pub fn all() -> Vec<(&'static str, Schema)> {
    vec![
        ("client.json", schema_for!(documents::ClientDoc)),
        ("version.json", schema_for!(documents::VersionDoc)),
        ("rotation.json", schema_for!(documents::RotationDoc)),
        ("action.json", schema_for!(documents::ActionDoc)),
        ("outbox.json", schema_for!(documents::OutboxDoc)),
        ("admin.json", schema_for!(documents::AdminDoc)),
        ("admin-group.json", schema_for!(documents::AdminGroupDoc)),
        ("nonce.json", schema_for!(documents::NonceDoc)),
        ("lease.json", schema_for!(documents::LeaseDoc)),
        ("approle-role.json", schema_for!(crate::approle::AppRoleDoc)),
        (
            "approle-secret-id.json",
            schema_for!(crate::approle::SecretIdDoc),
        ),
        ("audit.json", schema_for!(documents::AuditEntry)),
        ("audit-chain.json", schema_for!(documents::AuditChainDoc)),
        ("device.json", schema_for!(crate::devices::DeviceDoc)),
    ]
}
