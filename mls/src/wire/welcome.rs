//! Kind 444 in kind 13 in kind 1059: how a Welcome reaches the invited (NIP-59).
//!
//! The rumor is unsigned and carries base64(MLSMessage(Welcome)); the seal is signed by the welcomer and
//! its author must be the rumor's author; the gift wrap is signed by a throw-away key and addressed by `p`.
//! What must hold: a [`UnwrappedWelcome`] names a welcomer whose signature was checked.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use nostr::nips::nip44;
use nostr::{
    Event, EventBuilder, EventId, JsonUtil, Keys, Kind, PublicKey, Tag, TagKind, Timestamp,
    UnsignedEvent,
};

use super::KIND_WELCOME;
use super::bytes::{Reader, put_vector};
use super::group_data::GroupDataError;

/// NIP-59: seal and gift wrap are dated up to two days back, at random.
const BACKDATE: u64 = 172_800;

/// Why a gift wrap is not a Welcome for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnwrapError {
    /// Not kind 1059.
    #[error("not a gift wrap")]
    NotGiftWrap,
    /// Id or signature of the wrap or the seal do not verify.
    #[error("a signature is invalid")]
    Signature,
    /// Not encrypted to us, or not NIP-44.
    #[error("the gift wrap does not open with our key")]
    NotForUs,
    /// The seal is not a kind 13 event or the rumor is not an event.
    #[error("the inner event is malformed")]
    Malformed,
    /// The rumor claims another author than the seal's.
    #[error("the rumor's author is not the seal's")]
    Author,
    /// The rumor is not kind 444: somebody else's business.
    #[error("the gift wrap holds no Welcome")]
    NotWelcome,
    /// The rumor's id is missing or wrong.
    #[error("the rumor's id is missing or wrong")]
    Id,
    /// The content is not base64 or the encoding tag says otherwise.
    #[error("the Welcome is not base64")]
    Content,
}

/// A Welcome that was unwrapped and whose welcomer is known. MLS has not looked at it yet.
pub struct UnwrappedWelcome {
    /// Who sealed it.
    pub welcomer: PublicKey,
    /// Id of the kind 444 rumor.
    pub rumor_id: EventId,
    /// The `e` tag: which key package event was used.
    pub key_package_event: Option<EventId>,
    pub(crate) message: Vec<u8>,
}

/// Opens a gift wrap addressed to `keys`.
pub(crate) fn unwrap(event: &Event, keys: &Keys) -> Result<UnwrappedWelcome, UnwrapError> {
    if event.kind != Kind::GiftWrap {
        return Err(UnwrapError::NotGiftWrap);
    }
    event.verify().map_err(|_| UnwrapError::Signature)?;
    let seal = nip44::decrypt(keys.secret_key(), &event.pubkey, &event.content)
        .map_err(|_| UnwrapError::NotForUs)?;
    let seal = Event::from_json(seal).map_err(|_| UnwrapError::Malformed)?;
    if seal.kind != Kind::Seal {
        return Err(UnwrapError::Malformed);
    }
    seal.verify().map_err(|_| UnwrapError::Signature)?;
    let rumor = nip44::decrypt(keys.secret_key(), &seal.pubkey, &seal.content)
        .map_err(|_| UnwrapError::NotForUs)?;
    let rumor = UnsignedEvent::from_json(rumor).map_err(|_| UnwrapError::Malformed)?;
    if rumor.pubkey != seal.pubkey {
        return Err(UnwrapError::Author);
    }
    if rumor.kind != KIND_WELCOME {
        return Err(UnwrapError::NotWelcome);
    }
    let rumor_id = rumor.id.ok_or(UnwrapError::Id)?;
    rumor.verify_id().map_err(|_| UnwrapError::Id)?;
    let other_encoding = rumor.tags.iter().map(Tag::as_slice).any(|tag| {
        tag.first().map(String::as_str) == Some("encoding")
            && tag.get(1).map(String::as_str) != Some("base64")
    });
    if other_encoding {
        return Err(UnwrapError::Content);
    }
    let message = STANDARD
        .decode(&rumor.content)
        .map_err(|_| UnwrapError::Content)?;
    Ok(UnwrappedWelcome {
        welcomer: seal.pubkey,
        rumor_id,
        key_package_event: rumor.tags.event_ids().next().copied(),
        message,
    })
}

