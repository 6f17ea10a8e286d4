//! What stands in `schema/` and `vectors/`. Deterministic: no clock, no randomness, keys in a fixed order.

// Both the generator and its check are build-time tools over constants.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;

#[path = "device.rs"]
mod device;

use hmac::{Hmac, KeyInit as _, Mac as _};
use keyturn_proto::ack::AckStatement;
use keyturn_proto::canonical::{mac_input, request_binding, request_digest};
use keyturn_proto::derive::{ack_key, prefilter};
use keyturn_proto::encoding::{b64url, from_b64url};
use keyturn_proto::notify::{NotifyHeader, NotifyState};
use keyturn_proto::proof::ProofRequest;
use keyturn_proto::request::{Bearer, PROFILE};
use keyturn_proto::{
    Action, ClientId, ErrorClass, MlsGroupId, Npub, Outcome, Params, RotateAck, RotateNotify,
    RotationId, Secret, ServiceNotify, ServiceRequest, UnixMs, VersionId, nonce,
};
use serde_json::{Value, json};
use sha2::Sha256;

const CLIENT: &str = "ext-totp-svc";
const VERSION: &str = "01JM8VEZAMG2DK6T4S9N7TT1C8";
const OLD_VERSION: &str = "01JK0000000000000000000000";
const ROTATION: &str = "01JM8VEZ9G0000000000000000";
const SECRET: &str = "2nC0WJ6d-3Jb0L6Wj7o5n9Jx9aQmH6r1bE3xqfIuF9k";
const NPUB: &str = "7e7e9c42a91bfef19fa929e5fda1b72e0ebc1a4c1141673e2794234d86addf4e";
const GROUP: &str = "000102030405060708090a0b0c0d0e0f";
const CHALLENGE: &str = "example-challenge.v1";

/// The crate's folder.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every generated file with its text.
pub fn all() -> Vec<(PathBuf, String)> {
    let schemas = keyturn_proto::schema::all()
        .into_iter()
        .map(|(name, schema)| ("schema", name, schema.to_value()));
    let vectors = [
        ("secret-hash.json", secret_hash()),
        ("prefilter.json", prefilters()),
        ("ack-proof.json", ack_proof()),
        ("request-binding.json", bindings()),
        ("base64url.json", base64url()),
        ("ids.json", ids()),
        ("messages.json", messages()),
        ("device-messages.json", device::messages()),
        ("device-proof.json", device::proofs()),
        ("device-identity.json", device::signatures()),
        ("device-sealed.json", device::sealed()),
    ]
    .into_iter()
    .map(|(name, value)| ("vectors", name, value));
    schemas
        .chain(vectors)
        .map(|(dir, name, value)| {
            let mut text = serde_json::to_string_pretty(&sorted(value)).unwrap();
            text.push('\n');
            (root().join(dir).join(name), text)
        })
        .collect()
}

/// With its keys in order, whichever map some other crate of the build has chosen for serde_json (`preserve_order`).
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let ordered: std::collections::BTreeMap<_, _> = map
                .into_iter()
                .map(|(name, value)| (name, sorted(value)))
                .collect();
            Value::Object(ordered.into_iter().collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(sorted).collect()),
        other => other,
    }
}

fn id<T: std::str::FromStr>(text: &str) -> T {
    text.parse().ok().unwrap()
}

fn key() -> Vec<u8> {
    (0u8..32).collect()
}

fn hash(client: &str, version: &str, secret: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key()).unwrap();
    mac.update(&mac_input(&id(client), &id(version), secret));
    b64url(&mac.finalize().into_bytes())
}

fn secret_hash() -> Value {
    let cases: Vec<Value> = [
        (CLIENT, VERSION, SECRET, "generated secret"),
        ("c", OLD_VERSION, "", "empty secret"),
        (
            "kunde-\u{e4}",
            VERSION,
            "p\u{e4}ssword",
            "precomposed a-umlaut",
        ),
        (
            "kunde-a\u{308}",
            VERSION,
            "pa\u{308}ssword",
            "the same text decomposed: another hash, nothing is normalised",
        ),
        (
            "ab",
            VERSION,
            "c",
            "length prefixes keep this apart from the next",
        ),
        ("a", VERSION, "bc", "see the one before"),
    ]
    .into_iter()
    .map(|(client, version, secret, note)| {
        let input = mac_input(&id(client), &id(version), secret);
        json!({
            "note": note, "client_id": client, "version_id": version, "secret": secret,
            "mac_input_hex": hex::encode(&*input), "secret_hash": hash(client, version, secret),
        })
    })
    .collect();
    json!({
        "about": "secret_hash = base64url(HMAC-SHA-256(key, mac_input)); mac_input: for client_id, version_id, secret \
                  the 32-bit big-endian byte length, then the UTF-8 bytes",
        "key_hex": hex::encode(key()),
        "cases": cases,
    })
}

