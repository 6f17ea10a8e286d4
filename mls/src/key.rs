//! The key of the member database: 32 random bytes, from a key file or from a configuration secret.
//!
//! What must hold: a key file is a regular file that only its owner may read; the bytes are zeroised on
//! drop, never printed, never cloned.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::{Engine as _, engine::general_purpose};
use zeroize::Zeroizing;

/// Longest text accepted: hex is 64, base64 44; some room for white space.
const MAX_TEXT: u64 = 256;

/// The raw key that SQLCipher encrypts the database with. No `Debug`, no `Clone`.
pub struct StorageKey(Zeroizing<[u8; 32]>);

/// Why there is no storage key.
#[derive(Debug, thiserror::Error)]
pub enum StorageKeyError {
    /// The file could not be read or made.
    #[error("storage key file {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Group or others may read the file.
    #[error("storage key file {path} has mode {mode:04o}, expected 0600 or stricter")]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Neither 64 hex digits nor base64 of 32 bytes.
    #[error("a storage key is 64 hex digits or the base64 of 32 bytes")]
    Text,
    /// No random bytes.
    #[error("no random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

impl StorageKey {
    /// From text: 64 hex digits, or standard or URL-safe base64 of 32 bytes. White space around is ignored.
    pub fn from_text(text: &str) -> Result<Self, StorageKeyError> {
        let text = text.trim();
        let mut key = Zeroizing::new([0_u8; 32]);
        if text.len() == 64 {
            hex::decode_to_slice(text, key.as_mut_slice()).map_err(|_| StorageKeyError::Text)?;
            return Ok(Self(key));
        }
        let engines = [
            &general_purpose::STANDARD,
            &general_purpose::STANDARD_NO_PAD,
            &general_purpose::URL_SAFE,
            &general_purpose::URL_SAFE_NO_PAD,
        ];
        // A little larger than the key: decoders want room for a whole last group.
        let mut buffer = Zeroizing::new([0_u8; 48]);
        if text.len() > 44 {
            return Err(StorageKeyError::Text);
        }
        for engine in engines {
            if let Ok(32) = engine.decode_slice(text, buffer.as_mut_slice()) {
                key.copy_from_slice(&buffer[..32]);
                return Ok(Self(key));
            }
        }
        Err(StorageKeyError::Text)
    }

    /// From a key file that must exist and be readable by its owner only.
    pub fn from_file(path: &Path) -> Result<Self, StorageKeyError> {
        let at = |source| StorageKeyError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(at)?;
        let mode = file.metadata().map_err(at)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(StorageKeyError::Mode {
                path: path.to_owned(),
                mode,
            });
        }
        let mut text = Zeroizing::new(String::with_capacity(MAX_TEXT as usize));
        file.take(MAX_TEXT).read_to_string(&mut text).map_err(at)?;
        Self::from_text(&text)
    }

    /// As [`Self::from_file`]; a missing file is made first, with mode 0600 and a fresh key, and synced.
    pub fn from_file_or_create(path: &Path) -> Result<Self, StorageKeyError> {
        let at = |source| StorageKeyError::Io {
            path: path.to_owned(),
            source,
        };
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        match made {
            Ok(mut file) => {
                let key = Self::generate()?;
                let mut text = Zeroizing::new([0_u8; 65]);
                hex::encode_to_slice(key.0.as_slice(), &mut text[..64])
                    .map_err(|_| StorageKeyError::Text)?;
                text[64] = b'\n';
                file.write_all(text.as_slice()).map_err(at)?;
                file.sync_all().map_err(at)?;
                Ok(key)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::from_file(path),
            Err(error) => Err(at(error)),
        }
    }

    /// Fresh from the operating system.
    pub fn generate() -> Result<Self, StorageKeyError> {
        let mut key = Zeroizing::new([0_u8; 32]);
        getrandom::fill(key.as_mut_slice())?;
        Ok(Self(key))
    }

    /// `PRAGMA key` for a raw key: no key derivation.
    pub(crate) fn pragma(&self) -> Zeroizing<String> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = Zeroizing::new(String::with_capacity(96));
        text.push_str("PRAGMA key = \"x'");
        for byte in self.0.iter() {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        text.push_str("'\";");
        text
    }
}
