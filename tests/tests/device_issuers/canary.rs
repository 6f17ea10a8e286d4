//! No secret_id, wrapping token or credential of our own is written down or said anywhere but in the command to the device: whole flows and every failure on the
//! way with all logs at TRACE, then a search through databases, logs, metrics, audit trail and HTTP answers.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use keyturn_proto::device::{DeviceId, Sealed, proof};
use keyturn_tests::hunt::{Place, Wanted, hunt};
use keyturn_tests::iot::{House, Line, Mqtt};
use keyturn_tests::vault::{Api, Fault, Stand};
use keyturn_tests::world::{eventually, set};
use serde_json::{Value, json};

use super::PROGRAM;

const PLAIN: &str = "river-iot-0001";
const SEALED: &str = "river-iot-0002";
const ISSUE: &str = "river-iot/secret-id";
/// What a server could say.
const TELLTALE: &str = "telltale-of-a-server-0f3b9c";

/// The program with everything that libraries say turned on.
fn talkative(folder: &Path) -> String {
    let path = folder.join("talkative");
    let script =
        format!("#!/bin/sh\nexport RUST_LOG=trace RUST_BACKTRACE=full\nexec '{PROGRAM}' \"$@\"\n");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The published test key of a device that takes sealed commands: the private half and the public one.
fn sealing_key() -> ([u8; 32], String) {
    let path = keyturn_tests::iot::repository("mobile-proto/vectors/device-sealed.json");
    let vectors: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let case = &vectors["cases"][0];
    let mut private = [0; 32];
    hex::decode_to_slice(case["private_key_hex"].as_str().unwrap(), &mut private).unwrap();
    (private, case["sealing_key"].as_str().unwrap().to_owned())
}

/// One device, and how it reads what it is sent.
struct Device {
    id: &'static str,
    line: Line,
    private: Option<[u8; 32]>,
}

impl Device {
    /// Asks until it is given something; the command in clear.
    async fn given(&mut self, wanted: &mut Vec<Wanted>) -> Value {
        loop {
            let nonce = self.line.ask().await;
            let heard = loop {
                let heard = self.line.next().await;
                if heard["nonce"] == nonce.as_str() {
                    break heard;
                }
            };
            if heard["error"].is_string() {
                // It was told how long; fifteen failures at most are planned, and a device may ask 32 times an hour.
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                continue;
            }
            let command = match &self.private {
                None => heard,
                Some(private) => {
                    let sealed: Sealed = serde_json::from_value(heard).unwrap();
                    let id: DeviceId = self.id.parse().unwrap();
                    let opened = sealed.open(private, &id).unwrap();
                    serde_json::from_slice(&opened).unwrap()
                }
            };
            let name = format!("what {} was given", self.id);
            // Before the dot of the embedded issuer's is the accessor, which is no secret.
            let text = secret(&command);
            let text = text.rsplit_once('.').map_or(text, |(_, secret)| secret);
            wanted.push(Wanted::text(&name, text));
            return command;
        }
    }

    async fn confirm(&mut self, command: &Value) {
        let nonce = command["nonce"].as_str().unwrap().parse().unwrap();
        let proof = proof::proof(secret(command), &nonce);
        let ok = json!({ "nonce": nonce, "auth_result": "ok", "proof": proof });
        self.line.say(&ok).await;
    }
}

/// The part of a command that opens something.
fn secret(command: &Value) -> &str {
    let text = command.get("secret_id").or(command.get("wrapping_token"));
    text.unwrap().as_str().unwrap()
}

/// Who issues, and whether wrapped.
enum Kind<'a> {
    Embedded,
    Vault {
        stand: &'a Stand,
        api: &'a Api,
        wrapped: bool,
    },
}

