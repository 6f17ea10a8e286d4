//! Names for groups, keys and moments, so that one cannot be passed for another.
//!
//! All of them are public values: none is a secret, all may be logged.

use std::fmt;

pub use keyturn_proto::{MlsGroupId, UnixMs};
use nostr::{PublicKey, Timestamp};
use sha2::{Digest, Sha256};

macro_rules! bytes32 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Wraps the raw bytes.
            pub const fn new(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// Parses 64 hex digits.
            pub fn from_hex(text: &str) -> Result<Self, hex::FromHexError> {
                let mut bytes = [0_u8; 32];
                hex::decode_to_slice(text, &mut bytes)?;
                Ok(Self(bytes))
            }

            /// `None` unless exactly 32 bytes are given.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// The raw bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Lower case hex.
            pub fn to_hex(&self) -> String {
                hex::encode(self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.to_hex())
            }
        }
    };
}

bytes32!(
    /// The public group id of the Nostr side: the value of a 445 event's `h` tag.
    NostrGroupId
);
bytes32!(
    /// An Ed25519 public key that signs for an MLS leaf.
    SignatureKey
);
bytes32!(
    /// A digest of who is in a group, see [`crate::Member::roster_hash`].
    RosterHash
);

/// Whole seconds, as Nostr events carry them.
pub(crate) fn timestamp(at: UnixMs) -> Timestamp {
    Timestamp::from_secs(at.as_secs())
}

/// SQLite's integers are signed; saturates in the year 292 million.
pub(crate) fn to_sql(at: UnixMs) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

pub(crate) fn from_sql(value: i64) -> UnixMs {
    UnixMs(u64::try_from(value).unwrap_or(0))
}

pub(crate) fn to_openmls(id: &MlsGroupId) -> openmls::group::GroupId {
    openmls::group::GroupId::from_slice(id.as_bytes())
}

/// One member of a group as its ratchet tree has it. The credential is a claim: a Basic credential proves
/// nothing by itself, so compare `signature_key` with the keys proven for `npub`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// Position in the ratchet tree.
    pub index: u32,
    /// The Nostr identity in the leaf's credential.
    pub npub: PublicKey,
    /// The key that signs this leaf's messages.
    pub signature_key: SignatureKey,
}

/// SHA-256 over the sorted (npub, signature key) pairs, each pair 64 bytes. Leaf positions and epochs do
/// not enter, so a self-update that keeps its key keeps the hash.
pub(crate) fn roster_hash(leaves: &[Leaf]) -> RosterHash {
    let mut pairs: Vec<[u8; 64]> = leaves
        .iter()
        .map(|leaf| {
            let mut pair = [0_u8; 64];
            pair[..32].copy_from_slice(leaf.npub.as_bytes());
            pair[32..].copy_from_slice(leaf.signature_key.as_bytes());
            pair
        })
        .collect();
    pairs.sort_unstable();
    let mut hash = Sha256::new();
    hash.update(b"keyturn/roster/1");
    for pair in &pairs {
        hash.update(pair);
    }
    RosterHash(hash.finalize().into())
}
