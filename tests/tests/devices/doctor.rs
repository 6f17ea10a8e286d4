//! `keyturn doctor` at the broker: each thing that can be wrong, what it is called, and how to mend it.

use std::path::Path;

use keyturn_tests::cluster::Sibling;
use keyturn_tests::iot::{House, Mqtt};
use keyturn_tests::world::set;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::{BOTH, ID, PROGRAM};

/// Holds a finding to its level, and to words of what was found and of the mend.
fn held_to(finding: &Value, level: &str, what: &str, mend: &str) {
    assert_eq!(finding["level"], level, "{finding}");
    assert!(
        finding["what"].as_str().unwrap().contains(what),
        "{finding}"
    );
    assert!(
        finding["mend"].as_str().unwrap_or_default().contains(mend),
        "{finding}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_broker_is_in_order_while_a_relay_runs_and_notices_nothing() {
    for version in BOTH {
        let house = House::new(PROGRAM, version, |_| {}).await;
        let relay = house.relay().await;
        let subscriptions = house.subscriptions();
        held_to(
            &house.doctor().await,
            "ok",
            "lets us hear devices and answer them",
            "",
        );
        // A session of the same name would have thrown the relay out.
        house.allow(ID, &[]).await;
        let device = house.device(ID, &relay);
        super::renewed(&device, version).await;
        assert_eq!(house.subscriptions(), subscriptions);
        let trail = serde_json::to_string(&house.trail("keyturn-doctor").await).unwrap();
        assert_eq!(trail, "[]", "the doctor's message is nobody's request");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_that_do_not_share_a_subscription_are_warned_of() {
    let mut house = House::new(PROGRAM, Mqtt::V5, |_| {}).await;
    Sibling::of(&mut house.world, PROGRAM);
    held_to(
        &house.doctor().await,
        "warn",
        "brings every message of a device to each of the relays",
        "set mqtt.share",
    );
    house
        .world
        .configure(|config| set(config, "mqtt", "share", "keyturn"));
    held_to(&house.doctor().await, "ok", "lets us hear devices", "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_webhook_only_answering_is_tried() {
    let mut house = House::new(PROGRAM, Mqtt::V5, |config| {
        set(config, "mqtt", "subscribe", false);
        set(
            config,
            "mqtt",
            "webhook_secret",
            "a-secret-of-the-webhook-0123456789abcdef",
        );
    })
    .await;
    house
        .broker
        .restart_without("topic read iot/+/status")
        .await;
    held_to(&house.doctor().await, "ok", "comes by the webhook", "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_access_rule_is_named() {
    const READ: &str = "topic read iot/+/status";
    const WRITE: &str = "topic write iot/+/command";
    const TRY: &str = "topic write iot/keyturn-doctor/status";
    for (version, rule, level, what, mend) in [
        (
            Mqtt::V5,
            READ,
            "fail",
            "delivers nothing",
            "read iot/+/status",
        ),
        (
            Mqtt::V5,
            WRITE,
            "fail",
            "does not let us answer",
            "write iot/+/command",
        ),
        (
            Mqtt::V5,
            TRY,
            "warn",
            "could not be tried",
            "write iot/keyturn-doctor/status",
        ),
        // 3.1.1 has no word for "no": what does not come back may be either.
        (
            Mqtt::V311,
            READ,
            "warn",
            "could not be tried",
            "docs/mosquitto/acl",
        ),
        (
            Mqtt::V311,
            TRY,
            "warn",
            "could not be tried",
            "docs/mosquitto/acl",
        ),
    ] {
        let mut house = House::new(PROGRAM, version, |_| {}).await;
        house.broker.restart_without(rule).await;
        held_to(&house.doctor().await, level, what, mend);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_certificate_is_named() {
    let house = House::new(PROGRAM, Mqtt::V5, |_| {}).await;
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (folder, device) = (house.broker.folder(), house.broker.device(ID));
    // Who signed the broker's.
    house.world.configure(|config| {
        set(
            config,
            "mqtt",
            "ca_file",
            path(&folder.join("service-ca.crt")),
        )
    });
    held_to(
        &house.doctor().await,
        "fail",
        "no encrypted connection",
        "mqtt.ca_file",
    );
    house.world.configure(|config| {
        set(config, "mqtt", "ca_file", path(&folder.join("ca.crt")));
        set(
            config,
            "mqtt",
            "certificate_file",
            path(&device.certificate),
        );
        set(config, "mqtt", "certificate_key_file", path(&device.key));
    });
    held_to(
        &house.doctor().await,
        "fail",
        "no encrypted connection",
        "mqtt.certificate_file",
    );
    house
        .world
        .configure(|config| set(config, "mqtt", "ca_file", "nowhere.crt"));
    held_to(
        &house.doctor().await,
        "fail",
        "nowhere.crt",
        "files that the service's user may read",
    );
}

/// A broker that answers each packet of a client with the next of `answers`, and then says nothing more.
async fn broker_of_words(answers: &'static [&'static [u8]]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut client, _)) = listener.accept().await {
            let mut packet = [0u8; 1024];
            for answer in answers {
                if client.read(&mut packet).await.unwrap_or(0) == 0 {
                    break;
                }
                let _gone = client.write_all(answer).await;
            }
            open.push(client);
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_refuses_or_does_not_answer_is_named() {
    let house = House::new(PROGRAM, Mqtt::V311, |_| {}).await;
    // MQTT 3.1.1: CONNACK with a return code; SUBACK for packet 1 with one.
    let cases: [(&'static [&'static [u8]], &str, &str); 3] = [
        (&[&[0x20, 2, 0, 5]], "refuses our login", "mqtt.username"),
        (
            &[&[0x20, 2, 0, 0], &[0x90, 3, 0, 1, 0x80]],
            "does not let us read iot/+/status",
            "read iot/+/status",
        ),
        (&[], "does not answer", "that the broker runs"),
    ];
    let plain = |port: u16| {
        house.world.configure(|config| {
            let mut mqtt = toml::Table::new();
            mqtt.insert("url".to_owned(), format!("mqtt://127.0.0.1:{port}").into());
            mqtt.insert("version".to_owned(), "3.1.1".into());
            config["mqtt"] = mqtt.into();
        });
    };
    for (answers, what, mend) in cases {
        plain(broker_of_words(answers).await);
        held_to(&house.doctor().await, "fail", what, mend);
    }
    // Bound and not listening: nobody else can get it meanwhile, and nobody answers.
    let nobody = tokio::net::TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    plain(nobody.local_addr().unwrap().port());
    held_to(
        &house.doctor().await,
        "fail",
        "no connection",
        "that the broker runs",
    );
}
