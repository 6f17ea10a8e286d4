//! `keyturn device` as an operator runs it: the real binary over a store of its own, and what each command leaves in the audit trail.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use keyturn::clock::SystemClock;
use keyturn::rotation::ports::Clock as _;
use keyturn_proto::UnixMs;
use keyturn_store::devices::{Answer, Change, DeviceStore as _, Limits};
use keyturn_store::documents::{Actor, AuditRecord};
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::AuditTrail as _;
use serde_json::{Value, json};

const IDENTITY: &str = "A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg";
const SEALING: &str = "QxDul9iMwfCIpVdsd6sM9cOseX89lROcbIS1QpxZZio";

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = r#"
            [profile]
            environment = "development"
            [relay]
            data_dir = "relay"
            [mls]
            database = "member.db"
            storage_key_file = "mls.key"
            nostr_secret_key_file = "nostr.nsec"
            relays = ["ws://127.0.0.1:1"]
            [store]
            path = "keyturn.db"
            [mac]
            key_file = "mac.key"
            [issuer]
            jwks_file = "jwks.json"
            [admission]
            challenge_key_file = "challenge.key"
            totp_seed_key_file = "totp.key"
        "#;
        std::fs::write(dir.path().join("keyturn.toml"), config).unwrap();
        Self { dir }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyturn"));
        command
            .arg("device")
            .args(words)
            .arg("--config")
            .arg(self.dir.path().join("keyturn.toml"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// What a command that must succeed says.
    fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command that must fail says; it says nothing on standard output.
    fn fails(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(!output.status.success(), "{words:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn file(&self, lines: &str) -> String {
        let path: PathBuf = self.dir.path().join("devices.jsonl");
        std::fs::write(&path, lines).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn listed(&self) -> Vec<Value> {
        serde_json::from_str(&self.ok(&["list", "--json"])).unwrap()
    }

    fn store(&self) -> SqliteStore {
        SqliteStore::open(&self.dir.path().join("keyturn.db")).unwrap()
    }

    async fn trail(&self) -> Vec<AuditRecord> {
        self.store().read(None, usize::MAX).await.unwrap()
    }

    async fn events(&self) -> Vec<String> {
        let trail = self.trail().await.into_iter();
        trail.map(|record| record.event).collect()
    }

    /// A secret_id that the device has reported with `accessor`.
    async fn given(&self, device: &str, accessor: &str) {
        let store = self.store();
        let id = device.parse().unwrap();
        // The commands take the machine's time.
        let now = SystemClock.now();
        let nonce = keyturn_proto::device::DeviceNonce::generate().unwrap();
        let hour = std::time::Duration::from_secs(3600);
        let ask = Change::Ask {
            nonce: nonce.clone(),
            reason: "invalid_secret".to_owned(),
            identity: None,
            owner: "relay".to_owned(),
            issuer: "embedded".to_owned(),
            limits: Limits {
                per_hour: 32,
                step: hour,
                ttl: hour,
                replay: hour,
            },
        };
        let Answer::Done(doc) = store.change_device(&id, ask, now).await.unwrap() else {
            panic!("not asked")
        };
        let start = Change::Start {
            attempt: doc.attempts,
            step: hour,
        };
        store.change_device(&id, start, now).await.unwrap();
        let issued = Change::Issued {
            attempt: doc.attempts,
            role: doc.role.clone(),
            accessor: accessor.to_owned(),
            expected_proof: "p".repeat(43),
            expires_at: UnixMs(now.0 + 3_600_000),
            confirm: hour,
        };
        store.change_device(&id, issued, now).await.unwrap();
        let result = Change::Result {
            nonce,
            ok: true,
            proof: None,
            reason: String::new(),
            identity: None,
            next_ping: now,
        };
        store.change_device(&id, result, now).await.unwrap();
    }
}

#[tokio::test]
async fn a_device_is_allowed_changed_listed_and_denied() {
    let world = World::new();
    assert!(world.listed().is_empty());
    assert_eq!(world.ok(&["list"]), "");
    let allow = ["allow", "pump-7", "--role", "river-iot"];
    assert_eq!(world.ok(&allow), "pump-7 is allowed\n");
    // The same again changes nothing, and says so.
    assert_eq!(world.ok(&allow), "pump-7 is allowed, as before\n");
    let more = [
        &allow[..],
        &["--identity-key", IDENTITY, "--sealing-key", SEALING],
        &[
            "--suite",
            "x25519-sha256-aes128gcm",
            "--retain",
            "--policy",
            "scheduled",
        ],
    ];
    world.ok(&more.concat());
    let listed = world.listed();
    assert_eq!(
        listed,
        [json!({
            "device_id": "pump-7", "role": "river-iot", "identity_key": IDENTITY, "sealing_key": SEALING,
            "suite": "x25519-sha256-aes128gcm", "retain": true, "policy": "scheduled", "state": "allowed",
            "accessor": null, "proven": null, "issued_at": null, "expires_at": null, "issues": 0, "to_destroy": 0, "another_issuer": [],
        })]
    );
    let line = world.ok(&["list"]);
    for word in [
        "pump-7",
        "allowed",
        "role river-iot",
        "scheduled",
        "signed",
        "sealed",
    ] {
        assert!(line.contains(word), "{line}");
    }
    let denied = world.ok(&["deny", "pump-7"]);
    assert!(denied.starts_with("pump-7 is denied; "), "{denied}");
    assert_eq!(
        world.ok(&["deny", "pump-7"]),
        "pump-7 is denied, as before\n"
    );
    assert_eq!(world.listed()[0]["state"], "denied");
    assert_eq!(
        world.events().await,
        ["device.allowed", "device.changed", "device.denied"]
    );
    for record in world.trail().await {
        assert_eq!(record.actor, Actor::Operator, "{record:?}");
        assert_eq!(record.device.unwrap().device_id.as_str(), "pump-7");
    }
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_by_name_and_changes_nothing() {
    let world = World::new();
    for (words, expected) in [
        (&["allow", "pump-7"][..], "--role"),
        (&["allow", "a/b", "--role", "r"], "device"),
        (&["allow", "pump-7", "--role", "a/b"], "role"),
        (&["allow", "pump-7", "--role", ""], "role"),
        (
            &["allow", "pump-7", "--role", "r", "--identity-key", "x"],
            "identity-key",
        ),
        (
            &["allow", "pump-7", "--role", "r", "--sealing-key", "x"],
            "sealing-key",
        ),
        (
            &["allow", "pump-7", "--role", "r", "--retain"],
            "sealing-key",
        ),
        (
            &["allow", "pump-7", "--role", "r", "--policy", "never"],
            "policy",
        ),
        (&["deny", "pump-7"], "pump-7"),
        (&["invalidate", "pump-7"], "pump-7"),
        (&["invalidate"], "required"),
        (&["invalidate", "pump-7", "--all"], "cannot be used with"),
        (
            &["invalidate", "--role", "r", "--all"],
            "cannot be used with",
        ),
        (
            &["import", "/nowhere/devices.jsonl"],
            "/nowhere/devices.jsonl",
        ),
    ] {
        let said = world.fails(words);
        assert!(said.contains(expected), "{words:?}: {said}");
        assert!(!said.contains("panicked"), "{words:?}: {said}");
    }
    assert!(world.listed().is_empty());
    assert!(world.events().await.is_empty());
}

#[tokio::test]
async fn an_import_with_one_bad_line_changes_nothing() {
    let world = World::new();
    let good =
        |n: usize| json!({ "device_id": format!("pump-{n}"), "role": "river-iot" }).to_string();
    let bad = [
        "{",
        "[]",
        "null",
        r#"{"device_id":"pump-9"}"#,
        r#"{"device_id":"a/b","role":"river-iot"}"#,
        r#"{"device_id":"pump-9","role":"../x"}"#,
        r#"{"device_id":"pump-9","role":"r","sealing_kye":"x"}"#,
        r#"{"device_id":"pump-9","role":"r","sealing_key":"x"}"#,
        r#"{"device_id":"pump-9","role":"r","policy":"never"}"#,
        r#"{"device_id":"pump-9","role":"r","retain":true}"#,
        r#"{"device_id":"pump-9","role":"r","state":"denied"}"#,
        "\u{0}",
    ];
    let long = format!("{{\"device_id\":\"{}\"}}", "x".repeat(20_000));
    for bad in bad.into_iter().chain([long.as_str()]) {
        let lines = format!("{}\n\n{}\n{bad}\n{}\n", good(1), good(2), good(3));
        let said = world.fails(&["import", &world.file(&lines)]);
        assert!(said.contains("line 4"), "{bad:.60}: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
    // Bytes that are no text.
    let path = world.dir.path().join("devices.jsonl");
    std::fs::write(&path, b"{\"device_id\":\"\xff\xfe\"}\n").unwrap();
    assert!(
        world
            .fails(&["import", path.to_str().unwrap()])
            .contains("line 1")
    );
    assert!(world.listed().is_empty());
    assert!(world.events().await.is_empty());
}

#[tokio::test]
async fn an_import_can_be_repeated_and_takes_what_was_listed() {
    let world = World::new();
    let lines: String = (0..20)
        .map(|n| {
            let device = json!({
                "device_id": format!("pump-{n}"), "role": "river-iot", "identity_key": IDENTITY, "sealing_key": SEALING, "policy": "scheduled",
            });
            format!("{device}\r\n")
        })
        .collect();
    let file = world.file(&lines);
    let import = || world.ok(&["import", &file]);
    assert_eq!(import(), "20 devices allowed or changed, 0 as before\n");
    assert_eq!(import(), "0 devices allowed or changed, 20 as before\n");
    assert_eq!(world.events().await.len(), 20);
    world.ok(&["deny", "pump-3"]);

    // What another store's list says, on standard input: a denied device must be decided about first.
    let listed = world.listed();
    let line = |it: &Value| format!("{it}\n");
    let other = World::new();
    let take = |lines: String| {
        let mut child = other
            .command(&["import", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(lines.as_bytes()).unwrap();
        drop(input);
        child.wait_with_output().unwrap()
    };
    let refused = take(listed.iter().map(line).collect());
    assert!(!refused.status.success());
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("the device is denied"), "{said}");
    let allowed = listed.iter().filter(|it| it["state"] == "allowed");
    let taken = take(allowed.clone().map(line).collect());
    assert!(taken.status.success(), "{taken:?}");
    assert_eq!(other.listed(), allowed.cloned().collect::<Vec<_>>());
}

/// Only the issuer that made it can destroy it; the list says which one that is, if the configuration names another.
#[tokio::test]
async fn what_another_issuer_has_to_destroy_is_shown() {
    let world = World::new();
    world.ok(&["allow", "pump-1", "--role", "a"]);
    world.given("pump-1", "accessor").await;
    assert_eq!(world.listed()[0]["another_issuer"], json!([]));
    world.ok(&["invalidate", "pump-1"]);
    assert_eq!(world.listed()[0]["another_issuer"], json!(["embedded"]));
    let line = world.ok(&["list"]);
    assert!(
        line.contains("to destroy 1, by another issuer: embedded"),
        "{line}"
    );
    let path = world.dir.path().join("keyturn.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, config + "[devices.issuer]\nkind = \"embedded\"\n").unwrap();
    assert_eq!(world.listed()[0]["another_issuer"], json!([]));
    let line = world.ok(&["list"]);
    assert!(line.trim_end().ends_with("to destroy 1"), "{line}");
}

#[tokio::test]
async fn what_devices_hold_is_shown_by_accessor_and_can_be_invalidated() {
    let world = World::new();
    for (device, role) in [
        ("pump-1", "a"),
        ("pump-2", "a"),
        ("pump-3", "b"),
        ("pump-4", "b"),
    ] {
        world.ok(&["allow", device, "--role", role]);
    }
    for device in ["pump-1", "pump-2", "pump-3"] {
        world.given(device, &format!("accessor-of-{device}")).await;
    }
    let held = || -> Vec<Option<String>> {
        let listed = world.listed();
        let accessor = |it: &Value| it["accessor"].as_str().map(str::to_owned);
        listed.iter().map(accessor).collect()
    };
    let of = |device: &str| Some(format!("accessor-of-{device}"));
    assert_eq!(held(), [of("pump-1"), of("pump-2"), of("pump-3"), None]);
    assert!(world.ok(&["list"]).contains("accessor accessor-of-pump-1"));

    let said = world.ok(&["invalidate", "pump-1"]);
    assert!(said.starts_with("1 devices held something"), "{said}");
    assert!(world.ok(&["invalidate", "pump-1"]).starts_with("0 devices"));
    assert_eq!(held(), [None, of("pump-2"), of("pump-3"), None]);
    assert!(
        world
            .ok(&["invalidate", "--role", "b"])
            .starts_with("1 devices")
    );
    assert_eq!(held(), [None, of("pump-2"), None, None]);
    assert!(
        world
            .ok(&["invalidate", "--role", "unheard-of"])
            .starts_with("0 devices")
    );
    assert!(world.ok(&["invalidate", "--all"]).starts_with("1 devices"));
    assert_eq!(held(), [None, None, None, None]);
    for device in &world.listed()[..3] {
        assert_eq!(
            (&device["state"], &device["to_destroy"]),
            (&json!("allowed"), &json!(1))
        );
    }
    let events = world.events().await;
    let count = events.iter().filter(|event| *event == "device.invalidated");
    assert_eq!(count.count(), 3);
}
