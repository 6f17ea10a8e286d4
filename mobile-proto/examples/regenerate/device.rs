//! Vectors of the device flow: a firmware author runs them in the firmware's own language.

use ed25519_dalek::{Signer as _, SigningKey};
use keyturn_proto::device::command::Secret;
use keyturn_proto::device::sealed::{Ephemeral, info};
use keyturn_proto::device::{
    Command, DeviceError, DeviceId, DeviceNonce, IdentityKey, Ping, Retry, SealingKey, Statement,
    Status, Suite, proof, status, topic,
};
use keyturn_proto::encoding::b64url;
use keyturn_proto::{UnixMs, device};
use serde_json::{Value, json};

use super::id;

const DEVICE: &str = "river-iot-0001";
const NONCE: &str = "9f86d081884c7d659a2feaa0c55ad015";
const ROLE_ID: &str = "7e0f6a52-6f7b-4d56-a9b5-6a9a6f0f9a01";
const SECRET_ID: &str = "0c9d7d2e-51a8-47f3-9a37-2b1f3f7d8e11";

fn command() -> String {
    let nonce = id(NONCE);
    let command = Command {
        nonce: &nonce,
        role_id: ROLE_ID,
        secret: Secret::SecretId(SECRET_ID),
        ttl_sec: 43_200,
    };
    command.compose().unwrap().to_string()
}

fn read(text: &str) -> Value {
    assert!(Status::parse(text.as_bytes()).is_ok(), "{text}");
    serde_json::from_str(text).unwrap()
}

