//! A worked example of a chain, for programs in other languages: `vectors/audit-chain.json` is made from it.

use keyturn_proto::device::DeviceId;
use keyturn_proto::{ClientId, Npub, RotationId, UnixMs, VersionId};
use serde_json::{Value, json};

use super::chain::{Chain, GENESIS, Instance};
use super::{encode, seal};
use crate::documents::{Actor, AuditDevice, AuditRecord};

/// Two entries of a client (one with every field, one with the fewest), two of an instance (one of them about a sender that claims to be a device), and one of a device.
///
/// # Errors
/// A text, if one of the constants here is wrong.
pub fn example() -> Result<Value, String> {
    let invalid = |error: keyturn_proto::Invalid| error.to_string();
    let client: ClientId = "ext-totp-svc".parse().map_err(invalid)?;
    let rotation: RotationId = "01JM8VEZ9G0000000000000000".parse().map_err(invalid)?;
    let version: VersionId = "01JM8VEZAMG2DK6T4S9N7TT1C8".parse().map_err(invalid)?;
    let device: DeviceId = "river-iot-0001".parse().map_err(invalid)?;
    let npub = "7e7e9c42a91bfef19fa929e5fda1b72e0ebc1a4c1141673e2794234d86addf4e";
    let npub: Npub = npub.parse().map_err(invalid)?;
    let full = AuditRecord {
        at: UnixMs(1_739_880_000_000),
        actor: Actor::Admin { npub },
        event: "ack.recorded".to_owned(),
        reason: "proven".to_owned(),
        client_id: Some(client.clone()),
        rotation_id: Some(rotation),
        version_id: Some(version),
        group: Some("ops".to_owned()),
        nostr_event: Some("5b".repeat(32)),
        device: None,
    };
    let sparse = AuditRecord {
        at: UnixMs(1_739_880_600_001),
        actor: Actor::Relay,
        event: "rotation.promoted".to_owned(),
        reason: String::new(),
        client_id: Some(client),
        rotation_id: None,
        version_id: None,
        group: None,
        nostr_event: None,
        device: None,
    };
    let nobody = AuditRecord {
        actor: Actor::Operator,
        event: "group.registered".to_owned(),
        client_id: None,
        group: Some("Zürich ✓".to_owned()),
        ..sparse.clone()
    };
    let refused = AuditRecord {
        actor: Actor::Device {
            device_id: device.clone(),
        },
        event: "device.refused".to_owned(),
        reason: "not_allowed".to_owned(),
        client_id: None,
        device: Some(AuditDevice {
            device_id: device.clone(),
            nonce: Some("9f86d081884c7d659a2feaa0c55ad015".to_owned()),
            accessor: None,
            claimed: true,
        }),
        ..sparse.clone()
    };
    let issued = AuditRecord {
        event: "device.issued".to_owned(),
        client_id: None,
        device: Some(AuditDevice {
            device_id: device,
            nonce: Some("9f86d081884c7d659a2feaa0c55ad015".to_owned()),
            accessor: Some("84896a0c-1347-aa90-a4f6-aca8b7558780".to_owned()),
            claimed: false,
        }),
        ..sparse.clone()
    };
    let instance = Instance::operator();
    let records = vec![full, sparse, nobody, refused, issued];
    let sealed = seal(Vec::new(), records, None, &instance).map_err(|error| error.to_string())?;
    let entries: Vec<Value> = sealed
        .entries
        .iter()
        .map(|entry| {
            let bytes = encode::encoded(&entry.chain, entry.seq, &entry.previous, &entry.record);
            json!({ "entry": entry, "encoded_hex": hex::encode(bytes) })
        })
        .collect();
    Ok(json!({
        "about": "hash = hex(SHA-256(encoded)); encoded = length-prefixed(\"keyturn/audit/1\", then name and value of each field that is not null, in the order chain, seq, previous, at, actor.by, actor.npub, event, reason, client_id, rotation_id, version_id, group, nostr_event, actor.device_id, device.device_id, device.nonce, device.accessor, device.claimed (true, or left out); length-prefixed = for each part its 32-bit big-endian byte length, then its UTF-8 bytes; numbers in decimal",
        "previous_of_the_first": GENESIS,
        "instance_chain": Chain::Instance(instance).to_string(),
        "entries": entries,
        "heads": sealed.heads,
    }))
}
