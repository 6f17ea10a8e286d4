//! The whole product on Cloud Firestore and Cloud KMS: how many write commits a rotation takes, and that nothing of what it sends to either, or hears from
//! them, is in a log. The real relay process, the official emulator behind a proxy, and a server with the methods of Cloud KMS.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "google_cloud/cost.rs"]
mod cost;
#[path = "google_cloud/log.rs"]
mod log;
#[path = "../../firestore-schema/tests/firestore/proxy.rs"]
#[allow(dead_code, reason = "it can do more than is needed here")]
mod proxy;

use std::num::NonZeroU64;

use keyturn_store::emulator::Emulator;
use keyturn_store::fake_kms::FakeKms;
use keyturn_tests::world::set;
use keyturn_tests::{World, kms};

use proxy::Proxy;

/// A world with nothing of its own but keys and the relay's event store.
async fn world(
    program: &str,
    server: &FakeKms,
    tune: impl FnOnce(&mut toml::Table),
) -> (World, Proxy) {
    let emulator = Emulator::shared().await;
    let project = emulator.fresh_project();
    let proxy = Proxy::before(&emulator.endpoint()).await;
    let world = World::new(program, |config| {
        config["store"] = toml::Table::new().into();
        set(config, "store", "kind", "firestore");
        set(config, "store", "project", project);
        set(config, "store", "endpoint", proxy.endpoint());
        kms::configure(config, server, NonZeroU64::MIN);
        for limit in ["client_requests_per_hour", "admin_requests_per_hour"] {
            set(config, "policy", limit, 100_000);
        }
        tune(config);
    })
    .await;
    (world, proxy)
}
