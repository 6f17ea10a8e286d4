//! The relay is killed, or told to end, while a device is being served: nothing is lost, and nothing is issued twice.

use keyturn::crash::Point;
use keyturn_tests::iot::Mqtt;

use super::{BOTH, IMPATIENT, one_lives, renewed, with_device};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_killed_at_any_step_leaves_one_secret_id_and_no_orphan() {
    let (house, mut relay, device) = with_device(Mqtt::V5, |_| {}).await;
    let mut held = renewed(&device, Mqtt::V5).await;
    for point in Point::DEVICES {
        relay.arm(point);
        let renewing = device.start(Mqtt::V5, &IMPATIENT);
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
            let mut renewing = device.start(version, &IMPATIENT);
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
