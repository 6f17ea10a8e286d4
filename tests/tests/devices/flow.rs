//! What a device goes through when nothing goes wrong.

use keyturn_tests::iot::{Mqtt, program, python, repository};
use keyturn_tests::world::{eventually, set};
use serde_json::json;

use super::{BOTH, ID, nonce, one_lives, renewed, request, with_device};

const COMMAND: &str = "iot/river-iot-0001/command";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_published_device_renews_its_secret_id_and_the_old_one_is_destroyed() {
    for version in BOTH {
        let (house, relay, device) = with_device(version, |_| {}).await;
        // Fresh from the factory it has none.
        let said = device.start(version, &["--once"]).done().await;
        let events: Vec<&str> = said.iter().filter_map(|e| e["event"].as_str()).collect();
        for wanted in ["connected", "asked", "tried", "reported"] {
            assert!(events.contains(&wanted), "{wanted} is missing: {said:?}");
        }
        let first = device.credential().unwrap();
        assert!(house.logs_in(&relay, &first).await);

        let second = renewed(&device, version).await;
        assert_eq!(first.role_id, second.role_id, "the role_id never rotates");
        assert_ne!(first.secret_id, second.secret_id);
        let doc = house.settled(ID).await;
        assert!(doc.current.is_some_and(|held| held.proven));
        assert!(
            !house.logs_in(&relay, &first).await,
            "the old one is destroyed"
        );
        assert!(house.logs_in(&relay, &second).await);
        for (event, count) in [
            ("device.asked", 2),
            ("device.issued", 2),
            ("device.confirmed", 2),
            ("device.destroyed", 1),
        ] {
            assert_eq!(house.count(ID, event).await, count, "{event}");
        }
        let trail = serde_json::to_string(&house.trail(ID).await).unwrap();
        for text in [&first.secret_id, &second.secret_id] {
            let (accessor, secret) = text.split_once('.').unwrap();
            assert!(
                trail.contains(accessor),
                "the trail names each by its accessor"
            );
            for place in [&trail, &house.world.log(), &house.broker.log()] {
                assert!(!place.contains(secret), "a secret_id was written down");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_with_keys_signs_what_it_says_and_opens_what_is_sealed_for_it() {
    for (version, suite) in [
        (Mqtt::V5, "x25519-sha256-chacha20poly1305"),
        (Mqtt::V311, "x25519-sha256-aes128gcm"),
    ] {
        // As in production.
        let (house, relay, mut device) = with_device(version, |config| {
            set(config, "devices", "require_signed", true);
            set(config, "devices", "require_sealed", true);
        })
        .await;
        // On the list, and without keys.
        let bare = device.client(Mqtt::V311);
        let answer = bare.ask(ID, &request(ID, &nonce())).await;
        assert_eq!(answer["error"], "unauthorized");
        house.refused("policy.not_signed").await;

        let mut options = device.make_keys();
        options.extend(["--suite".to_owned(), suite.to_owned()]);
        house.allow(ID, &options).await;
        let first = renewed(&device, version).await;
        let second = renewed(&device, version).await;
        assert_ne!(first, second);
        one_lives(&house, &relay, &device).await;

        // Somebody with the device's certificate, and without its key.
        let answer = bare.ask(ID, &request(ID, &nonce())).await;
        assert_eq!(answer["error"], "unauthorized");
        house.refused("signature.missing").await;
        assert_eq!(house.living(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sleeping_device_finds_the_sealed_command_and_the_broker_forgets_it_afterwards() {
    let (house, relay, mut device) = with_device(Mqtt::V5, |_| {}).await;
    let mut options = device.make_keys();
    options.push("--retain".to_owned());
    house.allow(ID, &options).await;
    // It asks and falls asleep; nothing of its session is left when it wakes up.
    let mut awake = device.start(Mqtt::V5, &["--once"]);
    awake.event("asked").await;
    awake.kill().await;
    let kept = eventually("the broker keeps the command", async || {
        let mut ears = device.client(Mqtt::V5).listen(&[COMMAND]).await;
        house
            .service()
            .publish(COMMAND, b"mark", false)
            .await
            .unwrap();
        let heard = ears.next().await;
        heard.retained.then_some(heard)
    })
    .await;
    assert_eq!(kept.topic, COMMAND);
    let command = kept.json();
    assert!(
        command["ct"].is_string() && command["secret_id"].is_null(),
        "sealed"
    );

    device.start(Mqtt::V5, &["--once"]).done().await;
    assert_eq!(
        house.count(ID, "device.asked").await,
        1,
        "it went on where it was"
    );
    one_lives(&house, &relay, &device).await;
    eventually("the broker has forgotten it", async || {
        let mut ears = device.client(Mqtt::V5).listen(&[COMMAND]).await;
        house
            .service()
            .publish(COMMAND, b"mark", false)
            .await
            .unwrap();
        (ears.next().await.payload == "mark").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_on_the_schedule_is_invited_and_asks_under_the_pings_nonce() {
    for version in BOTH {
        let (house, relay, device) = with_device(version, |_| {}).await;
        let first = renewed(&device, version).await;
        let mut running = device.start(version, &[]);
        running.event("connected").await;
        let schedule = ["--policy", "scheduled"].map(str::to_owned);
        house.allow(ID, &schedule).await;
        let ping = running.event("invited").await;
        let asked = running.event("asked").await;
        assert_eq!(
            (&asked["nonce"], &asked["reason"]),
            (&ping["nonce"], &json!("scheduled"))
        );
        running.event("reported").await;
        one_lives(&house, &relay, &device).await;
        assert!(!house.logs_in(&relay, &first).await);
        let doc = house.document(ID).await;
        assert!(
            doc.ping.is_none() && doc.ping_at.is_some(),
            "the next one has its time"
        );
        running.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_device_is_refused_and_what_it_held_is_destroyed() {
    let (house, relay, device) = with_device(Mqtt::V5, |_| {}).await;
    let held = renewed(&device, Mqtt::V5).await;
    house.operator(&["deny", ID]).await;
    eventually("what it held is destroyed", async || {
        (!house.logs_in(&relay, &held).await).then_some(())
    })
    .await;
    let mut running = device.start(Mqtt::V5, &[]);
    let told = running.event("told_to_wait").await;
    assert_eq!(told["error"], "unauthorized");
    running.kill().await;
    assert_eq!(house.living(), 0);
}

#[test]
fn the_published_device_holds_to_the_test_vectors() {
    let output = std::process::Command::new(python())
        .arg(program())
        .arg("--check-vectors")
        .arg(repository("mobile-proto/vectors"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_and_the_next_request_in_one_breath_leave_the_next_command_with_the_broker() {
    const ROUNDS: usize = 6;
    let (house, _relay, device) = with_device(Mqtt::V5, |_| {}).await;
    // Nobody has to open what is sealed to it.
    let key = "QxDu6XzJiPHAiKVXd6sM9awPd_PZUTnGyEtUKcWcZio";
    let options = ["--sealing-key", key, "--retain"].map(str::to_owned);
    house.allow(ID, &options).await;
    let client = device.client(Mqtt::V5);
    let mut asked = nonce();
    client.say(ID, &request(ID, &asked)).await;
    for round in 0..ROUNDS {
        eventually("it is issued", async || {
            (house.count(ID, "device.issued").await > round).then_some(())
        })
        .await;
        let next = nonce();
        let report = json!({ "nonce": asked, "auth_result": "ok" });
        client
            .say_in_one_breath(ID, &[report, request(ID, &next)])
            .await;
        asked = next;
    }
    eventually("the broker keeps the last command", async || {
        let mut ears = device.client(Mqtt::V5).listen(&[COMMAND]).await;
        house
            .service()
            .publish(COMMAND, b"mark", false)
            .await
            .unwrap();
        let heard = ears.next().await;
        (heard.retained && heard.json()["nonce"] == asked.as_str()).then_some(())
    })
    .await;
    for (event, count) in [
        ("device.asked", ROUNDS + 1),
        ("device.confirmed_unproven", ROUNDS),
        ("device.superseded", 0),
    ] {
        assert_eq!(house.count(ID, event).await, count, "{event}");
    }
}
