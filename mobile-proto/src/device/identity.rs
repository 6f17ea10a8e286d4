//! A device's own signature on its status messages, for brokers whose access rules cannot be trusted.
//!
//! Ed25519 (RFC 8032, verified strictly) over length-prefixed (domain, `device_id`, nonce, time): each field its 32-bit big-endian byte length and then
//! its bytes; the time in decimal unix milliseconds, as in `ts`. The domain says what is meant, so that a signed request is never a signed result.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use ed25519_dalek::{Signature, VerifyingKey};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::id::{DeviceId, DeviceNonce};
use crate::canonical::length_prefixed;
use crate::encoding::{b64url, from_b64url_array};
use crate::error::Invalid;
use crate::time::UnixMs;

/// The two fields that a signed message carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct DeviceSignature {
    /// When it was signed, unix milliseconds by the device's clock.
    pub ts: UnixMs,
    /// The signature, 64 bytes in base64url without padding.
    #[schemars(regex(pattern = r"^[A-Za-z0-9_-]{86}$"))]
    pub sig: String,
}

impl DeviceSignature {
    /// Both fields or none.
    pub(super) fn from_fields(
        ts: Option<u64>,
        sig: Option<String>,
    ) -> Result<Option<Self>, Invalid> {
        match (ts, sig) {
            (None, None) => Ok(None),
            (Some(ts), Some(sig)) => {
                from_b64url_array::<64>("sig", &sig)?;
                Ok(Some(Self {
                    ts: UnixMs(ts),
                    sig,
                }))
            }
            (Some(_), None) | (None, Some(_)) => Err(Invalid::new("sig", "given together with ts")),
        }
    }
}

/// What a signature says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statement {
    /// "Send me a fresh `secret_id`".
    Request,
    /// "It works".
    Ok,
    /// "It does not work".
    Failed,
}

impl Statement {
    /// The first signed field.
    #[must_use]
    pub const fn domain(self) -> &'static str {
        match self {
            Self::Request => "keyturn/device-request/1",
            Self::Ok => "keyturn/device-ok/1",
            Self::Failed => "keyturn/device-failed/1",
        }
    }

    /// The signed bytes.
    #[must_use]
    pub fn bytes(self, device: &DeviceId, nonce: &DeviceNonce, ts: UnixMs) -> Zeroizing<Vec<u8>> {
        length_prefixed(&[
            self.domain().as_bytes(),
            device.as_str().as_bytes(),
            nonce.as_str().as_bytes(),
            ts.0.to_string().as_bytes(),
        ])
    }
}

/// Why a signed message is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSigned {
    /// The device has a key and this message no signature.
    #[error("the message is not signed")]
    Missing,
    /// The signature does not verify.
    #[error("the signature does not verify")]
    Wrong,
    /// Signed too long ago, or too far ahead.
    #[error("the time of the signature is outside the window")]
    Skewed,
}

/// A device's registered Ed25519 public key, base64url without padding.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdentityKey([u8; 32]);

impl IdentityKey {
    /// From the raw key.
    ///
    /// # Errors
    /// [`Invalid`] unless it is a usable Ed25519 point.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, Invalid> {
        match VerifyingKey::from_bytes(&bytes) {
            // A weak key would accept a signature that was made for no key at all.
            Ok(key) if !key.is_weak() => Ok(Self(bytes)),
            _ => Err(Invalid::new("identity_key", "an Ed25519 public key")),
        }
    }

    /// The raw key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Checks a message of the device. The signature comes first, so that the time of a forged message says nothing.
    ///
    /// # Errors
    /// [`NotSigned`].
    pub fn verify(
        &self,
        statement: Statement,
        device: &DeviceId,
        nonce: &DeviceNonce,
        signature: Option<&DeviceSignature>,
        now: UnixMs,
        skew: Duration,
    ) -> Result<(), NotSigned> {
        let DeviceSignature { ts, sig } = signature.ok_or(NotSigned::Missing)?;
        let raw = from_b64url_array::<64>("sig", sig).map_err(|_| NotSigned::Wrong)?;
        VerifyingKey::from_bytes(&self.0)
            .and_then(|key| {
                key.verify_strict(
                    &statement.bytes(device, nonce, *ts),
                    &Signature::from_bytes(&raw),
                )
            })
            .map_err(|_| NotSigned::Wrong)?;
        if now.since(*ts) > skew || ts.since(now) > skew {
            return Err(NotSigned::Skewed);
        }
        Ok(())
    }
}

