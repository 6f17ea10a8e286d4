//! The Firestore backend against the contract, on the official emulator.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use keyturn_store::contract;
use keyturn_store::emulator::Emulator;
use keyturn_store::firestore::{FirestoreSettings, FirestoreStore};
use keyturn_store::store::Store;

#[tokio::test(flavor = "multi_thread")]
async fn firestore_keeps_the_contract() {
    let emulator = Emulator::shared().await;
    contract::run(|| async {
        let settings = FirestoreSettings {
            project: emulator.fresh_project(),
            database: "keyturn".to_owned(),
            endpoint: Some(emulator.endpoint().parse().unwrap()),
            timeout: Duration::from_secs(30),
        };
        Arc::new(FirestoreStore::open(settings).await.unwrap()) as Arc<dyn Store>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn firestore_keeps_the_contract_of_devices() {
    let emulator = Emulator::shared().await;
    keyturn_store::devices::contract::run(|| async {
        let settings = FirestoreSettings {
            project: emulator.fresh_project(),
            database: "keyturn".to_owned(),
            endpoint: Some(emulator.endpoint().parse().unwrap()),
            timeout: Duration::from_secs(30),
        };
        let store = FirestoreStore::open(settings).await.unwrap();
        Arc::new(store) as Arc<dyn keyturn_store::devices::contract::Backend>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn firestore_keeps_the_contract_of_the_embedded_issuer() {
    let emulator = Emulator::shared().await;
    keyturn_store::approle::contract::run(|| async {
        let settings = FirestoreSettings {
            project: emulator.fresh_project(),
            database: "keyturn".to_owned(),
            endpoint: Some(emulator.endpoint().parse().unwrap()),
            timeout: Duration::from_secs(30),
        };
        let store = FirestoreStore::open(settings).await.unwrap();
        Arc::new(store) as Arc<dyn keyturn_store::approle::contract::Backend>
    })
    .await;
}
