//! Secrets that another system kept as bcrypt hashes.
//!
//! Such a secret is not known here, only its bcrypt hash. The store keeps the *setting* (identifier, cost and salt), never the hash: what is stored as
//! `secret_hash` is the MAC over the whole bcrypt text. A presented secret goes through bcrypt under the setting first, and what comes out is what
//! the MAC key judges. So a stolen store gives nobody anything to crack, and presenting an old hash opens nothing.
//!
//! bcrypt's own rules are kept, because the system that made the hash kept them:
//! - only the first 72 bytes count; what follows is ignored;
//! - `2a`, `2b` and `2y` are one algorithm. (They differ only in implementations of before 2014, for secrets of over 255 bytes or through a bug in
//!   how bytes above 127 were read, which is what `2x` means: that one is refused.)
//! - a secret with a NUL byte is refused: C implementations end there, others go on, and the key schedule repeats at NUL, so that `ab` and
//!   `ab\0ab` would be one secret.

use base64::Engine as _;
use base64::alphabet::BCRYPT;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

/// bcrypt looks no further.
pub const MAX_SECRET_BYTES: usize = 72;
/// The costs that are taken: below 4 bcrypt does not exist, and one check at 15 takes seconds.
pub const COSTS: std::ops::RangeInclusive<u32> = 4..=15;
/// Above this, one check takes longer than a caller of a token endpoint likes to wait.
pub const SLOW_COST: u32 = 12;

/// `$2b$10$` and 22 characters of salt.
const SETTING_LEN: usize = 29;
/// 23 bytes of hash.
const HASH_LEN: usize = 31;
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 23;

const CANONICAL: GeneralPurpose =
    GeneralPurpose::new(&BCRYPT, base64::engine::general_purpose::NO_PAD);
/// Sixteen bytes leave four bits of the last character open, and some systems fill them.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &BCRYPT,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::RequireNone),
);

/// Why a text is no bcrypt hash that can be taken over. Never carries the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BcryptError {
    /// Some other length, or something else between the dollar signs.
    #[error("not a bcrypt hash: expected `$2b$`, two digits of cost, `$` and 53 characters")]
    Shape,
    /// `$2x$`, `$2$`, or another algorithm.
    #[error("only bcrypt hashes marked `$2a$`, `$2b$` or `$2y$` can be taken over")]
    Identifier,
    /// Not in [`COSTS`].
    #[error("a bcrypt cost of {0} is outside 4 to 15")]
    Cost(u32),
    /// Not of bcrypt's alphabet, or bits set that no bcrypt sets.
    #[error("the bcrypt hash is damaged")]
    Damaged,
}

/// What bcrypt needs beside the secret: identifier, cost and salt, in their canonical spelling. No secret in itself; of the documents it is in those that
/// also bear the MAC.
#[derive(Clone, PartialEq, Eq)]
pub struct BcryptSetting {
    text: String,
    cost: u32,
    salt: [u8; SALT_BYTES],
}

/// A whole bcrypt hash. Whoever has it can guess at the secret: no `Debug`, no `Clone`, wiped on drop.
pub struct BcryptHash {
    setting: BcryptSetting,
    text: Zeroizing<String>,
}

impl BcryptSetting {
    /// Reads what a document says.
    ///
    /// # Errors
    /// [`BcryptError`] unless it is the canonical spelling.
    pub fn parse(text: &str) -> Result<Self, BcryptError> {
        let setting = Self::lenient(text)?;
        if setting.text == text {
            Ok(setting)
        } else {
            Err(BcryptError::Damaged)
        }
    }

