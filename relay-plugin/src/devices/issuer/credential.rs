//! What a device is given: the secret_id itself, or a single-use token that unwraps to it. No `Debug`, `Display`, `Serialize` or `Clone`; wiped on drop.

use std::time::Duration;

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

    /// The text. Called where the command is composed and where the expected proof is made.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Credential {
    /// What is handed to the device; the key of the proof that it got it.
    #[must_use]
    pub fn text(&self) -> &CredentialText {
        match self {
            Self::SecretId(text) | Self::Wrapped { token: text, .. } => text,
        }
    }
}
