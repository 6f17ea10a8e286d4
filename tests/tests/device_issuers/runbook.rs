//! `docs/device-runbook.md`, carried out: every command of the page, in its order, against a relay that runs and a Vault of somebody else's making.
//!
//! `vault read|list|write|delete` are what they are in Vault's own client: a request for that path. There is no such client in any registry here.

use std::collections::BTreeMap;

use keyturn_tests::iot::{House, Line, Mqtt, repository};
use keyturn_tests::relay::Relay;
use keyturn_tests::vault::{Api, Operator, Rvault};
use keyturn_tests::world::{eventually, set};
use reqwest::StatusCode;
use serde_json::{Map, Value, json};

use super::{ID, PROGRAM, connect, settled};

/// What stands on the page where a test has something of its own.
const CONFIG: &str = "/etc/keyturn/keyturn.toml";
const ROLE_ID: &str = "7e0f6a52-6f7b-4d56-a9b5-6a9a6f0f9a01";
const ACCESSOR: &str = "84896a0c-1347-aa90-a4f6-aca8b7558780";

/// `rvault` cannot list tokens; our own server of the documented interface does.
const TOKENS: &str = "auth/token/accessors";

/// One fenced block: its section, whose commands they are, and the commands.
struct Block {
    section: String,
    whose: String,
    commands: Vec<String>,
}