    /// As [`Self::parse`], mending the bits of the salt that nothing reads.
    fn lenient(text: &str) -> Result<Self, BcryptError> {
        if text.len() != SETTING_LEN || !text.is_ascii() {
            return Err(BcryptError::Shape);
        }
        let (identifier, rest) = text.split_at(4);
        if !matches!(identifier, "$2a$" | "$2b$" | "$2y$") {
            let other = identifier.starts_with('$');
            return Err(if other {
                BcryptError::Identifier
            } else {
                BcryptError::Shape
            });
        }
        let (cost, rest) = rest.split_at(2);
        let salt = rest.strip_prefix('$').ok_or(BcryptError::Shape)?;
        if !cost.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(BcryptError::Shape);
        }
        let cost = cost.parse().map_err(|_| BcryptError::Shape)?;
        if !COSTS.contains(&cost) {
            return Err(BcryptError::Cost(cost));
        }
        let salt: [u8; SALT_BYTES] = LENIENT
            .decode(salt)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(BcryptError::Damaged)?;
        Ok(Self {
            text: format!("{identifier}{cost:02}${}", CANONICAL.encode(salt)),
            cost,
            salt,
        })
    }

    /// The stored spelling.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Work is 2 to the power of this.
    #[must_use]
    pub const fn cost(&self) -> u32 {
        self.cost
    }

    /// The bcrypt text of a presented secret, which is what was MACed. Blocks for as long as the cost says: call it where that is allowed.
    ///
    /// `None` for a secret that no system could have hashed the same way everywhere (see the module's words on NUL).
    #[must_use]
    pub fn apply(&self, secret: &str) -> Option<Zeroizing<String>> {
        let bytes = secret.as_bytes();
        if bytes.contains(&0) {
            return None;
        }
        // The terminator counts as one of the 72, and is not there when they are full.
        let mut key = Zeroizing::new([0u8; MAX_SECRET_BYTES]);
        let kept = bytes.len().min(MAX_SECRET_BYTES);
        key[..kept].copy_from_slice(&bytes[..kept]);
        let key = &key[..(kept + 1).min(MAX_SECRET_BYTES)];
        let raw = Zeroizing::new(bcrypt::bcrypt(self.cost, self.salt, key));
        // Room for all of it, so that no shorter copy is left behind.
        let mut text = Zeroizing::new(String::with_capacity(SETTING_LEN + HASH_LEN));
        text.push_str(&self.text);
        CANONICAL.encode_string(&raw[..HASH_BYTES], &mut text);
        Some(text)
    }
}

impl BcryptHash {
    /// Reads one as the other system wrote it.
    ///
    /// # Errors
    /// [`BcryptError`].
    pub fn parse(text: &str) -> Result<Self, BcryptError> {
        // The identifier first: "argon2" deserves a better answer than its length.
        if text.starts_with('$') && !text.starts_with("$2") {
            return Err(BcryptError::Identifier);
        }
        if text.len() != SETTING_LEN + HASH_LEN || !text.is_ascii() {
            return Err(BcryptError::Shape);
        }
        let (setting, hash) = text.split_at(SETTING_LEN);
        let setting = BcryptSetting::lenient(setting)?;
        let raw = CANONICAL.decode(hash).map(Zeroizing::new);
        if raw.map_err(|_| BcryptError::Damaged)?.len() != HASH_BYTES {
            return Err(BcryptError::Damaged);
        }
        let mut canonical = Zeroizing::new(String::with_capacity(text.len()));
        canonical.push_str(&setting.text);
        canonical.push_str(hash);
        Ok(Self {
            setting,
            text: canonical,
        })
    }

    /// What may be stored beside the MAC.
    #[must_use]
    pub const fn setting(&self) -> &BcryptSetting {
        &self.setting
    }

    /// The whole text, for the MAC key only.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }
}