impl FromStr for IdentityKey {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::from_bytes(*from_b64url_array::<32>("identity_key", text)?)
    }
}

impl fmt::Display for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&b64url(&self.0))
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<IdentityKey> for String {
    fn from(key: IdentityKey) -> Self {
        key.to_string()
    }
}

impl TryFrom<String> for IdentityKey {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl JsonSchema for IdentityKey {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "IdentityKey".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[A-Za-z0-9_-]{43}$", "description": "Ed25519 public key, base64url without padding" })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;

    const SKEW: Duration = Duration::from_secs(300);
    const NOW: UnixMs = UnixMs(1_739_750_000_000);

    struct Device {
        key: SigningKey,
        id: DeviceId,
        nonce: DeviceNonce,
    }

    impl Device {
        fn new() -> Self {
            Self {
                key: SigningKey::from_bytes(&[7; 32]),
                id: "river-1".parse().unwrap(),
                nonce: "0123456789abcdef".parse().unwrap(),
            }
        }
        fn sign(&self, statement: Statement, ts: UnixMs) -> DeviceSignature {
            let bytes = statement.bytes(&self.id, &self.nonce, ts);
            DeviceSignature {
                ts,
                sig: b64url(&self.key.sign(&bytes).to_bytes()),
            }
        }
        fn check(
            &self,
            statement: Statement,
            signature: Option<&DeviceSignature>,
        ) -> Result<(), NotSigned> {
            IdentityKey::from_bytes(self.key.verifying_key().to_bytes())
                .unwrap()
                .verify(statement, &self.id, &self.nonce, signature, NOW, SKEW)
        }
    }

    #[test]
    fn a_signature_counts_within_its_window_only() {
        let device = Device::new();
        let skew = u64::try_from(SKEW.as_millis()).unwrap();
        for (ts, expected) in [
            (NOW.0, Ok(())),
            (NOW.0 - skew, Ok(())),
            (NOW.0 + skew, Ok(())),
            (NOW.0 - skew - 1, Err(NotSigned::Skewed)),
            (NOW.0 + skew + 1, Err(NotSigned::Skewed)),
            (0, Err(NotSigned::Skewed)),
            (u64::MAX, Err(NotSigned::Skewed)),
        ] {
            let signed = device.sign(Statement::Request, UnixMs(ts));
            assert_eq!(
                device.check(Statement::Request, Some(&signed)),
                expected,
                "{ts}"
            );
        }
    }

    #[test]
    fn a_signature_speaks_of_one_statement_device_nonce_and_time() {
        let device = Device::new();
        let signed = device.sign(Statement::Request, NOW);
        assert_eq!(
            device.check(Statement::Request, None),
            Err(NotSigned::Missing)
        );
        for other in [Statement::Ok, Statement::Failed] {
            assert_eq!(device.check(other, Some(&signed)), Err(NotSigned::Wrong));
        }
        let mut elsewhere = Device::new();
        elsewhere.id = "river-2".parse().unwrap();
        assert_eq!(
            elsewhere.check(Statement::Request, Some(&signed)),
            Err(NotSigned::Wrong)
        );
        let mut again = Device::new();
        again.nonce = "0123456789abcdeF".parse().unwrap();
        assert_eq!(
            again.check(Statement::Request, Some(&signed)),
            Err(NotSigned::Wrong)
        );
        let moved = DeviceSignature {
            ts: UnixMs(NOW.0 + 1),
            ..signed
        };
        assert_eq!(
            device.check(Statement::Request, Some(&moved)),
            Err(NotSigned::Wrong)
        );
    }

    #[test]
    fn a_weak_or_padded_key_is_not_registered() {
        let mut identity = [0u8; 32];
        identity[0] = 1;
        assert!(IdentityKey::from_bytes(identity).is_err());
        let good = b64url(&Device::new().key.verifying_key().to_bytes());
        assert_eq!(good.parse::<IdentityKey>().unwrap().to_string(), good);
        assert!(format!("{good}=").parse::<IdentityKey>().is_err());
    }
}