fn page() -> Vec<Block> {
    let text = std::fs::read_to_string(repository("docs/device-runbook.md")).unwrap();
    let (mut section, mut blocks, mut open) = (String::new(), Vec::new(), None::<Block>);
    for line in text.lines().map(str::trim) {
        match (line.strip_prefix("```"), open.take()) {
            (Some(info), None) => {
                open = Some(Block {
                    section: section.clone(),
                    whose: info.to_owned(),
                    commands: Vec::new(),
                });
            }
            (Some(_), Some(block)) => blocks.push(block),
            (None, Some(mut block)) => {
                block.commands.push(line.to_owned());
                open = Some(block);
            }
            (None, None) => {
                if let Some(title) = line.strip_prefix("## ") {
                    title.clone_into(&mut section);
                }
            }
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

/// Who carries the page out.
struct Hand {
    house: House,
    operator: Operator,
    /// Of a server that lists tokens.
    tokens: Operator,
    mount: String,
    /// What stands on the page, and what it is here.
    names: BTreeMap<&'static str, String>,
}

impl Hand {
    fn here(&self, command: &str) -> Vec<String> {
        let mut command = command.to_owned();
        for (there, here) in &self.names {
            command = command.replace(there, here);
        }
        let command = command.replace("auth/approle", &format!("auth/{}", self.mount));
        command.split_whitespace().map(str::to_owned).collect()
    }

    /// Runs what the page shows under a title.
    async fn carry_out(&self, section: &str) -> Vec<Value> {
        let mut answers = Vec::new();
        let mut count = 0;
        for block in page().iter().filter(|block| block.section == section) {
            for command in &block.commands {
                count += 1;
                match &*block.whose {
                    "sh keyturn" => self.keyturn(command).await,
                    "sh vault" => answers.push(self.vault(command).await),
                    other => panic!("{other}: {command}"),
                }
            }
        }
        assert!(count > 0, "nothing under {section}");
        answers
    }

    async fn keyturn(&self, command: &str) {
        let words = self.here(command);
        assert_eq!(words[0], "keyturn", "{command}");
        let run = async || {
            tokio::process::Command::new(PROGRAM)
                .args(&words[1..])
                .current_dir(self.house.world.dir.path())
                .output()
                .await
                .unwrap()
        };
        if words[1] == "doctor" {
            // What it says of Vault may be for once that a slow machine did not answer.
            let well = async || vault_is_well(&run().await.stdout).then_some(());
            return eventually("the doctor finds Vault in order", well).await;
        }
        let output = run().await;
        assert!(output.status.success(), "{command}: {output:?}");
    }

    async fn vault(&self, command: &str) -> Value {
        let words = self.here(command);
        let [program, verb, path, fields @ ..] = &words[..] else {
            panic!("{command}")
        };
        assert_eq!(program, "vault", "{command}");
        let method = match &**verb {
            "read" => "GET",
            "list" => "LIST",
            "write" => "POST",
            "delete" => "DELETE",
            other => panic!("{other}: {command}"),
        };
        let mut body = Map::new();
        for field in fields {
            let (name, value) = field.split_once('=').unwrap();
            body.insert(name.to_owned(), value.into());
        }
        let body = if body.is_empty() {
            Value::Null
        } else {
            body.into()
        };
        let operator = if path == TOKENS {
            &self.tokens
        } else {
            &self.operator
        };
        let token = operator.token();
        let (status, answer) = operator.ask_as(token, method, path, body).await;
        // An empty list is a 404 to Vault; so is that of a role which is not there.
        let empty = match path.strip_suffix("/secret-id") {
            Some(role) if verb == "list" && status == StatusCode::NOT_FOUND => {
                operator.say("GET", role, Value::Null).await;
                true
            }
            _ => false,
        };
        assert!(status.is_success() || empty, "{command}: {status} {answer}");
        answer
    }

    async fn logs_in(&self, role_id: &str, secret_id: &str) -> bool {
        let path = format!("auth/{}/login", self.mount);
        let login = json!({ "role_id": role_id, "secret_id": secret_id });
        let (status, _) = self.operator.ask_as("", "POST", &path, login).await;
        status.is_success()
    }

    async fn living(&self) -> usize {
        let path = format!("auth/{}/role/river-iot/secret-id", self.mount);
        let token = self.operator.token();
        let (_, answer) = self
            .operator
            .ask_as(token, "LIST", &path, Value::Null)
            .await;
        answer["data"]["keys"].as_array().map_or(0, Vec::len)
    }

    async fn all_destroyed(&self) {
        eventually("everything that was doomed is destroyed", async || {
            let doc = self.house.document(ID).await;
            doc.doomed.is_empty().then_some(())
        })
        .await;
    }

    /// The device renews, and reports; what it holds then works and is all there is.
    async fn renewed(&self, device: &mut Line) -> (String, String) {
        let given = device.renew().await;
        device.confirm(&given).await;
        settled(&self.house).await;
        assert_eq!(self.living().await, 1);
        let held = (given.credential.role_id, given.credential.secret_id);
        assert!(self.logs_in(&held.0, &held.1).await);
        held
    }
}

/// Names another issuer in the configuration; what stood there before.
fn configured(house: &House, kind: &str) -> String {
    let path = house.world.layout.config();
    let before = std::fs::read_to_string(&path).unwrap();
    let mut config: toml::Table = before.parse().unwrap();
    let issuer = toml::Table::from_iter([("kind".to_owned(), kind.into())]);
    set(&mut config, "devices", "issuer", issuer);
    std::fs::write(&path, toml::to_string(&config).unwrap()).unwrap();
    before
}

/// Whether the doctor finds Vault there, and the role in it. It fails a test's own installation for one thing: its token is the operator's.
fn vault_is_well(report: &[u8]) -> bool {
    let report = String::from_utf8_lossy(report);
    let mut of_devices = report.lines().filter_map(|line| {
        let (level, rest) = line.split_once(' ')?;
        let said = rest.trim_start().strip_prefix("devices")?;
        Some((level, said.trim_start()))
    });
    let good = of_devices
        .clone()
        .any(|it| it == ("ok", "the role river-iot is there"));
    good && of_devices.all(|(level, said)| level != "FAIL" || said.contains("is a root token"))
}

async fn stop(relay: Relay) {
    tokio::task::spawn_blocking(move || relay.terminate())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_the_page_does_what_the_page_says() {
    let server = Rvault::start().await;
    let operator = server.operator();
    let stand = operator
        .stand(json!({ "token_ttl": "20m", "secret_id_ttl": "12h" }))
        .await;
    let house = House::new(PROGRAM, Mqtt::V5, |config| super::vault(config, &stand)).await;
    let relay = house.relay().await;
    house.allow(ID, &[]).await;
    let line = json!({ "device_id": ID, "role": "river-iot" });
    std::fs::write(
        house.world.dir.path().join("devices.jsonl"),
        line.to_string(),
    )
    .unwrap();
    let mut device = connect(&house).await;
    let names = BTreeMap::from([
        (
            CONFIG,
            house.world.layout.config().to_str().unwrap().to_owned(),
        ),
        ("sys/auth/approle", format!("sys/auth/{}", stand.mount)),
    ]);
    let api = Api::start().await;
    let tokens = api.operator();
    let made = tokens.say("POST", "auth/token/create", json!({})).await;
    let mut hand = Hand {
        house,
        operator,
        tokens,
        mount: stand.mount.clone(),
        names,
    };
    let (role_id, first) = hand.renewed(&mut device).await;
    hand.names.insert(ROLE_ID, role_id.clone());
    let sections: Vec<String> = page().into_iter().map(|block| block.section).collect();
    let mut done = vec!["Look first"];
    hand.carry_out("Look first").await;

    // Denied, destroyed, and back on the list by the section's last command.
    done.push("One device was stolen");
    let answers = hand.carry_out("One device was stolen").await;
    assert_eq!(answers[0]["data"]["secret_id_ttl"], 12 * 3600);
    let listed = answers[1]["data"]["keys"].as_array().unwrap();
    assert!(listed.contains(&made["auth"]["accessor"]), "{listed:?}");
    hand.all_destroyed().await;
    assert!(!hand.logs_in(&role_id, &first).await);
    let (_, second) = hand.renewed(&mut device).await;

    done.push("Somebody may have read secret_ids");
    hand.carry_out("Somebody may have read secret_ids").await;
    hand.all_destroyed().await;
    assert!(!hand.logs_in(&role_id, &second).await);
    assert_eq!(hand.living().await, 0);
    let (_, third) = hand.renewed(&mut device).await;

    // The role is lost, and with it everything.
    let role = format!("auth/{}/role/river-iot", hand.mount);
    hand.operator.say("DELETE", &role, Value::Null).await;
    assert!(!hand.logs_in(&role_id, &third).await);
    done.push("All secret_ids have died at once");
    // Its mount is still there, which its last block would make; so that block is tried on another one.
    hand.names
        .insert("sys/auth/approle", format!("sys/auth/{}-again", hand.mount));
    hand.carry_out("All secret_ids have died at once").await;
    let gone = format!("sys/auth/{}-again", hand.mount);
    hand.operator.say("DELETE", &gone, Value::Null).await;
    let (same, fourth) = hand.renewed(&mut device).await;
    assert_eq!(same, role_id, "the device keeps its role_id");

    // Something has risen that no document names.
    let risen = hand
        .operator
        .say("POST", &format!("{role}/secret-id"), json!({}))
        .await;
    let risen = risen["data"]["secret_id"].as_str().unwrap().to_owned();
    assert!(hand.logs_in(&role_id, &risen).await);
    done.push("Vault was restored from a backup");
    let answers = hand.carry_out("Vault was restored from a backup").await;
    assert_eq!(answers[0]["data"]["role_id"], role_id.as_str());
    hand.all_destroyed().await;
    for dead in [&fourth, &risen] {
        assert!(!hand.logs_in(&role_id, dead).await);
    }
    assert_eq!(hand.living().await, 0);
    let (_, fifth) = hand.renewed(&mut device).await;

    // The configuration comes to name another issuer while something waits for its destruction.
    done.push("The issuer was changed");
    stop(relay).await;
    let before = configured(&hand.house, "embedded");
    hand.keyturn(&format!("keyturn device invalidate {ID} --config {CONFIG}"))
        .await;
    let relay = hand.house.relay().await;
    let doomed = eventually("the other issuer's is refused", async || {
        let doomed = hand.house.document(ID).await.doomed;
        doomed.into_iter().find(|it| it.failures > 0)
    })
    .await;
    let reason = hand.house.trail(ID).await.into_iter().rev();
    let mut reason = reason.filter(|record| record.event == "device.destroy_failed");
    assert_eq!(reason.next().unwrap().reason, "another_issuer");
    assert!(hand.logs_in(&role_id, &fifth).await, "it is not gone");
    hand.names.insert(ACCESSOR, doomed.accessor);
    hand.carry_out("The issuer was changed").await;
    assert!(!hand.logs_in(&role_id, &fifth).await);
    stop(relay).await;
    std::fs::write(hand.house.world.layout.config(), before).unwrap();
    let _relay = hand.house.relay().await;
    hand.all_destroyed().await;
    let (_, sixth) = hand.renewed(&mut device).await;

    done.push("Only one accessor is known");
    let accessor = hand.house.document(ID).await.current.unwrap().accessor;
    hand.names.insert(ACCESSOR, accessor);
    hand.carry_out("Only one accessor is known").await;
    assert!(!hand.logs_in(&role_id, &sixth).await);
    hand.renewed(&mut device).await;

    let mut all = sections;
    all.dedup();
    assert_eq!(all, done, "a section was not carried out");
}
