//! Challenges: how the relay knows that a proof was made for it and just now, without remembering whom it gave one (protocol.md §6.2).
//!
//! A challenge is base64url of `version (1 byte) ‖ issued at (unix ms, 8 bytes big-endian) ‖ random (16 bytes) ‖ tag (32 bytes)`, where tag =
//! HMAC-SHA-256 over the length-prefixed fields ("keyturn/challenge/1", the 25 bytes before it) under a key that every instance shares.
//! Issuing writes nothing; only using one does (`replay`).

use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use keyturn_proto::UnixMs;
use keyturn_proto::canonical::length_prefixed;
use keyturn_proto::encoding::{b64url, from_b64url_array};
use keyturn_proto::nonce::Challenge;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

const VERSION: u8 = 1;
const HEAD: usize = 1 + 8 + 16;
const LEN: usize = HEAD + 32;
const CONTEXT: &[u8] = b"keyturn/challenge/1";

/// The key under which challenges are made; the same on every instance.
pub struct ChallengeKey(Zeroizing<[u8; 32]>);

impl ChallengeKey {
    /// From 32 secret bytes.
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(Zeroizing::new(*bytes))
    }
}

/// The random generator failed: nothing may be issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operating system's random generator failed")]
pub struct NoRandomness;

/// Why a challenge does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadChallenge {
    /// Not made by us: wrong shape or wrong tag.
    #[error("not one of our challenges")]
    NotIssued,
    /// Too old.
    #[error("challenge expired")]
    Expired,
    /// Issued further in the future than the clocks of two instances may differ.
    #[error("challenge from the future")]
    FromTheFuture,
}

/// A challenge that is ours and in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// SHA-256 of the challenge's bytes, under which its use is recorded.
    pub hash: [u8; 32],
    /// When it cannot be used any more.
    pub expires_at: UnixMs,
}

/// Issues and checks challenges. Stateless.
pub struct Challenger {
    key: ChallengeKey,
    ttl: Duration,
    leeway: Duration,
}

impl Challenger {
    /// `ttl` counts from issue; `leeway` is how far the clocks of two instances may differ.
    #[must_use]
    pub const fn new(key: ChallengeKey, ttl: Duration, leeway: Duration) -> Self {
        Self { key, ttl, leeway }
    }

    /// A fresh challenge.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn issue(&self, now: UnixMs) -> Result<Challenge, NoRandomness> {
        let mut bytes = [0u8; LEN];
        bytes[0] = VERSION;
        bytes[1..9].copy_from_slice(&now.0.to_be_bytes());
        getrandom::fill(&mut bytes[9..HEAD]).map_err(|_| NoRandomness)?;
        let tag = self.mac(&bytes[..HEAD]).finalize().into_bytes();
        bytes[HEAD..].copy_from_slice(&tag);
        Ok(Challenge {
            challenge: b64url(&bytes),
            expires_at: now.plus(self.ttl),
        })
    }

    /// Judges a challenge at `at`, the time the request was received.
    ///
    /// # Errors
    /// [`BadChallenge`].
    pub fn check(&self, challenge: &str, at: UnixMs) -> Result<Checked, BadChallenge> {
        let bytes = from_b64url_array::<LEN>("challenge", challenge)
            .map_err(|_| BadChallenge::NotIssued)?;
        let (head, tag) = bytes.split_at(HEAD);
        // The tag is compared in constant time and covers the version and the time, so both are ours once it holds.
        self.mac(head)
            .verify_slice(tag)
            .map_err(|_| BadChallenge::NotIssued)?;
        if head[0] != VERSION {
            return Err(BadChallenge::NotIssued);
        }
        let mut issued = [0u8; 8];
        issued.copy_from_slice(&head[1..9]);
        let issued = UnixMs(u64::from_be_bytes(issued));
        if issued > at.plus(self.leeway) {
            return Err(BadChallenge::FromTheFuture);
        }
        let expires_at = issued.plus(self.ttl);
        if at >= expires_at {
            return Err(BadChallenge::Expired);
        }
        Ok(Checked {
            hash: Sha256::digest(bytes.as_slice()).into(),
            expires_at,
        })
    }

    #[expect(
        clippy::expect_used,
        reason = "HMAC takes a key of any length (RFC 2104 §2)"
    )]
    fn mac(&self, head: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.0.as_slice())
            .expect("HMAC takes a key of any length");
        mac.update(&length_prefixed(&[CONTEXT, head]));
        mac
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    const NOW: UnixMs = UnixMs(1_760_000_000_000);
    const TTL: Duration = Duration::from_secs(300);

    fn challenger(key: u8) -> Challenger {
        Challenger::new(ChallengeKey::new(&[key; 32]), TTL, Duration::from_secs(5))
    }

    #[test]
    fn a_challenge_counts_on_every_instance_until_it_expires() {
        let issued = challenger(1).issue(NOW).unwrap();
        assert_eq!(issued.expires_at, NOW.plus(TTL));
        let other = challenger(1);
        for at in [
            NOW.minus(Duration::from_secs(5)),
            NOW,
            UnixMs(NOW.plus(TTL).0 - 1),
        ] {
            assert_eq!(
                other.check(&issued.challenge, at).unwrap().expires_at,
                issued.expires_at
            );
        }
        assert_eq!(
            other.check(&issued.challenge, NOW.plus(TTL)),
            Err(BadChallenge::Expired)
        );
        let early = UnixMs(NOW.0 - 5001);
        assert_eq!(
            other.check(&issued.challenge, early),
            Err(BadChallenge::FromTheFuture)
        );
    }

    #[test]
    fn every_bit_is_authenticated() {
        let issued = challenger(1).issue(NOW).unwrap().challenge;
        assert_eq!(
            challenger(2).check(&issued, NOW),
            Err(BadChallenge::NotIssued)
        );
        let good = from_b64url_array::<LEN>("challenge", &issued).unwrap();
        for bit in 0..LEN * 8 {
            let mut bad = *good;
            bad[bit / 8] ^= 1 << (bit % 8);
            let verdict = challenger(1).check(&b64url(&bad), NOW);
            assert_eq!(verdict, Err(BadChallenge::NotIssued), "bit {bit}");
        }
        for shape in ["", "x", &issued[1..], &format!("{issued}=")] {
            assert_eq!(
                challenger(1).check(shape, NOW),
                Err(BadChallenge::NotIssued)
            );
        }
    }

    #[test]
    fn two_challenges_of_one_moment_differ() {
        let (a, b) = (
            challenger(1).issue(NOW).unwrap(),
            challenger(1).issue(NOW).unwrap(),
        );
        assert_ne!(a.challenge, b.challenge);
    }
}
