//! The one base64 dialect of the protocol: base64url without padding, canonical (protocol.md §2).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::error::Invalid;

/// Encodes as base64url without padding (RFC 4648 §5).
#[must_use]
pub fn b64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Decodes canonical base64url without padding; padding, a foreign alphabet or non-zero trailing bits are refused, so that one
/// value has exactly one spelling.
///
/// # Errors
/// [`Invalid`] naming `field`; the value itself never appears in the error.
pub fn from_b64url(field: &'static str, text: &str) -> Result<Zeroizing<Vec<u8>>, Invalid> {
    // Decoded in place, so that a refused text leaves no half-decoded copy behind.
    let mut bytes = Zeroizing::new(vec![0u8; base64::decoded_len_estimate(text.len())]);
    let len = URL_SAFE_NO_PAD
        .decode_slice(text, &mut bytes)
        .map_err(|_| Invalid::new(field, "canonical base64url without padding"))?;
    bytes.truncate(len);
    Ok(bytes)
}

/// Decodes exactly `N` bytes of canonical base64url.
///
/// # Errors
/// [`Invalid`] naming `field`, also for another length.
pub fn from_b64url_array<const N: usize>(
    field: &'static str,
    text: &str,
) -> Result<Zeroizing<[u8; N]>, Invalid> {
    let bytes = from_b64url(field, text)?;
    if bytes.len() != N {
        return Err(Invalid::new(field, "base64url of the right length"));
    }
    let mut array = Zeroizing::new([0u8; N]);
    array.copy_from_slice(&bytes);
    Ok(array)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_value_has_exactly_one_spelling(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let text = b64url(&bytes);
            let back = from_b64url("x", &text).unwrap();
            prop_assert_eq!(back.as_slice(), bytes.as_slice());
        }

        #[test]
        fn what_decodes_encodes_back_to_the_same_text(text in "[A-Za-z0-9_=+/-]{0,48}") {
            if let Ok(bytes) = from_b64url("x", &text) {
                prop_assert_eq!(b64url(&bytes), text);
            }
        }
    }

    #[test]
    fn non_canonical_spellings_are_refused() {
        for bad in [
            "AA==", "AA=", "AB", "A", "A+", "A/", "AA\n", " AA", "AA ", "é",
        ] {
            assert!(from_b64url("x", bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn another_length_is_refused() {
        assert!(from_b64url_array::<3>("x", "AAAA").is_ok());
        assert!(from_b64url_array::<4>("x", "AAAA").is_err());
        assert!(from_b64url_array::<32>("x", "").is_err());
    }

    #[test]
    fn the_error_names_the_field_and_never_the_value() {
        let error = from_b64url("secret", "hunter2=").unwrap_err();
        assert!(error.to_string().contains("secret"));
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}
