//! The program itself, as a script would run it: every command, its JSON and its exit code.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use keyturn_proto::proof::ProofRequest;
use keyturn_proto::{ErrorClass, Npub};
use serde_json::Value;
use support::relay::TestRelay;
use support::service::{Service, Temper};
use support::{LONG, eventually, growing, on_disk, run, unsigned};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ended {
    /// The objects on stdout, by their `event`.
    fn events(&self, event: &str) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter(|value| value["event"] == event)
            .collect()
    }

    fn one(&self, event: &str) -> Value {
        let mut found = self.events(event);
        assert_eq!(found.len(), 1, "{event}: {}\n{}", self.stdout, self.stderr);
        found.remove(0)
    }

    #[track_caller]
    fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}\n{}", self.stdout, self.stderr);
        self
    }
}

struct Admin {
    home: PathBuf,
    _dir: tempfile::TempDir,
}

impl Admin {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            home: dir.path().join("home"),
            _dir: dir,
        }
    }

    fn start(&self, line: &str) -> Child {
        Command::new(env!("CARGO_BIN_EXE_keyturn-admin"))
            .args(line.split_whitespace())
            .args(["--json", "--home"])
            .arg(&self.home)
            .env_remove("KEYTURN_ADMIN_HOME")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    async fn run(&self, line: &str) -> Ended {
        let child = self.start(line);
        let output = tokio::time::timeout(2 * LONG, child.wait_with_output())
            .await
            .expect("the program hangs")
            .unwrap();
        Ended {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Lets it watch until it has said `event`, and ends it: how long that takes is nobody's promise.
    async fn watch_until(&self, more: &str, event: &str) -> Value {
        let mut child = self.start(&format!("watch {more}"));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                let value: Value = serde_json::from_str(&line).unwrap();
                if value["event"] == event {
                    return value;
                }
            }
            panic!("it ended without: {event}");
        };
        let found = tokio::time::timeout(2 * LONG, wanted)
            .await
            .expect("it never came");
        child.kill().await.unwrap();
        found
    }

    /// As [`Self::run`], with an issuer at the other end of `--proof-file`.
    async fn prove(&self, line: &str) -> Ended {
        let proof = self.home.join("proof.jwt");
        let issuer = tokio::spawn(issue(proof.clone()));
        let ended = self
            .run(&format!("{line} --proof-file {}", proof.display()))
            .await;
        issuer.abort();
        ended
    }

    async fn init(&self, relay: &TestRelay, service: &Service, more: &str) -> Npub {
        let line = format!(
            "init --relay {} --service-url {} --service {} {more}",
            relay.url(),
            service.url,
            service.npub
        );
        let npub = self.run(&line).await.exits(0).one("initialised")["npub"].clone();
        // Groups settle as quickly as the service's.
        let config = self.home.join("config.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        let quick = format!("settle_secs = {}", support::SETTLE.as_secs());
        std::fs::write(&config, text.replace("settle_secs = 10", &quick)).unwrap();
        serde_json::from_value(npub).unwrap()
    }
}

async fn issue(proof: PathBuf) {
    let mut name = proof.clone().into_os_string();
    name.push(".request");
    let request = Path::new(&name);
    loop {
        if let Ok(text) = std::fs::read_to_string(request) {
            let asked: ProofRequest = serde_json::from_str(&text).unwrap();
            std::fs::write(&proof, unsigned(&asked)).unwrap();
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

struct World {
    relay: TestRelay,
    service: Service,
    alice: Admin,
    bob: Admin,
    npubs: [Npub; 2],
}

/// Two admins and the service in one group.
async fn assembled() -> World {
    assembled_with("").await
}

/// The same, with more in the first admin's `init`.
async fn assembled_with(more: &str) -> World {
    let relay = TestRelay::start().await;
    let service = Service::start(&relay).await;
    let (alice, bob) = (Admin::new(), Admin::new());
    let alice_npub = alice.init(&relay, &service, more).await;
    let bob_npub = bob
        .init(&relay, &service, &format!("--welcomer {alice_npub}"))
        .await;
    bob.run("key-package").await.exits(0).one("key_package");
    let line = format!("group create admins {bob_npub}");
    let created = alice.run(&line).await.exits(0).one("group");
    assert_eq!(created["members"], 3);
    // Bob joins by doing anything at all.
    let listed = bob.run("group list").await.exits(0).one("group");
    assert_eq!(listed["group"], created["group"]);
    World {
        relay,
        service,
        alice,
        bob,
        npubs: [alice_npub, bob_npub],
    }
}

/// A watch that ended by its timeout; one that was over before it had begun is made longer.
async fn watched(admin: &Admin) -> Ended {
    for patience in growing() {
        let line = format!("watch --timeout {}s", patience.as_secs());
        let ended = admin.run(&line).await;
        match ended.code {
            8 | 9 => {}
            _ => return ended.exits(0),
        }
    }
    panic!("it never began to watch");
}

#[test]
fn a_rotation_by_the_command_line() {
    run(async {
        let world = assembled().await;
        let (alice, bob) = (&world.alice, &world.bob);
        let members = alice.run("group members").await.exits(0).events("member");
        let roles: Vec<_> = members
            .iter()
            .map(|member| member["role"].as_str().unwrap())
            .collect();
        assert_eq!(members.len(), 3);
        assert_eq!(roles.iter().filter(|role| **role == "admin").count(), 2);
        assert!(roles.contains(&"service"));

        let rotated = alice
            .prove("rotate ext-totp-svc --reason quarterly --grace 7d --totp 287082 --reveal")
            .await
            .exits(0);
        let shown = rotated.one("secret");
        let secret = world.service.ledger.lock().unwrap().secrets[0].clone();
        assert_eq!(shown["secret"], secret.as_str());
        assert_eq!(rotated.stdout.matches(&secret).count(), 1, "shown once");
        assert!(!rotated.stderr.contains(&secret));
        let rotation = shown["rotation_id"].as_str().unwrap();

        // A script has to say what it wants with the secret.
        bob.run("ack").await.exits(2);
        let acked = bob
            .run(&format!("ack {rotation} --discard --wait"))
            .await
            .exits(0);
        assert!(!acked.stdout.contains(&secret) && !acked.stderr.contains(&secret));
        let reports = acked.events("report");
        assert_eq!(reports.last().unwrap()["outcome"], "promoted");
        assert_eq!(world.service.ledger.lock().unwrap().proven, world.npubs);

        // Opened once, and gone.
        bob.run("ack --reveal").await.exits(10);
        for admin in [alice, bob] {
            assert!(!on_disk(&admin.home, &secret), "plaintext on disk");
        }
        assert!(
            world
                .relay
                .events()
                .iter()
                .all(|event| !event.content.contains(&secret))
        );
    });
}

#[test]
fn every_failure_has_its_exit_code() {
    run(async {
        let world = assembled().await;
        let alice = &world.alice;
        let temper = |temper| *world.service.temper.lock().unwrap() = temper;
        for (class, code) in [
            (ErrorClass::UnauthorizedRequest, 3),
            (ErrorClass::PolicyViolation, 4),
            (ErrorClass::Conflict, 5),
            (ErrorClass::NotFound, 6),
            (ErrorClass::InternalError, 7),
        ] {
            temper(Temper::Refusing(class));
            let ended = alice.prove("revoke c --reason test").await.exits(code);
            assert_eq!(ended.one("error")["exit"], code);
        }
        temper(Temper::Silent);
        let heard = || world.service.ledger.lock().unwrap().requests.len();
        let before = heard();
        for patience in growing() {
            let line = format!("cancel c --reason test --timeout {}s", patience.as_secs());
            let ended = alice.prove(&line).await;
            // A run that did not get as far as asking has its own failure, and another one is given more time.
            if heard() > before {
                ended.exits(8);
                break;
            }
        }
        assert!(heard() > before, "nothing was asked");
        temper(Temper::Willing);
        alice.prove("rollback c --reason test").await.exits(0);
        alice.prove("status c").await.exits(0);

        alice.run("status c").await.exits(11);
        alice.run("status c --proof-command false").await.exits(11);
        alice
            .run("status c --proof-command false --service-url http://127.0.0.1:1")
            .await
            .exits(9);
        alice
            .run("status c --proof-command false --group nowhere")
            .await
            .exits(10);
        alice
            .run("group list --relay ws://127.0.0.1:1 --timeout 3s")
            .await
            .exits(9);
        alice.run("rotate").await.exits(2);
        alice.run("init --relay ws://127.0.0.1:1").await.exits(10);
        Admin::new().run("group list").await.exits(10);
        Admin::new().run("init").await.exits(2);
    });
}

#[test]
fn one_relay_and_one_service_of_several_are_enough() {
    run(async {
        let away = "--relay ws://127.0.0.1:1 --service-url http://127.0.0.1:1";
        let world = assembled_with(away).await;
        let config = std::fs::read_to_string(world.alice.home.join("config.toml")).unwrap();
        for address in ["ws://127.0.0.1:1", "http://127.0.0.1:1"] {
            assert!(config.contains(address), "{config}");
        }
        world.alice.prove("status c").await.exits(0);
        // All of them away is another matter.
        let away = format!(
            "group list --timeout 3s --relay ws://127.0.0.1:1 {}",
            "--relay ws://127.0.0.1:2"
        );
        world.alice.run(&away).await.exits(9);
    });
}

#[test]
fn a_script_that_does_not_reveal_leaves_the_secret_closed() {
    run(async {
        let world = assembled().await;
        let rotated = world
            .alice
            .prove("emergency c --reason leak")
            .await
            .exits(0);
        assert!(rotated.events("secret").is_empty());
        // Watching announces it and leaves it closed, as often as one likes.
        // It ends with the first answer; the secret comes after that.
        let ledger = &world.service.ledger;
        eventually("the secret was sent", || {
            ledger.lock().unwrap().delivered == 1
        })
        .await;
        let secret = ledger.lock().unwrap().secrets[0].clone();
        for _ in 0..2 {
            let watched = watched(&world.alice).await;
            assert_eq!(watched.one("delivered")["client_id"], "c");
            assert!(!watched.stdout.contains(&secret));
        }
        let revealed = world.alice.watch_until("--reveal", "secret").await;
        assert_eq!(revealed["secret"], secret.as_str());
    });
}
