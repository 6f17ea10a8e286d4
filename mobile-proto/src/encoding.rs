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
    URL_SAFE_NO_PAD
        .decode(text)
        .map(Zeroizing::new)
        .map_err(|_| Invalid::new(field, "canonical base64url without padding"))
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
    let array: [u8; N] = bytes
        .as_slice()
        .try_into()
        .map_err(|_| Invalid::new(field, "base64url of the right length"))?;
    Ok(Zeroizing::new(array))
}
