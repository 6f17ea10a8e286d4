//! How a device proves that it holds what it was sent: HMAC-SHA-256 under the credential, over the nonce (protocol.md §8).
//!
//! The key is the credential's text (the `secret_id`, or the wrapping token), the message is the nonce's text. Only the hash of the expected proof is
//! stored, so that whoever reads the store cannot make one.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::id::DeviceNonce;
use crate::encoding::{b64url, from_b64url_array};

/// The proof that an `auth_result` for `credential` carries.
#[must_use]
pub fn proof(credential: &str, nonce: &DeviceNonce) -> String {
    b64url(&mac(credential, nonce))
}

/// What is stored to recognise it: SHA-256 of the raw proof, hex.
#[must_use]
pub fn expected(credential: &str, nonce: &DeviceNonce) -> String {
    hex::encode(Sha256::digest(mac(credential, nonce)))
}

/// Whether `proof` is the one that hashes to `expected`. Anything else is simply not proven.
#[must_use]
pub fn is_proven(proof: &str, expected: &str) -> bool {
    from_b64url_array::<32>("proof", proof).is_ok_and(|raw| {
        let found = hex::encode(Sha256::digest(raw.as_slice()));
        found.as_bytes().ct_eq(expected.as_bytes()).into()
    })
}

fn mac(credential: &str, nonce: &DeviceNonce) -> [u8; 32] {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    let mac = Hmac::<Sha256>::new_from_slice(credential.as_bytes()).expect("a key of any length");
    mac.chain_update(nonce.as_str().as_bytes())
        .finalize()
        .into_bytes()
        .into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_the_holder_of_this_credential_proves_this_nonce() {
        let nonce: DeviceNonce = "0123456789abcdef".parse().unwrap();
        let other: DeviceNonce = "0123456789abcdeF".parse().unwrap();
        let stored = expected("secret", &nonce);
        assert!(is_proven(&proof("secret", &nonce), &stored));
        for wrong in [
            proof("secre", &nonce),
            proof("secret", &other),
            String::new(),
            "AA".to_owned(),
            format!("{}=", proof("secret", &nonce)),
            stored.clone(),
        ] {
            assert!(!is_proven(&wrong, &stored), "{wrong}");
        }
    }
}
