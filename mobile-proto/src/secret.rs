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
