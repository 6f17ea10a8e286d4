//! What travels inside an MLS application message.
//!
//! Written: a Marmot rumor, the UTF-8 JSON of an unsigned Nostr event whose `pubkey` is the sender. Read:
//! that, or a bare JSON object (older apps). A rumor's `pubkey` must be the MLS sender, its `id` must be
//! right when it is there, `sig` and `h` are rejected: a rumor must not be publishable or routable.
//!
//! Every buffer made here that holds the content is zeroised on drop and sized beforehand, so that it is
//! never moved by growing.

use nostr::{EventId, Kind, PublicKey, Tag, Timestamp};
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// What `seal` is given: the parts of a rumor that the caller chooses.
pub struct Payload {
    /// Nostr kind of the rumor.
    pub kind: Kind,
    /// Tags of the rumor; an `h` tag is refused.
    pub tags: Vec<Tag>,
    /// The content. Zeroised when the payload is dropped.
    pub content: Zeroizing<String>,
}

/// Why a payload is not a rumor or a JSON object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RumorError {
    /// Not a JSON object in UTF-8.
    #[error("the payload is not a JSON object")]
    Json,
    /// `pubkey` is not the MLS sender's identity.
    #[error("the rumor's pubkey is not the sender")]
    Author,
    /// `id` is there and wrong.
    #[error("the rumor's id is wrong")]
    Id,
    /// A `sig` field or an `h` tag.
    #[error("the rumor carries a sig field or an h tag")]
    Routable,
}

/// A payload that was read.
pub struct Opened {
    /// Kind, tags and time, when it was a rumor.
    pub rumor: Option<RumorInfo>,
    /// The rumor's `content`, or the whole bare object.
    pub body: Zeroizing<Vec<u8>>,
}

/// The fields of a rumor beside its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RumorInfo {
    /// Its kind.
    pub kind: Kind,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// What it claims; seconds.
    pub created_at: Timestamp,
    /// Its id, computed here.
    pub id: EventId,
}

#[derive(Deserialize)]
struct Shape<'a> {
    id: Option<EventId>,
    pubkey: PublicKey,
    created_at: Timestamp,
    kind: Kind,
    tags: Vec<Tag>,
    #[serde(borrow)]
    content: &'a RawValue,
    #[serde(borrow)]
    sig: Option<&'a RawValue>,
}

/// Only tells rumor and bare object apart; ignores every value.
#[derive(Deserialize)]
struct Marks<'a> {
    #[serde(borrow)]
    pubkey: Option<&'a RawValue>,
    #[serde(borrow)]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

/// Reads the plaintext of an application message sent by `sender`.
pub(crate) fn read(
    plaintext: Zeroizing<Vec<u8>>,
    sender: &PublicKey,
) -> Result<Opened, RumorError> {
    let marks: Marks<'_> = serde_json::from_slice(&plaintext).map_err(|_| RumorError::Json)?;
    let is_rumor = marks.pubkey.is_some() && marks.kind.is_some() && marks.content.is_some();
    if !is_rumor {
        // A derive accepts an array for a struct; the first byte tells.
        let object = plaintext.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
        return if object {
            Ok(Opened {
                rumor: None,
                body: plaintext,
            })
        } else {
            Err(RumorError::Json)
        };
    }
    let shape: Shape<'_> = serde_json::from_slice(&plaintext).map_err(|_| RumorError::Json)?;
    if shape.sig.is_some() || has_h(&shape.tags) {
        return Err(RumorError::Routable);
    }
    if shape.pubkey != *sender {
        return Err(RumorError::Author);
    }
    let mut text: String =
        serde_json::from_str(shape.content.get()).map_err(|_| RumorError::Json)?;
    let body = Zeroizing::new(std::mem::take(&mut text).into_bytes());
    let content = std::str::from_utf8(&body).map_err(|_| RumorError::Json)?;
    let id = rumor_id(sender, shape.created_at, shape.kind, &shape.tags, content)?;
    if shape.id.is_some_and(|claimed| claimed != id) {
        return Err(RumorError::Id);
    }
    Ok(Opened {
        rumor: Some(RumorInfo {
            kind: shape.kind,
            tags: shape.tags,
            created_at: shape.created_at,
            id,
        }),
        body,
    })
}

/// The plaintext of an application message sent by `sender`.
pub(crate) fn write(
    payload: &Payload,
    sender: &PublicKey,
    created_at: Timestamp,
) -> Result<(Zeroizing<Vec<u8>>, EventId), RumorError> {
    let Payload {
        kind,
        tags,
        content,
    } = payload;
    if has_h(tags) {
        return Err(RumorError::Routable);
    }
    let id = rumor_id(sender, created_at, *kind, tags, content)?;
    let tags_json = serde_json::to_string(tags).map_err(|_| RumorError::Json)?;
    let mut out = Zeroizing::new(Vec::with_capacity(
        256 + tags_json.len() + escaped_bound(content),
    ));
    out.extend_from_slice(b"{\"id\":\"");
    out.extend_from_slice(id.to_hex().as_bytes());
    out.extend_from_slice(b"\",\"pubkey\":\"");
    out.extend_from_slice(sender.to_hex().as_bytes());
    out.extend_from_slice(b"\",\"created_at\":");
    out.extend_from_slice(created_at.as_secs().to_string().as_bytes());
    out.extend_from_slice(b",\"kind\":");
    out.extend_from_slice(kind.as_u16().to_string().as_bytes());
    out.extend_from_slice(b",\"tags\":");
    out.extend_from_slice(tags_json.as_bytes());
    out.extend_from_slice(b",\"content\":");
    serde_json::to_writer(&mut *out, content.as_str()).map_err(|_| RumorError::Json)?;
    out.push(b'}');
    Ok((out, id))
}

/// NIP-01: SHA-256 of `[0,pubkey,created_at,kind,tags,content]`. Done here because the `nostr` crate
/// builds that JSON in a buffer that is not zeroised.
fn rumor_id(
    author: &PublicKey,
    created_at: Timestamp,
    kind: Kind,
    tags: &[Tag],
    content: &str,
) -> Result<EventId, RumorError> {
    let mut hash = Sha256::new();
    hash.update(format!(
        "[0,\"{}\",{},{},",
        author.to_hex(),
        created_at.as_secs(),
        kind.as_u16()
    ));
    hash.update(serde_json::to_string(tags).map_err(|_| RumorError::Json)?);
    hash.update(b",");
    let mut quoted = Zeroizing::new(Vec::with_capacity(escaped_bound(content)));
    serde_json::to_writer(&mut *quoted, content).map_err(|_| RumorError::Json)?;
    hash.update(&*quoted);
    hash.update(b"]");
    Ok(EventId::from_byte_array(hash.finalize().into()))
}

/// No character grows more than six-fold (`\u001f`) in JSON; plus the quotes.
fn escaped_bound(content: &str) -> usize {
    content.len().saturating_mul(6).saturating_add(2)
}

fn has_h(tags: &[Tag]) -> bool {
    tags.iter()
        .any(|tag| tag.as_slice().first().map(String::as_str) == Some("h"))
}
