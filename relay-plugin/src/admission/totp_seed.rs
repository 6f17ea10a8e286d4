//! TOTP seeds: 160 random bits (RFC 4226 §4), encrypted in the store under a key that only the relay holds.
//!
//! XChaCha20-Poly1305 with a random 24-byte nonce in front; the npub is associated data, so that a seed moved to another admin's document
//! does not open. Stored as base64url. Neither type here can be printed, cloned or serialised.

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use keyturn_proto::Npub;
use keyturn_proto::canonical::length_prefixed;
use keyturn_proto::encoding::{b64url, from_b64url};
use totp_rs::{Builder, Totp};
use zeroize::Zeroizing;

const NONCE: usize = 24;
const CONTEXT: &[u8] = b"keyturn/totp-seed/1";

/// Seconds per step; what authenticator apps expect.
pub const STEP_SECS: u64 = 30;

/// Why a seed could not be made, kept or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// No random bytes.
    #[error("the operating system's random generator failed")]
    Random,
    /// Encrypting failed.
    #[error("the seed could not be encrypted")]
    Seal,
    /// The stored seed does not open: another key, another npub, or damage.
    #[error("the stored seed does not open under this key for this npub")]
    Open,
    /// An otpauth URI cannot be made of this issuer name.
    #[error("the issuer name must not hold a colon")]
    Issuer,
}

/// The key under which seeds are encrypted.
pub struct SeedKey(Zeroizing<[u8; 32]>);

/// One admin's TOTP seed.
pub struct Seed(Zeroizing<[u8; 20]>);

impl SeedKey {
    /// From 32 secret bytes.
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(Zeroizing::new(*bytes))
    }

    /// Encrypts a seed for the store.
    ///
    /// # Errors
    /// [`SeedError::Random`], [`SeedError::Seal`].
    pub fn seal(&self, seed: &Seed, npub: &Npub) -> Result<String, SeedError> {
        let mut nonce = [0u8; NONCE];
        getrandom::fill(&mut nonce).map_err(|_| SeedError::Random)?;
        let aad = aad(npub);
        let sealed = self
            .cipher()
            .encrypt(
                XNonce::from_slice(&nonce),
                Payload {
                    msg: seed.0.as_slice(),
                    aad: &aad,
                },
            )
            .map_err(|_| SeedError::Seal)?;
        Ok(b64url(&[nonce.as_slice(), &sealed].concat()))
    }

    /// Decrypts a stored seed.
    ///
    /// # Errors
    /// [`SeedError::Open`].
    pub fn open(&self, stored: &str, npub: &Npub) -> Result<Seed, SeedError> {
        let stored = from_b64url("seed_ciphertext", stored).map_err(|_| SeedError::Open)?;
        let (nonce, sealed) = stored.split_at_checked(NONCE).ok_or(SeedError::Open)?;
        let aad = aad(npub);
        let seed = self
            .cipher()
            .decrypt(
                XNonce::from_slice(nonce),
                Payload {
                    msg: sealed,
                    aad: &aad,
                },
            )
            .map(Zeroizing::new)
            .map_err(|_| SeedError::Open)?;
        let seed = <[u8; 20]>::try_from(seed.as_slice()).map_err(|_| SeedError::Open)?;
        Ok(Seed(Zeroizing::new(seed)))
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(self.0.as_slice().into())
    }
}

impl Seed {
    /// A fresh one.
    ///
    /// # Errors
    /// [`SeedError::Random`].
    pub fn generate() -> Result<Self, SeedError> {
        let mut seed = Zeroizing::new([0u8; 20]);
        getrandom::fill(seed.as_mut()).map_err(|_| SeedError::Random)?;
        Ok(Self(seed))
    }

    /// The `otpauth://` URI that an authenticator app takes (SHA-1, 6 digits, 30 s). Bears the seed: it is shown once, to the admin.
    ///
    /// # Errors
    /// [`SeedError::Issuer`].
    pub fn otpauth(&self, issuer: &str, account: &str) -> Result<Zeroizing<String>, SeedError> {
        Builder::new()
            .with_secret(*self.0)
            .with_issuer(Some(issuer))
            .with_account_name(account)
            .build()
            .and_then(|totp| totp.to_url())
            .map(Zeroizing::new)
            .map_err(|_| SeedError::Issuer)
    }

    /// The code of one step. For the admin's side: quickstart and tests.
    #[must_use]
    pub fn code(&self, step: u64) -> Zeroizing<String> {
        Zeroizing::new(
            self.totp()
                .generate(step.saturating_mul(STEP_SECS))
                .to_string(),
        )
    }

    /// Which of `steps` the code belongs to. Every step is compared, in constant time, whichever matches.
    pub(super) fn matching_step(
        &self,
        code: &str,
        steps: impl Iterator<Item = u64>,
    ) -> Option<u64> {
        let totp = self.totp();
        let mut matched = None;
        for step in steps {
            if totp.check(code, step.saturating_mul(STEP_SECS)).is_some() {
                matched = matched.or(Some(step));
            }
        }
        matched
    }

    /// Skew 0: the window is ours to walk.
    fn totp(&self) -> Totp {
        Builder::new()
            .with_secret(*self.0)
            .with_skew(0)
            .build_noncompliant()
    }
}

fn aad(npub: &Npub) -> Zeroizing<Vec<u8>> {
    length_prefixed(&[CONTEXT, npub.as_bytes()])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    const ALICE: Npub = Npub::from_bytes([1; 32]);
    const BOB: Npub = Npub::from_bytes([2; 32]);

    #[test]
    fn a_seed_opens_only_under_its_key_for_its_npub() {
        let (key, seed) = (SeedKey::new(&[7; 32]), Seed::generate().unwrap());
        let stored = key.seal(&seed, &ALICE).unwrap();
        assert_eq!(key.open(&stored, &ALICE).unwrap().0, seed.0);
        assert_eq!(key.open(&stored, &BOB).err(), Some(SeedError::Open));
        assert_eq!(
            SeedKey::new(&[8; 32]).open(&stored, &ALICE).err(),
            Some(SeedError::Open)
        );
        for damaged in ["", "AAAA", &stored[2..]] {
            assert_eq!(key.open(damaged, &ALICE).err(), Some(SeedError::Open));
        }
        assert_ne!(
            key.seal(&seed, &ALICE).unwrap(),
            stored,
            "the nonce is fresh each time"
        );
    }

    #[test]
    fn codes_are_those_of_rfc_6238() {
        // RFC 6238 appendix B, SHA-1, shortened from 8 to 6 digits.
        let seed = Seed(Zeroizing::new(*b"12345678901234567890"));
        for (time, code) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (20_000_000_000, "353130"),
        ] {
            assert_eq!(seed.code(time / STEP_SECS).as_str(), code);
            assert_eq!(
                seed.matching_step(code, std::iter::once(time / STEP_SECS)),
                Some(time / STEP_SECS)
            );
        }
        assert_eq!(seed.matching_step("287082", 2..=4), None);
        assert_eq!(seed.matching_step("28708", 0..=2), None);
        assert_eq!(seed.matching_step("+87082", 0..=2), None);
    }

    #[test]
    fn the_uri_is_what_authenticator_apps_read() {
        let seed = Seed(Zeroizing::new(*b"12345678901234567890"));
        let uri = seed.otpauth("Keyturn", "npub1xyz").unwrap();
        assert!(uri.starts_with("otpauth://totp/"), "{}", uri.as_str());
        assert!(uri.contains("secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"));
        assert!(uri.contains("issuer=Keyturn"));
        assert!(seed.otpauth("Key:turn", "npub1xyz").is_err());
    }
}
