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
