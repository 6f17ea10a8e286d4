//! The relay is killed, or told to end, while a device is being served: nothing is lost, and nothing is issued twice.

use std::num::NonZeroU64;

use keyturn::crash::Point;
use keyturn_store::fake_kms::FakeKms;
use keyturn_tests::iot::Mqtt;
use keyturn_tests::kms;
use keyturn_tests::trail::counter;
use keyturn_tests::world::eventually;

use super::{BOTH, HASTY, ID, MESSAGES, nonce, one_lives, renewed, request, success, with_device};

/// Where the secret_id is made in the commit that records the request, the process cannot die in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_killed_on_the_short_way_leaves_one_secret_id_and_no_orphan() {
    let points = [
        Point::AfterIssueRecorded,
        Point::AfterResult,
        Point::BeforeDestroy,
        Point::AfterDestroy,
    ];
    leaves_one_secret_id_and_no_orphan(&points, |_| {}).await;
}

/// The key that secret_ids are hashed with is asked over the network, so they are made in steps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_killed_at_any_step_leaves_one_secret_id_and_no_orphan() {
    let server = FakeKms::start().await.unwrap();
    let in_steps = |config: &mut toml::Table| kms::configure(config, &server, NonZeroU64::MIN);
    leaves_one_secret_id_and_no_orphan(&Point::DEVICES, in_steps).await;
}

async fn leaves_one_secret_id_and_no_orphan(points: &[Point], tune: impl FnOnce(&mut toml::Table)) {
    let (house, mut relay, device) = with_device(Mqtt::V5, tune).await;
    let mut held = renewed(&device, Mqtt::V5).await;
    for &point in points {
        relay.arm(point);
        let renewing = device.start(Mqtt::V5, &HASTY);
        tokio::task::spawn_blocking(move || relay.wait_for_crash())
            .await
            .unwrap();
        assert!(
            house.living() >= 1,
            "{}: what the device has is gone",
            point.name()
        );
        relay = house.relay().await;
        let said = renewing.done().await;
        let new = device.credential().unwrap();
        assert_ne!(new, held, "{}: {said:?}", point.name());
        one_lives(&house, &relay, &device).await;
        assert!(!house.logs_in(&relay, &held).await, "{}", point.name());
        held = new;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_ends_and_starts_while_devices_ask_answers_them_all() {
    for version in BOTH {
        let (house, mut relay, device) = with_device(version, |_| {}).await;
        // Ended in order and killed in turn, at whatever the event finds it doing.
        for (event, in_order) in [
            ("asked", true),
            ("asked", false),
            ("tried", true),
            ("reported", false),
            ("connected", false),
        ] {
            let mut renewing = device.start(version, &HASTY);
            renewing.event(event).await;
            tokio::task::spawn_blocking(move || match in_order {
                true => drop(relay.terminate()),
                false => relay.kill(),
            })
            .await
            .unwrap();
            relay = house.relay().await;
            renewing.done().await;
            one_lives(&house, &relay, &device).await;
        }
    }
}

/// The broker has no acknowledgement of it, and delivers it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_delivered_twice_because_the_relay_was_killed_counts_once() {
    for version in BOTH {
        let server = FakeKms::start().await.unwrap();
        let in_steps = |config: &mut toml::Table| kms::configure(config, &server, NonZeroU64::MIN);
        let (house, mut relay, device) = with_device(version, in_steps).await;
        let client = device.client(Mqtt::V311);
        relay.arm(Point::AfterAsk);
        let asked = request(ID, &nonce());
        client.say(ID, &asked).await;
        tokio::task::spawn_blocking(move || relay.wait_for_crash())
            .await
            .unwrap();
        let relay = house.relay().await;
        // As the repeat of what is under way, or of what is over by now.
        eventually("it is delivered again", async || {
            let heard = counter(&relay, MESSAGES, "").await;
            (heard > 0).then_some(())
        })
        .await;
        assert_eq!(house.count(ID, "device.asked").await, 1);
        let command = client.ask(ID, &request(ID, &nonce())).await;
        client.say(ID, &success(&command)).await;
        house.settled(ID).await;
        assert_eq!(house.count(ID, "device.asked").await, 2);
        assert_eq!(house.living(), 1);
    }
}
