//! The rotate-ack and its proof: whoever signs it held the very secret (protocol.md §5).

use ed25519_dalek::{Signature, Signer as _, VerifyingKey};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::canonical::length_prefixed;
use crate::derive::ack_key;
use crate::encoding::{b64url, from_b64url_array};
use crate::error::Invalid;
use crate::ids::{ClientId, MlsGroupId, Npub, RotationId, VersionId};
use crate::notify::RotateNotify;
use crate::time::UnixMs;

/// An admin confirms that the new secret has arrived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RotateAck {
    /// The operation.
    pub rotation_id: RotationId,
    /// The client.
    pub client_id: ClientId,
    /// The version that arrived.
    pub version_id: VersionId,
    /// Who acks; must be the MLS sender.
    pub ack_by: Npub,
    /// When, by the admin's clock; informational.
    pub ack_at: UnixMs,
    /// Ed25519 signature, base64url; absent in older apps, whose acks count as unproven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
}

/// What an ack proof speaks of.
#[derive(Clone, Copy, Debug)]
pub struct AckStatement<'a> {
    /// The operation.
    pub rotation: &'a RotationId,
    /// The client.
    pub client: &'a ClientId,
    /// The version.
    pub version: &'a VersionId,
    /// Its stored hash.
    pub secret_hash: &'a str,
    /// Who acks.
    pub npub: &'a Npub,
    /// The group it was received in.
    pub group: &'a MlsGroupId,
}

impl AckStatement<'_> {
    fn bytes(&self) -> Zeroizing<Vec<u8>> {
        let Self {
            rotation,
            client,
            version,
            secret_hash,
            npub,
            group,
        } = self;
        length_prefixed(&[
            rotation.as_str().as_bytes(),
            client.as_str().as_bytes(),
            version.to_string().as_bytes(),
            secret_hash.as_bytes(),
            npub.as_bytes(),
            group.as_bytes(),
        ])
    }

    /// Verifies `proof` under the public key stored at prepare, strictly (RFC 8032, no malleable or small-order acceptance).
    ///
    /// # Errors
    /// [`Invalid`]: an ack that proves nothing.
    pub fn verify(&self, ack_public_key: &[u8; 32], proof: &str) -> Result<(), Invalid> {
        let signature = from_b64url_array::<64>("proof", proof)?;
        let not_proven =
            |_| Invalid::new("proof", "a signature by the key derived from the secret");
        VerifyingKey::from_bytes(ack_public_key)
            .and_then(|key| key.verify_strict(&self.bytes(), &Signature::from_bytes(&signature)))
            .map_err(not_proven)
    }
}

impl RotateAck {
    /// The ack that the holder of `notify` sends.
    #[must_use]
    pub fn proven(notify: &RotateNotify, by: Npub, group: &MlsGroupId, now: UnixMs) -> Self {
        let header = &notify.header;
        let key = ack_key(
            notify.secret.expose(),
            &header.client_id,
            &header.version_id,
            &header.rotation_id,
        );
        let statement = AckStatement {
            rotation: &header.rotation_id,
            client: &header.client_id,
            version: &header.version_id,
            secret_hash: &header.secret_hash,
            npub: &by,
            group,
        };
        let proof = b64url(&key.sign(&statement.bytes()).to_bytes());
        Self {
            rotation_id: header.rotation_id.clone(),
            client_id: header.client_id.clone(),
            version_id: header.version_id,
            ack_by: by,
            ack_at: now,
            proof: Some(proof),
        }
    }
}
