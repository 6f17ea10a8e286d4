//! What a client has today: its secret, or another system's bcrypt hash of it.

use keyturn_store::mac::prehash::{BcryptError, BcryptHash, SLOW_COST, looks_like_bcrypt};
use zeroize::Zeroizing;

/// The verifier looks at no longer one.
const MAX_BYTES: usize = 1024;
/// Shorter ones can be guessed by whoever gets store and MAC key.
const SHORT: usize = 20;

/// No `Debug`, no `Clone`; wiped on drop.
pub struct Material(Kind);

enum Kind {
    Plain(Zeroizing<String>),
    Bcrypt(BcryptHash),
}

/// Why a text is neither. Never carries the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MaterialError {
    /// Nothing there.
    #[error("the secret is empty")]
    Empty,
    /// The verifier would never look at it.
    #[error("the secret is longer than 1024 bytes")]
    TooLong,
    /// A second line, or a file of another kind.
    #[error("the secret holds a control character, such as a line break")]
    Control,
    /// Not UTF-8.
    #[error("the secret is not UTF-8 text")]
    NotText,
    /// Most likely meant as one.
    #[error(
        "this is a bcrypt hash, not a secret: import it as one (--bcrypt-file, or the field `bcrypt`)"
    )]
    IsBcrypt,
    /// Not a hash that can be taken over.
    #[error(transparent)]
    Bcrypt(#[from] BcryptError),
}

impl Material {
    /// A plaintext secret.
    ///
    /// # Errors
    /// [`MaterialError`].
    pub fn plain(text: Zeroizing<String>) -> Result<Self, MaterialError> {
        let refused = [
            (text.is_empty(), MaterialError::Empty),
            (text.len() > MAX_BYTES, MaterialError::TooLong),
            (text.chars().any(char::is_control), MaterialError::Control),
            (looks_like_bcrypt(&text), MaterialError::IsBcrypt),
        ];
        match refused.into_iter().find(|(holds, _)| *holds) {
            Some((_, error)) => Err(error),
            None => Ok(Self(Kind::Plain(text))),
        }
    }

    /// A bcrypt hash.
    ///
    /// # Errors
    /// [`MaterialError::Bcrypt`].
    pub fn bcrypt(text: &str) -> Result<Self, MaterialError> {
        Ok(Self(Kind::Bcrypt(BcryptHash::parse(text)?)))
    }

    /// From the bytes of a file or of standard input: one line, its line break not included.
    ///
    /// # Errors
    /// [`MaterialError`].
    pub fn of_bytes(bytes: &[u8], is_bcrypt: bool) -> Result<Self, MaterialError> {
        let text = std::str::from_utf8(bytes).map_err(|_| MaterialError::NotText)?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if is_bcrypt {
            Self::bcrypt(text)
        } else {
            Self::plain(Zeroizing::new(text.to_owned()))
        }
    }

    /// What the operator should know about it.
    #[must_use]
    pub fn warning(&self) -> Option<&'static str> {
        match &self.0 {
            Kind::Plain(text) if text.len() < SHORT => Some(
                "a short secret can be guessed by whoever gets the store and the MAC key: rotate it soon",
            ),
            Kind::Bcrypt(hash) if hash.setting().cost() > SLOW_COST => Some(
                "a bcrypt cost this high makes the first check of a secret slow: rotate it soon",
            ),
            Kind::Plain(_) | Kind::Bcrypt(_) => None,
        }
    }

    /// What the MAC is over.
    pub(super) fn mac_input(&self) -> &str {
        match &self.0 {
            Kind::Plain(text) => text,
            Kind::Bcrypt(hash) => hash.expose(),
        }
    }

    /// bcrypt's setting, to be stored.
    pub(super) fn prehash(&self) -> Option<&str> {
        match &self.0 {
            Kind::Plain(_) => None,
            Kind::Bcrypt(hash) => Some(hash.setting().as_str()),
        }
    }

    /// For the audit trail.
    pub(super) fn described(&self) -> String {
        match &self.0 {
            Kind::Plain(_) => "plaintext".to_owned(),
            Kind::Bcrypt(hash) => format!("bcrypt, cost {}", hash.setting().cost()),
        }
    }
}
