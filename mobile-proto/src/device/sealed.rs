//! A command that only its device can open: HPKE (RFC 9180), base mode, X25519 with HKDF-SHA-256.
//!
//! `info` = length-prefixed ("keyturn/sealed-command/1", `device_id`), `aad` = the nonce's text, plaintext = the JSON of the command in clear. So what was
//! sealed for one device and request opens for no other. Base mode does not say who sealed: the nonce of a request that the device itself just made is
//! what ties the answer to it.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use hpke::aead::{Aead, AesGcm128, ChaCha20Poly1305};
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{Deserializable as _, Kem, OpModeR, OpModeS, Serializable as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::id::{DeviceId, DeviceNonce};
use crate::canonical::length_prefixed;
use crate::encoding::{b64url, from_b64url, from_b64url_array};
use crate::error::Invalid;

/// First field of HPKE's `info`.
pub const INFO: &str = "keyturn/sealed-command/1";

/// Longest ciphertext that is opened, in bytes.
const MAX_CIPHERTEXT: usize = 4096;

/// The cipher, chosen for a device when its key is registered. The KEM and the KDF are fixed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Suite {
    /// RFC 9180 ids 0x0020, 0x0001, 0x0003.
    #[default]
    #[serde(rename = "x25519-sha256-chacha20poly1305")]
    ChaCha20Poly1305,
    /// RFC 9180 ids 0x0020, 0x0001, 0x0001; for devices with AES in hardware.
    #[serde(rename = "x25519-sha256-aes128gcm")]
    Aes128Gcm,
}

impl Suite {
    /// The wire spelling.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ChaCha20Poly1305 => "x25519-sha256-chacha20poly1305",
            Self::Aes128Gcm => "x25519-sha256-aes128gcm",
        }
    }
}

impl FromStr for Suite {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        [Self::ChaCha20Poly1305, Self::Aes128Gcm]
            .into_iter()
            .find(|suite| suite.as_str() == text)
            .ok_or(Invalid::new(
                "suite",
                "x25519-sha256-chacha20poly1305 or x25519-sha256-aes128gcm",
            ))
    }
}

/// A sealed command, as it is published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sealed {
    /// The request's.
    pub nonce: DeviceNonce,
    /// See [`Suite`].
    pub suite: Suite,
    /// HPKE's encapsulated key, 32 bytes in base64url without padding.
    #[schemars(regex(pattern = r"^[A-Za-z0-9_-]{43}$"))]
    pub enc: String,
    /// Ciphertext and tag, base64url without padding.
    #[schemars(regex(pattern = r"^[A-Za-z0-9_-]+$"))]
    pub ct: String,
}

/// A device's registered X25519 public key, base64url without padding.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SealingKey([u8; 32]);

/// The random bytes of one encapsulation, made beforehand: where the operating system's generator fails, `hpke` would panic.
pub struct Ephemeral(Zeroizing<[u8; 32]>);

impl Ephemeral {
    /// Fresh ones.
    ///
    /// # Errors
    /// [`Invalid`] if the operating system's generator fails.
    pub fn generate() -> Result<Self, Invalid> {
        let mut bytes = Zeroizing::new([0u8; 32]);
        getrandom::fill(bytes.as_mut())
            .map_err(|_| Invalid::new("sealed", "made with a working random generator"))?;
        Ok(Self(bytes))
    }

    /// RFC 9180's `ikmE`, for test vectors only: used twice for one recipient, it breaks the encryption.
    #[must_use]
    pub fn for_vectors(ikm: [u8; 32]) -> Self {
        Self(Zeroizing::new(ikm))
    }
}

/// Hands out [`Ephemeral`] bytes. One encapsulation asks once, for 32 bytes.
struct Once(Ephemeral);

impl TryRng for Once {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for (to, from) in out.iter_mut().zip(self.0.0.iter()) {
            *to = *from;
        }
        Ok(())
    }
}

impl TryCryptoRng for Once {}

impl SealingKey {
    /// From the raw key.
    ///
    /// # Errors
    /// [`Invalid`] for a point of small order: nothing can be sealed to it (RFC 7748 §6.1).
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, Invalid> {
        let key = Self(bytes);
        // Whatever the ephemeral key is, a point of small order gives the all-zero shared secret.
        key.encrypt::<ChaCha20Poly1305>(Ephemeral::for_vectors([1; 32]), &[], &[], &[])
            .map(|_| key)
            .map_err(|_| Self::RULE)
    }

