//! Several MAC keys behind one port: one makes new hashes, the others go on verifying what they made. So a running system moves from one kind of key to
//! another without a new secret on that day.

use std::sync::Arc;

use async_trait::async_trait;
use keyturn_proto::{ClientId, VersionId};

use super::{LocalMacKey, MacError, MacKey, Maced, SecretHash};

/// One primary key and any number of older ones, of whatever kind.
pub struct MacKeyring {
    primary: Arc<dyn MacKey>,
    verify_only: Vec<Arc<dyn MacKey>>,
}

impl MacKeyring {
    /// `primary` makes new hashes.
    #[must_use]
    pub fn new(primary: Arc<dyn MacKey>, verify_only: Vec<Arc<dyn MacKey>>) -> Self {
        Self {
            primary,
            verify_only,
        }
    }
}

#[async_trait]
impl MacKey for MacKeyring {
    async fn sign(
        &self,
        client: &ClientId,
        version: &VersionId,
        secret: &str,
    ) -> Result<Maced, MacError> {
        self.primary.sign(client, version, secret).await
    }

    fn here(&self) -> Option<&LocalMacKey> {
        self.primary.here()
    }

    async fn verify(
        &self,
        key_ref: &str,
        client: &ClientId,
        version: &VersionId,
        secret: &str,
        hash: &SecretHash,
    ) -> Result<bool, MacError> {
        // Every adapter says that it does not know a name before it does anything with the secret.
        for key in std::iter::once(&self.primary).chain(&self.verify_only) {
            match key.verify(key_ref, client, version, secret, hash).await {
                Err(MacError::UnknownKey(_)) => {}
                answer => return answer,
            }
        }
        Err(MacError::UnknownKey(key_ref.to_owned()))
    }

    fn primary_ref(&self) -> String {
        self.primary.primary_ref()
    }

    fn healthy(&self) -> bool {
        self.primary.healthy() && self.verify_only.iter().all(|key| key.healthy())
    }
}
