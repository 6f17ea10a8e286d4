//! The whole product on Cloud Firestore: the real relay process over the official emulator, with nothing of a store on its own disk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::{Command, Output, Stdio};

use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_proto::{Action, Params};
use keyturn_store::documents::{ClientStatus, VersionState};
use keyturn_store::emulator::Emulator;
use keyturn_tests::World;
use keyturn_tests::world::{CLIENT, eventually, reason};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_keyturn-under-test");

/// A world whose configuration names a database of its own on the emulator.
async fn world() -> (World, String) {
    let emulator = Emulator::shared().await;
    let (project, endpoint) = (emulator.fresh_project(), emulator.endpoint());
    let documents = format!("{endpoint}/v1/projects/{project}/databases/keyturn/documents");
    let world = World::new(PROGRAM, |config| {
        let mut store = toml::Table::new();
        store.insert("kind".to_owned(), "firestore".into());
        store.insert("project".to_owned(), project.into());
        store.insert("endpoint".to_owned(), endpoint.into());
        config["store"] = store.into();
    })
    .await;
    (world, documents)
}

/// A command of the product on this world's configuration.
fn command(world: &World, arguments: &[&str]) -> Output {
    Command::new(PROGRAM)
        .args(arguments)
        .arg("--config")
        .arg(world.layout.config())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Every document of a collection, and of what lies under it, as text.
async fn documents(documents: &str, collection: &str) -> String {
    reqwest::Client::new()
        .get(format!("{documents}/{collection}?pageSize=300"))
        .bearer_auth("owner")
        .send()
        .await
        .unwrap()
        .error_for_status()
        .unwrap()
        .text()
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_live_in_firestore_and_survive_a_kill() {
    let (mut world, root) = world().await;
    let (relay, mut alice, mut bob, group) = world.with_group().await;
    let (_, first) = world.rotate(&mut alice, &mut bob, &group).await;
    let store = world.operator().await;
    let id = CLIENT.parse().unwrap();
    let client = store.client(&id).await.unwrap().unwrap();
    assert_eq!(client.current_version, Some(first.notify.header.version_id));

    // The relay dies between two rotations and comes back to what lies there.
    relay.kill();
    let relay = world.relay().await;
    let (rotation, second) = world.rotate(&mut alice, &mut bob, &group).await;
    let client = store.client(&id).await.unwrap().unwrap();
    assert_eq!(
        client.current_version,
        Some(second.notify.header.version_id)
    );
    assert_eq!(
        client.previous_version,
        Some(first.notify.header.version_id)
    );
    // Told to the admins, and that is recorded: nothing is left to be done before the grace is over.
    eventually("the end is recorded as announced", async || {
        let ended = store.rotation(&rotation).await.unwrap().unwrap();
        ended.announced_at
    })
    .await;
    assert!(store.active_rotations().await.unwrap().is_empty());

    let reply = world
        .ask(
            &mut bob,
            &group,
            Action::Rollback,
            reason("the new one fails"),
        )
        .await
        .unwrap();
    assert!(
        matches!(
            reply.answer.body,
            NotifyState::Done {
                outcome: Outcome::RolledBack,
                ..
            }
        ),
        "{:?}",
        reply.answer
    );
    let revoke = Params {
        version_id: None,
        ..reason("stolen")
    };
    world
        .ask(&mut alice, &group, Action::Revoke, revoke)
        .await
        .unwrap();
    let client = store.client(&id).await.unwrap().unwrap();
    assert_eq!(client.status, ClientStatus::Suspended);
    assert!(client.snapshot.is_empty());
    let versions = store.versions(&id).await.unwrap();
    assert!(
        versions
            .iter()
            .all(|doc| doc.state == VersionState::Retired)
    );
    assert!(
        !world.layout.store().exists(),
        "no store on the relay's disk"
    );

    // What lies there holds no secret, and neither does the log.
    let secrets = [first.notify.secret.expose(), second.notify.secret.expose()];
    let collections = keyturn_store::collections::ALL.iter();
    let mut seen = 0;
    for collection in collections.filter(|it| it.parent.is_none()) {
        let text = documents(&root, collection.id).await;
        seen += text.len();
        for secret in secrets {
            assert!(!text.contains(secret), "a secret in {}", collection.id);
        }
    }
    let versions = documents(&root, &format!("oauth2_clients/{CLIENT}/secrets")).await;
    assert!(versions.contains("secret_hash"), "{versions}");
    assert!(secrets.iter().all(|secret| !versions.contains(secret)));
    assert!(seen > 10_000, "looked at {seen} bytes");
    let log = world.log();
    assert!(secrets.iter().all(|secret| !log.contains(secret)));
    tokio::task::spawn_blocking(move || relay.terminate())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operators_commands_and_the_doctor_work_on_firestore() {
    let (mut world, _) = world().await;
    let alice = world.npub("alice").to_string();
    for arguments in [
        &["group", "bind", "ops", "--welcomer", &alice][..],
        &["admin", "enroll", &alice],
        &["client", "add", CLIENT, "--group", "ops"],
    ] {
        let done = command(&world, arguments);
        assert!(done.status.success(), "{arguments:?}: {done:?}");
    }
    let listed = command(&world, &["client", "list"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains(CLIENT));
    let store = world.operator().await;
    let trail = store.read(None, 10).await.unwrap();
    assert_eq!(trail.len(), 3, "one record each");

    let report = |output: &Output| -> Vec<(String, String, String)> {
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let word =
            |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
        report["findings"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|finding| finding["check"] == "store")
            .map(|it| (word(it, "level"), word(it, "what"), word(it, "mend")))
            .collect()
    };
    let healthy = report(&command(&world, &["doctor", "--json"]));
    assert!(healthy.len() >= 3, "{healthy:?}");
    // What needs somebody else's account is named as not tried.
    let well = |level: &str| matches!(level, "ok" | "skipped");
    assert!(healthy.iter().all(|(level, ..)| well(level)), "{healthy:?}");
    let said = |what: &str| healthy.iter().any(|(_, found, _)| found.contains(what));
    assert!(said("can be read and written"), "{healthy:?}");
    assert!(said("clock agrees"), "{healthy:?}");
    assert!(said("audit trail"), "{healthy:?}");

    // Nobody listens there.
    world.configure(|config| config["store"]["endpoint"] = "http://127.0.0.1:9".into());
    let sick = report(&command(&world, &["doctor", "--json"]));
    let failed: Vec<_> = sick.iter().filter(|(level, ..)| level == "fail").collect();
    assert_eq!(failed.len(), 1, "{sick:?}");
    assert!(failed[0].1.contains("cannot be reached"), "{sick:?}");
    assert!(failed[0].2.contains("store.endpoint"), "{sick:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_trail_in_firestore_is_checked_and_exported_by_the_same_commands() {
    const WELCOMER: &str = "npub10xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqpkge6d";
    const TOUCHED: i32 = 3;
    let (world, root) = world().await;
    for arguments in [
        &["group", "bind", "audited", "--welcomer", WELCOMER][..],
        &["client", "add", "audited-svc", "--group", "audited"],
        &["client", "suspend", "audited-svc"],
        &["client", "activate", "audited-svc"],
    ] {
        assert!(command(&world, arguments).status.success(), "{arguments:?}");
    }
    let verify = |arguments: &[&str]| {
        let all: Vec<&str> = ["audit", "verify"]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        let output = command(&world, &all);
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), text)
    };
    let (code, heads) = verify(&[]);
    assert_eq!(code, 0, "{heads}");
    assert!(heads.contains("client:audited-svc=3:"), "{heads}");
    let exported = command(&world, &["audit", "export", "--client", "audited-svc"]);
    let lines = String::from_utf8(exported.stdout).unwrap();
    let entries: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(entries.len(), 3);

    // Whoever may write the database is not stopped, but found.
    let http = reqwest::Client::new();
    let at = |entry: &Value| format!("{root}/audit/{}", entry["id"].as_str().unwrap());
    let edited = http
        .patch(format!("{}?updateMask.fieldPaths=reason", at(&entries[2])))
        .bearer_auth("owner")
        .json(&serde_json::json!({ "fields": { "reason": { "stringValue": "nothing" } } }))
        .send();
    assert!(edited.await.unwrap().status().is_success());
    let (code, found) = verify(&["--client", "audited-svc"]);
    assert_eq!(code, TOUCHED, "{found}");
    assert!(found.contains("entry 3 was edited"), "{found}");
    let removed = http.delete(at(&entries[1])).bearer_auth("owner").send();
    assert!(removed.await.unwrap().status().is_success());
    let (code, found) = verify(&[]);
    assert_eq!(code, TOUCHED, "{found}");
    assert!(found.contains("entry 2 was removed"), "{found}");
}
