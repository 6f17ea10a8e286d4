//! The Marmot encoding: everything that decides how MLS looks on Nostr, and nothing else.
//!
//! Pure functions over bytes and events; no storage, no clock, no network. The numbers are those of
//! [`Profile::Marmot`]; another profile (the older NIP-EE) would be added beside it, not mixed into it.

pub mod bytes;
pub mod group_data;
pub mod group_event;
pub mod key_package_event;
pub mod rumor;
pub mod welcome;

use nostr::Kind;
use openmls::prelude::{
    Capabilities, Ciphersuite, CredentialType, ExtensionType, ProposalType, ProtocolVersion,
};

/// Key package event, addressable (the one to prefer).
pub const KIND_KEY_PACKAGE: Kind = Kind::Custom(keyturn_proto::kinds::KEY_PACKAGE);
/// Key package event, legacy.
pub const KIND_KEY_PACKAGE_LEGACY: Kind = Kind::MlsKeyPackage;
/// Welcome rumor, always inside a gift wrap.
pub const KIND_WELCOME: Kind = Kind::MlsWelcome;
/// Group event: one MLS message.
pub const KIND_GROUP: Kind = Kind::MlsGroupMessage;

/// The group data extension in the group context.
pub const EXT_GROUP_DATA: u16 = 0xF2EE;
/// MLS extension `last_resort` (RFC 9420 successor draft).
pub const EXT_LAST_RESORT: u16 = 0x000a;
/// MLS proposal `self_remove`.
pub const PROPOSAL_SELF_REMOVE: u16 = 0x000a;

pub(crate) const CIPHERSUITE: Ciphersuite =
    Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;
pub(crate) const EXPORTER_LABEL: &str = "marmot";
pub(crate) const EXPORTER_CONTEXT: &[u8] = b"group-event";
pub(crate) const EXPORTER_LENGTH: usize = 32;

/// How many epochs back a group event can still be opened.
pub const PAST_EPOCHS: usize = 5;
/// Sender ratchet: how many messages of one sender may arrive late.
pub const OUT_OF_ORDER: u32 = 100;
/// Sender ratchet: how many messages of one sender may be missing.
pub const FORWARD: u32 = 1000;
/// Key package lifetime before and after its making, in seconds.
pub const LIFETIME_BEFORE: u64 = 3_600;
/// See [`LIFETIME_BEFORE`].
pub const LIFETIME_AFTER: u64 = 84 * 86_400;

/// Which encoding is spoken. One today; the type keeps the place where a second one goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Profile {
    /// Marmot, January 2026: kinds 30443/443/444/445, exporter label `marmot`, group data version 2.
    #[default]
    Marmot,
}

/// What our leaf says it can do.
pub(crate) fn capabilities() -> Capabilities {
    Capabilities::new(
        Some(&[ProtocolVersion::Mls10]),
        Some(&[CIPHERSUITE]),
        Some(&[
            ExtensionType::LastResort,
            ExtensionType::Unknown(EXT_GROUP_DATA),
        ]),
        Some(&[ProposalType::SelfRemove]),
        Some(&[CredentialType::Basic]),
    )
}
