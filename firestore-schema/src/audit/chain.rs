//! Which chain a record belongs to, and what the documents of a chain are called.

use std::fmt;

use keyturn_proto::device::DeviceId;
use keyturn_proto::{ClientId, Npub};
use sha2::{Digest as _, Sha256};

use crate::documents::AuditRecord;

/// `previous` of a first entry, and `hash` of an empty chain's head.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Hex digits of a chain's document id.
const ID_DIGITS: usize = 32;

/// The name of an instance that opened the store is unusable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an instance name has 1 to 128 characters out of a-z, A-Z, 0-9, '-', '_' and '.'")]
pub struct InvalidInstance;

/// Who opened the store: records that name no client and no device go to its chain. Two processes may share a name; they then share that chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance(String);

impl Instance {
    /// The operator's commands.
    #[must_use]
    pub fn operator() -> Self {
        Self("operator".to_owned())
    }

    /// A relay, by its own identity: the one name that a restart keeps and no other instance has.
    #[must_use]
    pub fn relay(npub: &Npub) -> Self {
        Self(npub.to_string())
    }

    /// Any other name.
    ///
    /// # Errors
    /// [`InvalidInstance`].
    pub fn named(name: &str) -> Result<Self, InvalidInstance> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if (1..=128).contains(&name.len()) && name.chars().all(plain) {
            Ok(Self(name.to_owned()))
        } else {
            Err(InvalidInstance)
        }
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Chain {
    /// What names this client.
    Client(ClientId),
    /// What names this device, and no client; not what only claims to be it.
    Device(DeviceId),
    /// What names neither, written by this instance.
    Instance(Instance),
}

impl Chain {
    /// The document id of its head.
    #[must_use]
    pub fn id(&self) -> String {
        chain_id(&self.to_string())
    }

    /// The client of a client's chain.
    #[must_use]
    pub fn client(&self) -> Option<&ClientId> {
        match self {
            Self::Client(id) => Some(id),
            Self::Device(_) | Self::Instance(_) => None,
        }
    }
}

impl fmt::Display for Chain {
    /// The name that entries and heads bear. The prefix keeps a client from taking an instance's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(id) => write!(f, "client:{id}"),
            Self::Device(id) => write!(f, "device:{id}"),
            Self::Instance(name) => write!(f, "instance:{name}"),
        }
    }
}

/// The chain that a record goes to.
#[must_use]
pub fn chain_of(record: &AuditRecord, instance: &Instance) -> Chain {
    match (&record.client_id, &record.device) {
        (Some(id), _) => Chain::Client(id.clone()),
        (None, Some(device)) if !device.claimed => Chain::Device(device.device_id.clone()),
        (None, _) => Chain::Instance(instance.clone()),
    }
}

/// The document id of a chain's head: the first 32 hex digits of SHA-256 over its name. A name may be too long for an id; and ids that are spread evenly
/// make no hot range.
#[must_use]
pub fn chain_id(name: &str) -> String {
    let mut id = hex::encode(Sha256::digest(name.as_bytes()));
    id.truncate(ID_DIGITS);
    id
}

/// The document id of an entry. The digits are padded, so that ids sort as `seq` does; [`super::seal`] never goes past the ten.
#[must_use]
pub fn entry_id(chain_id: &str, seq: u64) -> String {
    format!("{chain_id}-{seq:010}")
}

/// The largest `seq` that [`entry_id`] sorts.
pub(super) const MAX_SEQ: u64 = 9_999_999_999;

/// Whether a head can have this document id. Anybody who may write could have put something else beside the heads.
#[must_use]
pub fn is_chain_id(id: &str) -> bool {
    id.len() == ID_DIGITS && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Takes an entry's document id apart: the chain's id and the place in it, from 1. Only the one spelling is read; everything else is no entry's id.
#[must_use]
pub fn place(id: &str) -> Option<(&str, u64)> {
    let (chain, digits) = id.rsplit_once('-')?;
    let seq: u64 = digits.parse().ok()?;
    let is_one = is_chain_id(chain) && (1..=MAX_SEQ).contains(&seq) && entry_id(chain, seq) == id;
    is_one.then_some((chain, seq))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_client_cannot_take_the_name_of_an_instance() {
        let client: ClientId = "instance:operator".parse().unwrap();
        let chain = Chain::Client(client);
        assert_eq!(chain.to_string(), "client:instance:operator");
        assert_ne!(chain.id(), Chain::Instance(Instance::operator()).id());
    }

    #[test]
    fn an_entry_id_has_one_spelling() {
        let chain = chain_id("client:a");
        let id = entry_id(&chain, 7);
        assert_eq!(place(&id), Some((chain.as_str(), 7)));
        for other in [
            id.replace("-0000000007", "-7"),
            id.replace("-0", "-+"),
            id.replace('-', "_"),
            format!("x{id}"),
            String::new(),
            "-x".to_owned(),
            format!("{chain}-zz"),
            format!("{chain}-:"),
            format!("{chain}-99999999999"),
            entry_id(&chain, 0),
            entry_id(&"z".repeat(32), 1),
            entry_id(&chain.to_uppercase(), 1),
        ] {
            assert_eq!(place(&other), None, "{other}");
        }
        assert!(entry_id(&chain, 9) < entry_id(&chain, 10));
    }

    #[test]
    fn an_instance_name_is_plain_and_short() {
        assert!(Instance::named("relay-1.example").is_ok());
        for bad in ["", "a b", "a\n", "ü", &"a".repeat(129)] {
            assert_eq!(Instance::named(bad), Err(InvalidInstance), "{bad:?}");
        }
    }
}
