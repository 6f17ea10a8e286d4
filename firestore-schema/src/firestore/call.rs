//! One attempt of one call, with a deadline of ours: a server that accepts and never answers must not hold anybody.

use std::time::Instant;

use firestore::FirestoreDb;
use firestore::gcloud_sdk::GoogleAuthMiddleware;
use firestore::gcloud_sdk::google::firestore::v1::firestore_client::FirestoreClient;
use firestore::gcloud_sdk::tonic::{Request, Status};
use tokio::time::timeout;

use super::cost::{self, Counters};
use super::paths::Path;
use super::settings::FirestoreSettings;
use crate::audit::Instance;

/// The generated gRPC client on the shared connection.
pub(super) type Client = FirestoreClient<GoogleAuthMiddleware>;

/// The connection and what every call needs of the settings.
pub(super) struct Link {
    pub(super) db: FirestoreDb,
    pub(super) settings: FirestoreSettings,
    /// Whose audit chain takes the records that name no client.
    pub(super) instance: Instance,
    pub(super) counters: Counters,
}

impl Link {
    /// `projects/…/databases/…`.
    pub(super) fn database(&self) -> &str {
        self.db.get_database_path()
    }

    /// `projects/…/databases/…/documents`.
    pub(super) fn documents(&self) -> &str {
        self.db.get_documents_path()
    }

    pub(super) fn client(&self) -> Client {
        self.db.client().get()
    }

    /// The full resource name of a document.
    pub(super) fn name(&self, path: &Path) -> String {
        format!("{}/{}", self.documents(), path.as_str())
    }

    /// Runs one attempt of `call`. It takes no longer than an attempt may, and ends with `deadline`.
    ///
    /// # Errors
    /// The server's status; DEADLINE_EXCEEDED when the time is over.
    pub(super) async fn attempt<M, R, F, Fut>(
        &self,
        call: &'static str,
        deadline: Instant,
        message: M,
        send: F,
    ) -> Result<R, Status>
    where
        F: FnOnce(Client, Request<M>) -> Fut,
        Fut: Future<Output = Result<R, Status>>,
    {
        let started = Instant::now();
        let left = deadline
            .saturating_duration_since(started)
            .min(self.settings.attempt());
        let mut request = Request::new(message);
        // The server stops as well, so that a commit given up here does not land long after.
        request.set_timeout(left);
        let answer = timeout(left, send(self.client(), request)).await;
        cost::took(call, started.elapsed());
        answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("")))
    }
}
