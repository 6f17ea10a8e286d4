//! The group data extension 0xF2EE, version 2: names, admins and relays of a group.
//!
//! ```text
//! uint16 version; opaque nostr_group_id[32]; opaque name<V>; opaque description<V>;
//! opaque admin_pubkeys<V>;            // raw 32-byte keys one after another, sorted
//! opaque relays<V>;                   // a sequence of opaque url<V>, sorted
//! opaque image_hash<V>, image_key<V>, image_nonce<V>, image_upload_key<V>;   // empty or 32/32/12/32
//! ```
//!
//! What must hold: trailing bytes, version 0 and unknown versions are rejected; decoding and encoding
//! again gives the same bytes.

use std::collections::BTreeSet;

use nostr::PublicKey;

use super::bytes::{Reader, put_vector};
use crate::ids::NostrGroupId;

/// The version written and read.
pub const VERSION: u16 = 2;

/// The group data of one epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupData {
    /// Value of the `h` tag.
    pub nostr_group_id: NostrGroupId,
    /// For people. Binds nothing.
    pub name: String,
    /// For people. Binds nothing.
    pub description: String,
    /// Who may commit. Never empty in a valid group.
    pub admins: BTreeSet<PublicKey>,
    /// Where the group's events are to be found.
    pub relays: BTreeSet<String>,
    /// Encrypted group picture; carried along untouched.
    pub image: GroupImage,
}

/// The picture fields, each empty or of its fixed size.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GroupImage {
    /// Hash of the encrypted file.
    pub hash: Option<[u8; 32]>,
    /// Key of the encrypted file (known to every member).
    pub key: Option<[u8; 32]>,
    /// Nonce of the encrypted file.
    pub nonce: Option<[u8; 12]>,
    /// Key of the upload identity.
    pub upload_key: Option<[u8; 32]>,
}

/// Why group data could not be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GroupDataError {
    /// The input ends inside a field.
    #[error("group data ends inside a field")]
    Truncated,
    /// A length is not minimally encoded or uses the reserved form.
    #[error("group data has a malformed length")]
    Length,
    /// A field is too long to be written.
    #[error("group data field is too long")]
    TooLong,
    /// Bytes follow the last field.
    #[error("group data has trailing bytes")]
    Trailing,
    /// Not version 2.
    #[error("group data has version {0}, expected 2")]
    Version(u16),
    /// Name, description or a relay is not UTF-8.
    #[error("group data holds text that is not UTF-8")]
    Text,
    /// The admin list is not a whole number of valid, sorted, distinct keys.
    #[error("group data has a malformed admin list")]
    Admins,
    /// The relay list is not sorted or holds a duplicate.
    #[error("group data has a malformed relay list")]
    Relays,
    /// A picture field has a size other than 0 or its fixed one.
    #[error("group data has a malformed picture field")]
    Image,
    /// The extension is not there.
    #[error("the group has no group data extension")]
    Missing,
}

impl GroupData {
    /// The extension's content.
    pub fn encode(&self) -> Result<Vec<u8>, GroupDataError> {
        let Self {
            nostr_group_id,
            name,
            description,
            admins,
            relays,
            image:
                GroupImage {
                    hash,
                    key,
                    nonce,
                    upload_key,
                },
        } = self;
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(&VERSION.to_be_bytes());
        out.extend_from_slice(nostr_group_id.as_bytes());
        put_vector(&mut out, name.as_bytes())?;
        put_vector(&mut out, description.as_bytes())?;
        let keys: Vec<u8> = admins.iter().flat_map(|key| *key.as_bytes()).collect();
        put_vector(&mut out, &keys)?;
        let mut list = Vec::new();
        for url in relays {
            put_vector(&mut list, url.as_bytes())?;
        }
        put_vector(&mut out, &list)?;
        put_vector(&mut out, hash.as_ref().map_or(&[], |x| x.as_slice()))?;
        put_vector(&mut out, key.as_ref().map_or(&[], |x| x.as_slice()))?;
        put_vector(&mut out, nonce.as_ref().map_or(&[], |x| x.as_slice()))?;
        put_vector(&mut out, upload_key.as_ref().map_or(&[], |x| x.as_slice()))?;
        Ok(out)
    }

    /// Reads the extension's content. The admin list may be empty here; whether a group may have none is
    /// a rule of commits, not of the encoding.
    pub fn decode(bytes: &[u8]) -> Result<Self, GroupDataError> {
        let mut reader = Reader::new(bytes);
        let version = u16::from_be_bytes(reader.array()?);
        if version != VERSION {
            return Err(GroupDataError::Version(version));
        }
        let data = Self {
            nostr_group_id: NostrGroupId::new(reader.array()?),
            name: text(reader.vector()?)?,
            description: text(reader.vector()?)?,
            admins: admins(reader.vector()?)?,
            relays: relays(reader.vector()?)?,
            image: GroupImage {
                hash: optional(reader.vector()?)?,
                key: optional(reader.vector()?)?,
                nonce: optional(reader.vector()?)?,
                upload_key: optional(reader.vector()?)?,
            },
        };
        if reader.is_empty() {
            Ok(data)
        } else {
            Err(GroupDataError::Trailing)
        }
    }
}

fn text(bytes: &[u8]) -> Result<String, GroupDataError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| GroupDataError::Text)
}

fn optional<const N: usize>(bytes: &[u8]) -> Result<Option<[u8; N]>, GroupDataError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    bytes
        .try_into()
        .map(Some)
        .map_err(|_| GroupDataError::Image)
}

fn admins(bytes: &[u8]) -> Result<BTreeSet<PublicKey>, GroupDataError> {
    let (keys, rest) = bytes.as_chunks::<32>();
    if !rest.is_empty() || !keys.is_sorted_by(|a, b| a < b) {
        return Err(GroupDataError::Admins);
    }
    Ok(keys
        .iter()
        .map(|key| PublicKey::from_byte_array(*key))
        .collect())
}

fn relays(bytes: &[u8]) -> Result<BTreeSet<String>, GroupDataError> {
    let mut reader = Reader::new(bytes);
    let mut list = Vec::new();
    while !reader.is_empty() {
        list.push(text(reader.vector()?)?);
    }
    if !list.is_sorted_by(|a, b| a < b) {
        return Err(GroupDataError::Relays);
    }
    Ok(list.into_iter().collect())
}
