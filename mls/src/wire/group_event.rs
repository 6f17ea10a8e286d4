//! Kind 445: one MLS message, encrypted once more under the epoch's exporter secret.
//!
//! content = `base64( nonce[12] ‖ ChaCha20-Poly1305(exporter secret, nonce, MLSMessage, no AAD) )`; tags are
//! exactly one `h` and `["encoding","base64"]`; a fresh ephemeral key signs each event, so the author
//! says nothing about the sender. That somebody knew the exporter secret is all the outer layer proves.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chacha20poly1305::{
    ChaCha20Poly1305, Key, KeyInit, Nonce,
    aead::{Aead, generic_array::GenericArray},
};
use nostr::{Event, EventBuilder, EventId, Keys, Tag, Timestamp};
use zeroize::Zeroizing;

use super::{EXPORTER_LENGTH, KIND_GROUP};
use crate::ids::NostrGroupId;

/// The largest content (base64 characters) that is looked at: a commit in a group of several thousand.
pub const MAX_CONTENT: usize = 384 * 1024;
const NONCE: usize = 12;
const TAG: usize = 16;

/// The key of one epoch's outer layer. No `Debug`, no `Clone`; zeroised on drop.
pub struct ExporterSecret(Zeroizing<[u8; EXPORTER_LENGTH]>);

impl ExporterSecret {
    pub(crate) fn new(bytes: [u8; EXPORTER_LENGTH]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(crate) fn as_bytes(&self) -> &[u8; EXPORTER_LENGTH] {
        &self.0
    }

    fn cipher(&self) -> ChaCha20Poly1305 {
        ChaCha20Poly1305::new(Key::from_slice(self.0.as_slice()))
    }
}

/// Why a 445 event is not one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GroupEventError {
    /// Another kind.
    #[error("not a kind 445 event")]
    Kind,
    /// Id or signature do not verify.
    #[error("event id or signature is invalid")]
    Signature,
    /// Not exactly one `h` tag with 64 hex digits.
    #[error("not exactly one well-formed h tag")]
    GroupTag,
    /// An `encoding` tag other than base64.
    #[error("encoding is not base64")]
    Encoding,
    /// Content that is not canonical base64, too short or too long.
    #[error("content is malformed")]
    Content,
}

/// A 445 event whose id, signature and form were checked. Its content is still sealed.
pub struct VerifiedGroupEvent {
    id: EventId,
    group: NostrGroupId,
    created_at: Timestamp,
    sealed: Vec<u8>,
}

impl VerifiedGroupEvent {
    /// Checks everything that can be checked without a key.
    pub fn verify(event: &Event) -> Result<Self, GroupEventError> {
        if event.kind != KIND_GROUP {
            return Err(GroupEventError::Kind);
        }
        let mut h_tags = event.tags.iter().filter(|tag| first(tag) == Some("h"));
        let group = match (h_tags.next(), h_tags.next()) {
            (Some(tag), None) => tag
                .as_slice()
                .get(1)
                .and_then(|hex| NostrGroupId::from_hex(hex).ok())
                .ok_or(GroupEventError::GroupTag)?,
            _ => return Err(GroupEventError::GroupTag),
        };
        let other_encoding = event
            .tags
            .iter()
            .filter(|tag| first(tag) == Some("encoding"))
            .any(|tag| tag.as_slice().get(1).map(String::as_str) != Some("base64"));
        if other_encoding {
            return Err(GroupEventError::Encoding);
        }
        if event.content.len() > MAX_CONTENT {
            return Err(GroupEventError::Content);
        }
        let sealed = STANDARD
            .decode(&event.content)
            .map_err(|_| GroupEventError::Content)?;
        if sealed.len() <= NONCE + TAG {
            return Err(GroupEventError::Content);
        }
        event.verify().map_err(|_| GroupEventError::Signature)?;
        Ok(Self {
            id: event.id,
            group,
            created_at: event.created_at,
            sealed,
        })
    }

    /// The event's id.
    pub fn id(&self) -> EventId {
        self.id
    }

    /// The `h` tag: a hint where it belongs. Membership is what counts.
    pub fn group(&self) -> NostrGroupId {
        self.group
    }

    /// What the event claims; seconds.
    pub fn created_at(&self) -> Timestamp {
        self.created_at
    }

    /// The MLSMessage bytes, if `secret` is the one it was sealed under.
    pub(crate) fn open(&self, secret: &ExporterSecret) -> Option<Vec<u8>> {
        let (nonce, body) = self.sealed.split_at_checked(NONCE)?;
        secret
            .cipher()
            .decrypt(GenericArray::from_slice(nonce), body)
            .ok()
    }
}

/// A failure of the operating system's generator, of the cipher or of the event signer.
#[derive(Debug, thiserror::Error)]
pub enum SealEventError {
    /// No random bytes.
    #[error("no random bytes: {0}")]
    Random(#[from] getrandom::Error),
    /// The cipher refuses (only for messages of 256 GiB and more).
    #[error("the message is too large to encrypt")]
    TooLarge,
    /// The event could not be signed.
    #[error("the event could not be signed: {0}")]
    Sign(#[from] nostr::event::builder::Error),
}

/// Builds and signs the event for one MLSMessage.
pub(crate) fn seal(
    secret: &ExporterSecret,
    group: NostrGroupId,
    message: &[u8],
    created_at: Timestamp,
) -> Result<Event, SealEventError> {
    let mut nonce = [0_u8; NONCE];
    getrandom::fill(&mut nonce)?;
    let body = secret
        .cipher()
        .encrypt(Nonce::from_slice(&nonce), message)
        .map_err(|_| SealEventError::TooLarge)?;
    let mut sealed = Vec::with_capacity(NONCE + body.len());
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(&body);
    let event = EventBuilder::new(KIND_GROUP, STANDARD.encode(&sealed))
        .tags([
            Tag::custom(nostr::TagKind::h(), [group.to_hex()]),
            Tag::custom(nostr::TagKind::custom("encoding"), ["base64"]),
        ])
        .custom_created_at(created_at)
        .sign_with_keys(&Keys::generate())?;
    Ok(event)
}

fn first(tag: &Tag) -> Option<&str> {
    tag.as_slice().first().map(String::as_str)
}
