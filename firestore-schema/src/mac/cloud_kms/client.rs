//! Google's client, made when it is first needed and silenced for good.
//!
//! What must always hold: nothing that the library does during a call of ours reaches a log. It prints requests with payload and MAC when its own tracing
//! is on (which an environment variable does), and whole response bodies in errors, so every call runs under a subscriber that keeps nothing, whoever
//! installed what. A redirect is never followed: it would send the payload to whoever it names.

use std::time::Duration;

use google_cloud_auth::credentials::{Credentials, anonymous};
use google_cloud_gax::client_builder::internal::with_follow_redirects;
use google_cloud_gax::retry_policy::NeverRetry;
use google_cloud_kms_v1::client::KeyManagementService;
use tokio::sync::OnceCell;
use tracing::Dispatch;
use tracing::instrument::WithSubscriber as _;

use super::fault::{Class, Fault};
use super::settings::Endpoint;

/// The library's client, once it could be made.
pub(super) struct Client {
    endpoint: Option<Endpoint>,
    /// `None` means application-default credentials.
    credentials: Option<Credentials>,
    attempt_timeout: Duration,
    made: OnceCell<KeyManagementService>,
}

impl Client {
    pub(super) fn new(
        endpoint: Option<Endpoint>,
        credentials: Option<Credentials>,
        attempt_timeout: Duration,
    ) -> Self {
        let plain = endpoint.as_ref().is_some_and(Endpoint::is_plain);
        let anonymous = || plain.then(|| anonymous::Builder::new().build());
        Self {
            credentials: credentials.or_else(anonymous),
            endpoint,
            attempt_timeout,
            made: OnceCell::new(),
        }
    }

    /// The client. Looking for credentials may read files and ask the metadata server, so it is part of the attempt and of its timeout; what failed is
    /// tried again with the next attempt.
    pub(super) async fn get(&self) -> Result<KeyManagementService, Fault> {
        self.made.get_or_try_init(|| self.make()).await.cloned()
    }

    async fn make(&self) -> Result<KeyManagementService, Fault> {
        let mut builder = KeyManagementService::builder()
            // Attempts are ours: each is checked, counted and timed (call.rs).
            .with_retry_policy(NeverRetry)
            .with_attempt_timeout(self.attempt_timeout);
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.as_str());
        }
        if let Some(credentials) = &self.credentials {
            builder = builder.with_credentials(credentials.clone());
        }
        let built = with_follow_redirects(builder, false).build().await;
        built.map_err(|error| {
            if error.is_default_credentials() {
                Fault::new(Class::Credentials)
            } else {
                Fault::new(Class::Invalid)
            }
        })
    }
}

/// Runs a future so that nothing it logs is kept.
pub(super) async fn silent<F: Future>(future: F) -> F::Output {
    future.with_subscriber(Dispatch::none()).await
}
