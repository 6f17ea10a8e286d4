//! Step 3b: the secret gets its keyed hash, its prefilter and its ack key.
//!
//! The hash is checked with one verification before anybody is told of it: a MAC service that signs with one key and verifies with another
//! would lock every holder of the new secret out.

use std::time::Instant;

use keyturn_proto::encoding::b64url;
use keyturn_proto::notify::{NotifyHeader, RotateNotify};
use keyturn_proto::{ErrorClass, RotationId, UnixMs, derive};
use keyturn_store::documents::{Origin, VersionDoc, VersionState};
use keyturn_store::mac::MacKey;

use super::failure::Failure;
use super::generate::Generated;
use super::reserve::Reserved;

/// A secret with everything that is derived from it, composed for its admins.
pub struct Maced {
    pub(super) reserved: Reserved,
    pub(super) version: VersionDoc,
    pub(super) notify: RotateNotify,
}

impl Generated {
    /// Hashes, checks, derives.
    ///
    /// # Errors
    /// [`Failure`]; the secret is gone.
    pub async fn mac(self, key: &dyn MacKey) -> Result<Maced, Failure> {
        let Self {
            reserved,
            version_id,
            secret,
            at,
        } = self;
        let rotation = &reserved.rotation;
        let client_id = &rotation.client_id;
        let started = Instant::now();
        let maced = key.sign(client_id, &version_id, secret.expose()).await?;
        metrics::histogram!(crate::metrics::MAC_SECONDS).record(started.elapsed().as_secs_f64());
        let verified = key
            .verify(
                &maced.key_ref,
                client_id,
                &version_id,
                secret.expose(),
                &maced.hash,
            )
            .await?;
        if !verified {
            let class = ErrorClass::InternalError;
            return Err(Failure::refused(class, "mac.does_not_verify"));
        }

        let ack_key = derive::ack_key(
            secret.expose(),
            client_id,
            &version_id,
            &rotation.rotation_id,
        );
        let version = VersionDoc {
            client_id: client_id.clone(),
            version_id,
            secret_hash: maced.hash.as_str().to_owned(),
            algo: "HMAC-SHA-256".to_owned(),
            mac_key_ref: maced.key_ref.clone(),
            created_at: at,
            not_before: rotation.not_before,
            not_after: None,
            state: VersionState::Pending,
            rotated_by: Some(rotation.requested_by),
            rotation_reason: rotation.reason.clone(),
            rotation_id: Some(rotation.rotation_id.clone()),
            origin: Origin::Generated,
            prefilter: Some(hex::encode(derive::prefilter(secret.expose()))),
            prehash: None,
            ack_public_key: Some(b64url(ack_key.verifying_key().as_bytes())),
        };
        let header = NotifyHeader {
            client_id: client_id.clone(),
            version_id,
            secret_hash: version.secret_hash.clone(),
            mac_key_ref: maced.key_ref,
            not_before: rotation.not_before,
            grace_until: rotation.grace_until,
            grace_duration_ms: rotation.grace_duration_ms,
            rotation_id: rotation.rotation_id.clone(),
            issued_at: at,
            relay_msg_id: message_id(at)?,
        };
        Ok(Maced {
            version,
            notify: RotateNotify { header, secret },
            reserved,
        })
    }
}

fn message_id(now: UnixMs) -> Result<String, Failure> {
    RotationId::generate(now)
        .map(|id| id.to_string())
        .map_err(|_| Failure::refused(ErrorClass::InternalError, "generator.failed"))
}
