//! Secret values of the configuration.
//!
//! A secret is named by the configuration and read when it is needed, so that a command which does not need it never
//! holds it. The values are zeroised on drop and have no `Debug`, `Display`, `Serialize` or `Clone`; looking inside is
//! the one method `expose`.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::error::ConfigError;

/// Where container platforms mount secrets; they choose the file mode themselves (often 0444 inside the container).
const PLATFORM_MOUNTS: [&str; 2] = ["/run/secrets", "/var/run/secrets"];
/// A key, an nsec or a short token. More than this is some other file.
const MAX_BYTES: u64 = 4096;

/// Reads a file that others must not read, unless the platform has mounted it.
///
/// # Errors
/// In words, without the content: unreadable, too large, or open to others.
pub fn read_private(path: &Path, max_bytes: u64) -> Result<Zeroizing<Vec<u8>>, String> {
    let unreadable = |error: io::Error| format!("cannot read {}: {error}", path.display());
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    if metadata.len() > max_bytes {
        return Err(format!(
            "{} is larger than {max_bytes} bytes",
            path.display()
        ));
    }
    let mounted_by_platform = PLATFORM_MOUNTS.iter().any(|mount| path.starts_with(mount));
    if !mounted_by_platform && metadata.mode() & 0o027 != 0 {
        return Err(format!(
            "{} has mode {:04o}: others must not read it, nor the group write it (chmod 600)",
            path.display(),
            metadata.mode() & 0o7777
        ));
    }
    fs::read(path).map(Zeroizing::new).map_err(unreadable)
}

/// A secret text, such as an nsec.
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    pub(super) fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    /// The text. Keep it no longer than needed, and hand it to nothing that prints.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// A 256-bit key.
pub struct SecretKey(Zeroizing<[u8; 32]>);

impl SecretKey {
    /// The key bytes.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A secret as the configuration names it: in a file, or given directly.
pub struct SecretRef {
    key: &'static str,
    source: Source,
}

enum Source {
    File(PathBuf),
    Inline(SecretText),
}

impl SecretRef {
    /// One in a file. `key` names it in errors.
    pub fn file(key: &'static str, path: PathBuf) -> Self {
        Self {
            key,
            source: Source::File(path),
        }
    }

    pub(super) fn inline(key: &'static str, text: Zeroizing<String>) -> Self {
        Self {
            key,
            source: Source::Inline(SecretText::new(text)),
        }
    }

    /// The configuration key, such as `mls.storage_key`.
    pub fn key(&self) -> &'static str {
        self.key
    }

    /// The file, when the secret is in one.
    pub fn path(&self) -> Option<&Path> {
        match &self.source {
            Source::File(path) => Some(path),
            Source::Inline(_) => None,
        }
    }

    /// The secret as text, without surrounding white space.
    pub fn text(&self) -> Result<SecretText, ConfigError> {
        let raw = self.bytes()?;
        let text = std::str::from_utf8(&raw)
            .map_err(|_| self.problem("expected text, found other bytes"))?
            .trim();
        if text.is_empty() {
            return Err(self.problem("is empty"));
        }
        Ok(SecretText(Zeroizing::new(text.to_owned())))
    }

    /// The secret as a 256-bit key: 64 hex digits, or a file of exactly 32 bytes.
    pub fn key32(&self) -> Result<SecretKey, ConfigError> {
        let raw = self.bytes()?;
        let mut key = Zeroizing::new([0_u8; 32]);
        if raw.len() == key.len() {
            key.copy_from_slice(&raw);
            return Ok(SecretKey(key));
        }
        hex::decode_to_slice(raw.trim_ascii(), key.as_mut_slice()).map_err(|_| {
            self.problem(
                "expected 64 hex digits or exactly 32 bytes (make one with `openssl rand -hex 32`)",
            )
        })?;
        Ok(SecretKey(key))
    }

    fn bytes(&self) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
        match &self.source {
            Source::Inline(text) => Ok(Zeroizing::new(text.expose().as_bytes().to_vec())),
            Source::File(path) => {
                read_private(path, MAX_BYTES).map_err(|reason| self.problem(&reason))
            }
        }
    }

    fn problem(&self, reason: &str) -> ConfigError {
        ConfigError::Secret {
            key: self.key.to_owned(),
            reason: reason.to_owned(),
        }
    }
}

/// Written by hand: says where the secret is, never what it is.
impl fmt::Debug for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::File(path) => write!(f, "SecretRef({}, file {})", self.key, path.display()),
            Source::Inline(_) => write!(f, "SecretRef({}, [redacted])", self.key),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, SecretRef) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (dir, SecretRef::file("mls.storage_key", path))
    }

    #[test]
    fn a_key_is_32_bytes_or_64_hex_digits() {
        let (_dir, raw) = file(&[7; 32], 0o600);
        assert_eq!(raw.key32().unwrap().expose(), &[7; 32]);
        let (_dir, hex) = file(format!("{}\n", "07".repeat(32)).as_bytes(), 0o400);
        assert_eq!(hex.key32().unwrap().expose(), &[7; 32]);
        for wrong in [&b""[..], b"07", &[7; 31], &[7; 33]] {
            let (_dir, secret) = file(wrong, 0o600);
            let error = secret.key32().err().unwrap().to_string();
            assert!(error.starts_with("mls.storage_key: "), "{error}");
        }
    }

    #[test]
    fn a_file_others_can_read_is_refused() {
        for mode in [0o604, 0o644, 0o620, 0o666] {
            let (_dir, secret) = file(&[7; 32], mode);
            let error = secret.key32().err().unwrap().to_string();
            assert!(error.contains(&format!("mode {mode:04o}")), "{error}");
        }
    }

    #[test]
    fn errors_and_debug_never_hold_the_value() {
        let secret = SecretRef::inline("mls.storage_key", Zeroizing::new("hunter2".to_owned()));
        let error = secret.key32().err().unwrap();
        for shown in [
            format!("{secret:?}"),
            format!("{error:?}"),
            error.to_string(),
        ] {
            assert!(!shown.contains("hunter2"), "{shown}");
            assert!(shown.contains("mls.storage_key"), "{shown}");
        }
    }
}
