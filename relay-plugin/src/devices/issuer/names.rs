//! The names that an issuer works with, each checked once: what reaches a URL or a document has passed here.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Longest role name and accessor accepted.
const MAX_LEN: usize = 128;

/// A text is not one of these names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}")]
pub struct InvalidName {
    /// What it should be.
    pub expected: &'static str,
}

/// An AppRole role: letters, digits, `_`, and inside also `-` and `.`; at most 128 characters. Kept in lower case, as Vault keeps it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RoleName(String);

/// Names a secret_id without revealing it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Accessor(String);

/// Where an auth method is mounted, such as `approle` or `teams/iot/approle`; also the form of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MountPath(String);

/// SHA-256 of a nonce, hex.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NonceHash(String);

/// An address block such as `10.2.0.0/16`; a bare address is a block of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    address: IpAddr,
    bits: u8,
}

fn invalid(expected: &'static str) -> InvalidName {
    InvalidName { expected }
}

fn word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

impl FromStr for RoleName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let inside = |byte: u8| word(byte) || byte == b'-' || byte == b'.';
        let bytes = text.as_bytes();
        let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
            return Err(invalid("a role name"));
        };
        if bytes.len() > MAX_LEN
            || !word(*first)
            || !word(*last)
            || !bytes.iter().all(|b| inside(*b))
        {
            return Err(invalid(
                "a role name of letters, digits, _, - and . that begins and ends with a letter, a digit or _",
            ));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl FromStr for Accessor {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let allowed = |byte: u8| word(byte) || byte == b'-' || byte == b'.';
        if text.is_empty() || text.len() > MAX_LEN || !text.bytes().all(allowed) {
            return Err(invalid("an accessor"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for MountPath {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let text = text.trim_matches('/');
        let inside = |byte: u8| word(byte) || byte == b'-' || byte == b'.';
        let segment = |part: &str| {
            !part.is_empty() && part != "." && part != ".." && part.bytes().all(inside)
        };
        if text.len() > MAX_LEN || !text.split('/').all(segment) {
            return Err(invalid("a path of letters, digits, _, -, . and /"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl NonceHash {
    /// The hash of a nonce.
    #[must_use]
    pub fn of(nonce: &str) -> Self {
        Self(hex::encode(Sha256::digest(nonce.as_bytes())))
    }
}

impl FromStr for NonceHash {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 64 || !text.bytes().all(digit) {
            return Err(invalid("64 lower-case hex digits"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for Cidr {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let wrong = || invalid("an address block such as 10.2.0.0/16");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse::<u8>().map_err(|_| wrong())?
            }
            Some(_) => return Err(wrong()),
            None => most,
        };
        let block = Self { address, bits };
        if bits > most || block.network() != block.number() {
            return Err(wrong());
        }
        Ok(block)
    }
}

impl Cidr {
    /// Whether `address` lies in the block. An IPv4 address that came in over an IPv6 socket counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let other = Self {
            address,
            bits: self.bits,
        };
        address.is_ipv4() == self.address.is_ipv4() && other.network() == self.network()
    }

    fn number(&self) -> u128 {
        match self.address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
            IpAddr::V6(v6) => v6.to_bits(),
        }
    }

    /// The address with the bits outside the block cleared.
    fn network(&self) -> u128 {
        match self.bits {
            0 => 0,
            bits => self.number() & (u128::MAX << (128 - u32::from(bits.min(128)))),
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl From<Cidr> for String {
    fn from(block: Cidr) -> Self {
        block.to_string()
    }
}

impl TryFrom<String> for Cidr {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

macro_rules! text_name {
    ($($name:ident),+) => {$(
        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }
    )+};
}

text_name!(RoleName, Accessor, NonceHash, MountPath);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_role_name_can_stand_in_a_url_as_it_is() {
        assert_eq!(
            "River-IoT".parse::<RoleName>().unwrap().as_str(),
            "river-iot"
        );
        for wrong in [
            "",
            "-a",
            "a-",
            "a/b",
            "a b",
            "a%2fb",
            ".",
            "..",
            "é",
            &"a".repeat(129),
        ] {
            assert!(wrong.parse::<RoleName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_mount_path_stays_below_auth() {
        for (text, path) in [
            ("approle", "approle"),
            ("/teams/iot-1/approle/", "teams/iot-1/approle"),
        ] {
            assert_eq!(text.parse::<MountPath>().unwrap().as_str(), path);
        }
        for wrong in ["", "/", "a//b", "../sys", "a/../b", "a b", "a?b", "a%2fb"] {
            assert!(wrong.parse::<MountPath>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_block_names_its_network_address() {
        for good in [
            "10.2.0.0/16",
            "0.0.0.0/0",
            "192.0.2.7/32",
            "2001:db8::/32",
            "::/0",
        ] {
            assert_eq!(good.parse::<Cidr>().unwrap().to_string(), good);
        }
        assert_eq!(
            "192.0.2.7".parse::<Cidr>().unwrap().to_string(),
            "192.0.2.7/32"
        );
        for wrong in [
            "",
            "10.2.0.1/16",
            "10.2.0.0/33",
            "10.2.0.0/",
            "10.2.0.0/+8",
            "x/8",
            "::1/127",
        ] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_block_contains_its_addresses_and_no_others() {
        let block: Cidr = "10.2.0.0/16".parse().unwrap();
        assert!(block.contains("10.2.255.1".parse().unwrap()));
        assert!(block.contains("::ffff:10.2.0.1".parse().unwrap()));
        assert!(!block.contains("10.3.0.1".parse().unwrap()));
        assert!(
            !"::/0"
                .parse::<Cidr>()
                .unwrap()
                .contains("10.2.0.1".parse().unwrap())
        );
    }

    #[test]
    fn a_nonce_hash_is_lower_case_hex() {
        let hash = NonceHash::of("nonce");
        assert_eq!(hash.as_str().parse::<NonceHash>().unwrap(), hash);
        assert!(hash.as_str().to_uppercase().parse::<NonceHash>().is_err());
        assert!("00".parse::<NonceHash>().is_err());
    }
}
