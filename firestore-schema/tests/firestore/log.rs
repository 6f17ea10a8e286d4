//! Nothing that is stored reaches a log, at any level, whether things go well or badly.

use std::sync::Arc;
use std::time::Duration;

use keyturn_store::audit::Instance;
use keyturn_store::contract::World;
use keyturn_store::contract::fixture::{
    DELAY, NOW, at, audit, client_id, operation, outbox, prepare, reserve, version,
};
use keyturn_store::documents::VersionState;
use keyturn_store::firestore::FirestoreStore;
use keyturn_store::store::{AuditTrail as _, Registry as _, Reserved, SecretStore as _};
use serde_json::json;

use super::Place;
use super::listening::listen;
use super::proxy::{Fault, Proxy};

#[tokio::test(flavor = "multi_thread")]
async fn no_value_reaches_the_log() {
    let log = listen();
    let place = Place::fresh().await;
    let proxy = Proxy::before(&place.endpoint).await;
    let settings = place.settings(&proxy.endpoint(), Duration::from_secs(20));
    let instance = Instance::named("shaky").unwrap();
    let store = FirestoreStore::open_as(settings, &instance).await.unwrap();
    World::new(Arc::new(store.clone())).settle().await;

    // Good and bad calls alike.
    proxy.next_commits([Fault::AnswerLost]);
    proxy.next_reads([Fault::Status(14)]);
    let Ok(Reserved::New(active)) = store.reserve(reserve(&operation(2), NOW)).await else {
        panic!("not reserved")
    };
    let mut sealed = prepare(&active, 2, at(DELAY), NOW);
    sealed.outbox[0] = keyturn_store::documents::OutboxDoc {
        event_json: "CANARY-CIPHERTEXT".to_owned(),
        ..outbox(2, &active, NOW)
    };
    proxy.next_commits([Fault::Status(10), Fault::CallLost]);
    store.prepare(sealed).await.unwrap();
    store.outbox(&operation(2)).await.unwrap();
    proxy.next_commits([Fault::Status(7)]);
    store.append(audit("alarm", NOW)).await.unwrap_err();
    proxy.next_reads([Fault::Status(3)]);
    store.clients(None, 10).await.unwrap_err();
    let document = format!("oauth2_clients/{}", client_id());
    let canary = json!({ "stringValue": "CANARY-DAMAGE" });
    place.set(&document, "status", canary).await;
    store.client(&client_id()).await.unwrap_err();
    store.clients(None, 10).await.unwrap_err();

    let text = log.text();
    // The listener hears something at all, of us and of the libraries.
    assert!(text.contains("firestore: refused"));
    assert!(text.contains("h2"));
    let pending = version(2, None, VersionState::Pending, NOW);
    let first = version(1, None, VersionState::Current, NOW);
    let prefilter = pending.prefilter.unwrap();
    for value in [
        "CANARY",
        "sealed-1",
        // The credential that goes with every call.
        "Bearer owner",
        client_id().as_str(),
        &pending.secret_hash,
        &first.secret_hash,
        &pending.mac_key_ref,
        &format!("digest-of-{}", operation(2)),
    ] {
        let at = text.find(value);
        let line = at.map(|at| &text[at.saturating_sub(300)..(at + 100).min(text.len())]);
        assert!(at.is_none(), "{value} in the log: {line:?}");
    }
    assert_eq!(prefilter.len(), 8);
}
