//! What a device goes through when nothing goes wrong.

use super::{BOTH, ID, renewed, with_device};

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
