//! What a device is called, and what makes one request of it distinct.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::Invalid;

/// A device: one level of an MQTT topic, a document id and a metadata value at once, so only what is harmless in all three. 1 to 128 visible ASCII
/// characters without `/ + # " \`, not beginning with `$` or `.`, not `__…__`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceId(String);

impl DeviceId {
    /// Longest, in characters.
    pub const MAX: usize = 128;
    const RULE: Invalid = Invalid::new(
        "device_id",
        "1 to 128 visible ASCII characters without / + # \" \\, not beginning with $ or ., not __…__",
    );

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DeviceId {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let reserved = text.starts_with(['$', '.'])
            || (text.len() >= 4 && text.starts_with("__") && text.ends_with("__"));
        let allowed = |byte: u8| {
            byte.is_ascii_graphic() && !matches!(byte, b'/' | b'+' | b'#' | b'"' | b'\\')
        };
        if reserved || !(1..=Self::MAX).contains(&text.len()) || !text.bytes().all(allowed) {
            return Err(Self::RULE);
        }
        Ok(Self(text.to_owned()))
    }
}

/// What a device chose to tell one request from another: 16 to 128 visible ASCII characters without `"` and `\`. It is no secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceNonce(String);

impl DeviceNonce {
    const RULE: Invalid = Invalid::new(
        "nonce",
        "16 to 128 visible ASCII characters without \" and \\",
    );

    /// A fresh one, for a ping: 16 random bytes in hex.
    ///
    /// # Errors
    /// [`Invalid`] if the operating system's generator fails.
    pub fn generate() -> Result<Self, Invalid> {
        let mut bytes = [0u8; 16];
        getrandom::fill(&mut bytes)
            .map_err(|_| Invalid::new("nonce", "made with a working random generator"))?;
        Ok(Self(hex::encode(bytes)))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// SHA-256 of the text, hex: how the nonce is remembered and handed to issuers.
    #[must_use]
    pub fn hash(&self) -> String {
        hex::encode(Sha256::digest(self.0.as_bytes()))
    }
}

impl FromStr for DeviceNonce {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
        if !(16..=128).contains(&text.len()) || !text.bytes().all(allowed) {
            return Err(Self::RULE);
        }
        Ok(Self(text.to_owned()))
    }
}

macro_rules! text_form {
    ($type:ty, $pattern:literal, $doc:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl From<$type> for String {
            fn from(id: $type) -> Self {
                id.0
            }
        }
        impl TryFrom<String> for $type {
            type Error = Invalid;
            fn try_from(text: String) -> Result<Self, Invalid> {
                text.parse()
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": $pattern, "description": $doc })
            }
        }
    };
}

text_form!(
    DeviceId,
    "^[!%-*,\\-0-\\[\\]-~][!$-*,-.0-\\[\\]-~]{0,127}$",
    "1 to 128 visible ASCII characters without / + # \" \\, not beginning with $ or ., not __...__"
);
text_form!(
    DeviceNonce,
    "^[!#-\\[\\]-~]{16,128}$",
    "16 to 128 visible ASCII characters without \" and \\; once per device"
);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_device_id_is_harmless_in_topics_documents_and_json() {
        for good in [
            "a",
            "river-0001",
            "AA:BB:CC",
            "__x",
            "x__",
            "a.b",
            "a$",
            &"d".repeat(128),
        ] {
            assert_eq!(good.parse::<DeviceId>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            ".a",
            "$SYS",
            "____",
            "__x__",
            "a/b",
            "a+",
            "#",
            "a b",
            "a\"",
            "a\\",
            "\u{e4}",
            "a\n",
            "a\0",
            &"d".repeat(129),
        ] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_nonce_has_16_to_128_characters() {
        for good in ["0123456789abcdef", "aGVsbG8td29ybGQ+/==", &"n".repeat(128)] {
            assert_eq!(good.parse::<DeviceNonce>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "0123456789abcde",
            "0123456789 abcdef",
            "0123456789\"abcdef",
            &"n".repeat(129),
        ] {
            assert!(bad.parse::<DeviceNonce>().is_err(), "{bad:?} was accepted");
        }
        assert!(DeviceNonce::generate().unwrap() != DeviceNonce::generate().unwrap());
    }

    #[test]
    fn a_wrong_value_is_not_repeated_in_the_error() {
        let error = serde_json::from_str::<DeviceNonce>("\"Canary secret\"").unwrap_err();
        assert!(!error.to_string().contains("Canary"), "{error}");
    }
}