/// Whether a text has the shape of a bcrypt hash: then it was hardly meant as a plaintext.
#[must_use]
pub fn looks_like_bcrypt(text: &str) -> bool {
    text.len() == SETTING_LEN + HASH_LEN
        && text.starts_with("$2")
        && text.as_bytes().get(3) == Some(&b'$')
        && text.as_bytes().get(6) == Some(&b'$')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    /// From the test vectors of OpenBSD's and Solar Designer's implementations.
    const VECTORS: [(&str, &str); 6] = [
        (
            "U*U",
            "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
        ),
        (
            "U*U*",
            "$2a$05$CCCCCCCCCCCCCCCCCCCCC.VGOzA784oUp/Z0DY336zx7pLYAy0lwK",
        ),
        (
            "U*U*U",
            "$2a$05$XXXXXXXXXXXXXXXXXXXXXOAcXxm9kjPGEMsLznoKqmqw7tc8WCx4a",
        ),
        (
            "",
            "$2a$05$CCCCCCCCCCCCCCCCCCCCC.7uG0VCzI2bS7j6ymqJi9CdcdxiRTWNy",
        ),
        (
            "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789chars after 72 are ignored",
            "$2a$05$abcdefghijklmnopqrstuu5s2v8.iXieOjg/.AySBTTZIIVFJeBui",
        ),
        (
            "a",
            "$2a$06$m0CrhHm10qJ3lXRY.5zDGO3rS2KdeeWLuGmsfGlMfOxih58VYVfxe",
        ),
    ];

    #[test]
    fn bcrypts_published_vectors_come_out() {
        for (secret, text) in VECTORS {
            let hash = BcryptHash::parse(text).unwrap();
            assert_eq!(hash.setting().apply(secret).unwrap().as_str(), text);
            let wrong = hash.setting().apply(&format!("x{secret}")).unwrap();
            assert_ne!(wrong.as_str(), hash.expose());
        }
    }

    #[test]
    fn it_agrees_with_the_library_on_every_length_around_the_limit() {
        for len in [0, 1, 70, 71, 72, 73, 100] {
            let secret = "s".repeat(len);
            let text = bcrypt::hash(&secret, 4).unwrap();
            let hash = BcryptHash::parse(&text).unwrap();
            let made = hash.setting().apply(&secret).unwrap();
            assert_eq!(made.as_str(), text, "{len} bytes");
        }
    }

    #[test]
    fn what_follows_72_bytes_does_not_count_and_a_nul_is_nobodys() {
        let hash = BcryptHash::parse(&bcrypt::hash("x".repeat(72), 4).unwrap()).unwrap();
        let longer = hash.setting().apply(&"x".repeat(73)).unwrap();
        assert_eq!(longer.as_str(), hash.expose());
        // In the bare algorithm `ab\0ab` is `ab`.
        let hash = BcryptHash::parse(&bcrypt::hash("ab", 4).unwrap()).unwrap();
        for secret in ["ab\0", "ab\0ab", "\0"] {
            assert!(hash.setting().apply(secret).is_none());
        }
    }

    #[test]
    fn identifiers_are_kept_and_open_salt_bits_are_mended() {
        let made = bcrypt::hash_with_salt("secret", 4, [7; 16]).unwrap();
        let text = made.to_string();
        for identifier in ["2a", "2b", "2y"] {
            let text = text.replacen("2b", identifier, 1);
            let hash = BcryptHash::parse(&text).unwrap();
            assert_eq!(hash.expose(), text);
            assert_eq!(hash.setting().apply("secret").unwrap().as_str(), text);
        }
        // The last character of the salt holds two bits of it; "u" and "z" hold the same two.
        let canonical = format!("$2y$04$abcdefghijklmnopqrstuu{}", &text[29..]);
        let odd = format!("$2y$04$abcdefghijklmnopqrstuz{}", &text[29..]);
        let hash = BcryptHash::parse(&odd).unwrap();
        assert_eq!(hash.expose(), canonical);
        assert!(BcryptSetting::parse(&odd[..29]).is_err());
        assert!(BcryptSetting::parse(&canonical[..29]).is_ok());
    }

    #[test]
    fn what_is_no_bcrypt_hash_is_named() {
        let good = VECTORS[0].1;
        let error = |text: &str| BcryptHash::parse(text).err().unwrap();
        assert_eq!(error(""), BcryptError::Shape);
        assert_eq!(error("hunter2"), BcryptError::Shape);
        assert_eq!(error(&good[..59]), BcryptError::Shape);
        assert_eq!(error(&format!("{good} ")), BcryptError::Shape);
        assert_eq!(error(&"é".repeat(30)), BcryptError::Shape);
        for other in ["$2x$", "$2$0", "$2c$"] {
            let text = good.replacen("$2a$", other, 1);
            assert_eq!(error(&text), BcryptError::Identifier, "{other}");
        }
        assert_eq!(
            error("$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA"),
            BcryptError::Identifier
        );
        for (cost, found) in [("03", 3), ("16", 16), ("31", 31), ("00", 0)] {
            let text = good.replacen("$05$", &format!("${cost}$"), 1);
            assert_eq!(error(&text), BcryptError::Cost(found));
        }
        assert_eq!(error(&good.replacen("$05$", "$+5$", 1)), BcryptError::Shape);
        assert_eq!(
            error(&good.replacen("CCCC", "CC*C", 1)),
            BcryptError::Damaged
        );
        assert_eq!(error(&good.replacen("eW", "e!", 1)), BcryptError::Damaged);
        assert!(looks_like_bcrypt(good));
        assert!(!looks_like_bcrypt("hunter2"));
    }
}
