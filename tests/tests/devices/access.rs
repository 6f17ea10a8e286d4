//! Who may connect, and what the broker's rules let nobody do.

use keyturn_tests::iot::{Client, House, Mqtt};
use keyturn_tests::world::set;
use serde_json::json;

use super::{BOTH, ID, PROGRAM, nonce, one_lives, renewed, request, with_device};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_speaks_or_hears_in_anothers_name() {
    for version in BOTH {
        let (house, relay, device) = with_device(version, |_| {}).await;
        let eavesdropper = house.device("mallory", &relay).client(version);
        // Mosquitto takes any subscription and checks every delivery.
        let mut ears = eavesdropper
            .listen(&[
                "iot/river-iot-0001/command",
                "iot/river-iot-0001/status",
                "iot/+/command",
                "#",
            ])
            .await;
        let mouth = house.device("trudy", &relay).client(version);
        let forged = nonce();
        let message = request(ID, &forged).to_string();
        let command =
            json!({ "nonce": forged, "role_id": "r", "secret_id": "mine", "ttl_sec": 60 });
        for (topic, text) in [
            ("iot/river-iot-0001/status", &message),
            ("iot/river-iot-0001/command", &command.to_string()),
            ("iot/trudy/command", &command.to_string()),
            ("iot/trudy/river-iot-0001/status", &message),
            ("iot//status", &message),
            ("keyturn/status", &message),
        ] {
            let published = mouth.publish(topic, text.as_bytes(), false).await;
            // 3.1.1 has no way of saying it.
            match version {
                Mqtt::V5 => assert!(published.unwrap_err().contains("Not authorized"), "{topic}"),
                Mqtt::V311 => published.unwrap(),
            }
        }
        renewed(&device, version).await;
        one_lives(&house, &relay, &device).await;

        // The service cannot ask in a device's name either.
        let status = format!("iot/{ID}/status");
        let service = house.service();
        let asked = service.publish(&status, message.as_bytes(), false).await;
        assert!(asked.unwrap_err().contains("Not authorized"));

        // What the eavesdropper may hear is the last that was said, and the first it hears.
        let own = "iot/mallory/command";
        house
            .service()
            .publish(own, b"for you", false)
            .await
            .unwrap();
        let heard = ears.next().await;
        assert_eq!(
            (heard.topic.as_str(), heard.payload.as_str()),
            (own, "for you")
        );

        assert_eq!(house.count(ID, "device.asked").await, 1);
        let trail = serde_json::to_string(&house.trail(ID).await).unwrap();
        assert!(!trail.contains(&forged) && !house.world.log().contains(&forged));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_certificates_of_the_right_ca_get_in() {
    let (mut house, relay, device) = with_device(Mqtt::V5, |_| {}).await;
    let message = request(ID, &nonce()).to_string();
    let status = format!("iot/{ID}/status");
    let own = device.client(Mqtt::V5);
    for (who, port, what) in [
        (
            house.broker.of_another_ca(ID),
            house.broker.port,
            "a CA that nobody knows",
        ),
        (
            house.broker.device(ID),
            house.broker.service_port,
            "a device where relays connect",
        ),
        (
            house.broker.service(),
            house.broker.port,
            "a relay where devices connect",
        ),
    ] {
        for version in BOTH {
            let client = Client {
                port,
                who: who.clone(),
                version,
            };
            let published = client.publish(&status, message.as_bytes(), false).await;
            assert!(published.is_err(), "{what}");
        }
    }
    // The same name in the published device; it goes on trying, and the right certificate gets in meanwhile.
    let mut stranger = house.device(ID, &relay);
    stranger.certificate = house.broker.of_another_ca(ID);
    let knocking = stranger.start(Mqtt::V5, &[]);
    renewed(&device, Mqtt::V5).await;
    knocking.kill().await;
    one_lives(&house, &relay, &device).await;
    assert_eq!(house.count(ID, "device.asked").await, 1);

    let subscriptions = house.subscriptions();
    house.broker.revoke(ID).await;
    house.until_subscribed(subscriptions).await;
    let published = own.publish(&status, message.as_bytes(), false).await;
    assert!(published.is_err(), "a certificate that was taken back");
    let other = house.device("river-iot-0002", &relay).client(Mqtt::V5);
    other
        .say("river-iot-0002", &json!({ "online": true }))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_is_called_what_its_certificate_says() {
    let (house, relay, device) = with_device(Mqtt::V5, |_| {}).await;
    let mut ears = device
        .client(Mqtt::V5)
        .listen(&["iot/river-iot-0001/command"])
        .await;
    // It claims the other's name in its topics, which is also the client id it asks for.
    let mut thief = house.device(ID, &relay);
    thief.certificate = house.broker.device("mallory");
    let mut thief = thief.start(Mqtt::V5, &[]);
    let refused = thief.event("refused").await;
    assert_eq!(refused["why"], "Not authorized");
    // Whose session it would have taken is still there.
    let command = "iot/river-iot-0001/command";
    house
        .service()
        .publish(command, b"for you", false)
        .await
        .unwrap();
    assert_eq!(ears.next().await.payload, "for you");
    thief.kill().await;
    assert_eq!(house.count(ID, "device.asked").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_has_a_name_and_a_password_needs_no_certificate() {
    const NAME: &str = "keyturn-service";
    const PASSWORD: &str = "a password of the service";
    for version in BOTH {
        let mut house = House::new(PROGRAM, version, |_| {}).await;
        let port = house.broker.restart_with_password(NAME, PASSWORD).await;
        let file = house.broker.folder().join("service.password");
        let text = file.to_str().unwrap().to_owned();
        house.world.configure(|config| {
            set(config, "mqtt", "url", format!("mqtts://127.0.0.1:{port}"));
            set(config, "mqtt", "username", NAME);
            set(config, "mqtt", "password_file", text);
            let mqtt = config["mqtt"].as_table_mut().unwrap();
            for key in ["certificate_file", "certificate_key_file"] {
                assert!(mqtt.remove(key).is_some(), "{key}");
            }
        });
        secret_file(&file, "another password");
        let found = house.doctor().await;
        assert_eq!(found["level"], "fail", "{found}");
        let what = found["what"].as_str().unwrap();
        assert!(what.contains("refuses our login"), "{found}");
        secret_file(&file, PASSWORD);
        assert_eq!(house.doctor().await["level"], "ok");
        let relay = house.relay().await;
        house.allow(ID, &[]).await;
        let device = house.device(ID, &relay);
        super::renewed(&device, version).await;
        super::one_lives(&house, &relay, &device).await;
        assert!(!house.world.log().contains(PASSWORD));
    }
}

/// Nobody else may read it.
fn secret_file(path: &std::path::Path, text: &str) {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let options = options.create(true).write(true).truncate(true).mode(0o600);
    options
        .open(path)
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
}
