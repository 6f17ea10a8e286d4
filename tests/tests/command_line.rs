//! The programs as a person or a script runs them: every step a process of its own, nothing in between but files and sockets.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use keyturn_proto::encoding::from_b64url_array;
use keyturn_tests::world::{CLIENT, GROUP};
use keyturn_tests::{Relay, World};
use serde_json::Value;

const KEYTURN: &str = env!("CARGO_BIN_EXE_keyturn-under-test");
const ADMIN: &str = env!("CARGO_BIN_EXE_keyturn-admin-under-test");

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn ok(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{arguments:?} ended with {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// The JSON lines of one command, by their `event`.
fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

struct Person<'a> {
    home: &'a str,
}

impl Person<'_> {
    fn admin(&self, arguments: &[&str]) -> String {
        let mut all = vec!["--home", self.home, "--json"];
        all.extend(arguments);
        ok(ADMIN, &all)
    }

    fn exit_code(&self, arguments: &[&str]) -> Option<i32> {
        let mut all = vec!["--home", self.home, "--json"];
        all.extend(arguments);
        run(ADMIN, &all).status.code()
    }
}

fn init(world: &World, relay: &Relay, home: &Path, welcomer: Option<&str>) -> String {
    let key = world.layout.issuer_key();
    let proof = format!("{KEYTURN} dev-proof {}", key.display());
    let service = world.service().to_string();
    let mut arguments = vec![
        "init",
        "--home",
        home.to_str().unwrap(),
        "--json",
        "--relay",
        &relay.url,
        "--service-url",
        &relay.web,
        "--service",
        &service,
        "--proof-command",
        &proof,
    ];
    if let Some(welcomer) = welcomer {
        arguments.extend(["--welcomer", welcomer]);
    }
    let line = lines(&ok(ADMIN, &arguments)).pop().unwrap();
    line["npub"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_and_admins_rotate_a_secret_by_their_command_lines_alone() {
    let world = World::with_issuer_key_on_disk(KEYTURN).await;
    let config = world.layout.config();
    let config = config.to_str().unwrap();
    let relay = world.relay().await;
    let (alice_home, bob_home) = (world.home("alice"), world.home("bob"));
    let alice_npub = init(&world, &relay, &alice_home, None);
    let bob_npub = init(&world, &relay, &bob_home, Some(&alice_npub));
    let (alice, bob) = (
        Person {
            home: alice_home.to_str().unwrap(),
        },
        Person {
            home: bob_home.to_str().unwrap(),
        },
    );

    // The operator, while the relay runs.
    ok(
        KEYTURN,
        &[
            "group",
            "bind",
            GROUP,
            "--welcomer",
            &alice_npub,
            "--config",
            config,
        ],
    );
    for npub in [&alice_npub, &bob_npub] {
        let shown = ok(KEYTURN, &["admin", "enroll", npub, "--config", config]);
        assert!(shown.contains("otpauth://totp/"), "{shown}");
    }
    ok(
        KEYTURN,
        &[
            "client", "add", CLIENT, "--group", GROUP, "--config", config,
        ],
    );

    alice.admin(&["key-package"]);
    bob.admin(&["key-package"]);
    alice.admin(&["group", "create", GROUP, &bob_npub]);
    bob.admin(&["group", "list"]);

    // A rotation: alice asks and looks at the secret, bob acks without looking.
    let asked = alice.admin(&["rotate", CLIENT, "--reason", "quarterly", "--reveal"]);
    let shown: Vec<Value> = lines(&asked)
        .into_iter()
        .filter(|line| line["secret"].is_string())
        .collect();
    let [only] = shown.as_slice() else {
        panic!("shown {} times", shown.len())
    };
    assert!(from_b64url_array::<32>("secret", only["secret"].as_str().unwrap()).is_ok());
    let acked = bob.admin(&["ack", "--discard", "--wait"]);
    assert!(
        !acked.contains(only["secret"].as_str().unwrap()),
        "discarded means not shown"
    );
    assert!(acked.contains("promoted"), "{acked}");

    // Shown once: there is nothing left to open, for either of them.
    assert_eq!(alice.exit_code(&["ack", "--reveal"]), Some(10));
    assert_eq!(bob.exit_code(&["ack", "--reveal"]), Some(10));

    let status = lines(&alice.admin(&["status", CLIENT])).pop().unwrap();
    assert_eq!(status["client_status"], "active");
    assert!(
        status["current_version"].is_string() && status["active_rotation"].is_null(),
        "{status}"
    );
    let detail = ok(KEYTURN, &["client", "show", CLIENT, "--config", config]);
    assert!(
        detail.contains(status["current_version"].as_str().unwrap()),
        "{detail}"
    );

    // Exit codes say what happened.
    assert_eq!(
        alice.exit_code(&["status", "nobody"]),
        Some(3),
        "an unknown client is unauthorized_request"
    );
    assert_eq!(
        alice.exit_code(&[
            "rotate",
            CLIENT,
            "--reason",
            "x",
            "--grace",
            "400d",
            "--discard"
        ]),
        Some(4)
    );
    assert_eq!(
        alice.exit_code(&["rotate", CLIENT]),
        Some(2),
        "no reason given"
    );
    relay.terminate();
    assert_eq!(
        alice.exit_code(&["--timeout", "3s", "status", CLIENT]),
        Some(9)
    );
}

#[test]
fn the_quickstart_keeps_its_promise_as_one_json_line() {
    let output = run(KEYTURN, &["quickstart", "--exit", "--json"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    let summary: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(summary["outcome"], "promoted");
    assert_eq!(
        summary["verified"],
        serde_json::json!({ "current": true, "previous": true, "wrong": false })
    );
    assert_eq!(summary["plaintext_leaks"], 0);
    assert_eq!(summary["client_id"], CLIENT);
    assert_ne!(summary["old_version"], summary["new_version"]);
    assert!(summary["rotation_id"].is_string());
    assert!(
        summary["elapsed_ms"].as_object().unwrap().len() > 4,
        "{summary}"
    );
    let device = &summary["device"];
    assert_eq!(device["device_id"], "river-iot-0001");
    assert_eq!(device["proven"], true);
    assert_eq!(
        device["logins"],
        serde_json::json!({ "first": true, "second": true, "first_until_reported": true, "first_after": false })
    );
    assert!(device["accessor"].is_string() && device["destroyed_accessor"].is_string());
    assert_ne!(device["accessor"], device["destroyed_accessor"]);
    for step in [
        "allowed",
        "first",
        "first_login",
        "second",
        "second_login",
        "destroyed",
    ] {
        assert!(device["elapsed_ms"][step].is_u64(), "{step}: {summary}");
    }
}

#[test]
fn the_quickstart_tells_each_step_and_goes_on_with_the_same_folder() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    for round in 1..=2 {
        let told = ok(KEYTURN, &["quickstart", "--exit", "--data-dir", folder]);
        for step in [
            "two admins connected",
            "MLS group made",
            "is current",
            "wrong secret refused",
            "river-iot-0001 is on the allow-list",
            "opened its sealed answer",
            "is destroyed",
            "login with the first one: refused",
            "plaintext found outside MLS and the device in 0 places",
            "everything held",
        ] {
            assert!(told.contains(step), "round {round}, no {step:?} in\n{told}");
        }
    }
    let config = dir.path().join("keyturn.toml");
    let listed = ok(
        KEYTURN,
        &["device", "list", "--config", config.to_str().unwrap()],
    );
    assert!(listed.contains("river-iot-0001"), "{listed}");
}
