//! The device flow as it is run: a relay process, Mosquitto with the shipped configuration, TLS and access rules, and `docs/device-firmware/device.py` on paho
//! (feature: devices get fresh secret_ids over MQTT).
//!
//! Where a device must say something that the published one never says, Mosquitto's own clients say it under the same certificate.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "devices/access.rs"]
mod access;
#[path = "devices/broken.rs"]
mod broken;
#[path = "devices/crash.rs"]
mod crash;
#[path = "devices/doctor.rs"]
mod doctor;
#[path = "devices/faults.rs"]
mod faults;
#[path = "devices/flow.rs"]
mod flow;
#[path = "devices/webhook.rs"]
mod webhook;

use std::collections::HashSet;

use keyturn_tests::iot::{Credential, Device, House, Mqtt};
use keyturn_tests::relay::Relay;
use keyturn_tests::world::eventually;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_keyturn-under-test");
const ID: &str = "river-iot-0001";
/// Renews once, and asks again where a message may be lost.
const IMPATIENT: [&str; 4] = ["--once", "--renew", "--patience", "20"];
/// The same, sooner: where a message is lost at every turn, and the device waits for its whole patience each time. That doubles until it is enough.
const HASTY: [&str; 4] = ["--once", "--renew", "--patience", "5"];
/// What a relay has heard, by what came of it.
const MESSAGES: &str = "keyturn_device_messages_total";
const BOTH: [Mqtt; 2] = [Mqtt::V5, Mqtt::V311];

/// A house with a running relay and one device on the list.
async fn with_device(version: Mqtt, tune: impl FnOnce(&mut toml::Table)) -> (House, Relay, Device) {
    let house = House::new(PROGRAM, version, tune).await;
    let relay = house.relay().await;
    house.allow(ID, &[]).await;
    let device = house.device(ID, &relay);
    (house, relay, device)
}

/// Turns the device on until it has reported a secret_id that works; that one.
async fn renewed(device: &Device, version: Mqtt) -> Credential {
    let said = device.start(version, &["--once", "--renew"]).done().await;
    assert!(
        said.iter().any(|event| event["event"] == "reported"),
        "{said:?}"
    );
    device.credential().unwrap()
}

/// A nonce that nobody has used.
fn nonce() -> String {
    keyturn_proto::device::DeviceNonce::generate()
        .unwrap()
        .to_string()
}

/// The seed's first message.
fn request(id: &str, nonce: &str) -> Value {
    json!({ "nonce": nonce, "device_id": id, "auth_request": "secret_id", "reason": "invalid_secret" })
}
/// The device's good report about `command`.
fn success(command: &Value) -> Value {
    let nonce: keyturn_proto::device::DeviceNonce =
        command["nonce"].as_str().unwrap().parse().unwrap();
    let proof = keyturn_proto::device::proof::proof(command["secret_id"].as_str().unwrap(), &nonce);
    json!({ "nonce": nonce, "auth_result": "ok", "proof": proof })
}

/// What a command bears.
fn credential(command: &Value) -> Credential {
    let text = |name: &str| command[name].as_str().unwrap().to_owned();
    Credential {
        role_id: text("role_id"),
        secret_id: text("secret_id"),
    }
}

/// What must hold whenever a device has come to rest: it has proven what it has, no request was counted twice, however often it was delivered, and none was answered with
/// two secret_ids.
async fn answered_once(house: &House, device: &Device) {
    let doc = house.settled(&device.id).await;
    assert!(doc.current.is_some_and(|held| held.proven));
    let mut once = HashSet::new();
    for record in house.trail(&device.id).await {
        if ["device.asked", "device.issued"].contains(&record.event.as_str()) {
            let nonce = record.device.unwrap().nonce.unwrap();
            let event = (record.event, nonce);
            assert!(once.insert(event.clone()), "twice: {event:?}");
        }
    }
}

/// That, and what the only device has works, and is the only secret_id alive.
async fn one_lives(house: &House, relay: &Relay, device: &Device) {
    answered_once(house, device).await;
    let held = device.credential().unwrap();
    assert!(house.logs_in(relay, &held).await);
    eventually("only one secret_id lives", async || {
        (house.living() == 1).then_some(())
    })
    .await;
}
