//! The MAC key in Cloud KMS: it makes and checks hashes and is never exported. `mac_key_ref` is the full name of the key version that made a hash.
//!
//! What must always hold:
//! - a payload goes only to versions of the configured keys; a `mac_key_ref` of anything else is refused before anybody is asked, because the payload,
//!   which holds a secret, would go to somebody else's key;
//! - an answer counts only after every check of `integrity`;
//! - no payload, MAC, token or word of the service gets into a log or an error of ours;
//! - every operation ends in time, and a service that keeps failing is left alone (`breaker`).
//!
//! Copies that cannot be wiped from here are listed in docs/threat-model.md: the library's JSON and what lies below it.

mod breaker;
mod call;
mod client;
mod fault;
mod inspect;
mod integrity;
mod name;
mod settings;

pub use breaker::Settings as BreakerSettings;
pub use inspect::{InspectError, KeyVersion, Protection, VersionState};
pub use name::{KeyName, NotAKeyName};
pub use settings::{Endpoint, NotAnEndpoint, Settings};

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use google_cloud_auth::credentials::Credentials;
use google_cloud_kms_v1::model::{MacSignRequest, MacVerifyRequest};
use keyturn_proto::canonical::mac_input;
use keyturn_proto::encoding::from_b64url_array;
use keyturn_proto::{ClientId, VersionId};
use zeroize::Zeroizing;

use self::breaker::{Breaker, Shown};
use self::client::Client;
use self::fault::{Class, Fault, Op};
use super::{MacError, MacKey, Maced, SecretHash};

/// HMAC-SHA-256 by Cloud KMS.
pub struct CloudKmsKey {
    settings: Settings,
    primary: String,
    client: Client,
    breaker: Breaker,
    /// The last signature was refused for a reason that does not pass by itself.
    refused: AtomicBool,
}

impl CloudKmsKey {
    /// With application-default credentials, or none for a test server on this machine. Asks nobody: that begins with the first operation.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self::build(settings, None)
    }

    /// With credentials of the caller's choice.
    #[must_use]
    pub fn with_credentials(settings: Settings, credentials: Credentials) -> Self {
        Self::build(settings, Some(credentials))
    }

    fn build(settings: Settings, credentials: Option<Credentials>) -> Self {
        Self {
            primary: settings.key.version(settings.version),
            client: Client::new(
                settings.endpoint.clone(),
                credentials,
                settings.attempt_timeout,
            ),
            breaker: Breaker::new(settings.breaker),
            refused: AtomicBool::new(false),
            settings,
        }
    }

    /// The configured keys, the one that makes new hashes first.
    pub fn keys(&self) -> impl Iterator<Item = &KeyName> {
        std::iter::once(&self.settings.key).chain(&self.settings.previous_keys)
    }

    /// Which version of which configured key a `mac_key_ref` names.
    #[must_use]
    pub fn version_of(&self, key_ref: &str) -> Option<(&KeyName, NonZeroU64)> {
        self.keys()
            .find_map(|key| Some((key, key.version_of(key_ref)?)))
    }

    fn failed(&self, op: Op, key_ref: &str, fault: Fault) -> MacError {
        let error = fault.to_mac_error(op);
        // The name is one of ours: it was checked before anybody was asked.
        if fault.class == Class::BreakerOpen {
            tracing::debug!(op = op.word(), "the key service is left alone for a moment");
        } else {
            tracing::warn!(op = op.word(), class = fault.class.word(), key_ref, %error, "key service");
        }
        error
    }
}

#[async_trait]
impl MacKey for CloudKmsKey {
    async fn sign(
        &self,
        client: &ClientId,
        version: &VersionId,
        secret: &str,
    ) -> Result<Maced, MacError> {
        let data = payload(mac_input(client, version, secret));
        let request = MacSignRequest::new()
            .set_name(&self.primary)
            .set_data_crc32c(integrity::checksum(&data))
            .set_data(data);
        let signed = self
            .call(Op::Sign, |service| {
                let asked = service.mac_sign().with_request(request.clone());
                async move {
                    let answer = asked.send().await.map_err(|error| Fault::of(&error))?;
                    integrity::signed(&self.primary, &answer)
                }
            })
            .await;
        let refused = signed.as_ref().is_err_and(|fault| !fault.retryable);
        self.refused.store(refused, Ordering::Relaxed);
        let mac = signed.map_err(|fault| self.failed(Op::Sign, &self.primary, fault))?;
        Ok(Maced {
            hash: SecretHash::from_mac(&mac),
            key_ref: self.primary.clone(),
        })
    }

    async fn verify(
        &self,
        key_ref: &str,
        client: &ClientId,
        version: &VersionId,
        secret: &str,
        hash: &SecretHash,
    ) -> Result<bool, MacError> {
        if self.version_of(key_ref).is_none() {
            return Err(MacError::UnknownKey(key_ref.to_owned()));
        }
        let mac = from_b64url_array::<32>("secret_hash", hash.as_str())
            .map_err(|_| MacError::MalformedHash)?;
        let mac = payload(Zeroizing::new(mac.to_vec()));
        let data = payload(mac_input(client, version, secret));
        let request = MacVerifyRequest::new()
            .set_name(key_ref)
            .set_data_crc32c(integrity::checksum(&data))
            .set_data(data)
            .set_mac_crc32c(integrity::checksum(&mac))
            .set_mac(mac);
        self.call(Op::Verify, |service| {
            let asked = service.mac_verify().with_request(request.clone());
            async move {
                let answer = asked.send().await.map_err(|error| Fault::of(&error))?;
                integrity::verified(key_ref, &answer)
            }
        })
        .await
        .map_err(|fault| self.failed(Op::Verify, key_ref, fault))
    }

    fn primary_ref(&self) -> String {
        self.primary.clone()
    }

    fn healthy(&self) -> bool {
        self.breaker.shown() == Shown::Closed && !self.refused.load(Ordering::Relaxed)
    }
}

/// A buffer that is shared by the attempts and wiped when the last of them lets go of it.
fn payload(bytes: Zeroizing<Vec<u8>>) -> Bytes {
    Bytes::from_owner(bytes)
}
