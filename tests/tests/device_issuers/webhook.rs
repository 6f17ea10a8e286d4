//! A broker that hands messages over by HTTP and shows a certificate.

use std::path::Path;

use keyturn_tests::iot::{House, Mqtt};
use keyturn_tests::relay::Relay;
use keyturn_tests::vault::{certificates, client_certificate};
use keyturn_tests::world::{free_port, set};
use reqwest::{Client, Error, Identity, StatusCode};
use serde_json::{Value, json};

use super::{ID, PROGRAM, connect, settled};

const NAME: &str = "DNS:broker.example.org";

/// A client that trusts the CA in `folder`, and shows `identity` if there is one.
fn client(folder: &Path, identity: Option<&[u8]>) -> Client {
    let ca = std::fs::read(folder.join("ca.crt")).unwrap();
    let builder = Client::builder()
        .no_proxy()
        .tls_certs_only(reqwest::Certificate::from_pem_bundle(&ca).unwrap());
    let builder = match identity {
        Some(pem) => builder.identity(Identity::from_pem(pem).unwrap()),
        None => builder,
    };
    builder.build().unwrap()
}

/// A relay that hears only what brokers with a certificate hand over. Its own certificate lies in `folder`, as does the CA of the brokers'.
async fn house(folder: &Path) -> (House, Relay, String) {
    let port = free_port();
    let house = House::new(PROGRAM, Mqtt::V5, |config| {
        let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        set(config, "mqtt", "subscribe", false);
        set(
            config,
            "mqtt",
            "webhook_listen",
            format!("127.0.0.1:{port}"),
        );
        set(
            config,
            "mqtt",
            "webhook_certificate_file",
            file("server.crt"),
        );
        set(
            config,
            "mqtt",
            "webhook_certificate_key_file",
            file("server.key"),
        );
        set(config, "mqtt", "webhook_client_ca_file", file("ca.crt"));
        let names: toml::Value = vec!["broker.example.org"].into();
        set(config, "mqtt", "webhook_client_names", names);
    })
    .await;
    let relay = house.world.relay().await;
    house.allow(ID, &[]).await;
    (
        house,
        relay,
        format!("https://127.0.0.1:{port}/kr/v1/mqtt/webhook"),
    )
}

async fn hand_over(
    client: &Client,
    url: &str,
    message: &Value,
    retain: bool,
) -> Result<(StatusCode, Value), Error> {
    let topic = format!("iot/{ID}/status");
    let body = json!({ "topic": topic, "payload": message.to_string(), "retain": retain });
    let answer = client.post(url).json(&body).send().await?;
    Ok((answer.status(), answer.json().await?))
}

fn asked(nonce: &keyturn_proto::device::DeviceNonce) -> Value {
    json!({ "nonce": nonce, "device_id": ID, "auth_request": "secret_id", "reason": "invalid_secret" })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_broker_with_a_certificate_hands_over_is_answered_over_mqtt() {
    let folder = certificates();
    std::fs::set_permissions(
        folder.path().join("server.key"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    let (house, _relay, url) = house(folder.path()).await;
    let mut device = connect(&house).await;
    let broker = client(
        folder.path(),
        Some(&client_certificate(folder.path(), NAME)),
    );

    let nonce = keyturn_proto::device::DeviceNonce::generate().unwrap();
    let (status, said) = hand_over(&broker, &url, &asked(&nonce), false)
        .await
        .unwrap();
    assert_eq!(
        (status, &said["result"]),
        (StatusCode::OK, &json!("accepted"))
    );
    let given = device.answer(&nonce).await.unwrap();
    // A call that is repeated says nothing new.
    let (_, said) = hand_over(&broker, &url, &asked(&nonce), false)
        .await
        .unwrap();
    assert_ne!(said["result"], "accepted");
    let other = keyturn_proto::device::DeviceNonce::generate().unwrap();
    let (status, said) = hand_over(&broker, &url, &asked(&other), true)
        .await
        .unwrap();
    assert_eq!(
        (status, &said["result"]),
        (StatusCode::OK, &json!("refused"))
    );

    let proof = keyturn_proto::device::proof::proof(&given.credential.secret_id, &nonce);
    let ok = json!({ "nonce": nonce, "auth_result": "ok", "proof": proof });
    let (_, said) = hand_over(&broker, &url, &ok, false).await.unwrap();
    assert_eq!(said["result"], "accepted");
    settled(&house).await;

    // One path, one method, JSON.
    for (path, status) in [
        ("/healthz", 404),
        ("/metrics", 404),
        ("/kr/v1/approle/login", 404),
    ] {
        let elsewhere = url.replace("/kr/v1/mqtt/webhook", path);
        assert_eq!(
            broker.post(elsewhere).send().await.unwrap().status(),
            status
        );
    }
    assert_eq!(broker.get(&url).send().await.unwrap().status(), 405);
    let garbled = broker.post(&url).body("telltale").send().await.unwrap();
    assert_eq!(garbled.status(), 400);
    assert!(!garbled.text().await.unwrap().contains("telltale"));
    house.refused("webhook.unreadable").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_gets_a_word_in() {
    let (folder, elsewhere) = (certificates(), certificates());
    let (house, relay, url) = house(folder.path()).await;
    let nonce = keyturn_proto::device::DeviceNonce::generate().unwrap();
    // The same CA may have signed devices; somebody else's CA may have signed the right name.
    let device = client_certificate(folder.path(), &format!("DNS:{ID}"));
    let forged = client_certificate(elsewhere.path(), NAME);
    for identity in [None, Some(&device[..]), Some(&forged[..])] {
        let stranger = client(folder.path(), identity);
        let tried = hand_over(&stranger, &url, &asked(&nonce), false).await;
        assert!(tried.is_err(), "{tried:?}");
    }
    let plain = url.replace("https", "http");
    assert!(
        hand_over(&Client::new(), &plain, &asked(&nonce), false)
            .await
            .is_err()
    );
    house.refused("webhook.unauthenticated").await;
    // Without a shared secret the web listener has no such door.
    let web = format!("{}/kr/v1/mqtt/webhook", relay.web);
    let (status, _) = hand_over(&Client::new(), &web, &asked(&nonce), false)
        .await
        .unwrap();
    assert_eq!(status, StatusCode::NOT_FOUND);
    // Somebody who connects and says nothing does not keep the others out, nor the relay from its end.
    let silent = tokio::net::TcpStream::connect(
        url.trim_start_matches("https://")
            .split('/')
            .next()
            .unwrap(),
    )
    .await
    .unwrap();
    let asked_for = house.count(ID, "device.asked").await;
    assert_eq!(asked_for, 0);
    tokio::task::spawn_blocking(move || relay.terminate())
        .await
        .unwrap();
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_names_the_file_that_is_missing() {
    let folder = certificates();
    let (house, _relay, _) = house(folder.path()).await;
    let doctor = async || {
        let output = tokio::process::Command::new(PROGRAM)
            .args(["doctor", "--config"])
            .arg(house.world.layout.config())
            .output()
            .await
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let report = doctor().await;
    assert!(
        report.contains("brokers with a certificate for broker.example.org are heard"),
        "{report}"
    );
    std::fs::remove_file(folder.path().join("ca.crt")).unwrap();
    let report = doctor().await;
    assert!(report.contains("mqtt.webhook_client_ca_file: "), "{report}");
}
