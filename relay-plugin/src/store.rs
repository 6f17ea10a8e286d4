//! The document store as the configuration names it: the one place where its adapter is chosen.

use std::sync::Arc;

use keyturn_store::{
    approle::AppRoleStore,
    audit::Instance,
    firestore::{self, FirestoreStore},
    sqlite::{self, SqliteStore},
    store::Store,
};
use tokio::task::spawn_blocking;

use crate::config;

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The embedded one.
    #[error(transparent)]
    Sqlite(#[from] sqlite::OpenError),
    /// Cloud Firestore.
    #[error(transparent)]
    Firestore(#[from] firestore::OpenError),
    /// The thread that opened it ended with a panic.
    #[error("opening it ended with a panic")]
    Panicked,
}

/// The store, by its two ports.
pub struct Stores {
    /// Clients, rotations, devices, the audit trail.
    pub store: Arc<dyn Store>,
    /// Roles and secret_ids of the embedded issuer.
    pub approle: Arc<dyn AppRoleStore>,
}

/// The store that the configuration names; others may use it at the same time. Audit records that name no client go to the chain of `instance`.
///
/// # Errors
/// [`OpenError`].
pub async fn open(
    config: &config::Store,
    instance: &Instance,
) -> Result<Arc<dyn Store>, OpenError> {
    open_all(config, instance).await.map(|stores| stores.store)
}

/// As [`open`], with the port of the embedded issuer.
///
/// # Errors
/// [`OpenError`].
pub async fn open_all(config: &config::Store, instance: &Instance) -> Result<Stores, OpenError> {
    match config {
        config::Store::Sqlite { path } => {
            let (path, instance) = (path.clone(), instance.clone());
            let opened = spawn_blocking(move || SqliteStore::open_as(&path, &instance));
            let store = Arc::new(opened.await.map_err(|_| OpenError::Panicked)??);
            Ok(Stores {
                approle: store.clone(),
                store,
            })
        }
        config::Store::Firestore(settings) => {
            let opened = FirestoreStore::open_as(settings.clone(), instance);
            let store = Arc::new(opened.await?);
            Ok(Stores {
                approle: store.clone(),
                store,
            })
        }
    }
}
