//! The MAC key as local files: the embedded default. Each file holds 32 bytes, raw or as canonical base64url text (a final newline is allowed), and
//! belongs to its owner alone.
//!
//! The first key makes new hashes; the others keep verifying what they made. `mac_key_ref` is `local:hmac-sha-256:` and the first 8 bytes (hex) of
//! HMAC-SHA-256(key, "keyturn/mac-key-ref/1"): it names the key and tells nothing of it.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use hmac::{Hmac, KeyInit as _, Mac as _};
use keyturn_proto::canonical::mac_input;
use keyturn_proto::encoding::from_b64url_array;
use keyturn_proto::{ClientId, VersionId};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::{MacError, MacKey, Maced, SecretHash};

type HmacSha256 = Hmac<Sha256>;

const REF_LABEL: &[u8] = b"keyturn/mac-key-ref/1";
const REF_PREFIX: &str = "local:hmac-sha-256:";

/// Why a key file cannot be used. Never carries content.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The operating system refused.
    #[error("cannot {verb} MAC key file {}: {cause}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// Which file.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        cause: std::io::Error,
    },
    /// Others than the owner may read or write it.
    #[error("MAC key file {} has mode {mode:04o}; it must be 0600: chmod 600 it, and consider the key known", path.display())]
    Mode {
        /// Which file.
        path: PathBuf,
        /// The permission bits found.
        mode: u32,
    },
    /// Neither 32 raw bytes nor 43 characters of canonical base64url.
    #[error("MAC key file {} must hold 32 bytes, raw or as base64url without padding", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
    },
    /// No file was named.
    #[error("no MAC key file was named")]
    None,
    /// The operating system's random generator failed.
    #[error("the random generator failed")]
    Random,
}

/// HMAC-SHA-256 under keys from local files.
pub struct LocalMacKey {
    /// Primary first; never empty.
    keys: Vec<Key>,
}

struct Key {
    key_ref: String,
    /// The keyed state, wiped on drop by the `hmac` and `sha2` crates' zeroising; the raw bytes are not kept.
    keyed: HmacSha256,
}

impl LocalMacKey {
    /// Makes a new key file with mode 0600. Refuses to replace one: every hash made with it would be lost.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn create(path: &Path) -> Result<(), KeyFileError> {
        let io = |cause| KeyFileError::Io {
            verb: "create",
            path: path.to_owned(),
            cause,
        };
        let mut bytes = Zeroizing::new([0u8; 32]);
        getrandom::fill(bytes.as_mut()).map_err(|_| KeyFileError::Random)?;
        let text = Zeroizing::new(keyturn_proto::encoding::b64url(bytes.as_ref()));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        file.write_all(text.as_bytes()).map_err(io)?;
        file.sync_all().map_err(io)?;
        // The name must survive a power cut as well as the content.
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(io)
    }

    /// Reads key files, the primary first.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn open<P: AsRef<Path>>(paths: &[P]) -> Result<Self, KeyFileError> {
        let mut keys: Vec<Key> = Vec::with_capacity(paths.len());
        for path in paths {
            let key = Key::new(&*read(path.as_ref())?);
            if !keys.iter().any(|known| known.key_ref == key.key_ref) {
                keys.push(key);
            }
        }
        if keys.is_empty() {
            return Err(KeyFileError::None);
        }
        Ok(Self { keys })
    }

    /// From raw keys, the primary first, for tests and for keys that do not come from files.
    #[must_use]
    pub fn from_keys(primary: &[u8; 32], older: &[Zeroizing<[u8; 32]>]) -> Self {
        let keys = std::iter::once(Key::new(primary))
            .chain(older.iter().map(|key| Key::new(key)))
            .collect();
        Self { keys }
    }

    /// The names of the keys, the primary one's first.
    pub fn key_refs(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| key.key_ref.as_str())
    }

    /// [`MacKey::sign`] without the wait that other keys need.
    #[must_use]
    pub fn sign_now(&self, client: &ClientId, version: &VersionId, secret: &str) -> Maced {
        let key = self.primary();
        Maced {
            hash: SecretHash::from_mac(&key.mac(client, version, secret)),
            key_ref: key.key_ref.clone(),
        }
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "every constructor makes at least one key"
    )]
    fn primary(&self) -> &Key {
        &self.keys[0]
    }
}

impl Key {
    fn new(bytes: &[u8; 32]) -> Self {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
        let keyed = HmacSha256::new_from_slice(bytes).expect("a 32-byte key");
        let name = keyed
            .clone()
            .chain_update(REF_LABEL)
            .finalize()
            .into_bytes();
        Self {
            key_ref: format!("{REF_PREFIX}{}", hex::encode(&name[..8])),
            keyed,
        }
    }

    fn mac(&self, client: &ClientId, version: &VersionId, secret: &str) -> Zeroizing<[u8; 32]> {
        let input = mac_input(client, version, secret);
        let mac = self.keyed.clone().chain_update(input.as_slice()).finalize();
        Zeroizing::new(mac.into_bytes().into())
    }
}

#[async_trait]
impl MacKey for LocalMacKey {
    async fn sign(
        &self,
        client: &ClientId,
        version: &VersionId,
        secret: &str,
    ) -> Result<Maced, MacError> {
        Ok(self.sign_now(client, version, secret))
    }

    fn here(&self) -> Option<&LocalMacKey> {
        Some(self)
    }

    async fn verify(
        &self,
        key_ref: &str,
        client: &ClientId,
        version: &VersionId,
        secret: &str,
        hash: &SecretHash,
    ) -> Result<bool, MacError> {
        let key = self
            .keys
            .iter()
            .find(|key| key.key_ref == key_ref)
            .ok_or_else(|| MacError::UnknownKey(key_ref.to_owned()))?;
        let expected = from_b64url_array::<32>("secret_hash", hash.as_str())
            .map_err(|_| MacError::MalformedHash)?;
        let mac = key.mac(client, version, secret);
        Ok(mac.as_slice().ct_eq(expected.as_slice()).into())
    }

    fn primary_ref(&self) -> String {
        self.primary().key_ref.clone()
    }
}

/// Reads one key file. Mode and content are judged on the same open file, so that it cannot be swapped in between.
fn read(path: &Path) -> Result<Zeroizing<[u8; 32]>, KeyFileError> {
    let io = |cause| KeyFileError::Io {
        verb: "read",
        path: path.to_owned(),
        cause,
    };
    let mut file = File::open(path).map_err(io)?;
    let mode = file.metadata().map_err(io)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Mode {
            path: path.to_owned(),
            mode,
        });
    }
    // Room for the longest valid file and one byte more; the buffer never grows, so no copy stays behind.
    let mut content = Zeroizing::new([0u8; 46]);
    let mut filled = 0;
    while filled < content.len() {
        match file.read(&mut content[filled..]).map_err(io)? {
            0 => break,
            n => filled += n,
        }
    }
    parse(&content[..filled]).ok_or_else(|| KeyFileError::Content {
        path: path.to_owned(),
    })
}

fn parse(content: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    if let Ok(raw) = <[u8; 32]>::try_from(content) {
        return Some(Zeroizing::new(raw));
    }
    let text = std::str::from_utf8(content).ok()?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    from_b64url_array::<32>("mac_key", text.strip_suffix('\r').unwrap_or(text)).ok()
}
