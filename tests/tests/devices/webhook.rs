//! A broker that calls HTTP on publish, and shows the shared secret. The test does what EMQX's rule does: hand each status message over, in its spelling.

use keyturn_tests::iot::{House, Mqtt};
use keyturn_tests::world::set;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{ID, PROGRAM, nonce, one_lives, renewed, request};

const SECRET: &str = "a-secret-of-the-webhook-0123456789abcdef";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_broker_hands_over_is_answered_over_mqtt_also_when_it_repeats_itself() {
    let house = House::new(PROGRAM, Mqtt::V5, |config| {
        set(config, "mqtt", "subscribe", false);
        set(config, "mqtt", "webhook_secret", SECRET);
    })
    .await;
    let relay = house.world.relay().await;
    house.allow(ID, &[]).await;
    let device = house.device(ID, &relay);
    let url = format!("{}/kr/v1/mqtt/webhook", relay.web);
    let mut ears = house.service().listen(&["iot/+/status"]).await;
    let bridge = tokio::spawn(async move {
        let http = reqwest::Client::new();
        loop {
            let heard = ears.next().await;
            let call = json!({ "topic": heard.topic, "payload": heard.payload, "qos": 1, "clientid": "x", "flags": { "retain": heard.retained } });
            // A call whose answer was lost is repeated.
            for _ in 0..2 {
                let call = http.post(&url).bearer_auth(SECRET).json(&call);
                assert_eq!(call.send().await.unwrap().status(), StatusCode::OK);
            }
        }
    });
    let first = renewed(&device, Mqtt::V5).await;
    let second = renewed(&device, Mqtt::V5).await;
    one_lives(&house, &relay, &device).await;
    assert_ne!(first, second);
    assert_eq!(house.count(ID, "device.asked").await, 2);
    assert!(!bridge.is_finished(), "a call was not taken");
    bridge.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_without_the_secret_or_without_sense_is_refused() {
    let house = House::new(PROGRAM, Mqtt::V5, |config| {
        set(config, "mqtt", "subscribe", false);
        set(config, "mqtt", "webhook_secret", SECRET);
    })
    .await;
    let relay = house.world.relay().await;
    house.allow(ID, &[]).await;
    let url = format!("{}/kr/v1/mqtt/webhook", relay.web);
    let http = reqwest::Client::new();
    let topic = format!("iot/{ID}/status");
    let good = json!({ "topic": topic, "payload": request(ID, &nonce()).to_string() });
    for wrong in [None, Some("Bearer "), Some("Bearer wrong"), Some(SECRET)] {
        let mut call = http.post(&url).json(&good);
        if let Some(shown) = wrong {
            call = call.header("authorization", shown);
        }
        assert_eq!(
            call.send().await.unwrap().status(),
            StatusCode::UNAUTHORIZED
        );
    }
    house.refused("webhook.unauthenticated").await;
    let call = async |body: String| {
        let call = http.post(&url).bearer_auth(SECRET).body(body);
        let answer = call.send().await.unwrap();
        (answer.status(), answer.json::<Value>().await.unwrap())
    };
    for nonsense in ["[]", "{}", "", "{\"topic\":1}"] {
        assert_eq!(
            call(nonsense.to_owned()).await.0,
            StatusCode::BAD_REQUEST,
            "{nonsense}"
        );
    }
    house.refused("webhook.unreadable").await;
    // Well-formed, and held to the same checks as what the subscription brings.
    let payload = request(ID, &nonce()).to_string();
    for (message, reason) in [
        (
            json!({ "topic": topic, "payload": payload, "retain": true }),
            "message.retained",
        ),
        (
            json!({ "topic": topic, "payload": payload, "flags": { "retain": true } }),
            "message.retained",
        ),
        (
            json!({ "topic": "iot/mallory/status", "payload": payload }),
            "device_id.not_the_topics",
        ),
        (
            json!({ "topic": "iot//status", "payload": payload }),
            "topic.wrong",
        ),
        (
            json!({ "topic": "iot/+/status", "payload": payload }),
            "topic.wrong",
        ),
        (
            json!({ "topic": "iot/river-iot-0001/x/status", "payload": payload }),
            "topic.wrong",
        ),
        (
            json!({ "topic": topic, "payload": "x".repeat(5_000) }),
            "message.oversized",
        ),
    ] {
        let (status, said) = call(message.to_string()).await;
        assert_eq!(
            (status, &said["result"]),
            (StatusCode::OK, &json!("refused")),
            "{message}"
        );
        house.refused(reason).await;
    }
    assert_eq!(house.count(ID, "device.asked").await, 0);
}
