//! The admin's home directory: configuration, Nostr key, member database and its key.
//!
//! What must hold: the directory is 0700 and the key files 0600, made so from the first byte; nothing in it is ever a plaintext secret of a
//! client. Files: `config.toml`, `nostr.key`, `member.key`, `member.db` (SQLCipher), `sync.json` (where the last sync ended).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use keyturn_proto::Npub;
use nostr::{Keys, RelayUrl, SecretKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Why the home directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Not made yet.
    #[error("{0} holds no admin yet; run `keyturn-admin init` first")]
    Missing(PathBuf),
    /// Made already.
    #[error("{0} holds an admin already; nothing was changed")]
    Exists(PathBuf),
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others may read or write it.
    #[error("{path} has mode {mode:04o}; expected {expected:04o} or stricter")]
    Mode {
        /// Which file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The widest that is accepted.
        expected: u32,
    },
    /// The configuration does not parse; with its reason.
    #[error("{path}: {reason}")]
    Config {
        /// Which file.
        path: PathBuf,
        /// Key and expectation.
        reason: String,
    },
    /// The key file holds no Nostr secret key.
    #[error("{0} must hold a Nostr secret key: nsec1… or 64 hex digits")]
    Key(PathBuf),
}

/// `config.toml`. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The relays, `ws://` or `wss://`; at least one. Also read as `relay`, and from a single text.
    #[serde(alias = "relay", deserialize_with = "one_or_more")]
    pub relays: Vec<RelayUrl>,
    /// The relays' HTTP listeners, for challenges. Also read as `service_url`, and from a single text.
    #[serde(
        default,
        alias = "service_url",
        deserialize_with = "one_or_more",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub service_urls: Vec<String>,
    /// The npubs of the service: one per relay instance. Secrets and reports are accepted from these members only.
    #[serde(default)]
    pub services: Vec<Npub>,
    /// From whom a Welcome is followed without asking. Empty: every Welcome is listed, none is followed by itself.
    #[serde(default)]
    pub welcomers: Vec<Npub>,
    /// Audience of the proofs.
    #[serde(default = "default_audience")]
    pub audience: String,
    /// For how long after its receipt a group change may still lose against a concurrent one, in seconds; the same for every member.
    #[serde(default = "default_settle")]
    pub settle_secs: u64,
    /// The command that signs proofs, split at white space; see `keyturn-admin rotate --help`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof_command: Option<String>,
}

/// A list, or the one thing that would be in it.
fn one_or_more<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMore<T> {
        One(T),
        More(Vec<T>),
    }
    match OneOrMore::deserialize(deserializer)? {
        OneOrMore::One(one) => Ok(vec![one]),
        OneOrMore::More(more) if more.is_empty() => {
            Err(serde::de::Error::custom("expected at least one address"))
        }
        OneOrMore::More(more) => Ok(more),
    }
}

fn default_audience() -> String {
    keyturn_proto::proof::DEFAULT_AUDIENCE.to_owned()
}

const fn default_settle() -> u64 {
    10
}

impl Config {
    /// The defaults for one relay.
    #[must_use]
    pub fn new(relay: RelayUrl) -> Self {
        Self {
            relays: vec![relay],
            service_urls: Vec::new(),
            services: Vec::new(),
            welcomers: Vec::new(),
            audience: default_audience(),
            settle_secs: default_settle(),
            proof_command: None,
        }
    }
}

/// An existing home directory with safe permissions.
#[derive(Clone, Debug)]
pub struct Home {
    dir: PathBuf,
}

impl Home {
    /// Makes the directory, the configuration and, unless `keys` are given, a fresh Nostr key.
    ///
    /// # Errors
    /// [`HomeError::Exists`] if there is a configuration already; any other but [`HomeError::Missing`].
    pub fn create(
        dir: &Path,
        config: &Config,
        keys: Option<Keys>,
    ) -> Result<(Self, Keys), HomeError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(at(dir))?;
        check_mode(dir, 0o700)?;
        let home = Self {
            dir: dir.to_owned(),
        };
        if home.config_path().exists() {
            return Err(HomeError::Exists(dir.to_owned()));
        }
        // The configuration comes last: a home without one is unfinished, and `create` goes on where it was interrupted.
        let keys = match (home.keys(), keys) {
            (Ok(existing), None) => existing,
            (Ok(existing), Some(given)) if existing == given => existing,
            (Ok(_), Some(_)) => return Err(HomeError::Exists(home.key_path())),
            (Err(HomeError::Io { source, .. }), given)
                if source.kind() == io::ErrorKind::NotFound =>
            {
                let keys = given.unwrap_or_else(Keys::generate);
                let hex = Zeroizing::new(keys.secret_key().to_secret_hex());
                write_new(&home.key_path(), hex.as_bytes())?;
                keys
            }
            (Err(error), _) => return Err(error),
        };
        let text = toml::to_string(config).map_err(|error| HomeError::Config {
            path: home.config_path(),
            reason: error.to_string(),
        })?;
        write_new(&home.config_path(), text.as_bytes())?;
        Ok((home, keys))
    }

    /// Opens a directory that [`Self::create`] has made.
    ///
    /// # Errors
    /// [`HomeError::Missing`], [`HomeError::Mode`].
    pub fn open(dir: &Path) -> Result<Self, HomeError> {
        let home = Self {
            dir: dir.to_owned(),
        };
        if !home.config_path().exists() {
            return Err(HomeError::Missing(dir.to_owned()));
        }
        check_mode(dir, 0o700)?;
        Ok(home)
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// [`HomeError::Config`], [`HomeError::Io`].
    pub fn config(&self) -> Result<Config, HomeError> {
        let path = self.config_path();
        let text = std::fs::read_to_string(&path).map_err(at(&path))?;
        toml::from_str(&text).map_err(|error| HomeError::Config {
            path,
            reason: error.to_string(),
        })
    }

    /// Reads the Nostr key.
    ///
    /// # Errors
    /// [`HomeError::Key`], [`HomeError::Mode`], [`HomeError::Io`].
    pub fn keys(&self) -> Result<Keys, HomeError> {
        read_keys(&self.key_path())
    }

    /// The member database.
    #[must_use]
    pub fn member_path(&self) -> PathBuf {
        self.dir.join("member.db")
    }

    /// The key of the member database.
    #[must_use]
    pub fn member_key_path(&self) -> PathBuf {
        self.dir.join("member.key")
    }

    /// Where the last sync ended.
    #[must_use]
    pub fn sync_path(&self) -> PathBuf {
        self.dir.join("sync.json")
    }

    fn config_path(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    fn key_path(&self) -> PathBuf {
        self.dir.join("nostr.key")
    }
}

/// Reads a Nostr secret key (nsec or hex) from a file that only its owner may read.
///
/// # Errors
/// [`HomeError::Key`], [`HomeError::Mode`], [`HomeError::Io`].
pub fn read_keys(path: &Path) -> Result<Keys, HomeError> {
    let file = File::open(path).map_err(at(path))?;
    let mode = file.metadata().map_err(at(path))?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(HomeError::Mode {
            path: path.to_owned(),
            mode,
            expected: 0o600,
        });
    }
    let mut text = Zeroizing::new(String::with_capacity(256));
    file.take(256).read_to_string(&mut text).map_err(at(path))?;
    SecretKey::parse(text.trim())
        .map(Keys::new)
        .map_err(|_| HomeError::Key(path.to_owned()))
}

