//! Devices whose secret_ids die at once: everybody is answered, nobody twice, in order, and the issuer is not asked for more than it was said to bear.
//!
//! The broker is `rumqttd`, which ends a connection that acknowledges messages in another order than it got them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use keyturn::devices::flow::AT_ONCE;
use keyturn::quickstart::broker;
use keyturn_tests::fleet::{self, Line};
use keyturn_tests::storm;
use keyturn_tests::vault::Api;
use keyturn_tests::{World, eventually};

const KEYTURN: &str = env!("CARGO_BIN_EXE_keyturn-under-test");
const DEVICES: usize = 300;
const LINES: usize = 3;
/// Devices that wait in one queue: several times as many as may overtake anybody.
const QUEUED: usize = 1_000;

async fn lines(broker: SocketAddr) -> Vec<Line> {
    let mut lines = Vec::new();
    for n in 0..LINES {
        let devices = (n..DEVICES).step_by(LINES);
        lines.push(Line::open(&format!("line-{n}"), broker, devices).await);
    }
    lines
}

async fn hears_devices(world: &World) {
    eventually("the relay hears the devices", async || {
        world
            .log()
            .contains("subscribed to the devices' messages")
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_devices_at_once_are_each_given_one_secret_id() {
    let broker = broker::start().await.unwrap();
    let world = World::new(KEYTURN, |config| {
        storm::serve_devices(config, broker);
        storm::embedded_issuer(config);
    })
    .await;
    world.allow_devices(0..DEVICES).await;
    let relay = world.relay().await;
    let mut lines = lines(broker).await;
    hears_devices(&world).await;

    let mut before = BTreeSet::new();
    for round in 1..=2 {
        let told = fleet::storm(&mut lines).await;
        fleet::everybody_once(&told);
        for story in told.iter().flatten() {
            assert_eq!(story.retries, 0, "a device was sent away");
            assert!(
                before.insert(story.secret_ids[0].clone()),
                "a secret_id was given twice"
            );
        }
        let docs = world.settled_devices(0..DEVICES).await;
        assert!(
            docs.iter().all(|doc| doc.attempts == round),
            "somebody was issued to twice"
        );
    }
    assert_eq!(world.recorded("device.issued").await, DEVICES * 2);
    assert_eq!(world.recorded("device.destroyed").await, DEVICES);
    relay.terminate();
    assert!(
        !world.log().contains("no connection to the broker"),
        "the broker ended the connection:\n{}",
        world.log()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_asks_vault_for_no_more_at_once_than_configured_and_for_each_secret_id_once() {
    const AT_ONCE: usize = 4;
    let broker = broker::start().await.unwrap();
    let api = Api::start().await;
    let stand = api.operator().stand(serde_json::json!({})).await;
    let token = stand.least_privileged_token(serde_json::json!({})).await;
    let world = World::new(KEYTURN, |config| {
        storm::serve_devices(config, broker);
        storm::vault_issuer(config, &stand, &api.address(), &token, AT_ONCE);
    })
    .await;
    world.allow_devices(0..DEVICES).await;
    let relay = world.relay().await;
    let mut lines = lines(broker).await;
    hears_devices(&world).await;
    api.fault(storm::slow(Duration::from_millis(5)));
    api.forget_seen();

    let told = fleet::storm(&mut lines).await;
    fleet::everybody_once(&told);
    let docs = world.settled_devices(0..DEVICES).await;
    assert!(docs.iter().all(|doc| doc.attempts == 1));
    let most = api.most_at_once();
    assert!((1..=AT_ONCE).contains(&most), "{most} calls at once");
    let path = stand.path(&format!("role/{}/secret-id", storm::ROLE));
    let issues = api
        .seen()
        .iter()
        .filter(|it| it.method == "POST" && it.path == path)
        .count();
    assert_eq!(issues, DEVICES);
    assert_eq!(stand.accessors().await.len(), DEVICES);
    relay.terminate();
}

/// A device keeps its place: of those who ask on one connection, whose order the broker keeps, it is overtaken by no more than are looked at or issued to at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_first_is_served_first_however_long_the_queue() {
    const AT_ISSUER: usize = 4;
    let broker = broker::start().await.unwrap();
    let api = Api::start().await;
    let stand = api.operator().stand(serde_json::json!({})).await;
    let token = stand.least_privileged_token(serde_json::json!({})).await;
    let world = World::new(KEYTURN, |config| {
        storm::serve_devices(config, broker);
        storm::vault_issuer(config, &stand, &api.address(), &token, AT_ISSUER);
    })
    .await;
    world.allow_devices(0..QUEUED).await;
    let relay = world.relay().await;
    let mut line = vec![Line::open("line", broker, 0..QUEUED).await];
    hears_devices(&world).await;
    // Requests come far faster than they are served.
    api.fault(storm::slow(Duration::from_millis(20)));

    let told = fleet::storm(&mut line).await;
    fleet::everybody_once(&told);
    let sent_away: usize = told.iter().flatten().map(|story| story.retries).sum();
    assert_eq!(sent_away, 0, "whoever comes back later has another place");
    let (overtaken, bound) = (fleet::most_overtaken(&told), AT_ONCE + AT_ISSUER);
    assert!(
        overtaken <= bound,
        "{overtaken} places were lost, of {bound} at most"
    );
    relay.terminate();
}