async fn nothing_is_written_down(kind: Kind<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::new(&talkative(folder.path()), Mqtt::V5, |config| {
        set(config, "log", "level", "trace");
        if let Kind::Vault { stand, wrapped, .. } = &kind {
            super::vault(config, stand);
            let issuer = config["devices"]["issuer"].as_table_mut().unwrap();
            if *wrapped {
                issuer.insert("wrap_ttl".to_owned(), "5m".into());
            }
        }
    })
    .await;
    let relay = house.relay().await;
    let (private, public) = sealing_key();
    house.allow(PLAIN, &[]).await;
    let sealing = ["--sealing-key".to_owned(), public];
    house.allow(SEALED, &sealing).await;
    let mut wanted = Vec::new();
    let mut devices = Vec::new();
    for (id, private) in [(PLAIN, None), (SEALED, Some(private))] {
        let line = Line::open(id, house.broker.port, &house.broker.device(id)).await;
        devices.push(Device { id, line, private });
    }

    let mut answers = String::new();
    let http = reqwest::Client::new();
    for device in &mut devices {
        let first = device.given(&mut wanted).await;
        device.confirm(&first).await;
        let second = device.given(&mut wanted).await;
        // What comes of a login: by the right device, of a guess, of what is no JSON.
        if matches!(kind, Kind::Embedded) {
            let (role_id, good) = (&second["role_id"], secret(&second));
            let cut = &good[..good.len() - 1];
            for body in [
                json!({ "role_id": role_id, "secret_id": good }).to_string(),
                json!({ "role_id": role_id, "secret_id": cut }).to_string(),
                format!("{{\"role_id\":{role_id},\"secret_id\":[\"{good}\"]}}"),
                format!("{good}{{"),
            ] {
                let url = format!("{}/kr/v1/approle/login", relay.web);
                let answer = http.post(url).body(body).send().await.unwrap();
                answers.push_str(&answer.text().await.unwrap());
            }
        }
        device.confirm(&second).await;
        // The broker's own refusal of a proof that is no proof.
        let third = device.given(&mut wanted).await;
        let ok =
            json!({ "nonce": third["nonce"], "auth_result": "failed", "reason": "login_refused" });
        device.line.say(&ok).await;
    }
    // The broker dies in the middle of an issue.
    house.broker.kill().await;
    house.broker.restart().await;
    house.until_subscribed(1).await;
    devices[0].line.subscribed().await;
    let last = devices[0].given(&mut wanted).await;
    devices[0].confirm(&last).await;

    if let Kind::Vault { stand, api, .. } = &kind {
        for fault in [
            Fault::status(ISSUE, 400, r#"{"errors":["telltale-of-a-server-0f3b9c"]}"#),
            Fault::status(ISSUE, 500, r#"{"errors":["telltale-of-a-server-0f3b9c"]}"#),
            Fault::status(ISSUE, 500, "").after_doing_it(),
            Fault::garbage(
                ISSUE,
                r#"{"data":{"secret_id":["telltale-of-a-server-0f3b9c"]}}"#,
            ),
            Fault::garbage(ISSUE, "telltale-of-a-server-0f3b9c").after_doing_it(),
            Fault::reset(ISSUE).after_doing_it(),
            Fault::hang(ISSUE).after_doing_it(),
        ] {
            api.fault(fault);
            let given = devices[0].given(&mut wanted).await;
            devices[0].confirm(&given).await;
        }
        wanted.push(Wanted::text("a server's words", TELLTALE));
        wanted.push(Wanted::text("our own token", stand.operator.token()));
    }
    for id in [PLAIN, SEALED] {
        house_settled(&house, id).await;
    }
    let metrics = format!("{}/metrics", relay.web);
    let metrics = http
        .get(metrics)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let trail = serde_json::to_string(&house.trail(PLAIN).await).unwrap();
    tokio::task::spawn_blocking(move || relay.terminate())
        .await
        .unwrap();

    // The last one is said at DEBUG: the level is what it should be.
    let logged: &[&str] = match &kind {
        Kind::Embedded => &["issued a secret_id", PLAIN, SEALED],
        Kind::Vault { .. } => &["issued a secret_id", "a call to the issuer failed"],
    };
    let mut places = vec![
        Place::new("metrics", metrics, &["keyturn_device_issues_total"]),
        Place::new("trail", trail, &["device.issued", "device.destroyed"]),
        Place::new("log", house.world.log(), logged),
        Place::new("broker's log", house.broker.log(), &[PLAIN]),
    ];
    if matches!(kind, Kind::Embedded) {
        places.push(Place::new(
            "answers",
            answers,
            &["invalid role or secret ID", "lease_duration"],
        ));
    }
    let mut databases = 0;
    let mut todo = vec![house.world.dir.path().to_owned()];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
            continue;
        }
        databases += usize::from(path.ends_with("keyturn.db"));
        let name = path.display().to_string();
        places.push(Place::new(name, std::fs::read(&path).unwrap(), &[]));
    }
    assert_eq!(databases, 1);
    assert!(wanted.len() >= 7, "only {} secrets", wanted.len());
    hunt(&wanted, &places, |_, _| false);
}

/// Nothing is under way, and nothing waits for its destruction.
async fn house_settled(house: &House, id: &str) {
    eventually("the device is settled", async || {
        let doc = house.document(id).await;
        let idle = doc.outstanding.is_none() && doc.doomed.is_empty() && doc.unresolved.is_empty();
        idle.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_what_the_embedded_issuer_makes() {
    nothing_is_written_down(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_what_a_vault_makes_in_clear_or_wrapped() {
    for wrapped in [false, true] {
        let api = Api::start().await;
        let stand = api
            .operator()
            .stand(json!({ "token_ttl": "20m", "secret_id_ttl": "12h" }))
            .await;
        let (stand, api) = (&stand, &api);
        nothing_is_written_down(Kind::Vault {
            stand,
            api,
            wrapped,
        })
        .await;
    }
}
