//! The broker dies, the device does not answer, clocks are wrong, a relay of two is killed.

use keyturn_tests::cluster::Sibling;
use keyturn_tests::iot::{House, Mqtt};
use keyturn_tests::trail::counter;
use keyturn_tests::world::{eventually, set};
use serde_json::Value;

use super::{
    BOTH, HASTY, ID, IMPATIENT, MESSAGES, PROGRAM, answered_once, credential, nonce, one_lives,
    renewed, request, success, with_device,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_at_any_moment_costs_a_device_time_and_nothing_else() {
    for version in BOTH {
        let (mut house, relay, device) = with_device(version, |_| {}).await;
        renewed(&device, version).await;
        for event in ["connected", "asked", "tried", "reported"] {
            let mut renewing = device.start(version, &HASTY);
            renewing.event(event).await;
            let before = house.subscriptions();
            house.broker.restart().await;
            house.until_subscribed(before).await;
            renewing.done().await;
            // A killed broker forgets what it has acknowledged: the report may be lost. What the device has works all the same.
            assert!(
                house.logs_in(&relay, &device.credential().unwrap()).await,
                "{event}"
            );
        }
        renewed(&device, version).await;
        one_lives(&house, &relay, &device).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_received_before_the_broker_died_is_tried_and_reported_later() {
    let (mut house, relay, mut device) = with_device(Mqtt::V5, |_| {}).await;
    let first = renewed(&device, Mqtt::V5).await;
    // The login is out of reach, so that the new one cannot be tried.
    let login = std::mem::replace(&mut device.login, "http://127.0.0.1:1/".to_owned());
    let mut renewing = device.start(Mqtt::V5, &["--once", "--renew"]);
    renewing.event("asked").await;
    eventually("it has received a new one", async || {
        device.state()["candidate"].is_object().then_some(())
    })
    .await;
    house.broker.kill().await;
    renewing.kill().await;
    assert_eq!(
        device.credential().unwrap(),
        first,
        "kept until the new one is tried"
    );
    // Power is back, the login as well, the broker is not.
    device.login = login;
    let mut trying = device.start(Mqtt::V5, &["--once"]);
    assert_eq!(trying.event("tried").await["works"], true);
    trying.kill().await;
    let new = device.credential().unwrap();
    assert_ne!(new, first);
    let before = house.subscriptions();
    house.broker.restart().await;
    house.until_subscribed(before).await;
    device.start(Mqtt::V5, &["--once"]).done().await;
    one_lives(&house, &relay, &device).await;
    assert_eq!(device.credential().unwrap(), new);
    assert_eq!(
        house.count(ID, "device.asked").await,
        2,
        "nothing more was asked for"
    );
    assert!(!house.logs_in(&relay, &first).await);
}

/// Waits until nobody waits for a report about `command` any more.
async fn given_up(house: &House, command: &Value) {
    eventually("it is given up", async || {
        let trail = house.trail(ID).await;
        let of_it = trail.into_iter().find(|record| {
            let nonce = record.device.as_ref().and_then(|it| it.nonce.as_deref());
            record.event == "device.unconfirmed" && nonce == command["nonce"].as_str()
        });
        of_it.map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_never_answers_keeps_what_it_had() {
    let (house, relay, device) = with_device(Mqtt::V5, |config| {
        set(config, "devices", "confirm_timeout", "10s");
    })
    .await;
    let first = renewed(&device, Mqtt::V5).await;
    let client = device.client(Mqtt::V311);
    let silent = client.ask(ID, &request(ID, &nonce())).await;
    given_up(&house, &silent).await;
    for held in [&first, &credential(&silent)] {
        assert!(
            house.logs_in(&relay, held).await,
            "nobody knows which one it uses"
        );
    }
    // It comes back with a new request: what it never confirmed goes.
    let second = renewed(&device, Mqtt::V5).await;
    one_lives(&house, &relay, &device).await;
    for gone in [&first, &credential(&silent)] {
        assert!(!house.logs_in(&relay, gone).await);
    }
    assert!(house.logs_in(&relay, &second).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_result_still_counts() {
    let (house, relay, device) = with_device(Mqtt::V5, |config| {
        set(config, "devices", "confirm_timeout", "10s");
    })
    .await;
    let first = renewed(&device, Mqtt::V5).await;
    let client = device.client(Mqtt::V311);
    let late = client.ask(ID, &request(ID, &nonce())).await;
    given_up(&house, &late).await;
    client.say(ID, &success(&late)).await;
    let doc = house.settled(ID).await;
    assert!(doc.current.is_some_and(|held| held.proven));
    assert!(!house.logs_in(&relay, &first).await);
    assert!(house.logs_in(&relay, &credential(&late)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signature_counts_within_the_clocks_window_only() {
    let (house, relay, mut device) = with_device(Mqtt::V5, |config| {
        set(config, "devices", "clock_skew", "5m");
    })
    .await;
    let keys = device.make_keys();
    house.allow(ID, &keys).await;
    for off in [-3_600, 3_600] {
        let mut wrong = device.start_with_clock(off, Mqtt::V5, &["--once"]);
        let told = wrong.event("told_to_wait").await;
        assert_eq!(told["error"], "clock_skew", "{off}");
        wrong.kill().await;
    }
    house.refused("signature.clock_skew").await;
    assert_eq!(house.count(ID, "device.asked").await, 0);
    for off in [-180, 180] {
        device
            .start_with_clock(off, Mqtt::V5, &IMPATIENT)
            .done()
            .await;
        one_lives(&house, &relay, &device).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_relays_share_the_devices_and_either_serves_them_alone() {
    let mut house = House::new(PROGRAM, Mqtt::V5, |config| {
        set(config, "mqtt", "share", "keyturn");
        // As long as a restart takes: a relay that is away has its turn until then.
        set(config, "mqtt", "session_expiry", "1s");
    })
    .await;
    let sibling = Sibling::of(&mut house.world, PROGRAM);
    let first = house.relay().await;
    let second = sibling.relay().await;
    let subscribed = "subscribed to the devices' messages";
    eventually("the second relay hears devices as well", async || {
        let log = std::fs::read_to_string(sibling.log()).ok()?;
        log.contains(subscribed).then_some(())
    })
    .await;
    let mut devices = Vec::new();
    for n in 0..4 {
        let id = format!("river-iot-100{n}");
        house.allow(&id, &[]).await;
        devices.push(house.device(&id, &first));
    }
    let mut sent = 0;
    for _ in 0..2 {
        let turned_on = devices
            .iter()
            .map(|device| device.start(Mqtt::V5, &IMPATIENT));
        let turned_on: Vec<_> = turned_on.collect();
        for device in turned_on {
            let said = device.done().await;
            let messages = said.iter().map(|event| &event["event"]);
            sent += messages
                .filter(|&it| it == "asked" || it == "reported")
                .count() as u64;
        }
    }
    // Every message was one relay's, and either had its share.
    let mut heard = Vec::new();
    eventually("every message is dealt with", async || {
        heard = vec![
            counter(&first, MESSAGES, "").await,
            counter(&second, MESSAGES, "").await,
        ];
        (heard.iter().sum::<u64>() >= sent).then_some(())
    })
    .await;
    assert_eq!(heard.iter().sum::<u64>(), sent, "{heard:?}");
    assert!(!heard.contains(&0), "{heard:?}");
    for device in &devices {
        answered_once(&house, device).await;
    }
    eventually("one lives of each", async || {
        (house.living() == 4).then_some(())
    })
    .await;

    // The login is the first one's; so it is the second that is killed, and comes back.
    let mut renewing = devices[0].start(Mqtt::V5, &IMPATIENT);
    renewing.event("asked").await;
    tokio::task::spawn_blocking(move || second.kill())
        .await
        .unwrap();
    renewing.done().await;
    let second = sibling.relay().await;
    // What the first one reported while the killed relay had its turn went with that one's session: it is confirmed by what comes next.
    for device in &devices[..2] {
        renewed(device, Mqtt::V5).await;
    }
    for device in &devices {
        answered_once(&house, device).await;
    }
    eventually("one lives of each", async || {
        (house.living() == 4).then_some(())
    })
    .await;
    // And the other way round, with logins at the second one.
    tokio::task::spawn_blocking(move || first.kill())
        .await
        .unwrap();
    for device in &mut devices {
        device.login = house.device(&device.id, &second).login;
        device.start(Mqtt::V5, &IMPATIENT).done().await;
    }
    for device in &devices {
        answered_once(&house, device).await;
    }
    tokio::task::spawn_blocking(move || second.terminate())
        .await
        .unwrap();
}
