//! What is derived from a generated secret: its prefilter and the key that proves its possession.
//!
//! The input keying material is the secret's 43-character text, the same bytes that the MAC covers, so that whoever holds the presented text
//! needs no decoding step.

use ed25519_dalek::SigningKey;
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::canonical::length_prefixed;
use crate::ids::{ClientId, RotationId, VersionId};

/// HKDF info of the prefilter (protocol.md §7).
pub const PREFILTER_INFO: &[u8] = b"keyturn/prefilter/1";
/// HKDF info of the ack key (protocol.md §5).
pub const ACK_INFO: &[u8] = b"keyturn/ack/1";

/// The first 4 bytes of HKDF-SHA-256(secret, no salt, [`PREFILTER_INFO`]): lets a verifier refuse a guess without a MAC operation.
#[must_use]
pub fn prefilter(secret: &str) -> [u8; 4] {
    let mut okm = [0u8; 4];
    expand(None, secret, PREFILTER_INFO, &mut okm);
    okm
}

/// The Ed25519 key that only a holder of `secret` can derive, bound to one version of one rotation.
#[must_use]
pub fn ack_key(
    secret: &str,
    client: &ClientId,
    version: &VersionId,
    rotation: &RotationId,
) -> SigningKey {
    let salt = length_prefixed(&[
        client.as_str().as_bytes(),
        version.to_string().as_bytes(),
        rotation.as_str().as_bytes(),
    ]);
    let mut seed = Zeroizing::new([0u8; 32]);
    expand(Some(&salt), secret, ACK_INFO, seed.as_mut());
    SigningKey::from_bytes(&seed)
}

#[expect(
    clippy::expect_used,
    reason = "HKDF-SHA-256 refuses only outputs over 8,160 bytes; ours are 4 and 32"
)]
fn expand(salt: Option<&[u8]>, secret: &str, info: &[u8], okm: &mut [u8]) {
    Hkdf::<Sha256>::new(salt, secret.as_bytes())
        .expand(info, okm)
        .expect("a short output");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    const SECRET: &str = "2nC0WJ6d-3Jb0L6Wj7o5n9Jx9aQmH6r1bE3xqfIuF9k";

    #[test]
    fn the_ack_key_is_bound_to_all_its_parts() {
        let key = |secret, client: &str, version: &str, rotation: &str| {
            ack_key(
                secret,
                &client.parse().unwrap(),
                &version.parse().unwrap(),
                &rotation.parse().unwrap(),
            )
            .verifying_key()
            .to_bytes()
        };
        let (v1, v2) = ("01JM8VEZAMG2DK6T4S9N7TT1C8", "01JM8VEZAMG2DK6T4S9N7TT1C9");
        let other = "3nC0WJ6d-3Jb0L6Wj7o5n9Jx9aQmH6r1bE3xqfIuF9k";
        let all = [
            key(SECRET, "c", v1, v1),
            key(other, "c", v1, v1),
            key(SECRET, "d", v1, v1),
            key(SECRET, "c", v2, v1),
            key(SECRET, "c", v1, v2),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(all[0], key(SECRET, "c", v1, v1));
    }

    #[test]
    fn another_secret_misses_the_prefilter() {
        assert_ne!(
            prefilter(SECRET),
            prefilter("3nC0WJ6d-3Jb0L6Wj7o5n9Jx9aQmH6r1bE3xqfIuF9k")
        );
    }
}
