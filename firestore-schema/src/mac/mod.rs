//! The keyed hash behind a port: a key file on one machine, Cloud KMS in production. Only this key turns secrets into hashes.
//!
//! A new key version changes nothing for hashes made before: each carries the name of the version it was made with (`mac_key_ref`), and goes on being
//! verified under that.

pub mod cloud_kms;
mod keyring;
pub mod local;
pub mod prehash;
pub mod probe;

pub use cloud_kms::CloudKmsKey;
pub use keyring::MacKeyring;
pub use local::{KeyFileError, LocalMacKey};

use async_trait::async_trait;
use keyturn_proto::{ClientId, VersionId};

/// A MAC over a secret as the store holds it: canonical base64url of 32 bytes. Public in the sense that the store may see it; still never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretHash(String);

/// Why a MAC operation did not happen. Never carries input or output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// This adapter does not hold the key version named.
    #[error("MAC key version {0} is not available here")]
    UnknownKey(String),
    /// The stored hash is not canonical base64url of 32 bytes.
    #[error("stored hash is not canonical")]
    MalformedHash,
    /// The key service failed or was too slow; `retryable` says whether trying again may help.
    #[error("MAC key service failed: {cause}")]
    Unavailable {
        /// A redacted cause.
        cause: &'static str,
        /// Whether to try again.
        retryable: bool,
    },
    /// The key service does not let these credentials do that.
    #[error("the permission {permission} is missing on the key, or the key does not exist")]
    Denied {
        /// What the service calls the right.
        permission: &'static str,
    },
    /// The key service answered, again and again, with something that fails this check: the answer was for another request, or was changed.
    #[error("the key service's answer cannot be believed: {0}")]
    Integrity(&'static str),
}

/// One MAC result and the exact key version that made it.
pub struct Maced {
    /// The hash.
    pub hash: SecretHash,
    /// `mac_key_ref`.
    pub key_ref: String,
}

/// Makes and checks keyed hashes of secrets (protocol.md §2). The input is always the canonical (client, version, secret).
#[async_trait]
pub trait MacKey: Send + Sync {
    /// Hashes under the primary key version.
    ///
    /// # Errors
    /// [`MacError`].
    async fn sign(
        &self,
        client: &ClientId,
        version: &VersionId,
        secret: &str,
    ) -> Result<Maced, MacError>;

    /// Checks under the key version the hash was made with; constant-time in the secret.
    ///
    /// # Errors
    /// [`MacError`]; a wrong secret is `Ok(false)`.
    async fn verify(
        &self,
        key_ref: &str,
        client: &ClientId,
        version: &VersionId,
        secret: &str,
        hash: &SecretHash,
    ) -> Result<bool, MacError>;

    /// The primary key, if it lies in this process: then nobody has to be waited for.
    fn here(&self) -> Option<&LocalMacKey> {
        None
    }

    /// The key version that [`MacKey::sign`] uses now.
    fn primary_ref(&self) -> String;

    /// Whether the last that was heard of the key is good. Asks nobody; [`probe::probe`] does.
    fn healthy(&self) -> bool {
        true
    }
}

impl SecretHash {
    /// Reads a stored hash.
    ///
    /// # Errors
    /// [`MacError::MalformedHash`] unless canonical base64url of 32 bytes (protocol.md §2).
    pub fn parse(text: &str) -> Result<Self, MacError> {
        keyturn_proto::encoding::from_b64url_array::<32>("secret_hash", text)
            .map(|_| Self(text.to_owned()))
            .map_err(|_| MacError::MalformedHash)
    }

    /// From the raw MAC.
    #[must_use]
    pub fn from_mac(mac: &[u8; 32]) -> Self {
        Self(keyturn_proto::encoding::b64url(mac))
    }

    /// The stored spelling.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[async_trait]
impl<T: MacKey + ?Sized> MacKey for std::sync::Arc<T> {
    async fn sign(
        &self,
        client: &ClientId,
        version: &VersionId,
        secret: &str,
    ) -> Result<Maced, MacError> {
        (**self).sign(client, version, secret).await
    }

    async fn verify(
        &self,
        key_ref: &str,
        client: &ClientId,
        version: &VersionId,
        secret: &str,
        hash: &SecretHash,
    ) -> Result<bool, MacError> {
        (**self)
            .verify(key_ref, client, version, secret, hash)
            .await
    }

    fn here(&self) -> Option<&LocalMacKey> {
        (**self).here()
    }

    fn primary_ref(&self) -> String {
        (**self).primary_ref()
    }

    fn healthy(&self) -> bool {
        (**self).healthy()
    }
}
