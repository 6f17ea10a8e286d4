//! Looks for plaintext where none may be: in files, text and events, in every spelling a careless line of code would use.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use zeroize::Zeroizing;

/// One secret's spellings: the text itself, its 32 bytes, and both in base64, base64url and hex.
pub struct Needles(Vec<Zeroizing<Vec<u8>>>);

impl Needles {
    /// Every spelling of `secret`, which is the 43-character text.
    #[must_use]
    pub fn of(secret: &str) -> Self {
        let mut needles = vec![Zeroizing::new(secret.as_bytes().to_vec())];
        let mut spell = |bytes: &[u8]| {
            // A base64 run inside a longer one starts at any of three offsets; only the inner part is the same in all contexts.
            for skip in 0..3 {
                let inner = &bytes[skip..];
                let whole = inner.len() / 3 * 3;
                needles.push(Zeroizing::new(
                    STANDARD_NO_PAD.encode(&inner[..whole]).into_bytes(),
                ));
                needles.push(Zeroizing::new(
                    URL_SAFE
                        .encode(&inner[..whole])
                        .trim_end_matches('=')
                        .as_bytes()
                        .to_vec(),
                ));
            }
            needles.push(Zeroizing::new(STANDARD.encode(bytes).into_bytes()));
            needles.push(Zeroizing::new(hex::encode(bytes).into_bytes()));
            needles.push(Zeroizing::new(hex::encode_upper(bytes).into_bytes()));
        };
        spell(secret.as_bytes());
        if let Ok(raw) = keyturn_proto::encoding::from_b64url("secret", secret) {
            spell(&raw);
            needles.push(Zeroizing::new(raw.to_vec()));
        }
        Self(needles)
    }

    /// Each spelling, for searches of another kind.
    pub fn spellings(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|needle| needle.as_slice())
    }

    /// Whether any spelling occurs in `hay`.
    #[must_use]
    pub fn in_bytes(&self, hay: &[u8]) -> bool {
        self.0.iter().any(|needle| contains(hay, needle))
    }

    /// The files at or below `root` that hold any spelling, and how many were read. Sockets and the like are passed over.
    ///
    /// # Errors
    /// The first file that cannot be read: a file that was not searched is not clean.
    pub fn in_files(&self, root: &Path) -> io::Result<Searched> {
        let mut searched = Searched::default();
        let mut todo = vec![root.to_path_buf()];
        while let Some(path) = todo.pop() {
            let kind = match fs::symlink_metadata(&path) {
                Ok(meta) => meta.file_type(),
                // A write-ahead log may be gone between listing and reading.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if kind.is_dir() {
                for entry in fs::read_dir(&path)? {
                    todo.push(entry?.path());
                }
            } else if kind.is_file() {
                match fs::read(&path) {
                    Ok(bytes) => {
                        searched.files += 1;
                        searched.bytes += bytes.len() as u64;
                        if self.in_bytes(&bytes) {
                            searched.leaks.push(path);
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(searched)
    }
}

/// What a search read and found.
#[derive(Debug, Default)]
pub struct Searched {
    /// Files read.
    pub files: usize,
    /// Bytes read.
    pub bytes: u64,
    /// Files with plaintext in them.
    pub leaks: Vec<PathBuf>,
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    let Some((first, rest)) = needle.split_first() else {
        return false;
    };
    let mut hay = hay;
    while let Some(at) = hay.iter().position(|byte| byte == first) {
        hay = &hay[at + 1..];
        if hay.starts_with(rest) {
            return true;
        }
    }
    false
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SECRET: &str = "2nC0WJ6d-3Jb0L6Wj7o5n9Jx9aQmH6r1bE3xqfIuF9k";

    #[test]
    fn finds_every_spelling_inside_other_bytes() {
        let needles = Needles::of(SECRET);
        let raw = keyturn_proto::encoding::from_b64url("secret", SECRET).unwrap();
        let inside = |bytes: &[u8]| [b"prefix ".as_slice(), bytes, b" suffix"].concat();
        for spelling in [
            SECRET.as_bytes().to_vec(),
            raw.to_vec(),
            STANDARD.encode(SECRET).into_bytes(),
            URL_SAFE.encode(SECRET).into_bytes(),
            STANDARD.encode(raw.as_slice()).into_bytes(),
            hex::encode(SECRET).into_bytes(),
            hex::encode_upper(raw.as_slice()).into_bytes(),
            // base64 of a message that holds the secret somewhere
            STANDARD.encode(inside(SECRET.as_bytes())).into_bytes(),
            STANDARD
                .encode([b"x".as_slice(), &inside(SECRET.as_bytes())].concat())
                .into_bytes(),
            STANDARD
                .encode([b"xy".as_slice(), &inside(SECRET.as_bytes())].concat())
                .into_bytes(),
        ] {
            assert!(
                needles.in_bytes(&inside(&spelling)),
                "{}",
                String::from_utf8_lossy(&spelling)
            );
        }
        assert!(!needles.in_bytes(&inside(b"nothing to see")));
    }

    #[test]
    fn names_the_file_that_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("deep")).unwrap();
        fs::write(dir.path().join("clean"), b"nothing").unwrap();
        fs::write(dir.path().join("deep/log"), format!("oops {SECRET}\n")).unwrap();
        let searched = Needles::of(SECRET).in_files(dir.path()).unwrap();
        assert_eq!(searched.files, 2);
        assert_eq!(searched.leaks, [dir.path().join("deep/log")]);
    }
}
