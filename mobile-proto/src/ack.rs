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
    /// What is signed: rotation, client, version, hash text, raw npub, raw group id, each length-prefixed.
    #[must_use]
    pub fn bytes(&self) -> Zeroizing<Vec<u8>> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use crate::notify::NotifyHeader;
    use crate::secret::Secret;

    struct World {
        notify: RotateNotify,
        group: MlsGroupId,
        npub: Npub,
        public: [u8; 32],
    }

    fn world() -> World {
        let header = NotifyHeader {
            client_id: "c".parse().unwrap(),
            version_id: "01JM8VEZAMG2DK6T4S9N7TT1C8".parse().unwrap(),
            secret_hash: "LSDynK4JQHtB-kC5lcSb7pfuuFdYN5g2qn63-HGD764".to_owned(),
            mac_key_ref: "local/1".to_owned(),
            not_before: UnixMs(0),
            grace_until: None,
            grace_duration_ms: 0,
            rotation_id: "01JM8VEZAMG2DK6T4S9N7TT1C9".parse().unwrap(),
            issued_at: UnixMs(0),
            relay_msg_id: String::new(),
        };
        let secret = Secret::generate().unwrap();
        let public = ack_key(
            secret.expose(),
            &header.client_id,
            &header.version_id,
            &header.rotation_id,
        )
        .verifying_key()
        .to_bytes();
        World {
            notify: RotateNotify { header, secret },
            group: "0a".parse().unwrap(),
            npub: Npub::from_bytes([1; 32]),
            public,
        }
    }

    impl World {
        fn statement(&self) -> AckStatement<'_> {
            AckStatement {
                rotation: &self.notify.header.rotation_id,
                client: &self.notify.header.client_id,
                version: &self.notify.header.version_id,
                secret_hash: &self.notify.header.secret_hash,
                npub: &self.npub,
                group: &self.group,
            }
        }
        fn proof(&self) -> String {
            RotateAck::proven(&self.notify, self.npub, &self.group, UnixMs(5))
                .proof
                .unwrap()
        }
    }

    #[test]
    fn whoever_holds_the_secret_proves_it() {
        let world = world();
        assert_eq!(
            world.statement().verify(&world.public, &world.proof()),
            Ok(())
        );
    }

    #[test]
    fn a_proof_copied_from_another_member_group_or_rotation_proves_nothing() {
        let world = world();
        let proof = world.proof();
        let (npub, group) = (Npub::from_bytes([2; 32]), "0b".parse().unwrap());
        let rotation = "01JM8VEZAMG2DK6T4S9N7TT1CA".parse().unwrap();
        let base = world.statement();
        for forged in [
            AckStatement {
                npub: &npub,
                ..base
            },
            AckStatement {
                group: &group,
                ..base
            },
            AckStatement {
                rotation: &rotation,
                ..base
            },
            AckStatement {
                secret_hash: "",
                ..base
            },
        ] {
            assert!(forged.verify(&world.public, &proof).is_err());
        }
    }

    #[test]
    fn an_ack_without_the_secret_proves_nothing() {
        let (world, mut other) = (world(), self::world());
        other.notify.header = world.notify.header.clone();
        assert!(
            world
                .statement()
                .verify(&world.public, &other.proof())
                .is_err()
        );
        for junk in ["", "AA", &b64url(&[0; 64]), &format!("{}=", world.proof())] {
            assert!(world.statement().verify(&world.public, junk).is_err());
        }
    }

    #[test]
    fn a_small_order_key_accepts_nothing() {
        // The identity point: under lenient verification R = identity, s = 0 would be a valid signature of everything.
        let mut identity = [0u8; 32];
        identity[0] = 1;
        let mut signature = [0u8; 64];
        signature[0] = 1;
        assert!(
            world()
                .statement()
                .verify(&identity, &b64url(&signature))
                .is_err()
        );
    }
}
