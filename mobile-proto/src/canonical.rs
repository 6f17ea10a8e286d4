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

/// The half of a proof's nonce that ties it to one request and one member (protocol.md §6.2): SHA-256 over two length-prefixed fields, the
/// [`request_digest`] and the raw public signature key of the sender's MLS leaf.
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
///
/// The length-prefixed fields, in order: the text `keyturn/request/1`, action, client, action id, reason, `not_before` and
/// `grace_duration_ms` in decimal, target rotation id, version id, and the raw group id. An absent one is empty.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use hmac::{Hmac, KeyInit as _, Mac as _};
    use proptest::prelude::*;

    use super::*;
    use crate::encoding::b64url;

    #[test]
    fn the_vector_of_the_protocol_holds() {
        let client = "ext-totp-svc".parse().unwrap();
        let version = "01JM8VEZAMG2DK6T4S9N7TT1C8".parse().unwrap();
        let input = mac_input(
            &client,
            &version,
            "2nC0WJ6d-3Jb0L6Wj7o5n9Jx9aQmH6r1bE3xqfIuF9k",
        );
        assert_eq!(&input[..4], &[0, 0, 0, 12]);
        let key: Vec<u8> = (0u8..32).collect();
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
        mac.update(&input);
        assert_eq!(
            b64url(&mac.finalize().into_bytes()),
            "LSDynK4JQHtB-kC5lcSb7pfuuFdYN5g2qn63-HGD764"
        );
    }

    fn digest(change: impl FnOnce(&mut (Action, &'static str, Params, &'static str))) -> [u8; 32] {
        let mut parts = (Action::Rotation, "c", Params::default(), "0a");
        change(&mut parts);
        let id = "01JM8VEZAMG2DK6T4S9N7TT1C8".parse().unwrap();
        request_digest(
            parts.0,
            &parts.1.parse().unwrap(),
            &id,
            &parts.2,
            &parts.3.parse().unwrap(),
        )
    }

    #[test]
    fn every_part_of_a_request_changes_its_digest() {
        let id = || "01JM8VEZAMG2DK6T4S9N7TT1C9".parse().ok();
        let all = [
            digest(|_| ()),
            digest(|p| p.0 = Action::Revoke),
            digest(|p| p.1 = "d"),
            digest(|p| p.2.rotation_reason = "r".into()),
            digest(|p| p.2.not_before = Some(crate::UnixMs(0))),
            digest(|p| p.2.grace_duration_ms = Some(0)),
            digest(|p| p.2.target_rotation_id = id()),
            digest(|p| p.2.version_id = "01JM8VEZAMG2DK6T4S9N7TT1C9".parse().ok()),
            digest(|p| p.3 = "0b"),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn a_binding_belongs_to_one_leaf() {
        let client = "c".parse().unwrap();
        let id = "01JM8VEZAMG2DK6T4S9N7TT1C8".parse().unwrap();
        let group = "0a".parse().unwrap();
        let bind = |key: &[u8]| {
            request_binding(
                Action::Rotation,
                &client,
                &id,
                &Params::default(),
                &group,
                key,
            )
        };
        assert_ne!(bind(&[1; 32]), bind(&[2; 32]));
    }

    proptest! {
        #[test]
        fn two_sequences_never_share_one_form(
            a in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6), 0..5),
            b in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6), 0..5),
        ) {
            let form = |fields: &[Vec<u8>]| {
                length_prefixed(&fields.iter().map(Vec::as_slice).collect::<Vec<_>>()).to_vec()
            };
            prop_assert_eq!(form(&a) == form(&b), a == b);
        }
    }
}
