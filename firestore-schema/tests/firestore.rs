//! The Firestore backend beyond the contract: documents as they lie there, races of two relays, calls that go wrong at the worst moment, damage, and what
//! reaches a log. All on the official emulator.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "firestore/approle.rs"]
mod approle;
#[path = "firestore/damage.rs"]
mod damage;
#[path = "firestore/deployed.rs"]
mod deployed;
#[path = "firestore/documents.rs"]
mod documents;
#[path = "firestore/faults.rs"]
mod faults;
#[path = "support/log.rs"]
mod listening;
#[path = "firestore/log.rs"]
mod log;
#[path = "firestore/proxy.rs"]
mod proxy;
#[path = "firestore/races.rs"]
mod races;
#[path = "firestore/rest.rs"]
mod rest;
#[path = "rules/token.rs"]
mod token;

use std::sync::Arc;
use std::time::Duration;

use keyturn_store::audit::Instance;
use keyturn_store::contract::World;
use keyturn_store::emulator::Emulator;
use keyturn_store::firestore::{FirestoreSettings, FirestoreStore};

/// A project of its own on the shared emulator.
struct Place {
    project: String,
    endpoint: String,
}

impl Place {
    async fn fresh() -> Self {
        let emulator = Emulator::shared().await;
        Self {
            project: emulator.fresh_project(),
            endpoint: emulator.endpoint(),
        }
    }

    fn settings(&self, endpoint: &str, timeout: Duration) -> FirestoreSettings {
        FirestoreSettings {
            project: self.project.clone(),
            database: "keyturn".to_owned(),
            endpoint: Some(endpoint.parse().unwrap()),
            timeout,
        }
    }

    /// A relay's store: a connection and a chain of its own.
    async fn relay(&self, name: &str) -> FirestoreStore {
        let settings = self.settings(&self.endpoint, Duration::from_secs(60));
        let instance = Instance::named(name).unwrap();
        FirestoreStore::open_as(settings, &instance).await.unwrap()
    }

    /// The same, with a client and three admins in it.
    async fn settled(&self) -> FirestoreStore {
        let store = self.relay("first").await;
        World::new(Arc::new(store.clone())).settle().await;
        store
    }
}
