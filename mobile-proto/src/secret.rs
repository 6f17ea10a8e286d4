//! The plaintext, in the only two types that may hold it.
//!
//! Neither has `Debug`, `Display`, `Serialize`, `Clone` or `PartialEq`; both wipe their memory on drop. A [`Secret`] is one that we made
//! (32 random bytes); a [`PresentedSecret`] is whatever a caller claims to know.

use zeroize::Zeroizing;

use crate::encoding::{b64url, from_b64url_array};
use crate::error::Invalid;

/// Length of a generated secret as text: 32 bytes in base64url without padding.
pub const SECRET_TEXT_LEN: usize = 43;

/// A generated secret: 32 bytes from the operating system, held as its 43-character text, which is what everybody hashes.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// A fresh one.
    ///
    /// # Errors
    /// [`Invalid`] if the operating system's generator fails: then nothing may go on.
    pub fn generate() -> Result<Self, Invalid> {
        let mut bytes = Zeroizing::new([0u8; 32]);
        getrandom::fill(bytes.as_mut())
            .map_err(|_| Invalid::new("secret", "made with a working random generator"))?;
        Ok(Self(Zeroizing::new(b64url(bytes.as_ref()))))
    }

    /// Takes back a secret that was delivered to an admin.
    ///
    /// # Errors
    /// [`Invalid`] unless it is canonical base64url of 32 bytes.
    pub fn from_text(text: Zeroizing<String>) -> Result<Self, Invalid> {
        from_b64url_array::<32>("secret", &text)?;
        Ok(Self(text))
    }

    /// The text. Called where a rotate-notify is composed, where the hash is made, and where an admin asks to see it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// A secret as a caller presented it: any text, judged by the verifier.
pub struct PresentedSecret(Zeroizing<String>);

impl PresentedSecret {
    /// Wraps what came in; the buffer is wiped on drop.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text, for hashing only.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it has the shape of a generated secret, so that a prefilter can be asked.
    #[must_use]
    pub fn looks_generated(&self) -> bool {
        from_b64url_array::<32>("secret", &self.0).is_ok()
    }
}

impl From<Secret> for PresentedSecret {
    fn from(secret: Secret) -> Self {
        Self(secret.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::fmt::{Debug, Display};

    use static_assertions::assert_not_impl_any;

    use super::*;

    assert_not_impl_any!(Secret: Debug, Display, Clone, Copy, PartialEq, serde::Serialize, AsRef<str>);
    assert_not_impl_any!(PresentedSecret: Debug, Display, Clone, Copy, PartialEq, serde::Serialize, AsRef<str>);
    assert_not_impl_any!(crate::notify::RotateNotify: Debug, Display, Clone, serde::Serialize);
    assert_not_impl_any!(crate::inner::Inner: Debug, Clone, serde::Serialize);

    #[test]
    fn a_generated_secret_is_32_bytes_in_43_characters() {
        let secret = Secret::generate().unwrap();
        assert_eq!(secret.expose().len(), SECRET_TEXT_LEN);
        assert!(from_b64url_array::<32>("secret", secret.expose()).is_ok());
        assert!(secret.expose() != Secret::generate().unwrap().expose());
    }

    #[test]
    fn only_canonical_text_of_32_bytes_is_taken_back() {
        let good = "2nC0WJ6d-3Jb0L6Wj7o5n9Jx9aQmH6r1bE3xqfIuF9k";
        assert!(Secret::from_text(Zeroizing::new(good.to_owned())).is_ok());
        let padded = format!("{good}=");
        let trailing_bits = good.replace("F9k", "F9l");
        for bad in ["", "short", padded.as_str(), trailing_bits.as_str()] {
            assert!(Secret::from_text(Zeroizing::new(bad.to_owned())).is_err());
            assert!(!PresentedSecret::new(bad).looks_generated());
        }
        assert!(PresentedSecret::new(good).looks_generated());
    }
}
