//! What the verifier's listener and reads hear reaches no log, at any level, whether things go well or badly. Alone in its process: the log is the whole process's.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/log.rs"]
mod log;
#[path = "support/mac.rs"]
mod mac;
#[allow(dead_code, reason = "other tests freeze and redirect connections")]
#[path = "verifier_firestore/proxy.rs"]
mod proxy;
#[allow(dead_code, reason = "other tests count reads and stop heartbeats")]
#[path = "verifier_firestore/world.rs"]
mod world;

use keyturn_proto::Secret;
use keyturn_store::emulator::Emulator;
use keyturn_store::store::Registry as _;
use serde_json::json;

use log::listen;
use proxy::Proxy;
use world::{Relay, Server, eventually};

const CLIENT: &str = "canary-of-the-client";
const DAMAGE: &str = "canary-of-the-damage";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_the_verifier_reads_or_hears_reaches_the_log() {
    let log = listen();
    let emulator = Emulator::shared().await;
    let project = emulator.fresh_project();
    let proxy = Proxy::before(&emulator.endpoint()).await;
    let relay = Relay::at(&emulator.endpoint(), &project).await;
    let server = Server::behind(&proxy, &project).await;

    let (secret, version) = relay.add(CLIENT).await;
    server.verify(CLIENT, &secret).await.unwrap();
    server.settled(1).await;
    let wrong = Secret::generate().unwrap();
    server.verify(CLIENT, &wrong).await.unwrap_err();
    proxy.cut();
    eventually("the loss is noticed", async || !server.standing().live).await;
    proxy.clear_up();
    server.settled(1).await;
    let versions = relay.store.versions(&CLIENT.parse().unwrap()).await;
    let hash = versions.unwrap().remove(0).secret_hash;

    // The listener hears of a document that cannot be read.
    let damaged = reqwest::Client::new()
        .patch(format!(
            "{}/v1/projects/{project}/databases/keyturn/documents/oauth2_clients/{CLIENT}?updateMask.fieldPaths=status",
            emulator.endpoint()
        ))
        .bearer_auth("owner")
        .json(&json!({ "fields": { "status": { "stringValue": DAMAGE } } }))
        .send();
    assert!(damaged.await.unwrap().status().is_success());
    eventually("what cannot be read is not believed", async || {
        server.verify(CLIENT, &secret).await.is_err()
    })
    .await;

    let text = log.text();
    // The libraries are heard.
    assert!(text.contains("h2::"));
    for value in [
        secret.expose(),
        wrong.expose(),
        CLIENT,
        DAMAGE,
        &hash,
        &version.to_string(),
        // The credential that goes with every call.
        "Bearer owner",
    ] {
        let at = text.find(value);
        let line = at.map(|at| &text[at.saturating_sub(300)..(at + 100).min(text.len())]);
        assert!(at.is_none(), "{value} in the log: {line:?}");
    }
}