    const RULE: Invalid = Invalid::new("sealing_key", "an X25519 public key");

    /// The raw key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Seals `command` for this device and request.
    ///
    /// # Errors
    /// [`Invalid`]; a registered key has none of the faults that cause it.
    pub fn seal(
        &self,
        suite: Suite,
        device: &DeviceId,
        nonce: &DeviceNonce,
        command: &str,
        ephemeral: Ephemeral,
    ) -> Result<Sealed, Invalid> {
        let (info, aad) = (info(device), nonce.as_str().as_bytes());
        let text = command.as_bytes();
        let (enc, ct) = match suite {
            Suite::ChaCha20Poly1305 => {
                self.encrypt::<ChaCha20Poly1305>(ephemeral, &info, aad, text)
            }
            Suite::Aes128Gcm => self.encrypt::<AesGcm128>(ephemeral, &info, aad, text),
        }
        .map_err(|_| Self::RULE)?;
        Ok(Sealed {
            nonce: nonce.clone(),
            suite,
            enc: b64url(&enc),
            ct: b64url(&ct),
        })
    }

    fn encrypt<A: Aead>(
        &self,
        ephemeral: Ephemeral,
        info: &[u8],
        aad: &[u8],
        text: &[u8],
    ) -> Result<(Vec<u8>, Vec<u8>), hpke::HpkeError> {
        let key = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(&self.0)?;
        let (enc, ct) = hpke::single_shot_seal_with_rng::<A, HkdfSha256, X25519HkdfSha256>(
            &OpModeS::Base,
            &key,
            info,
            text,
            aad,
            &mut Once(ephemeral),
        )?;
        Ok((enc.to_bytes().to_vec(), ct))
    }
}

impl Sealed {
    /// Opens it with the device's X25519 private key: the reference for firmware authors, and what tests use.
    ///
    /// # Errors
    /// [`Invalid`] for anything that was not sealed for this key, device and nonce.
    pub fn open(
        &self,
        private_key: &[u8; 32],
        device: &DeviceId,
    ) -> Result<Zeroizing<Vec<u8>>, Invalid> {
        let enc = from_b64url_array::<32>("enc", &self.enc)?;
        if self.ct.len() > MAX_CIPHERTEXT / 3 * 4 + 4 {
            return Err(Invalid::new("ct", "at most 4096 bytes"));
        }
        let ct = from_b64url("ct", &self.ct)?;
        let (info, aad) = (info(device), self.nonce.as_str().as_bytes());
        match self.suite {
            Suite::ChaCha20Poly1305 => {
                decrypt::<ChaCha20Poly1305>(private_key, &enc, &info, aad, &ct)
            }
            Suite::Aes128Gcm => decrypt::<AesGcm128>(private_key, &enc, &info, aad, &ct),
        }
        .map_err(|_| Invalid::new("ct", "sealed for this key, device and nonce"))
    }
}

/// HPKE's `info` for a device.
#[must_use]
pub fn info(device: &DeviceId) -> Zeroizing<Vec<u8>> {
    length_prefixed(&[INFO.as_bytes(), device.as_str().as_bytes()])
}

fn decrypt<A: Aead>(
    private_key: &[u8; 32],
    enc: &[u8; 32],
    info: &[u8],
    aad: &[u8],
    ct: &[u8],
) -> Result<Zeroizing<Vec<u8>>, hpke::HpkeError> {
    let key = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(private_key)?;
    let enc = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(enc)?;
    hpke::single_shot_open::<A, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &key,
        &enc,
        info,
        ct,
        aad,
    )
    .map(Zeroizing::new)
}

impl FromStr for SealingKey {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::from_bytes(*from_b64url_array::<32>("sealing_key", text)?)
    }
}

impl fmt::Display for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&b64url(&self.0))
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<SealingKey> for String {
    fn from(key: SealingKey) -> Self {
        key.to_string()
    }
}

impl TryFrom<String> for SealingKey {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl JsonSchema for SealingKey {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SealingKey".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[A-Za-z0-9_-]{43}$", "description": "X25519 public key, base64url without padding" })
    }
}

#[cfg(test)]
mod tests;
