//! What a rotation leaves in the metrics, and what it does not.

use std::time::Duration;

use keyturn_store::store::Registry;

use super::world::{GRACE, World};

/// Waits until the metrics say so: some are recorded just after what they count.
async fn shown(world: &World, wanted: &str) -> String {
    let handle = crate::metrics::install().unwrap();
    world
        .until(wanted, async || handle.render().contains(wanted))
        .await;
    handle.render()
}

#[tokio::test]
async fn a_rotation_shows_in_the_metrics_and_nobody_is_named_there() {
    crate::metrics::install().unwrap();
    let mut world = World::new().await;
    let id = world.rotate();
    let version = world.delivered(&id).await;
    world.bob_acks(&version).await;
    world.over(&id).await;
    world.clock.forward(GRACE + Duration::from_secs(1));
    for line in [
        "\nkeyturn_rotations_total{outcome=\"promoted\"} ",
        "\nkeyturn_acks_total{result=\"proven\"} ",
        "\nkeyturn_published_total{result=\"stored\"} ",
        "\nkeyturn_versions_retired_total ",
        "\nkeyturn_lease_held ",
        "\nkeyturn_due_lag_seconds ",
        "\nkeyturn_inbound_queue ",
        "\nkeyturn_request_seconds_count ",
        "\nkeyturn_prepare_seconds_count ",
        "\nkeyturn_mac_seconds_count ",
        "\nkeyturn_distribute_seconds_count ",
        "\nkeyturn_publish_seconds_count ",
        "\nkeyturn_quorum_seconds_count ",
        "\nkeyturn_store_seconds_count{op=\"write\"} ",
    ] {
        shown(&world, line).await;
    }
    let text = shown(&world, "keyturn_").await;
    // Names, ids and keys of this test; others of the same process use the same client.
    let client = world.client().await.client_id.to_string();
    let admins = world.store.admins().await.unwrap();
    let mut secrets = vec![
        client,
        id.to_string(),
        version.to_string(),
        "\"ops\"".to_owned(),
    ];
    for admin in admins {
        secrets.push(admin.npub.to_string());
        secrets.push(admin.npub.to_hex());
        secrets.extend(admin.signature_keys.into_iter().map(|key| key.key));
    }
    for named in secrets {
        assert!(!text.contains(&named), "{named}");
    }
}
