//! Remembers right MACs, bounded and with a lifetime.
//!
//! A correct MAC for (client, version, hash, key ref, prehash, secret) never changes. It is remembered under an HMAC of exactly these with a random key that
//! lives only in this process: the memory of the process holds no secret and nothing that helps to guess one elsewhere.

use std::hash::{BuildHasherDefault, Hasher};
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use keyturn_proto::{PresentedSecret, UnixMs};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::VerifierError;

type HmacSha256 = Hmac<Sha256>;

/// HMAC over (HMAC over (client, version, hash, key ref, prehash), secret), both under the process's key.
pub(super) type MemoKey = [u8; 32];

/// The HMAC with everything but the secret absorbed: what differs between calls is one block.
pub(super) struct MemoPrefix(HmacSha256);

/// The memory.
pub(super) struct Memo {
    keyed: HmacSha256,
    ttl: Duration,
    /// Key → when to forget. The cache has a clock and a lifetime of its own; the value keeps to the caller's clock.
    right: moka::sync::Cache<MemoKey, UnixMs, BuildHasherDefault<FirstEight>>,
}

impl Memo {
    pub(super) fn new(max: u64, ttl: Duration) -> Result<Self, VerifierError> {
        let mut key = Zeroizing::new([0u8; 32]);
        getrandom::fill(key.as_mut()).map_err(|_| VerifierError::Random)?;
        #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
        let keyed = HmacSha256::new_from_slice(key.as_slice()).expect("a 32-byte key");
        Ok(Self {
            keyed,
            ttl,
            right: moka::sync::Cache::builder()
                .max_capacity(max)
                .time_to_live(ttl)
                .build_with_hasher(BuildHasherDefault::default()),
        })
    }

    /// Of (client, version, hash, key ref, prehash).
    pub(super) fn prefix(&self, named_by: [&str; 5]) -> MemoPrefix {
        let mut named = self.keyed.clone();
        for field in named_by {
            absorb(&mut named, field);
        }
        // The version's name, filled up to one block: what a call costs depends on the length of the secret and on nothing that is stored.
        let mut block = [0u8; 64];
        block[..32].copy_from_slice(&named.finalize().into_bytes());
        MemoPrefix(self.keyed.clone().chain_update(block))
    }

    pub(super) fn holds(&self, key: &MemoKey, now: UnixMs) -> bool {
        self.right.get(key).is_some_and(|until| now < until)
    }

    pub(super) fn remember(&self, key: MemoKey, now: UnixMs) {
        self.right.insert(key, now.plus(self.ttl));
    }
}

impl MemoPrefix {
    pub(super) fn key(&self, secret: &PresentedSecret) -> MemoKey {
        let mut keyed = self.0.clone();
        absorb(&mut keyed, secret.expose());
        keyed.finalize().into_bytes().into()
    }
}

/// Length-prefixed, as in protocol.md §2.
fn absorb(keyed: &mut HmacSha256, field: &str) {
    let len = u32::try_from(field.len()).unwrap_or(u32::MAX);
    keyed.update(&len.to_be_bytes());
    keyed.update(field.as_bytes());
}

/// The keys are MACs under a secret key: uniform, and nobody outside can choose them, so their own first bytes are hash enough.
#[derive(Default)]
pub(super) struct FirstEight(u64);

impl Hasher for FirstEight {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 ^= u64::from_ne_bytes(*first);
        }
    }
    fn write_usize(&mut self, _length_prefix: usize) {}
    fn finish(&self) -> u64 {
        self.0
    }
}
