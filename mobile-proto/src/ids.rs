//! Identifiers. Each parses once, into a type that can only hold a valid value.

use std::fmt;
use std::str::FromStr;

use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32, Hrp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Invalid;
use crate::time::UnixMs;

/// Serialises an id through its one text form.
macro_rules! text_serde {
    ($type:ty, $pattern:literal, $doc:literal) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(TextVisitor(std::marker::PhantomData))
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

/// Parses an id out of a string without copying it first. The error names the rule; a value of a wrong type is not repeated in it.
struct TextVisitor<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = Invalid>> serde::de::Visitor<'_> for TextVisitor<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an identifier as a string")
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

/// The name of an OAuth2 client or X-API consumer. It is a Firestore document id, so Firestore's limits hold: 1 to 1,500
/// bytes of UTF-8, no `/`, not `.` or `..`, not `__…__`; control characters are refused as well.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(String);

impl ClientId {
    const RULE: &'static str =
        "1 to 1500 bytes without '/' or control characters, and none of '.', '..', '__…__'";

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClientId {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let reserved = text == "."
            || text == ".."
            || (text.len() >= 4 && text.starts_with("__") && text.ends_with("__"));
        let length_ok = (1..=1500).contains(&text.len());
        if reserved || !length_ok || text.chars().any(|c| c == '/' || c.is_control()) {
            return Err(Invalid::new("client_id", Self::RULE));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_serde!(
    ClientId,
    "^[^/\\u0000-\\u001f\\u007f-\\u009f]+$",
    "1 to 1500 bytes, a valid Firestore document id"
);

/// One secret value of a client: a ULID in its canonical upper-case form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionId(ulid::Ulid);

impl VersionId {
    /// A fresh id: the time in its first 48 bits, 80 random bits from the operating system.
    ///
    /// # Errors
    /// [`Invalid`] if the random generator fails.
    pub fn generate(now: UnixMs) -> Result<Self, Invalid> {
        Ok(Self(fresh_ulid(now)?))
    }
}

impl FromStr for VersionId {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        parse_ulid(text)
            .map(Self)
            .ok_or(Invalid::new("version_id", "a ULID"))
    }
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

text_serde!(
    VersionId,
    "^[0-7][0-9A-HJKMNP-TV-Z]{25}$",
    "ULID, 26 characters of upper-case Crockford base32"
);

/// One operation and its idempotency key: a ULID (upper case) or a UUID (lower case, hyphenated).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RotationId(String);

impl RotationId {
    /// A fresh ULID.
    ///
    /// # Errors
    /// [`Invalid`] if the random generator fails.
    pub fn generate(now: UnixMs) -> Result<Self, Invalid> {
        Ok(Self(fresh_ulid(now)?.to_string()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RotationId {
    type Err = Invalid;
    /// Accepts either case and keeps the canonical one, so that one operation has one id.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if is_hyphenated_uuid(text) {
            return Ok(Self(text.to_ascii_lowercase()));
        }
        parse_ulid(&text.to_ascii_uppercase())
            .map(|ulid| Self(ulid.to_string()))
            .ok_or(Invalid::new("rotation_id", "a ULID or a hyphenated UUID"))
    }
}

impl fmt::Display for RotationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_serde!(
    RotationId,
    "^([0-7][0-9A-HJKMNP-TV-Z]{25}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$",
    "ULID (upper case) or hyphenated UUID (lower case); either case is read"
);

/// A Nostr public key: 32-byte x-only secp256k1 point, not checked to lie on the curve here (whoever verifies a signature does).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Npub([u8; 32]);

const NPUB_HRP: Hrp = Hrp::parse_unchecked("npub");

impl Npub {
    /// From the raw key.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 64 lower-case hex digits, as Nostr events spell it.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl FromStr for Npub {
    type Err = Invalid;
    /// Accepts the NIP-19 form (`npub1…`) and 64 hex digits.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let rule = Invalid::new("npub", "a NIP-19 npub or 64 hex digits");
        let bytes = if text.starts_with("npub1") {
            // NIP-19 is bech32 proper; the general decoder would take a bech32m checksum as well.
            let checked = CheckedHrpstring::new::<Bech32>(text).map_err(|_| rule.clone())?;
            if checked.hrp() != NPUB_HRP {
                return Err(rule);
            }
            checked.byte_iter().collect()
        } else {
            hex::decode(text).map_err(|_| rule.clone())?
        };
        bytes.try_into().map(Self).map_err(|_| rule)
    }
}

impl fmt::Display for Npub {
    /// The NIP-19 form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match bech32::encode::<Bech32>(NPUB_HRP, &self.0) {
            Ok(text) => f.write_str(&text),
            Err(_) => Err(fmt::Error),
        }
    }
}

impl fmt::Debug for Npub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

text_serde!(
    Npub,
    "^(npub1[02-9ac-hj-np-z]{58}|[0-9a-fA-F]{64})$",
    "Nostr public key: NIP-19 npub, or 64 hex digits"
);

/// An MLS group id (RFC 9420 §8.1), 1 to 255 bytes, spelled in lower-case hex. This, not the `nostr_group_id`, is what proofs and
/// messages mean by `mls_group`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MlsGroupId(Vec<u8>);

impl MlsGroupId {
    /// From the raw id.
    ///
    /// # Errors
    /// [`Invalid`] unless 1 to 255 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        if (1..=255).contains(&bytes.len()) {
            Ok(Self(bytes.to_vec()))
        } else {
            Err(Invalid::new("mls_group", "1 to 255 bytes in hex"))
        }
    }

    /// The raw id.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for MlsGroupId {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bytes =
            hex::decode(text).map_err(|_| Invalid::new("mls_group", "1 to 255 bytes in hex"))?;
        Self::from_bytes(&bytes)
    }
}

impl fmt::Display for MlsGroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for MlsGroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

text_serde!(
    MlsGroupId,
    "^([0-9a-f]{2}){1,255}$",
    "MLS group id, lower-case hex"
);

fn is_hyphenated_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

fn parse_ulid(text: &str) -> Option<ulid::Ulid> {
    let ulid = ulid::Ulid::from_string(text).ok()?;
    // Crockford decoding is lenient (case, I/L/O); one version must have one spelling.
    (ulid.to_string() == text).then_some(ulid)
}

fn fresh_ulid(now: UnixMs) -> Result<ulid::Ulid, Invalid> {
    let mut random = [0u8; 10];
    getrandom::fill(&mut random)
        .map_err(|_| Invalid::new("ulid", "made with a working random generator"))?;
    let mut wide = [0u8; 16];
    wide[6..].copy_from_slice(&random);
    Ok(ulid::Ulid::from_parts(now.0, u128::from_be_bytes(wide)))
}

#[cfg(test)]
mod tests;
