//! `[mac]`: the key that hashes secrets, in a file or in Cloud KMS.
//!
//! Every key of the section is read whatever the kind is, so that a misspelt one is found; one that belongs to the other kind is a contradiction.

use std::{num::NonZeroU64, path::PathBuf, time::Duration};

use keyturn_store::mac::cloud_kms::{Endpoint, KeyName};

use super::{error::ConfigError, sections::MINUTE, source::Keys};

/// `[mac]`: the key that hashes secrets.
#[derive(Debug)]
pub enum Mac {
    /// A key file of mode 0600.
    Local {
        /// The file whose key makes new hashes.
        key_file: PathBuf,
        /// Files of earlier keys, which only verify what they made.
        previous_key_files: Vec<PathBuf>,
    },
    /// A key in Cloud KMS.
    CloudKms(CloudKms),
}

/// `[mac]` with `kind = "cloud_kms"`.
#[derive(Debug)]
pub struct CloudKms {
    /// The key.
    pub key: KeyName,
    /// The version of it that makes new hashes.
    pub version: NonZeroU64,
    /// Earlier keys, which only verify what they made.
    pub previous_keys: Vec<KeyName>,
    /// Key files from before Cloud KMS, which only verify what they made.
    pub previous_key_files: Vec<PathBuf>,
    /// Another address than Google's public one.
    pub endpoint: Option<Endpoint>,
    /// How long one operation may take, with all its attempts.
    pub timeout: Duration,
    /// How long one attempt may take.
    pub attempt_timeout: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Local,
    CloudKms,
}

const KEY: &str =
    "the full name of a key: projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY";
const KEY_FILE: &str = "the path of the key file";

impl Mac {
    pub(super) fn read(keys: &mut Keys) -> Result<Self, ConfigError> {
        let kind = keys.text(
            "mac.kind",
            "\"local\" or \"cloud_kms\"",
            |text| match text {
                "local" => Some(Kind::Local),
                "cloud_kms" => Some(Kind::CloudKms),
                _ => None,
            },
        )?;
        let key_file = keys.path("mac.key_file", KEY_FILE)?;
        let previous_key_files =
            keys.paths("mac.previous_key_files", "a list of paths of key files")?;
        let key = keys.text("mac.key", KEY, parsed)?;
        // 0 stands for none given: Cloud KMS counts from 1.
        let version = NonZeroU64::new(keys.number("mac.version", 1..=i64::MAX as u64, 0)?);
        let previous_keys =
            keys.list("mac.previous_keys", "a list of full names of keys", parsed)?;
        let endpoint = keys.text(
            "mac.endpoint",
            "https://HOST[:PORT], or http://127.0.0.1:PORT for a test server",
            parsed,
        )?;
        let second = Duration::from_secs(1);
        let timeout = keys.duration("mac.timeout", second..=MINUTE, second * 10)?;
        let attempt_timeout = keys.duration("mac.attempt_timeout", second..=MINUTE, second * 3)?;
        match kind.unwrap_or(Kind::Local) {
            Kind::Local => {
                for (name, given) in [
                    ("mac.key", key.is_some()),
                    ("mac.version", version.is_some()),
                    ("mac.previous_keys", previous_keys.is_some()),
                    ("mac.endpoint", endpoint.is_some()),
                ] {
                    if given {
                        return Err(conflict(name, "is only for mac.kind = \"cloud_kms\""));
                    }
                }
                Ok(Self::Local {
                    key_file: key_file.ok_or_else(|| missing("mac.key_file", KEY_FILE))?,
                    previous_key_files,
                })
            }
            Kind::CloudKms => {
                if key_file.is_some() {
                    return Err(conflict(
                        "mac.key_file",
                        "is only for mac.kind = \"local\"; name it in mac.previous_key_files, and what it hashed goes on being verified",
                    ));
                }
                if attempt_timeout > timeout {
                    return Err(conflict(
                        "mac.attempt_timeout",
                        "is longer than mac.timeout",
                    ));
                }
                let key: KeyName = key.ok_or_else(|| missing("mac.key", KEY))?;
                let previous_keys = previous_keys.unwrap_or_default();
                if previous_keys.contains(&key) {
                    return Err(conflict(
                        "mac.previous_keys",
                        "names mac.key, all of whose versions are verified anyway",
                    ));
                }
                Ok(Self::CloudKms(CloudKms {
                    key,
                    version: version.ok_or_else(|| {
                        missing("mac.version", "the number of a version of mac.key")
                    })?,
                    previous_keys,
                    previous_key_files,
                    endpoint,
                    timeout,
                    attempt_timeout,
                }))
            }
        }
    }
}

fn parsed<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

fn conflict(key: &str, reason: &str) -> ConfigError {
    ConfigError::Conflict {
        key: key.to_owned(),
        reason: reason.to_owned(),
    }
}

fn missing(key: &str, expected: &str) -> ConfigError {
    ConfigError::Missing {
        key: key.to_owned(),
        expected: expected.to_owned(),
    }
}
