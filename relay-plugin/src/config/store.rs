//! `[store]`: where clients, versions, rotations and the audit trail are kept.
//!
//! Every key of the section is read whatever the kind is, so that a misspelt one is found; one that belongs to the other kind is a contradiction.

use std::{path::PathBuf, time::Duration};

use keyturn_store::{firestore::FirestoreSettings, mac::cloud_kms::Endpoint};

use super::{error::ConfigError, sections::MINUTE, source::Keys};

/// `[store]`.
#[derive(Debug)]
pub enum Store {
    /// Embedded, for a single process.
    Sqlite {
        /// The database file.
        path: PathBuf,
    },
    /// Cloud Firestore, for any number of relays.
    Firestore(FirestoreSettings),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sqlite,
    Firestore,
}

const PATH: &str = "the path of the database";
const PROJECT: &str = "the id of a Google Cloud project";
const DATABASE: &str = "the id of a named Firestore database: 4 to 63 lower-case letters, digits and hyphens, beginning with a letter";
/// Nobody else's documents lie in it.
const DEFAULT_DATABASE: &str = "keyturn";

impl Store {
    pub(super) fn read(keys: &mut Keys) -> Result<Self, ConfigError> {
        let kind = keys.text(
            "store.kind",
            "\"sqlite\" or \"firestore\"",
            |text| match text {
                "sqlite" => Some(Kind::Sqlite),
                "firestore" => Some(Kind::Firestore),
                _ => None,
            },
        )?;
        let path = keys.path("store.path", PATH)?;
        let project = keys.text("store.project", PROJECT, project)?;
        let database = keys.text("store.database", DATABASE, database)?;
        let endpoint: Option<Endpoint> = keys.text(
            "store.endpoint",
            "https://HOST[:PORT], or http://127.0.0.1:PORT for the emulator",
            |text| text.parse().ok(),
        )?;
        let second = Duration::from_secs(1);
        let timeout = keys.duration("store.timeout", second..=MINUTE, second * 10)?;
        match kind.unwrap_or(Kind::Sqlite) {
            Kind::Sqlite => {
                for (name, given) in [
                    ("store.project", project.is_some()),
                    ("store.endpoint", endpoint.is_some()),
                ] {
                    if given {
                        return Err(conflict(name, "is only for store.kind = \"firestore\""));
                    }
                }
                Ok(Self::Sqlite {
                    path: path.ok_or_else(|| missing("store.path", PATH))?,
                })
            }
            Kind::Firestore => {
                if path.is_some() {
                    return Err(conflict(
                        "store.path",
                        "is only for store.kind = \"sqlite\"",
                    ));
                }
                Ok(Self::Firestore(FirestoreSettings {
                    project: project.ok_or_else(|| missing("store.project", PROJECT))?,
                    database: database.unwrap_or_else(|| DEFAULT_DATABASE.to_owned()),
                    endpoint,
                    timeout,
                }))
            }
        }
    }
}

/// `example.com:my-project` is a project of an organisation's own domain.
/// A project's id.
pub(crate) fn project(text: &str) -> Option<String> {
    let named =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.:".contains(&byte);
    let valid = (1..=100).contains(&text.len()) && text.bytes().all(named);
    valid.then(|| text.to_owned())
}

/// `(default)` is not offered: the rules and roles of one that other programs use would not be ours.
pub(crate) fn database(text: &str) -> Option<String> {
    let named = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let valid = (4..=63).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        && text.bytes().all(named);
    valid.then(|| text.to_owned())
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
