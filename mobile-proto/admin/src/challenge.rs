//! Fetching a challenge: `GET /kr/v1/challenge` of the relay's HTTP listener (protocol.md §6.2).

use std::time::Duration;

use keyturn_proto::nonce::{CHALLENGE_PATH, Challenge, MAX_CHALLENGE};

/// Larger answers are not read.
const MAX_BODY: usize = 4096;

/// Why there is no challenge.
#[derive(Debug, thiserror::Error)]
pub enum ChallengeError {
    /// No service URL is configured.
    #[error("no service URL is configured; pass --service-url or set it at init")]
    NotConfigured,
    /// Not an http or https URL.
    #[error("the service URL must be an http or https URL with a host")]
    Url,
    /// The service could not be reached in time.
    #[error("{url} is not reachable: {reason}")]
    Unreachable {
        /// Which URL.
        url: String,
        /// What the network said.
        reason: String,
    },
    /// Another status than 200.
    #[error("{url} answered {status}")]
    Status {
        /// Which URL.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// Not the agreed JSON.
    #[error("{url} did not answer with a challenge")]
    Answer {
        /// Which URL.
        url: String,
    },
}

/// Asks every service at once; the first challenge counts, since all instances share the key that makes them.
///
/// # Errors
/// [`ChallengeError::NotConfigured`] without a service; else why the last one gave none.
pub async fn fetch_from_any(services: &[ChallengeClient]) -> Result<Challenge, ChallengeError> {
    let asked: Vec<_> = services.iter().map(|one| Box::pin(one.fetch())).collect();
    if asked.is_empty() {
        return Err(ChallengeError::NotConfigured);
    }
    futures::future::select_ok(asked)
        .await
        .map(|(first, _)| first)
}

/// A client for one service.
pub struct ChallengeClient {
    http: reqwest::Client,
    url: reqwest::Url,
}

impl ChallengeClient {
    /// For the listener at `base`, for example `http://127.0.0.1:8081`. Redirects are not followed.
    ///
    /// # Errors
    /// [`ChallengeError::Url`].
    pub fn new(base: &str, timeout: Duration) -> Result<Self, ChallengeError> {
        crate::transport::install_tls_provider();
        let mut url = reqwest::Url::parse(base).map_err(|_| ChallengeError::Url)?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(ChallengeError::Url);
        }
        let path = format!("{}{CHALLENGE_PATH}", url.path().trim_end_matches('/'));
        url.set_path(&path);
        url.set_query(None);
        let http = reqwest::Client::builder()
            .timeout(timeout)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| ChallengeError::Unreachable {
                url: url.to_string(),
                reason: error.without_url().to_string(),
            })?;
        Ok(Self { http, url })
    }

    /// A fresh challenge.
    ///
    /// # Errors
    /// Every [`ChallengeError`] but the first two.
    pub async fn fetch(&self) -> Result<Challenge, ChallengeError> {
        let url = || self.url.to_string();
        let unreachable = |error: reqwest::Error| ChallengeError::Unreachable {
            url: url(),
            reason: error.without_url().to_string(),
        };
        let mut response = self
            .http
            .get(self.url.clone())
            .send()
            .await
            .map_err(unreachable)?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(ChallengeError::Status {
                url: url(),
                status: response.status().as_u16(),
            });
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(ChallengeError::Answer { url: url() });
            }
            body.extend_from_slice(&chunk);
        }
        let challenge: Challenge =
            serde_json::from_slice(&body).map_err(|_| ChallengeError::Answer { url: url() })?;
        if !(1..=MAX_CHALLENGE).contains(&challenge.challenge.len()) {
            return Err(ChallengeError::Answer { url: url() });
        }
        Ok(challenge)
    }
}
