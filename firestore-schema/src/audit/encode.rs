//! What the hash of an entry covers.
//!
//! `hash` is the SHA-256, in lower-case hex, of a sequence of length-prefixed fields (32-bit big-endian byte length, then the bytes; no
//! separators, no normalisation):
//!
//! 1. the text `keyturn/audit/1`;
//! 2. for each of `chain`, `seq`, `previous`, `at`, `actor.by`, `actor.npub`, `event`, `reason`, `client_id`, `rotation_id`, `version_id`, `group`,
//!    `nostr_event`, `actor.device_id`, `device.device_id`, `device.nonce`, `device.accessor`, `device.claimed` in that order, if it is not null: its name, then its value.
//!
//! Numbers are in decimal, `at` in unix milliseconds; `device.claimed` is `true` or left out; everything else is the text of the document. A field that is null is left out together with its name, so that
//! absent and empty differ, and so that a field added later leaves the hashes of older entries as they are. `id` and `hash` are not covered: the one follows from
//! `chain` and `seq`, the other is the result.

use keyturn_proto::canonical::length_prefixed;
use sha2::{Digest as _, Sha256};

use crate::documents::{Actor, AuditDevice, AuditRecord};

/// The first field: the format and its version.
pub const DOMAIN: &str = "keyturn/audit/1";

/// The bytes that are hashed.
#[must_use]
pub fn encoded(chain: &str, seq: u64, previous: &str, record: &AuditRecord) -> Vec<u8> {
    // Exhaustive: a new field of the record has to be covered, or this does not compile.
    let AuditRecord {
        at,
        actor,
        event,
        reason,
        client_id,
        rotation_id,
        version_id,
        group,
        nostr_event,
        device,
    } = record;
    let (by, npub, by_device) = match actor {
        Actor::Admin { npub } => ("admin", Some(npub.to_string()), None),
        Actor::Device { device_id } => ("device", None, Some(device_id.as_str())),
        Actor::Operator => ("operator", None, None),
        Actor::Relay => ("relay", None, None),
        Actor::Unknown => ("unknown", None, None),
    };
    let (device, nonce, accessor, claimed) = match device {
        Some(AuditDevice {
            device_id,
            nonce,
            accessor,
            claimed,
        }) => (
            Some(device_id.as_str()),
            nonce.as_deref(),
            accessor.as_deref(),
            claimed.then_some("true"),
        ),
        None => (None, None, None, None),
    };
    let (seq, at) = (seq.to_string(), at.0.to_string());
    let version = version_id.map(|id| id.to_string());
    let fields: [(&str, Option<&str>); 18] = [
        ("chain", Some(chain)),
        ("seq", Some(&seq)),
        ("previous", Some(previous)),
        ("at", Some(&at)),
        ("actor.by", Some(by)),
        ("actor.npub", npub.as_deref()),
        ("event", Some(event)),
        ("reason", Some(reason)),
        ("client_id", client_id.as_ref().map(|id| id.as_str())),
        ("rotation_id", rotation_id.as_ref().map(|id| id.as_str())),
        ("version_id", version.as_deref()),
        ("group", group.as_deref()),
        ("nostr_event", nostr_event.as_deref()),
        ("actor.device_id", by_device),
        ("device.device_id", device),
        ("device.nonce", nonce),
        ("device.accessor", accessor),
        ("device.claimed", claimed),
    ];
    let mut parts: Vec<&[u8]> = vec![DOMAIN.as_bytes()];
    for (name, value) in fields {
        if let Some(value) = value {
            parts.extend([name.as_bytes(), value.as_bytes()]);
        }
    }
    length_prefixed(&parts).to_vec()
}

/// The hash that an entry of this content has in this place.
#[must_use]
pub fn hash(chain: &str, seq: u64, previous: &str, record: &AuditRecord) -> String {
    hex::encode(Sha256::digest(encoded(chain, seq, previous, record)))
}