fn prefilters() -> Value {
    let cases: Vec<Value> = [SECRET, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]
        .into_iter()
        .map(|secret| json!({ "secret": secret, "prefilter": hex::encode(prefilter(secret)) }))
        .collect();
    json!({
        "about": "the first 4 bytes, hex, of HKDF-SHA-256(ikm = the secret's text, no salt, info = \"keyturn/prefilter/1\")",
        "cases": cases,
    })
}

fn notify() -> RotateNotify {
    RotateNotify {
        header: NotifyHeader {
            client_id: id(CLIENT),
            version_id: id(VERSION),
            secret_hash: hash(CLIENT, VERSION, SECRET),
            mac_key_ref: "local/1".to_owned(),
            not_before: UnixMs(1_739_750_600_000),
            grace_until: Some(UnixMs(1_740_355_400_000)),
            grace_duration_ms: 604_800_000,
            rotation_id: id(ROTATION),
            issued_at: UnixMs(1_739_750_000_000),
            relay_msg_id: "01JM8VEZ9G0000000000000001".to_owned(),
        },
        secret: Secret::from_text(SECRET.to_owned().into()).unwrap(),
    }
}

fn ack() -> RotateAck {
    RotateAck::proven(&notify(), id(NPUB), &id(GROUP), UnixMs(1_739_750_030_000))
}

fn ack_proof() -> Value {
    let (client, version, rotation): (ClientId, VersionId, RotationId) =
        (id(CLIENT), id(VERSION), id(ROTATION));
    let (npub, group): (Npub, MlsGroupId) = (id(NPUB), id(GROUP));
    let signing = ack_key(SECRET, &client, &version, &rotation);
    let secret_hash = hash(CLIENT, VERSION, SECRET);
    let proof = ack().proof.unwrap();
    let public = signing.verifying_key().to_bytes();
    let statement = AckStatement {
        rotation: &rotation,
        client: &client,
        version: &version,
        secret_hash: &secret_hash,
        npub: &npub,
        group: &group,
    };
    statement.verify(&public, &proof).unwrap();
    json!({
        "about": "seed = HKDF-SHA-256(ikm = the secret's text, salt = length-prefixed(client_id, version_id, rotation_id), \
                  info = \"keyturn/ack/1\", 32 bytes); proof = base64url(Ed25519(seed, statement)); statement = length-prefixed(rotation_id, \
                  client_id, version_id, secret_hash text, raw npub, raw mls group id)",
        "client_id": CLIENT, "version_id": VERSION, "rotation_id": ROTATION, "secret": SECRET, "secret_hash": secret_hash,
        "npub_hex": NPUB, "mls_group": GROUP,
        "seed_hex": hex::encode(signing.to_bytes()),
        "public_key_hex": hex::encode(public),
        "statement_hex": hex::encode(&*statement.bytes()),
        "proof": proof,
    })
}

fn bindings() -> Value {
    let full = Params {
        rotation_reason: "quarterly".to_owned(),
        not_before: Some(UnixMs(1_739_750_600_000)),
        grace_duration_ms: Some(604_800_000),
        ..Params::default()
    };
    let reason = Params {
        rotation_reason: "laptop lost".to_owned(),
        ..Params::default()
    };
    let cases: Vec<Value> = [
        (Action::Rotation, full),
        (Action::Emergency, reason.clone()),
        (
            Action::Revoke,
            Params {
                version_id: Some(id(VERSION)),
                ..reason.clone()
            },
        ),
        (
            Action::Cancel,
            Params {
                target_rotation_id: Some(id(ROTATION)),
                ..reason
            },
        ),
        (Action::Status, Params::default()),
    ]
    .into_iter()
    .map(|(action, params)| {
        let (client, rotation, group) = (id(CLIENT), id(ROTATION), id(GROUP));
        let leaf = [0x42u8; 32];
        let binding = request_binding(action, &client, &rotation, &params, &group, &leaf);
        json!({
            "action_type": action, "client_id": client, "action_id": rotation, "params": params, "mls_group": group,
            "leaf_signature_key_hex": hex::encode(leaf),
            "request_digest_hex": hex::encode(request_digest(action, &client, &rotation, &params, &group)),
            "binding": b64url(&binding),
            "challenge": CHALLENGE,
            "nonce": nonce::compose(CHALLENGE, &binding),
        })
    })
    .collect();
    json!({
        "about": "request_digest = SHA-256(length-prefixed(\"keyturn/request/1\", action, client, action id, reason, not_before, grace_duration_ms, \
                  target rotation id, version id, raw group id)), numbers in decimal, an absent one empty; \
                  binding = SHA-256(length-prefixed(request_digest, raw leaf signature key)); nonce = challenge \".\" base64url(binding)",
        "cases": cases,
    })
}

