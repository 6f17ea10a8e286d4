//! What an operator wants to know of a key: its purpose, its versions and their states. Only `keyturn doctor` asks; the relay needs none of these rights.

use google_cloud_kms_v1::model::crypto_key::CryptoKeyPurpose;
use google_cloud_kms_v1::model::crypto_key_version::{
    CryptoKeyVersionAlgorithm, CryptoKeyVersionState,
};
use google_cloud_kms_v1::model::{
    CryptoKeyVersion, GetCryptoKeyRequest, ListCryptoKeyVersionsRequest, ProtectionLevel,
};
use std::num::NonZeroU64;

use super::fault::{Class, Fault, Op};
use super::{CloudKmsKey, KeyName};

/// Versions asked for at once.
const PAGE: i32 = 500;
/// Pages read at most; a service that never ends its list must not keep us.
const PAGES: usize = 100;

/// One version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyVersion {
    /// Its number.
    pub number: NonZeroU64,
    /// Whether it can be used.
    pub state: VersionState,
    /// Whether it makes HMAC-SHA-256.
    pub hmac_sha256: bool,
    /// Where its material is.
    pub protection: Protection,
}

/// What can be done with a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionState {
    /// Signs and verifies.
    Enabled,
    /// Does not, until it is enabled again.
    Disabled,
    /// Is destroyed soon, and can be restored until then.
    DestroyScheduled,
    /// Is gone.
    Destroyed,
    /// Is not ready yet, failed to become so, or something newer than this program.
    Other,
}

/// Where key material is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// In Google's software.
    Software,
    /// In Google's hardware modules.
    Hsm,
    /// At another provider.
    External,
    /// Not said.
    Unknown,
}

/// Why nothing could be found out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InspectError {
    /// Who runs this may not ask.
    #[error("the permission {permission} is missing")]
    Denied {
        /// What IAM calls the right.
        permission: &'static str,
    },
    /// There is no such key.
    #[error("the key does not exist")]
    NotFound,
    /// It did not work; the words are ours.
    #[error("{0}")]
    Failed(super::MacError),
}

impl CloudKmsKey {
    /// Whether a key's purpose is MAC.
    ///
    /// # Errors
    /// [`InspectError`].
    pub async fn is_for_macs(&self, key: &KeyName) -> Result<bool, InspectError> {
        let request = GetCryptoKeyRequest::new().set_name(key.as_str());
        let found = self.call(Op::Get, |service| {
            let asked = service.get_crypto_key().with_request(request.clone());
            async move { asked.send().await.map_err(|error| Fault::of(&error)) }
        });
        let found = found.await.map_err(|fault| error_of(Op::Get, fault))?;
        Ok(found.purpose == CryptoKeyPurpose::Mac)
    }

    /// Every version of a key that there ever was, by number.
    ///
    /// # Errors
    /// [`InspectError`].
    pub async fn versions(&self, key: &KeyName) -> Result<Vec<KeyVersion>, InspectError> {
        let mut versions = Vec::new();
        let mut request = ListCryptoKeyVersionsRequest::new()
            .set_parent(key.as_str())
            .set_page_size(PAGE);
        for _ in 0..PAGES {
            let page = self.call(Op::List, |service| {
                let asked = service
                    .list_crypto_key_versions()
                    .with_request(request.clone());
                async move { asked.send().await.map_err(|error| Fault::of(&error)) }
            });
            let page = page.await.map_err(|fault| error_of(Op::List, fault))?;
            let ours = page.crypto_key_versions.iter();
            versions.extend(ours.filter_map(|version| read(key, version)));
            if page.next_page_token.is_empty() {
                versions.sort_by_key(|version| version.number);
                return Ok(versions);
            }
            request = request.set_page_token(page.next_page_token);
        }
        Err(error_of(Op::List, Fault::new(Class::Garbled)))
    }
}

fn read(key: &KeyName, version: &CryptoKeyVersion) -> Option<KeyVersion> {
    Some(KeyVersion {
        number: key.version_of(&version.name)?,
        state: match version.state {
            CryptoKeyVersionState::Enabled => VersionState::Enabled,
            CryptoKeyVersionState::Disabled => VersionState::Disabled,
            CryptoKeyVersionState::DestroyScheduled => VersionState::DestroyScheduled,
            CryptoKeyVersionState::Destroyed => VersionState::Destroyed,
            _ => VersionState::Other,
        },
        hmac_sha256: version.algorithm == CryptoKeyVersionAlgorithm::HmacSha256,
        protection: match version.protection_level {
            ProtectionLevel::Software => Protection::Software,
            ProtectionLevel::Hsm | ProtectionLevel::HsmSingleTenant => Protection::Hsm,
            ProtectionLevel::External | ProtectionLevel::ExternalVpc => Protection::External,
            _ => Protection::Unknown,
        },
    })
}

const fn error_of(op: Op, fault: Fault) -> InspectError {
    match fault.class {
        Class::Denied => InspectError::Denied {
            permission: op.permission(),
        },
        Class::NotFound => InspectError::NotFound,
        _ => InspectError::Failed(fault.to_mac_error(op)),
    }
}

impl VersionState {
    /// As Google spells it, but for [`Self::Other`].
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Enabled => "ENABLED",
            Self::Disabled => "DISABLED",
            Self::DestroyScheduled => "DESTROY_SCHEDULED",
            Self::Destroyed => "DESTROYED",
            Self::Other => "not usable",
        }
    }
}

impl Protection {
    /// As Google spells it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Software => "SOFTWARE",
            Self::Hsm => "HSM",
            Self::External => "EXTERNAL",
            Self::Unknown => "unknown protection",
        }
    }
}
