//! JSON Schemas of the documents, generated from the types into `schema/`.

pub mod page;

use schemars::{JsonSchema, Schema, schema_for};

use crate::documents;

/// Every document with its file name in `schema/`.
#[must_use]
pub fn all() -> Vec<(&'static str, Schema)> {
    vec![
        ("client.json", schema_for!(documents::ClientDoc)),
        ("version.json", schema_for!(StoredVersion)),
        ("rotation.json", schema_for!(StoredRotation)),
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
        ("audit.json", schema_for!(StoredEntry)),
        ("audit-chain.json", schema_for!(documents::AuditChainDoc)),
        ("device.json", schema_for!(crate::devices::DeviceDoc)),
        (
            "revision.json",
            schema_for!(crate::firestore::revision::Revision),
        ),
    ]
}

/// A version with what Firestore holds beside it.
#[derive(JsonSchema)]
#[schemars(title = "VersionDoc")]
#[expect(dead_code, reason = "only its schema is used")]
struct StoredVersion {
    #[serde(flatten)]
    document: documents::VersionDoc,
    /// When it is to be retired; only in Firestore, for the timer's query.
    due_at: Option<keyturn_proto::UnixMs>,
}

/// A rotation with what Firestore holds beside it.
#[derive(JsonSchema)]
#[schemars(title = "RotationDoc")]
#[expect(dead_code, reason = "only its schema is used")]
struct StoredRotation {
    #[serde(flatten)]
    document: documents::RotationDoc,
    /// When the timer must look at it next; only in Firestore, for the timer's query.
    due_at: Option<keyturn_proto::UnixMs>,
}

/// An audit entry with what Firestore holds beside it.
#[derive(JsonSchema)]
#[schemars(title = "AuditEntry")]
#[expect(dead_code, reason = "only its schema is used")]
struct StoredEntry {
    #[serde(flatten)]
    entry: documents::AuditEntry,
    /// Random name of the commit that wrote it; only in Firestore, where a relay whose answer was lost looks for it. The chain's hash does not cover it.
    commit: Option<String>,
}
