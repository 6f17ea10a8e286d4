//! JSON Schemas of the messages, generated from the types.

use schemars::{Schema, schema_for};

/// Every message with its file name in `schema/`.
#[must_use]
pub fn all() -> Vec<(&'static str, Schema)> {
    vec![
        (
            "service-request.json",
            schema_for!(crate::request::ServiceRequest),
        ),
        ("rotate-notify.json", crate::notify::rotate_notify_schema()),
        ("rotate-ack.json", schema_for!(crate::ack::RotateAck)),
        (
            "service-notify.json",
            schema_for!(crate::notify::ServiceNotify),
        ),
        ("challenge.json", schema_for!(crate::nonce::Challenge)),
        (
            "proof-request.json",
            schema_for!(crate::proof::ProofRequest),
        ),
        ("proof-claims.json", schema_for!(crate::proof::ProofClaims)),
        (
            "device-request.json",
            schema_for!(crate::device::AuthRequest),
        ),
        ("device-result.json", schema_for!(crate::device::AuthResult)),
        (
            "device-command.json",
            crate::device::command::command_schema(),
        ),
        ("device-sealed.json", schema_for!(crate::device::Sealed)),
        ("device-retry.json", schema_for!(crate::device::Retry)),
        ("device-ping.json", schema_for!(crate::device::Ping)),
    ]
}
