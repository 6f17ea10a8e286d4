//! What a device, or whoever has its certificate, may say that it should not: refused by name, recorded, and of no consequence for anybody else.

use keyturn_tests::iot::{House, Mqtt};
use serde_json::json;

use super::{
    BOTH, ID, PROGRAM, credential, nonce, one_lives, renewed, request, success, with_device,
};

const STATUS: &str = "iot/river-iot-0001/status";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retained_request_is_refused() {
    for version in BOTH {
        // It lies there before the relay comes.
        let house = House::new(PROGRAM, version, |_| {}).await;
        house.allow(ID, &[]).await;
        let kept = request(ID, &nonce()).to_string();
        let who = house.broker.device(ID);
        let client = keyturn_tests::iot::Client {
            port: house.broker.port,
            who,
            version: Mqtt::V5,
        };
        client.publish(STATUS, kept.as_bytes(), true).await.unwrap();
        let relay = house.relay().await;
        let record = house.refused("message.retained").await;
        assert!(serde_json::to_string(&record).unwrap().contains(ID));
        assert_eq!(house.count(ID, "device.asked").await, 0);
        // MQTT 5 also says so of one that comes while we are there.
        if version == Mqtt::V5 {
            let another = request(ID, &nonce()).to_string();
            client
                .publish(STATUS, another.as_bytes(), true)
                .await
                .unwrap();
        }
        let device = house.device(ID, &relay);
        renewed(&device, version).await;
        one_lives(&house, &relay, &device).await;
        assert_eq!(house.count(ID, "device.asked").await, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_long_or_no_sense_is_refused_and_costs_the_others_nothing() {
    for version in BOTH {
        let (house, relay, device) = with_device(version, |_| {}).await;
        let client = device.client(Mqtt::V5);
        let subscriptions = house.subscriptions();
        let good = request(ID, &nonce()).to_string();
        let twice = good.replacen('{', "{\"device_id\":\"river-iot-0001\",", 1);
        let deep = format!("{{\"auth_request\":{}", "[".repeat(4_000));
        for (payload, reason) in [
            ("x".repeat(5_000), "message.oversized"),
            (deep, "message.unreadable"),
            (twice, "message.unreadable"),
            (
                request("mallory", &nonce()).to_string(),
                "device_id.not_the_topics",
            ),
            (request(ID, "short").to_string(), "message.nonce"),
        ] {
            client
                .publish(STATUS, payload.as_bytes(), false)
                .await
                .unwrap();
            house.refused(reason).await;
        }
        // More than the broker takes: it ends the device's connection, and nobody else's.
        let huge = vec![b'x'; 200_000];
        let sent = device
            .client(Mqtt::V311)
            .publish(STATUS, &huge, false)
            .await;
        assert!(sent.is_err());
        // Before it asks for anything: on a slow machine it does so more than once.
        assert_eq!(house.count(ID, "device.asked").await, 0);
        renewed(&device, version).await;
        one_lives(&house, &relay, &device).await;
        assert_eq!(
            house.subscriptions(),
            subscriptions,
            "the relay lost its connection"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_comes_twice_counts_once_and_an_old_one_not_at_all() {
    for version in BOTH {
        let (house, relay, device) = with_device(version, |_| {}).await;
        let client = device.client(Mqtt::V311);
        let asked = request(ID, &nonce());
        let command = client.ask(ID, &asked).await;
        let ok = success(&command);
        for message in [&asked, &asked, &ok, &ok, &ok] {
            client.say(ID, message).await;
        }
        let doc = house.settled(ID).await;
        assert!(doc.current.is_some_and(|held| held.proven));
        // Out of order, and once more after the relay has forgotten everything it had in memory.
        client.say(ID, &asked).await;
        house.refused("nonce.used").await;
        tokio::task::spawn_blocking(move || relay.kill())
            .await
            .unwrap();
        let relay = house.relay().await;
        let again = client.ask(ID, &asked).await;
        assert_eq!(again["error"], "nonce_used");
        client.say(ID, &ok).await;
        let failed = json!({ "nonce": asked["nonce"], "auth_result": "failed" });
        client.say(ID, &failed).await;

        let next = client.ask(ID, &request(ID, &nonce())).await;
        assert!(
            house.logs_in(&relay, &credential(&command)).await,
            "kept until the next is proven"
        );
        client.say(ID, &success(&next)).await;
        house.settled(ID).await;
        assert!(!house.logs_in(&relay, &credential(&command)).await);
        assert!(house.logs_in(&relay, &credential(&next)).await);
        for (event, count) in [
            ("device.asked", 2),
            ("device.issued", 2),
            ("device.confirmed", 2),
            ("device.failed", 0),
        ] {
            assert_eq!(house.count(ID, event).await, count, "{event}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_counts_for_its_own_device_and_nonce_only() {
    let (house, relay, device) = with_device(Mqtt::V5, |_| {}).await;
    house.allow("river-iot-0002", &[]).await;
    let neighbour = house.device("river-iot-0002", &relay);
    let (own, other) = (device.client(Mqtt::V311), neighbour.client(Mqtt::V311));
    let command = own.ask(ID, &request(ID, &nonce())).await;
    let theirs = other
        .ask("river-iot-0002", &request("river-iot-0002", &nonce()))
        .await;
    // The neighbour knows our nonce and even our secret_id.
    other.say("river-iot-0002", &success(&command)).await;
    let failed = json!({ "nonce": command["nonce"], "auth_result": "failed" });
    other.say("river-iot-0002", &failed).await;
    // Ours, with a proof for another nonce: believed, and nothing is destroyed for it.
    let mut wrong = success(&theirs);
    wrong["nonce"] = command["nonce"].clone();
    own.say(ID, &wrong).await;
    other.say("river-iot-0002", &success(&theirs)).await;
    let doc = house.settled(ID).await;
    assert!(doc.current.is_some_and(|held| !held.proven));
    assert!(
        house
            .settled("river-iot-0002")
            .await
            .current
            .is_some_and(|held| held.proven)
    );
    for held in [&command, &theirs] {
        assert!(house.logs_in(&relay, &credential(held)).await);
    }
    assert_eq!(house.count(ID, "device.confirmed_unproven").await, 1);
    assert_eq!(house.count("river-iot-0002", "device.confirmed").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_asks_without_end_is_held_back_and_holds_one_secret_id() {
    let (house, relay, device) = with_device(Mqtt::V5, |config| {
        keyturn_tests::world::set(config, "devices", "requests_per_hour", 6);
    })
    .await;
    let client = device.client(Mqtt::V311);
    let mut last = json!({});
    for _ in 0..6 {
        last = client.ask(ID, &request(ID, &nonce())).await;
        assert!(last["secret_id"].is_string(), "{last}");
    }
    let told = client.ask(ID, &request(ID, &nonce())).await;
    assert_eq!(told["error"], "rate_limited");
    assert!(told["retry_after_sec"].as_u64().unwrap() > 600, "{told}");
    house.refused("rate.device_hour").await;
    client.say(ID, &success(&last)).await;
    let doc = house.settled(ID).await;
    assert!(doc.current.is_some_and(|held| held.proven));
    assert!(house.logs_in(&relay, &credential(&last)).await);
    assert_eq!(house.count(ID, "device.superseded").await, 5);
    assert_eq!(house.living(), 1);
}
