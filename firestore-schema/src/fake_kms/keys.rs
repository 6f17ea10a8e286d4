//! Keys, their versions and what they compute.

use std::num::NonZeroU64;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// CryptoKeyPurpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// MAC.
    Mac,
    /// ENCRYPT_DECRYPT.
    EncryptDecrypt,
}

/// CryptoKeyVersionAlgorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC_SHA256.
    HmacSha256,
    /// HMAC_SHA512: its MACs have 64 bytes.
    HmacSha512,
}

/// CryptoKeyVersionState.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// ENABLED.
    Enabled,
    /// DISABLED.
    Disabled,
    /// DESTROY_SCHEDULED.
    DestroyScheduled,
    /// DESTROYED.
    Destroyed,
}

pub(super) struct Key {
    pub(super) purpose: Purpose,
    pub(super) algorithm: Algorithm,
    pub(super) versions: Vec<Version>,
}

pub(super) struct Version {
    pub(super) state: State,
    material: [u8; 32],
}

impl Key {
    pub(super) const fn new(purpose: Purpose, algorithm: Algorithm) -> Self {
        Self {
            purpose,
            algorithm,
            versions: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, material: &[u8; 32]) -> NonZeroU64 {
        self.versions.push(Version {
            state: State::Enabled,
            material: *material,
        });
        NonZeroU64::new(self.versions.len() as u64).unwrap_or(NonZeroU64::MIN)
    }

    pub(super) fn set(&mut self, number: NonZeroU64, state: State) {
        let index = usize::try_from(number.get() - 1).unwrap_or(usize::MAX);
        if let Some(version) = self.versions.get_mut(index) {
            version.state = state;
        }
    }

    pub(super) fn version(&self, number: u64) -> Option<&Version> {
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        self.versions.get(index)
    }
}

impl Version {
    /// HMAC-SHA-256; for the other algorithm something of its length, since nothing of ours may accept it.
    pub(super) fn mac(&self, algorithm: Algorithm, data: &[u8]) -> Vec<u8> {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
        let keyed = Hmac::<Sha256>::new_from_slice(&self.material).expect("a 32-byte key");
        let mac = keyed.chain_update(data).finalize().into_bytes().to_vec();
        match algorithm {
            Algorithm::HmacSha256 => mac,
            Algorithm::HmacSha512 => mac.repeat(2),
        }
    }
}

impl Purpose {
    /// Name and number of the enum.
    pub(super) const fn wire(self) -> (&'static str, i32) {
        match self {
            Self::Mac => ("MAC", 9),
            Self::EncryptDecrypt => ("ENCRYPT_DECRYPT", 1),
        }
    }
}

impl Algorithm {
    pub(super) const fn wire(self) -> (&'static str, i32) {
        match self {
            Self::HmacSha256 => ("HMAC_SHA256", 32),
            Self::HmacSha512 => ("HMAC_SHA512", 35),
        }
    }
}

impl State {
    pub(super) const fn wire(self) -> (&'static str, i32) {
        match self {
            Self::Enabled => ("ENABLED", 1),
            Self::Disabled => ("DISABLED", 2),
            Self::Destroyed => ("DESTROYED", 3),
            Self::DestroyScheduled => ("DESTROY_SCHEDULED", 4),
        }
    }
}