/// Writes a file that must not exist yet, 0600 from the start, synced.
fn write_new(path: &Path, bytes: &[u8]) -> Result<(), HomeError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(at(path))?;
    file.write_all(bytes)
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| file.sync_all())
        .map_err(at(path))
}

fn check_mode(dir: &Path, expected: u32) -> Result<(), HomeError> {
    let mode = std::fs::metadata(dir).map_err(at(dir))?.mode() & 0o7777;
    if mode & 0o077 == 0 {
        Ok(())
    } else {
        Err(HomeError::Mode {
            path: dir.to_owned(),
            mode,
            expected,
        })
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> HomeError + '_ {
    move |source| HomeError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn config() -> Config {
        Config::new(RelayUrl::parse("ws://127.0.0.1:8080").unwrap())
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_new_home_is_private_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("a/b");
        let (home, keys) = Home::create(&dir, &config(), None).unwrap();
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&home.key_path()), 0o600);
        let again = Home::open(&dir).unwrap();
        assert_eq!(again.keys().unwrap(), keys);
        assert_eq!(again.config().unwrap(), config());
    }

    #[test]
    fn an_existing_admin_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("h");
        let (home, keys) = Home::create(&dir, &config(), None).unwrap();
        assert!(matches!(
            Home::create(&dir, &config(), None),
            Err(HomeError::Exists(_))
        ));
        // Interrupted before the configuration was written: the key stays.
        std::fs::remove_file(home.config_path()).unwrap();
        let other = Some(Keys::generate());
        assert!(matches!(
            Home::create(&dir, &config(), other),
            Err(HomeError::Exists(_))
        ));
        assert_eq!(Home::create(&dir, &config(), None).unwrap().1, keys);
    }

    #[test]
    fn open_permissions_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("h");
        let (home, _) = Home::create(&dir, &config(), None).unwrap();
        std::fs::set_permissions(home.key_path(), std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            home.keys(),
            Err(HomeError::Mode { mode: 0o640, .. })
        ));
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(Home::open(&dir), Err(HomeError::Mode { .. })));
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("h");
        let (home, _) = Home::create(&dir, &config(), None).unwrap();
        for (text, named) in [
            ("relay = \"ws://127.0.0.1:1\"\nservises = []\n", "servises"),
            ("relay = \"ws://127.0.0.1:1\"\nservices = [\"x\"]\n", "npub"),
            ("", "relay"),
            ("relays = []\n", "at least one"),
        ] {
            std::fs::write(home.config_path(), text).unwrap();
            let error = home.config().unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn one_relay_and_several_are_read_alike() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("h");
        let (home, _) = Home::create(&dir, &config(), None).unwrap();
        let url = |port: u16| RelayUrl::parse(&format!("ws://127.0.0.1:{port}")).unwrap();
        for (text, relays, services) in [
            (
                "relay = \"ws://127.0.0.1:1\"\nservice_url = \"http://a\"\n",
                vec![url(1)],
                vec!["http://a"],
            ),
            (
                "relays = [\"ws://127.0.0.1:1\", \"ws://127.0.0.1:2\"]\nservice_urls = [\"http://a\", \"http://b\"]\n",
                vec![url(1), url(2)],
                vec!["http://a", "http://b"],
            ),
        ] {
            std::fs::write(home.config_path(), text).unwrap();
            let read = home.config().unwrap();
            assert_eq!(
                (read.relays, read.service_urls),
                (relays, services.into_iter().map(str::to_owned).collect())
            );
        }
    }

    #[test]
    fn a_key_file_with_something_else_does_not_show_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        write_new(&path, b"hunter2").unwrap();
        let error = read_keys(&path).unwrap_err();
        assert!(matches!(error, HomeError::Key(_)));
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}