/// Why a Welcome could not be wrapped.
#[derive(Debug, thiserror::Error)]
pub enum WrapError {
    /// No random bytes.
    #[error("no random bytes: {0}")]
    Random(#[from] getrandom::Error),
    /// NIP-44 refuses, for example because the Welcome exceeds 65,535 bytes.
    #[error("NIP-44: {0}")]
    Encrypt(#[from] nip44::Error),
    /// An event could not be signed.
    #[error("the event could not be signed: {0}")]
    Sign(#[from] nostr::event::builder::Error),
}

/// Wraps an MLSMessage(Welcome) for `recipient`.
pub(crate) fn wrap(
    message: &[u8],
    recipient: &PublicKey,
    key_package_event: EventId,
    relays: &[String],
    keys: &Keys,
    now: Timestamp,
) -> Result<Event, WrapError> {
    let mut rumor = EventBuilder::new(KIND_WELCOME, STANDARD.encode(message))
        .tags([
            Tag::custom(TagKind::custom("relays"), relays.to_vec()),
            Tag::event(key_package_event),
            Tag::custom(TagKind::custom("encoding"), ["base64"]),
        ])
        .custom_created_at(now)
        .build(keys.public_key());
    rumor.ensure_id();
    let sealed = nip44::encrypt(
        keys.secret_key(),
        recipient,
        rumor.as_json(),
        nip44::Version::V2,
    )?;
    let seal = EventBuilder::new(Kind::Seal, sealed)
        .custom_created_at(backdated(now)?)
        .sign_with_keys(keys)?;
    let throwaway = Keys::generate();
    let wrapped = nip44::encrypt(
        throwaway.secret_key(),
        recipient,
        seal.as_json(),
        nip44::Version::V2,
    )?;
    let event = EventBuilder::new(Kind::GiftWrap, wrapped)
        .tag(Tag::public_key(*recipient))
        .custom_created_at(backdated(now)?)
        .sign_with_keys(&throwaway)?;
    Ok(event)
}

fn backdated(now: Timestamp) -> Result<Timestamp, getrandom::Error> {
    let mut bytes = [0_u8; 8];
    getrandom::fill(&mut bytes)?;
    let back = u64::from_be_bytes(bytes) % BACKDATE;
    Ok(Timestamp::from_secs(now.as_secs().saturating_sub(back)))
}

/// The Welcome with only the recipient's own group secrets in it.
///
/// ```text
/// MLSMessage { uint16 version; uint16 wire_format; Welcome }
/// Welcome { uint16 cipher_suite; EncryptedGroupSecrets secrets<V>; opaque encrypted_group_info<V> }
/// EncryptedGroupSecrets { opaque new_member<V>; opaque kem_output<V>; opaque ciphertext<V> }
/// ```
/// RFC 9420 §12.4.3.1 lets the committer deliver the secrets separately. It keeps a Welcome for many
/// within NIP-44's 65 kB, and tells nobody who else was invited.
pub(crate) fn only_for(message: &[u8], reference: &[u8]) -> Result<Vec<u8>, GroupDataError> {
    let mut reader = Reader::new(message);
    let head = reader.take(6)?;
    let mut secrets = Reader::new(reader.vector()?);
    let group_info = reader.vector()?;
    if !reader.is_empty() {
        return Err(GroupDataError::Trailing);
    }
    let mut own = Vec::new();
    while !secrets.is_empty() {
        let (member, kem, ciphertext) = (secrets.vector()?, secrets.vector()?, secrets.vector()?);
        if member == reference {
            put_vector(&mut own, member)?;
            put_vector(&mut own, kem)?;
            put_vector(&mut own, ciphertext)?;
        }
    }
    let mut out = Vec::with_capacity(message.len());
    out.extend_from_slice(head);
    put_vector(&mut out, &own)?;
    put_vector(&mut out, group_info)?;
    Ok(out)
}
