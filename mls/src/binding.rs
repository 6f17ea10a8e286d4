//! A signed statement that an MLS signature key belongs to an npub in a group.
//!
//! A key package event proves a leaf's key already; a binding proves one that no key package event
//! carries, for example after a key change. Kind 40913, tags `mls` (MLS group id, hex), `mls_key` (Ed25519
//! public key, hex), `key_sig` (that key's signature, hex); empty content. The npub signs the event, and
//! the MLS key signs (domain, npub, group id), so neither can claim the other's.

use nostr::{Event, EventBuilder, Kind, PublicKey, Tag, TagKind, Timestamp};
use openmls_rust_crypto::RustCrypto;
use openmls_traits::crypto::OpenMlsCrypto as _;
use openmls_traits::signatures::Signer as _;
use openmls_traits::types::SignatureScheme;

use crate::error::BindingError;
use crate::ids::{MlsGroupId, SignatureKey, UnixMs, timestamp};
use crate::member::Member;

/// Number of the kind of a binding event.
pub const BINDING: u16 = 40913;
/// Kind of a binding event: regular, kept by relays.
pub const KIND_BINDING: Kind = Kind::Custom(BINDING);
const DOMAIN: &[u8] = b"keyturn/binding/1\0";

/// A binding that was verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Binding {
    /// Whose key it is.
    pub npub: PublicKey,
    /// In which group it counts.
    pub group: MlsGroupId,
    /// The key.
    pub signature_key: SignatureKey,
    /// When the npub said so; seconds.
    pub created_at: Timestamp,
}

impl Member {
    /// States that our leaf's key in this group is ours.
    pub fn binding(&self, group: &MlsGroupId, now: UnixMs) -> Result<Event, BindingError> {
        if self.group_info(group)?.is_none() {
            return Err(BindingError::UnknownGroup(group.clone()));
        }
        let signature = self
            .me
            .signer
            .sign(&statement(&self.npub(), group))
            .map_err(|_| BindingError::KeySigner)?;
        let tag = |name: &'static str, value: String| Tag::custom(TagKind::custom(name), [value]);
        Ok(EventBuilder::new(KIND_BINDING, "")
            .tags([
                tag("mls", group.to_string()),
                tag("mls_key", self.signature_key().to_hex()),
                tag("key_sig", hex::encode(signature)),
            ])
            .custom_created_at(timestamp(now))
            .sign_with_keys(&self.me.keys)?)
    }
}

/// Checks a binding event: both signatures, and that each tag is there once.
pub fn verify_binding(event: &Event) -> Result<Binding, BindingError> {
    if event.kind != KIND_BINDING {
        return Err(BindingError::Kind);
    }
    event.verify().map_err(|_| BindingError::Signature)?;
    let group: MlsGroupId = one(event, "mls")?
        .parse()
        .map_err(|_| BindingError::Tag("mls"))?;
    let signature_key =
        SignatureKey::from_hex(one(event, "mls_key")?).map_err(|_| BindingError::Tag("mls_key"))?;
    let signature =
        hex::decode(one(event, "key_sig")?).map_err(|_| BindingError::Tag("key_sig"))?;
    RustCrypto::default()
        .verify_signature(
            SignatureScheme::ED25519,
            &statement(&event.pubkey, &group),
            signature_key.as_bytes(),
            &signature,
        )
        .map_err(|_| BindingError::KeySignature)?;
    Ok(Binding {
        npub: event.pubkey,
        group,
        signature_key,
        created_at: event.created_at,
    })
}

/// MLS signs contents that start with a length and "MLS 1.0 "; this cannot be taken for one.
fn statement(npub: &PublicKey, group: &MlsGroupId) -> Vec<u8> {
    let mut bytes = DOMAIN.to_vec();
    bytes.extend_from_slice(npub.as_bytes());
    bytes.extend_from_slice(group.as_bytes());
    bytes
}

fn one<'a>(event: &'a Event, name: &'static str) -> Result<&'a str, BindingError> {
    let mut tags = event
        .tags
        .iter()
        .map(Tag::as_slice)
        .filter(|tag| tag.first().map(String::as_str) == Some(name));
    match (tags.next(), tags.next()) {
        (Some([_, value]), None) => Ok(value),
        _ => Err(BindingError::Tag(name)),
    }
}
