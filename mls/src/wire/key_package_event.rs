//! Kinds 30443 and 443: a key package, published under the owner's npub.
//!
//! Content is the padded standard base64 of the bare KeyPackage. The event's signature is what ties the
//! MLS signature key inside to the npub, so an event that does not verify is worth nothing: synthetic
//! events with an all-zero signature are refused like any other bad signature.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use nostr::{Event, EventId, Kind, PublicKey, Tag, TagKind};
use openmls::prelude::{
    BasicCredential, Credential, CredentialType, ExtensionType, KeyPackage, KeyPackageIn,
    OpenMlsCrypto, ProposalType, ProtocolVersion,
};
use openmls_rust_crypto::RustCrypto;
use tls_codec::{DeserializeBytes as _, Serialize as _};

use super::{
    CIPHERSUITE, EXT_GROUP_DATA, EXT_LAST_RESORT, KIND_KEY_PACKAGE, KIND_KEY_PACKAGE_LEGACY,
    PROPOSAL_SELF_REMOVE,
};
use crate::ids::{SignatureKey, UnixMs};

/// The largest content (base64 characters) that is looked at.
pub const MAX_CONTENT: usize = 32 * 1024;

/// Why a key package event is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyPackageError {
    /// Neither 30443 nor 443.
    #[error("not a key package event (kind {0})")]
    Kind(u16),
    /// Id or signature do not verify (all-zero signatures among them).
    #[error("event id or signature is invalid")]
    Signature,
    /// A tag is missing or has another value than this profile's.
    #[error("tag {0} is missing or not what this profile expects")]
    Tag(&'static str),
    /// The content is not the base64 of exactly one KeyPackage.
    #[error("the content is not one base64 KeyPackage")]
    Content,
    /// Another ciphersuite than 0x0001.
    #[error("another ciphersuite than 0x0001")]
    Ciphersuite,
    /// A signature inside the key package is wrong, or it breaks a rule of RFC 9420.
    #[error("the key package is invalid: {0}")]
    Invalid(String),
    /// Not valid yet, or not any more, or valid for longer than a leaf may be.
    #[error("the key package's lifetime does not cover now")]
    Lifetime,
    /// The leaf does not support what a group of this profile needs.
    #[error("the leaf lacks a capability: {0}")]
    Capability(&'static str),
    /// The identity in the credential is not the event's author.
    #[error("the credential's identity is not the event's author")]
    Identity,
    /// The `i` tag is not this key package's reference.
    #[error("the i tag is not the key package reference")]
    Reference,
}

/// A key package whose every claim was checked: it may be invited, and its signature key is proven to
/// belong to its npub.
#[derive(Clone, Debug)]
pub struct VerifiedKeyPackage {
    event_id: EventId,
    npub: PublicKey,
    signature_key: SignatureKey,
    self_remove: bool,
    key_package: KeyPackage,
}

impl VerifiedKeyPackage {
    /// The event it came in.
    pub fn event_id(&self) -> EventId {
        self.event_id
    }

    /// Event author and credential identity.
    pub fn npub(&self) -> PublicKey {
        self.npub
    }

    /// The MLS signature key that the npub's signature on the event vouches for.
    pub fn signature_key(&self) -> SignatureKey {
        self.signature_key
    }

    /// Whether its owner can leave by SelfRemove.
    pub fn supports_self_remove(&self) -> bool {
        self.self_remove
    }

    pub(crate) fn key_package(&self) -> &KeyPackage {
        &self.key_package
    }
}

/// Checks a key package event against `now`. Touches no storage.
pub fn verify(event: &Event, now: UnixMs) -> Result<VerifiedKeyPackage, KeyPackageError> {
    if event.kind != KIND_KEY_PACKAGE && event.kind != KIND_KEY_PACKAGE_LEGACY {
        return Err(KeyPackageError::Kind(event.kind.as_u16()));
    }
    event.verify().map_err(|_| KeyPackageError::Signature)?;
    expect_tag(event, "mls_protocol_version", "1.0")?;
    expect_tag(event, "mls_ciphersuite", "0x0001")?;
    expect_tag(event, "encoding", "base64")?;
    if event.kind == KIND_KEY_PACKAGE && value(event, "d").is_none() {
        return Err(KeyPackageError::Tag("d"));
    }
    if event.content.len() > MAX_CONTENT {
        return Err(KeyPackageError::Content);
    }
    let bytes = STANDARD
        .decode(&event.content)
        .map_err(|_| KeyPackageError::Content)?;
    let unverified =
        KeyPackageIn::tls_deserialize_exact_bytes(&bytes).map_err(|_| KeyPackageError::Content)?;
    let crypto = RustCrypto::default();
    // Also checks the signatures of the leaf and of the key package (RFC 9420 §10.1).
    let key_package = unverified
        .validate(&crypto, ProtocolVersion::Mls10)
        .map_err(|reason| KeyPackageError::Invalid(reason.to_string()))?;
    check_capabilities(&key_package)?;
    check_lifetime(&key_package, now)?;
    let npub = identity(key_package.leaf_node().credential()).ok_or(KeyPackageError::Identity)?;
    if npub != event.pubkey {
        return Err(KeyPackageError::Identity);
    }
    if let Some(claimed) = value(event, "i") {
        let reference = reference(&key_package, &crypto)?;
        if !claimed.eq_ignore_ascii_case(&hex::encode(reference)) {
            return Err(KeyPackageError::Reference);
        }
    }
    let signature_key =
        SignatureKey::from_slice(key_package.leaf_node().signature_key().as_slice())
            .ok_or(KeyPackageError::Ciphersuite)?;
    let self_remove = key_package
        .leaf_node()
        .capabilities()
        .proposals()
        .contains(&ProposalType::SelfRemove);
    Ok(VerifiedKeyPackage {
        event_id: event.id,
        npub,
        signature_key,
        self_remove,
        key_package,
    })
}

fn check_capabilities(key_package: &KeyPackage) -> Result<(), KeyPackageError> {
    if key_package.ciphersuite() != CIPHERSUITE {
        return Err(KeyPackageError::Ciphersuite);
    }
    let can = key_package.leaf_node().capabilities();
    if !can
        .extensions()
        .contains(&ExtensionType::Unknown(EXT_GROUP_DATA))
    {
        return Err(KeyPackageError::Capability("extension 0xf2ee"));
    }
    if !can.credentials().contains(&CredentialType::Basic) {
        return Err(KeyPackageError::Capability("basic credentials"));
    }
    Ok(())
}

fn check_lifetime(key_package: &KeyPackage, now: UnixMs) -> Result<(), KeyPackageError> {
    let lifetime = key_package.life_time();
    let now = now.as_secs();
    let covers = lifetime.not_before() <= now && now < lifetime.not_after();
    if covers && lifetime.has_acceptable_range() {
        Ok(())
    } else {
        Err(KeyPackageError::Lifetime)
    }
}

/// The Nostr identity of a Basic credential: 32 raw bytes that are a valid x-only key.
pub(crate) fn identity(credential: &Credential) -> Option<PublicKey> {
    let basic = BasicCredential::try_from(credential.clone()).ok()?;
    let bytes: [u8; 32] = basic.identity().try_into().ok()?;
    let key = PublicKey::from_byte_array(bytes);
    key.xonly().ok()?;
    Some(key)
}

pub(crate) fn reference(
    key_package: &KeyPackage,
    crypto: &impl OpenMlsCrypto,
) -> Result<Vec<u8>, KeyPackageError> {
    key_package
        .hash_ref(crypto)
        .map(|reference| reference.as_slice().to_vec())
        .map_err(|_| KeyPackageError::Content)
}

/// Content and tags of both events; `d` is the addressable one's name and must stay its first tag, because
/// the host relay replaces addressable events only then.
pub(crate) fn build(
    key_package: &KeyPackage,
    reference: &[u8],
    relays: &[String],
    d: &str,
) -> Result<(String, Vec<Tag>, Vec<Tag>), KeyPackageError> {
    let bytes = key_package
        .tls_serialize_detached()
        .map_err(|_| KeyPackageError::Content)?;
    let tag = |name: &'static str, values: Vec<String>| Tag::custom(TagKind::custom(name), values);
    let common = vec![
        tag("mls_protocol_version", vec!["1.0".into()]),
        tag("mls_ciphersuite", vec!["0x0001".into()]),
        tag(
            "mls_extensions",
            vec![
                format!("0x{EXT_LAST_RESORT:04x}"),
                format!("0x{EXT_GROUP_DATA:04x}"),
            ],
        ),
        tag(
            "mls_proposals",
            vec![format!("0x{PROPOSAL_SELF_REMOVE:04x}")],
        ),
        tag("relays", relays.to_vec()),
        tag("encoding", vec!["base64".into()]),
        tag("i", vec![hex::encode(reference)]),
    ];
    let mut addressable = vec![Tag::identifier(d)];
    addressable.extend(common.iter().cloned());
    Ok((STANDARD.encode(bytes), addressable, common))
}

fn value<'a>(event: &'a Event, name: &str) -> Option<&'a str> {
    event
        .tags
        .iter()
        .map(Tag::as_slice)
        .find(|tag| tag.first().map(String::as_str) == Some(name))
        .and_then(|tag| tag.get(1))
        .map(String::as_str)
}

fn expect_tag(event: &Event, name: &'static str, expected: &str) -> Result<(), KeyPackageError> {
    match value(event, name) {
        Some(found) if found.eq_ignore_ascii_case(expected) => Ok(()),
        _ => Err(KeyPackageError::Tag(name)),
    }
}

/// The kinds this module reads.
pub const KINDS: [Kind; 2] = [KIND_KEY_PACKAGE, KIND_KEY_PACKAGE_LEGACY];
