//! Resource names of keys and key versions.
//!
//! What must always hold: a name has exactly one spelling, so that comparing texts compares keys; and no text from the store gets into the path of a
//! request unless it is the name of a version of a configured key.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

/// Longest segment accepted; Google's own limits are 63 characters or fewer.
const MAX_SEGMENT: usize = 128;
const VERSIONS: &str = "/cryptoKeyVersions/";

/// `projects/P/locations/L/keyRings/R/cryptoKeys/K`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyName(String);

/// Not the name of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY")]
pub struct NotAKeyName;

impl KeyName {
    /// The full name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The `mac_key_ref` of one version of this key.
    #[must_use]
    pub fn version(&self, number: NonZeroU64) -> String {
        format!("{}{VERSIONS}{number}", self.0)
    }

    /// Which version of this key `key_ref` names; `None` when it names anything else, or in another spelling.
    #[must_use]
    pub fn version_of(&self, key_ref: &str) -> Option<NonZeroU64> {
        let number = key_ref.strip_prefix(&self.0)?.strip_prefix(VERSIONS)?;
        let parsed: NonZeroU64 = number.parse().ok()?;
        // "+1" and "01" parse as well.
        (parsed.to_string() == number).then_some(parsed)
    }

    /// What tools such as `gcloud` want one by one: project, location, key ring, key.
    #[must_use]
    pub fn parts(&self) -> [&str; 4] {
        let mut parts = self.0.split('/').skip(1).step_by(2);
        [(); 4].map(|()| parts.next().unwrap_or_default())
    }
}

impl FromStr for KeyName {
    type Err = NotAKeyName;

    fn from_str(text: &str) -> Result<Self, NotAKeyName> {
        let mut segments = text.split('/');
        for collection in ["projects", "locations", "keyRings", "cryptoKeys"] {
            if segments.next() != Some(collection) {
                return Err(NotAKeyName);
            }
            let allowed = |byte: u8| match byte {
                // Projects of a domain are `example.com:name`.
                b'.' | b':' => collection == "projects",
                b'_' => collection == "keyRings" || collection == "cryptoKeys",
                byte => byte.is_ascii_alphanumeric() || byte == b'-',
            };
            let id = segments.next().ok_or(NotAKeyName)?;
            let plain = !id.starts_with('.') && id.bytes().all(allowed);
            if id.is_empty() || id.len() > MAX_SEGMENT || !plain {
                return Err(NotAKeyName);
            }
        }
        match segments.next() {
            None => Ok(Self(text.to_owned())),
            Some(_) => Err(NotAKeyName),
        }
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const KEY: &str =
        "projects/example.com:p-1/locations/europe-west3/keyRings/r_1/cryptoKeys/pepper";

    #[test]
    fn a_key_has_one_name() {
        let key: KeyName = KEY.parse().unwrap();
        assert_eq!(key.as_str(), KEY);
        assert_eq!(
            key.parts(),
            ["example.com:p-1", "europe-west3", "r_1", "pepper"]
        );
        for wrong in [
            "",
            "pepper",
            "projects/p/locations/l/keyRings/r",
            "projects/p/locations/l/keyRings/r/cryptoKeys/",
            "projects/p/locations/l/keyRings/r/cryptoKeys/k/",
            "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
            "projects/../locations/l/keyRings/r/cryptoKeys/k",
            "projects/p/locations/l/keyRings/r/cryptoKeys/k:macSign",
            "projects/p/locations/l/keyRings/r/cryptoKeys/k?x=y",
            "projects/p/locations/l/keyRings/r/cryptoKeys/k%2f",
            "/projects/p/locations/l/keyRings/r/cryptoKeys/k",
            "projects/p/locations/l/keyRings/r/cryptoKeys/k\n",
            "Projects/p/locations/l/keyRings/r/cryptoKeys/k",
        ] {
            assert_eq!(wrong.parse::<KeyName>(), Err(NotAKeyName), "{wrong}");
        }
    }

    #[test]
    fn only_versions_of_the_very_key_are_known_and_only_in_their_one_spelling() {
        let key: KeyName = KEY.parse().unwrap();
        let two = NonZeroU64::new(2).unwrap();
        assert_eq!(key.version_of(&key.version(two)), Some(two));
        for other in [
            KEY.to_owned(),
            format!("{KEY}/cryptoKeyVersions/"),
            format!("{KEY}/cryptoKeyVersions/0"),
            format!("{KEY}/cryptoKeyVersions/02"),
            format!("{KEY}/cryptoKeyVersions/+2"),
            format!("{KEY}/cryptoKeyVersions/-2"),
            format!("{KEY}/cryptoKeyVersions/2 "),
            format!("{KEY}/cryptoKeyVersions/2:macVerify"),
            format!("{KEY}/cryptoKeyVersions/2/../3"),
            format!("{KEY}/cryptoKeyVersions/99999999999999999999"),
            format!("{KEY}2/cryptoKeyVersions/2"),
            format!("x{KEY}/cryptoKeyVersions/2"),
            "local:hmac-sha-256:0000000000000000".to_owned(),
        ] {
            assert_eq!(key.version_of(&other), None, "{other}");
        }
    }
}
