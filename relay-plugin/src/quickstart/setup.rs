//! The data directory of a quickstart: keys, configuration and the two admins' homes, laid out as an operator would.
//!
//! Everything here is for trying out on one machine: `profile.environment = "development"`, loopback only, no delay before promotion.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use keyturn_store::mac::local::LocalMacKey;
use zeroize::Zeroizing;

/// Where things are.
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Makes the directories (0700), the keys (0600) and `keyturn.toml`; what exists already is kept, so that a second run goes on with the
    /// same identities.
    ///
    /// # Errors
    /// What the file system says.
    pub fn prepare(root: &Path, relay_port: u16, jwks_url: &str) -> io::Result<Self> {
        let layout = Self {
            root: std::path::absolute(root)?,
        };
        for dir in [
            layout.root.clone(),
            layout.root.join("secrets"),
            layout.root.join("data"),
        ] {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        }
        for name in ["mls-storage", "nostr", "challenge", "totp-seed"] {
            key_file(&layout.secret(name))?;
        }
        if !layout.mac_key().exists() {
            LocalMacKey::create(&layout.mac_key()).map_err(io::Error::other)?;
        }
        fs::write(layout.config(), config_text(relay_port, jwks_url))?;
        Ok(layout)
    }

    /// Has the relay serve devices over that broker, held to what production demands of them.
    ///
    /// # Errors
    /// What the file system says.
    pub fn serve_devices(&self, broker: SocketAddr) -> io::Result<()> {
        let mut file = OpenOptions::new().append(true).open(self.config())?;
        file.write_all(devices_text(broker).as_bytes())
    }

    /// The relay's configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.root.join("keyturn.toml")
    }

    /// Everything.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The log file.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.root.join("keyturn.log")
    }

    /// Home of the admin `name`, for `keyturn-admin --home`.
    #[must_use]
    pub fn home(&self, name: &str) -> PathBuf {
        self.root.join("admins").join(name)
    }

    /// The development issuer's signing key.
    #[must_use]
    pub fn issuer_key(&self) -> PathBuf {
        self.secret("issuer")
    }

    /// The key that hashes secrets.
    #[must_use]
    pub fn mac_key(&self) -> PathBuf {
        self.secret("mac")
    }

    /// The document store.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.root.join("data/keyturn.db")
    }

    fn secret(&self, name: &str) -> PathBuf {
        self.root.join("secrets").join(format!("{name}.key"))
    }
}

/// 64 hex digits in a file of mode 0600; an existing one is kept.
///
/// # Errors
/// What the file system or the random generator says.
pub fn key_file(path: &Path) -> io::Result<()> {
    let mut file = match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
    {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut key = Zeroizing::new([0u8; 32]);
    getrandom::fill(key.as_mut()).map_err(|_| io::Error::other("the random generator failed"))?;
    let text = Zeroizing::new(hex::encode(key.as_ref()));
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn config_text(relay_port: u16, jwks_url: &str) -> String {
    format!(
        r#"# Written by `keyturn quickstart`. For trying out on one machine, never for production.
[profile]
environment = "development"

[relay]
host = "127.0.0.1"
port = {relay_port}
data_dir = "data/relay"
name = "Keyturn quickstart"
http_workers = 2
reader_threads = 2

[web]
listen = "127.0.0.1:0"

[mls]
database = "data/member.db"
storage_key_file = "secrets/mls-storage.key"
nostr_secret_key_file = "secrets/nostr.key"
relays = ["ws://127.0.0.1:{relay_port}"]
settle = "2s"

[store]
kind = "sqlite"
path = "data/keyturn.db"

[mac]
kind = "local"
key_file = "secrets/mac.key"

[issuer]
jwks_url = "{jwks_url}"
issuer = "{issuer}"

[admission]
totp = "proof"
challenge_key_file = "secrets/challenge.key"
totp_seed_key_file = "secrets/totp-seed.key"

[policy]
min_not_before_delay = "0s"
min_interval = "0s"
quorum = 2
require_proven_ack = true
requester_ack_counts = true

[log]
format = "text"
level = "debug"
"#,
        issuer = super::issuer::DevIssuer::ISSUER,
    )
}

fn devices_text(broker: SocketAddr) -> String {
    format!(
        r#"
[mqtt]
url = "mqtt://{broker}"

[devices]
require_signed = true
require_sealed = true
requests_per_hour = 32

[devices.issuer]
kind = "embedded"
"#
    )
}