fn base64url() -> Value {
    let accepted: Vec<Value> = ["", "AA", "AAA", "AAAA", "-_8", SECRET]
        .into_iter()
        .map(|text| json!({ "text": text, "hex": hex::encode(&*from_b64url("x", text).unwrap()) }))
        .collect();
    let rejected = [
        ("AA==", "padding"),
        ("AAA=", "padding"),
        ("A", "impossible length"),
        ("AB", "non-zero trailing bits"),
        ("AAB", "non-zero trailing bits"),
        ("+/8", "alphabet of plain base64"),
        ("AA\n", "white space"),
        (" AA", "white space"),
        (
            "2nC0WJ6d-3Jb0L6Wj7o5n9Jx9aQmH6r1bE3xqfIuF9l",
            "non-zero trailing bits",
        ),
        ("2nC0WJ6d-3Jb0L6Wj7o5n9Jx9aQmH6r1bE3xqfIuF9k=", "padding"),
    ]
    .map(|(text, why)| {
        assert!(from_b64url("x", text).is_err());
        json!({ "text": text, "why": why })
    });
    json!({ "about": "base64url without padding, one spelling per value", "accepted": accepted, "rejected": rejected })
}

fn id_cases<T: std::str::FromStr + std::fmt::Display>(
    accepted: &[&str],
    rejected: &[&str],
) -> Value {
    let accepted: Vec<Value> = accepted
        .iter()
        .map(|text| json!({ "text": text, "canonical": id::<T>(text).to_string() }))
        .collect();
    for text in rejected {
        assert!(text.parse::<T>().is_err(), "{text:?}");
    }
    json!({ "accepted": accepted, "rejected": rejected })
}

fn ids() -> Value {
    let lower = VERSION.to_lowercase();
    let uuid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    let (short, long) = (&VERSION[1..], "ab".repeat(256));
    let npub = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg";
    json!({
        "about": "`canonical` is the form in which the id is sent, stored, hashed and compared",
        "client_id": id_cases::<ClientId>(&[CLIENT, "\u{e4}", "...", "__x"], &["", ".", "..", "____", "__x__", "a/b", "a\nb", "\u{1b}[2J"]),
        "version_id": id_cases::<VersionId>(&[VERSION], &["", &lower, short, "81JM8VEZAMG2DK6T4S9N7TT1C8", "O1JM8VEZAMG2DK6T4S9N7TT1C8", uuid]),
        "rotation_id": id_cases::<RotationId>(
            &[ROTATION, &lower, uuid, &uuid.to_uppercase()],
            &["", short, "6ba7b8109dad11d180b400c04fd430c8", "{6ba7b810-9dad-11d1-80b4-00c04fd430}"],
        ),
        "npub": id_cases::<Npub>(&[npub, NPUB], &["", "npub1", &npub[..62], &NPUB[1..], &npub.to_uppercase()]),
        "mls_group": id_cases::<MlsGroupId>(&[GROUP, "0AFF"], &["", "0", "0g", &long]),
    })
}

fn messages() -> Value {
    let request = ServiceRequest {
        action_type: Action::Rotation,
        action_id: id(ROTATION),
        client_id: id(CLIENT),
        profile: PROFILE.to_owned(),
        params: Params {
            rotation_reason: "quarterly".to_owned(),
            grace_duration_ms: Some(604_800_000),
            ..Params::default()
        },
        jwt_proof: Bearer::new("eyJhbGciOiJFUzI1NiIsImtpZCI6IjEifQ.e30.c2ln"),
        totp: Some(Bearer::new("287082")),
    };
    request.validate().unwrap();
    let notify: Value = serde_json::from_str(&notify().compose().unwrap()).unwrap();
    let version = || Some(id(VERSION));
    let old = || Some(id(OLD_VERSION));
    let states = [
        NotifyState::Accepted {
            version_id: version(),
            ack_deadline: Some(UnixMs(1_739_751_800_000)),
        },
        NotifyState::Acked {
            proven: true,
            acks: 1,
            required: 1,
        },
        NotifyState::Done {
            outcome: Outcome::Promoted,
            current_version: version(),
            previous_version: old(),
            grace_until: Some(UnixMs(1_740_355_400_000)),
        },
        NotifyState::Retired {
            version_id: id(OLD_VERSION),
        },
        NotifyState::Status {
            client_status: "active".to_owned(),
            current_version: version(),
            previous_version: old(),
            grace_until: Some(UnixMs(1_740_355_400_000)),
            active_rotation: None,
        },
        NotifyState::Refused {
            error: ErrorClass::PolicyViolation,
            retry_after_ms: Some(60_000),
        },
    ]
    .map(|body| ServiceNotify {
        action_id: Some(id(ROTATION)),
        client_id: Some(id(CLIENT)),
        in_reply_to: Some("ab".repeat(32)),
        at: UnixMs(1_739_750_001_000),
        body,
    });
    json!({
        "about": "one example of each message; every field, spelled as it travels. Unknown additional fields are ignored",
        "service_request": request,
        "rotate_notify": notify,
        "rotate_ack": ack(),
        "service_notify": states,
        "proof_request": ProofRequest {
            nonce: nonce::compose(CHALLENGE, &[0x42; 32]),
            npub: id(NPUB),
            mls_group: id(GROUP),
            aud: keyturn_proto::proof::DEFAULT_AUDIENCE.to_owned(),
            action: Action::Rotation,
            client_id: id(CLIENT),
            action_id: id(ROTATION),
            params: Params { rotation_reason: "quarterly".to_owned(), ..Params::default() },
        },
    })
}
