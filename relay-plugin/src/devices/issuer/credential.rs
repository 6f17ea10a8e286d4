//! What a device is given: the secret_id itself, or a single-use token that unwraps to it. No `Debug`, `Display`, `Serialize` or `Clone`; wiped on drop.

use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

/// The text of a secret_id or of a wrapping token.
pub struct CredentialText(Zeroizing<String>);

/// What the command to the device carries.
pub enum Credential {
    /// The secret_id.
    SecretId(CredentialText),
    /// A token that can be exchanged once for the secret_id.
    Wrapped {
        /// The wrapping token.
        token: CredentialText,
        /// How long it can be exchanged.
        ttl: Duration,
    },
}

impl CredentialText {
    /// Takes it over; the buffer is wiped on drop.
    #[must_use]
    pub fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    /// The text. Called where the command is composed, and by [`Credential::proof`].
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Credential {
    /// What is handed to the device.
    #[must_use]
    pub fn text(&self) -> &CredentialText {
        match self {
            Self::SecretId(text) | Self::Wrapped { token: text, .. } => text,
        }
    }

    /// The `proof` that an `auth_result` for this credential must carry: HMAC-SHA-256 under the text handed to the device, over the nonce (protocol.md §8).
    /// A wrapped secret_id is not known to the service, so there the wrapping token is the key.
    #[must_use]
    pub fn proof(&self, nonce: &str) -> [u8; 32] {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
        let mac = Hmac::<Sha256>::new_from_slice(self.text().expose().as_bytes())
            .expect("a key of any length");
        mac.chain_update(nonce.as_bytes())
            .finalize()
            .into_bytes()
            .into()
    }
}
