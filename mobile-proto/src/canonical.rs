//! Canonical forms: what is hashed, signed and bound is always a sequence of length-prefixed fields (protocol.md §2).
//!
//! Each field is its 32-bit big-endian byte length, then its bytes. No separator can be forged and no Unicode normalisation happens.

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::action::{Action, Params};
use crate::ids::{ClientId, MlsGroupId, RotationId, VersionId};

/// Length-prefixes `fields` in order into one buffer of exactly the right size (a growing buffer would leave copies of a secret behind).
#[must_use]
pub fn length_prefixed(fields: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let size = fields.iter().map(|field| 4 + field.len()).sum();
    let mut out = Zeroizing::new(Vec::with_capacity(size));
    for field in fields {
        // Fields are ids and messages bounded far below 4 GiB by the transports; a longer one saturates and can match nothing.
        let len = u32::try_from(field.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(field);
    }
    out
}

/// The MAC input of a secret: `client_id`, `version_id`, `secret` (protocol.md §2).
#[must_use]
pub fn mac_input(client: &ClientId, version: &VersionId, secret: &str) -> Zeroizing<Vec<u8>> {
    length_prefixed(&[
        client.as_str().as_bytes(),
        version.to_string().as_bytes(),
        secret.as_bytes(),
    ])
}

/// SHA-256 of (action, client, rotation id, params, group, leaf signature key): the half of a proof's nonce that ties it to one request
/// (protocol.md §6.2). Params count as three fields: reason, `not_before` and `grace_duration_ms` in decimal, then the target ids; an
/// absent one is empty.
#[must_use]
pub fn request_binding(
    action: Action,
    client: &ClientId,
    action_id: &RotationId,
    params: &Params,
    group: &MlsGroupId,
    leaf_signature_key: &[u8],
) -> [u8; 32] {
    let digest = request_digest(action, client, action_id, params, group);
    let bytes = length_prefixed(&[&digest, leaf_signature_key]);
    Sha256::digest(bytes.as_slice()).into()
}

/// SHA-256 of the request without its proofs: the third part of the idempotency key (protocol.md §3). A repeat with fresh proofs is the same
/// request; another content under the same id is not.
#[must_use]
pub fn request_digest(
    action: Action,
    client: &ClientId,
    action_id: &RotationId,
    params: &Params,
    group: &MlsGroupId,
) -> [u8; 32] {
    let Params {
        rotation_reason,
        not_before,
        grace_duration_ms,
        target_rotation_id,
        version_id,
    } = params;
    let number = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
    let bytes = length_prefixed(&[
        b"keyturn/request/1",
        action.as_str().as_bytes(),
        client.as_str().as_bytes(),
        action_id.as_str().as_bytes(),
        rotation_reason.as_bytes(),
        number(not_before.map(|t| t.0)).as_bytes(),
        number(*grace_duration_ms).as_bytes(),
        target_rotation_id
            .as_ref()
            .map_or("", |id| id.as_str())
            .as_bytes(),
        version_id
            .map(|id| id.to_string())
            .unwrap_or_default()
            .as_bytes(),
        group.as_bytes(),
    ]);
    Sha256::digest(bytes.as_slice()).into()
}
