//! The relay as a process: how it starts, what it refuses to start with, how it ends, and what it says when it is too busy.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use keyturn::extension::BUSY;
use keyturn_proto::Action;
use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_store::store::Registry as _;
use keyturn_tests::steady::{self, Wish, carry_through, insist};
use keyturn_tests::verdict::{Held, Judge};
use keyturn_tests::wire::{Wire, garbage};
use keyturn_tests::world::{CLIENT, GROUP, PATIENCE, reason};
use keyturn_tests::{World, eventually};
use serde_json::{Value, json};
use tokio::join;

const PROGRAM: &str = env!("CARGO_BIN_EXE_keyturn-under-test");
/// A clean shutdown takes at most five seconds (docs/operations.md): the relay holds itself to that. What a busy machine adds is not its.
const SHUTDOWN: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_it_in_time_and_in_order_while_much_is_open() {
    let mut world = World::new(PROGRAM, |_| {}).await;
    let (relay, mut alice, mut bob, group) = world.with_group().await;
    let (_, first) = world.rotate(&mut alice, &mut bob, &group).await;
    let held = Held::default();
    held.note(&first);
    let judge = Judge::of(&world, CLIENT);
    let old = first.notify.header.version_id;

    // One rotation waits for acks, and readers are connected: some listen, one says nothing, one never even opens its websocket.
    let waiting = Wish::new(Action::Rotation, &group, reason("waits for acks"));
    insist(world.issuer.signer(), &mut alice, &waiting).await;
    let mut wires = Vec::new();
    for _ in 0..5 {
        let mut wire = Wire::connect(&relay.url).await;
        wire.send(json!(["REQ", "all", { "kinds": [445] }])).await;
        wire.next("EOSE").await;
        wires.push(wire);
    }
    wires.push(Wire::connect(&relay.url).await);
    let address = relay.url.strip_prefix("ws://").unwrap();
    let silent = tokio::net::TcpStream::connect(address).await.unwrap();

    let took = tokio::task::spawn_blocking(|| relay.terminate()).await;
    let took = took.unwrap();
    assert!(took < SHUTDOWN, "ending took {took:?}");
    for wire in &mut wires {
        assert_eq!(wire.close_code().await, Some(1001), "going away");
    }
    drop(silent);
    judge.consistent(old, &waiting.id, &held, "ended").await;

    // The rotation goes on where it was; and the next one is interrupted in the middle of its way to the admins.
    let relay = world.relay().await;
    let signer = world.issuer.signer();
    carry_through(signer, &mut alice, &mut bob, &waiting, &held).await;
    let mut wire = Wire::connect(&relay.url).await;
    let old = judge
        .promoted(&mut wire, old, &waiting.id, &held, "after the restart")
        .await;

    let begun = Wish::new(Action::Rotation, &group, reason("interrupted"));
    let operator = async {
        eventually("it has begun", async || judge.rotation(&begun.id).await).await;
        let took = tokio::task::spawn_blocking(|| relay.terminate()).await;
        let took = took.unwrap();
        assert!(took < SHUTDOWN, "ending took {took:?}");
        judge.consistent(old, &begun.id, &held, "interrupted").await;
        world.relay().await
    };
    let admins = carry_through(signer, &mut alice, &mut bob, &begun, &held);
    let (_, relay) = join!(admins, operator);
    let mut wire = Wire::connect(&relay.url).await;
    judge
        .promoted(&mut wire, old, &begun.id, &held, "interrupted")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_not_ready_before_it_takes_requests() {
    let world = World::new(PROGRAM, |_| {}).await;
    // Nobody else can write into the store until the test lets go of it.
    drop(world.store());
    let lock = rusqlite::Connection::open(world.layout.store()).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let web = web_address(&world);
    let begun = Instant::now();
    let starting = world.relay();
    let watching = async {
        let body = eventually("the listener answers", async || {
            let (status, body) = ready(&web).await?;
            assert_eq!(status, 503, "{body}");
            Some(body)
        })
        .await;
        assert_eq!(body["ready"], false);
        assert_eq!(body["checks"]["service"]["state"], "not_ready", "{body}");
        let alive = reqwest::get(format!("{web}/healthz")).await.unwrap();
        assert_eq!(alive.status(), 200, "alive all the same");
        let challenge = reqwest::get(format!("{web}/kr/v1/challenge"))
            .await
            .unwrap();
        assert_eq!(challenge.status(), 503, "nothing could be done with one");
        lock.execute_batch("ROLLBACK").unwrap();
    };
    let (relay, ()) = join!(starting, watching);
    assert!(begun.elapsed() < PATIENCE);
    eventually("ready", async || {
        (ready(&relay.web).await?.0 == 200).then_some(())
    })
    .await;
    let (_, body) = ready(&relay.web).await.unwrap();
    assert_eq!(body["ready"], true);
    let checks = body["checks"].as_object().unwrap();
    assert!(
        checks.values().all(|check| check["state"] == "ready"),
        "{body}"
    );
}

async fn ready(web: &str) -> Option<(u16, Value)> {
    let answer = reqwest::get(format!("{web}/readyz")).await.ok()?;
    let status = answer.status().as_u16();
    Some((status, answer.json().await.unwrap()))
}

fn web_address(world: &World) -> String {
    let text = std::fs::read_to_string(world.layout.config()).unwrap();
    let config: toml::Table = text.parse().unwrap();
    format!("http://{}", config["web"]["listen"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_value_stops_the_start_and_is_named() {
    let world = World::new(PROGRAM, |_| {}).await;
    let right: toml::Table = std::fs::read_to_string(world.layout.config())
        .unwrap()
        .parse()
        .unwrap();
    for (section, key, value, expected) in [
        ("policy", "max_grace", "31d".into(), "30d"),
        ("policy", "quorum", 0.into(), "1"),
        ("policy", "ack_deadline", "soon".into(), "duration"),
        ("policy", "max_graze", "1d".into(), "unknown key"),
        ("admission", "totp", "sometimes".into(), "either"),
        ("queue", "capacity", 0.into(), "65536"),
        ("web", "listen", "everywhere".into(), "address"),
        ("store", "kind", "oracle".into(), "sqlite"),
        ("relay", "port", 70_000.into(), "65535"),
        ("mls", "relays", toml::Value::Array(Vec::new()), "relay"),
    ] {
        let mut wrong = right.clone();
        let table = wrong
            .entry(section)
            .or_insert_with(|| toml::Table::new().into());
        table.as_table_mut().unwrap().insert(key.to_owned(), value);
        let path = world.dir.path().join("wrong.toml");
        std::fs::write(&path, wrong.to_string()).unwrap();
        let said = refused(&path, 2, &[]);
        let named = format!("{section}.{key}");
        assert!(said.contains(&named), "{named} is not named: {said}");
        assert!(said.contains(expected), "{named}: {said}");
    }

    // From the environment, by the same name.
    let variable = ("KEYTURN_POLICY__QUORUM", "many");
    let said = refused(&world.layout.config(), 2, &[variable]);
    assert!(
        said.contains("policy.quorum") && said.contains(variable.0),
        "{said}"
    );

    // A secret is never repeated.
    let secret = "not-an-nsec-7f3b";
    let mut wrong = right.clone();
    let mls = wrong["mls"].as_table_mut().unwrap();
    mls.remove("storage_key_file");
    mls.insert("storage_key".to_owned(), secret.into());
    let path = world.dir.path().join("wrong.toml");
    std::fs::write(&path, wrong.to_string()).unwrap();
    let output = run(&path, &[]);
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains(secret), "the secret is repeated");
    assert!(said.contains("storage"), "{said}");
}

/// Starts it, expects it to end by itself with `status`, and returns what it said.
fn refused(config: &Path, status: i32, environment: &[(&str, &str)]) -> String {
    let output = run(config, environment);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{said}");
    assert!(output.stdout.is_empty(), "it was never ready");
    said
}

/// Runs it to its end; killed when that takes too long.
fn run(config: &Path, environment: &[(&str, &str)]) -> Output {
    let mut child = Command::new(PROGRAM)
        .args(["serve", "--config"])
        .arg(config)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let until = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() >= until {
            child.kill().unwrap();
            panic!("it did not end by itself");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_relay_over_the_same_files_refuses_to_start() {
    let mut world = World::new(PROGRAM, |_| {}).await;
    let (relay, mut alice, mut bob, group) = world.with_group().await;
    let mut second: toml::Table = std::fs::read_to_string(world.layout.config())
        .unwrap()
        .parse()
        .unwrap();
    second["relay"]["port"] = 0.into();
    second["web"]["listen"] = "127.0.0.1:0".into();
    let path = world.dir.path().join("second.toml");
    std::fs::write(&path, second.to_string()).unwrap();
    let said = tokio::task::spawn_blocking(move || refused(&path, 1, &[]))
        .await
        .unwrap();
    assert!(
        said.contains("member.db") && said.contains("another process"),
        "{said}"
    );

    // On the same ports as well, it is the port that is named.
    let config = world.layout.config();
    let said = tokio::task::spawn_blocking(move || refused(&config, 1, &[]))
        .await
        .unwrap();
    assert!(said.contains("listen"), "{said}");

    // The first one noticed nothing.
    let (id, opened) = world.rotate(&mut alice, &mut bob, &group).await;
    let (judge, held) = (Judge::of(&world, CLIENT), Held::default());
    held.note(&opened);
    let mut wire = Wire::connect(&relay.url).await;
    let new = opened.notify.header.version_id;
    judge.promoted(&mut wire, new, &id, &held, "alone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_says_so_and_loses_nothing_that_it_took() {
    /// Far more than may wait anywhere.
    const FLOOD: usize = 1_500;
    let mut world = World::new(PROGRAM, |config| {
        let mut queue = toml::Table::new();
        queue.insert("capacity".to_owned(), 1.into());
        config.insert("queue".to_owned(), queue.into());
    })
    .await;
    let (relay, mut alice, mut bob, group) = world.with_group().await;
    let (_, first) = world.rotate(&mut alice, &mut bob, &group).await;
    let held = Held::default();
    held.note(&first);
    let groups = world.store().groups().await.unwrap();
    let address = groups.iter().find(|group| group.alias == GROUP).unwrap();
    let address = address.nostr_group_id.clone().unwrap();
    let before = counted(&relay.web).await;

    let flood = async {
        let mut wire = Wire::connect(&relay.url).await;
        let mut sent = BTreeSet::new();
        for number in 0..FLOOD {
            let event = garbage(&address, (number % 600) as u64);
            sent.insert(event.id.to_hex());
            wire.send(json!(["EVENT", event])).await;
        }
        let (mut taken, mut refused) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..FLOOD {
            let (id, accepted, words) = wire.next_ok().await;
            assert!(sent.contains(&id));
            if accepted {
                taken.insert(id);
            } else {
                assert_eq!(words, BUSY);
                refused.insert(id);
            }
        }
        assert_eq!(taken.len() + refused.len(), FLOOD, "each has its answer");
        (wire, taken, refused)
    };
    // A real request in the middle of it: refused or taken like everything else, and done when it was taken.
    let wish = Wish::new(Action::Rotation, &group, reason("in the flood"));
    let signer = world.issuer.signer();
    let admins = carry_through(signer, &mut alice, &mut bob, &wish, &held);
    let ((mut wire, taken, refused), done) = join!(flood, admins);
    assert!(!refused.is_empty(), "the queue was never full");
    assert!(!taken.is_empty());
    assert_eq!(wire.stored(taken.clone()).await, taken, "what was taken");
    assert_eq!(wire.stored(refused).await, BTreeSet::new(), "and only that");
    assert!(
        matches!(
            done.body,
            NotifyState::Done {
                outcome: Outcome::Promoted,
                ..
            }
        ),
        "{done:?}"
    );
    let after = counted(&relay.web).await;
    assert!(after.0 - before.0 >= taken.len() as u64);
    assert!(after.1 > before.1);

    let old = first.notify.header.version_id;
    let judge = Judge::of(&world, CLIENT);
    judge
        .promoted(&mut wire, old, &wish.id, &held, "in the flood")
        .await;
    // What was refused can be sent again, and the group has suffered nothing.
    steady::listen(&mut bob).await;
    world.rotate(&mut alice, &mut bob, &group).await;
}

/// Events handed over and refused so far, by the relay's own count.
async fn counted(web: &str) -> (u64, u64) {
    let text = reqwest::get(format!("{web}/metrics")).await.unwrap();
    let text = text.text().await.unwrap();
    let value = |result: &str| {
        let name = format!("keyturn_inbound_total{{result=\"{result}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.map_or(0, |value| value.parse().unwrap())
    };
    (value("taken"), value("busy"))
}