pub fn messages() -> Value {
    let device: DeviceId = id(DEVICE);
    let request = format!(
        r#"{{"nonce":"{NONCE}","device_id":"{DEVICE}","auth_request":"secret_id","reason":"invalid_secret"}}"#
    );
    let ok = format!(
        r#"{{"nonce":"{NONCE}","auth_result":"ok","proof":"{}"}}"#,
        proof::proof(SECRET_ID, &id(NONCE))
    );
    let failed =
        format!(r#"{{"nonce":"{NONCE}","auth_result":"failed","reason":"login_refused"}}"#);
    let retry = Retry {
        nonce: id(NONCE),
        error: DeviceError::Unavailable,
        retry_after_sec: 30,
    };
    let ping = Ping {
        nonce: id(NONCE),
        ping: status::Asked::SecretId,
    };
    let refused = [
        ("", "no JSON"),
        ("[]", "no JSON object"),
        (r#"{"auth_request":"secret_id"}"#, "no nonce"),
        (r#"{"nonce":"short","device_id":"d","auth_request":"secret_id"}"#, "nonce under 16 characters"),
        (r#"{"nonce":"0123456789 abcdef","device_id":"d","auth_request":"secret_id"}"#, "nonce with a space"),
        (r#"{"nonce":"0123456789abcdef","auth_request":"secret_id"}"#, "a request names its device"),
        (r#"{"nonce":"0123456789abcdef","device_id":"a/b","auth_request":"secret_id"}"#, "not one level of a topic"),
        (r#"{"nonce":"0123456789abcdef","device_id":"d","auth_request":"token"}"#, "unknown request"),
        (r#"{"nonce":"0123456789abcdef","device_id":"d","auth_request":"secret_id","auth_result":"ok"}"#, "both at once"),
        (r#"{"nonce":"0123456789abcdef","device_id":"d","auth_request":"secret_id","ts":1739750000000}"#, "ts without sig"),
    ]
    .map(|(payload, why)| {
        assert!(Status::parse(payload.as_bytes()).is_err(), "{payload}");
        json!({ "payload": payload, "why": why })
    });
    json!({
        "about": "one example of each message with its topic. Unknown additional fields are ignored; a status message is at most 4096 bytes",
        "device_id": DEVICE,
        "status_topic": topic::status(&device),
        "command_topic": topic::command(&device),
        "request": read(&request),
        "result_ok": read(&ok),
        "result_failed": read(&failed),
        "command": serde_json::from_str::<Value>(&command()).unwrap(),
        "retry": retry,
        "ping": ping,
        "refused": refused,
    })
}

pub fn proofs() -> Value {
    let cases: Vec<Value> = [
        (SECRET_ID, NONCE),
        ("hvs.CAESIJwrapping", "0123456789abcdef"),
    ]
    .map(|(credential, nonce)| {
        let nonce: DeviceNonce = id(nonce);
        json!({
            "credential": credential, "nonce": nonce, "proof": proof::proof(credential, &nonce),
            "stored_hex": proof::expected(credential, &nonce),
        })
    })
    .into();
    json!({
        "about": "proof = base64url( HMAC-SHA-256( key = text of the secret_id or wrapping token, message = text of the nonce ) ), no padding; \
                  the service stores SHA-256 of the raw proof, hex",
        "cases": cases,
    })
}

pub fn signatures() -> Value {
    let key = SigningKey::from_bytes(&std::array::from_fn(|n| n as u8));
    let public = IdentityKey::from_bytes(key.verifying_key().to_bytes()).unwrap();
    let (device, nonce, ts): (DeviceId, DeviceNonce, UnixMs) =
        (id(DEVICE), id(NONCE), UnixMs(1_739_750_000_000));
    let cases: Vec<Value> = [Statement::Request, Statement::Ok, Statement::Failed]
        .map(|statement| {
            let bytes = statement.bytes(&device, &nonce, ts);
            let sig = b64url(&key.sign(&bytes).to_bytes());
            let signed = device::DeviceSignature { ts, sig: sig.clone() };
            let skew = std::time::Duration::ZERO;
            public.verify(statement, &device, &nonce, Some(&signed), ts, skew).unwrap();
            json!({ "domain": statement.domain(), "statement_hex": hex::encode(&*bytes), "ts": ts, "sig": sig })
        })
        .into();
    json!({
        "about": "sig = base64url(Ed25519(seed, statement)); statement = length-prefixed(domain, device_id, nonce, ts in decimal): each field is its \
                  32-bit big-endian byte length, then its bytes",
        "seed_hex": hex::encode(key.to_bytes()),
        "identity_key": public,
        "device_id": DEVICE, "nonce": NONCE,
        "cases": cases,
    })
}

/// Private keys and ephemeral inputs are those of RFC 9180, appendix A.1.1 and A.2.1, so that an HPKE library is checked by known values first.
pub fn sealed() -> Value {
    let array = |hex: &str| -> [u8; 32] { hex::decode(hex).unwrap().try_into().unwrap() };
    let (device, nonce): (DeviceId, DeviceNonce) = (id(DEVICE), id(NONCE));
    let cases: Vec<Value> = [
        (
            Suite::ChaCha20Poly1305,
            "8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb",
            "4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a",
            "909a9b35d3dc4713a5e72a4da274b55d3d3821a37e5d099e74a647db583a904b",
        ),
        (
            Suite::Aes128Gcm,
            "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8",
            "3948cfe0ad1ddb695d780e59077195da6c56506b027329794ab02bca80815c4d",
            "7268600d403fce431561aef583ee1613527cff655c1343f29812e66706df3234",
        ),
    ]
    .map(|(suite, private, public, ikm)| {
        let key = SealingKey::from_bytes(array(public)).unwrap();
        let ephemeral = Ephemeral::for_vectors(array(ikm));
        let sealed = key.seal(suite, &device, &nonce, &command(), ephemeral).unwrap();
        let opened = sealed.open(&array(private), &device).unwrap();
        assert_eq!(opened.as_slice(), command().as_bytes());
        json!({
            "private_key_hex": private, "sealing_key": key, "ephemeral_ikm_hex": ikm,
            "info_hex": hex::encode(&*info(&device)), "aad": NONCE, "plaintext": command(), "sealed": sealed,
        })
    })
    .into();
    json!({
        "about": "HPKE (RFC 9180), mode base, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256; info = length-prefixed(\"keyturn/sealed-command/1\", device_id), \
                  aad = the nonce's text; enc and ct in base64url without padding. The ephemeral input is given so that sealing can be repeated; a \
                  device only opens",
        "device_id": DEVICE, "nonce": NONCE,
        "cases": cases,
    })
}
