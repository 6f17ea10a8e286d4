//! One HTTP exchange with Vault, and what its failure means.
//!
//! What must always hold: an exchange is bounded in time and size; whether the request may have taken effect is never guessed too low; nothing of a body or of a
//! token gets into an error or a log line; a token goes only to the configured address, or to where that address redirects over the same scheme.

use std::time::Duration;

use axum::body::Bytes;
use reqwest::{Method, StatusCode, Url, header, header::HeaderValue};
use zeroize::{Zeroize as _, Zeroizing};

use super::settings::VaultSettings;
use super::wire;
use crate::devices::issuer::{IssuerError, Reason};

/// A standby's answer leads to the active node; one more in case that one just changed.
const MAX_REDIRECTS: usize = 2;
/// Largest answer that may hold a secret.
pub(super) const SMALL: usize = 64 * 1024;
/// Largest list: 400,000 accessors.
pub(super) const LIST: usize = 16 * 1024 * 1024;
/// Longest `Retry-After` that is believed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// Why Vault did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) why: Reason,
    pub(super) after: Duration,
    /// The request may have taken effect all the same.
    pub(super) doubt: bool,
    /// Trying again changes nothing.
    pub(super) permanent: bool,
}

impl Failure {
    pub(super) const fn retryable(why: Reason, after: Duration) -> Self {
        Self {
            why,
            after,
            doubt: false,
            permanent: false,
        }
    }

    pub(super) const fn in_doubt(why: Reason, after: Duration) -> Self {
        Self {
            doubt: true,
            ..Self::retryable(why, after)
        }
    }

    pub(super) const fn permanent(why: Reason) -> Self {
        Self {
            why,
            after: Duration::from_secs(60),
            doubt: false,
            permanent: true,
        }
    }

    pub(super) const fn garbled() -> Self {
        Self::in_doubt(Reason::Garbled, Duration::from_secs(10))
    }

    /// For a call whose repeat does no harm.
    pub(super) const fn harmless(self) -> IssuerError {
        match self {
            Self {
                why,
                permanent: true,
                ..
            } => IssuerError::Permanent { why },
            Self { why, after, .. } => IssuerError::Retryable { why, after },
        }
    }

    /// For a call that makes something.
    pub(super) const fn making(self) -> IssuerError {
        match self {
            Self {
                why,
                after,
                doubt: true,
                ..
            } => IssuerError::InDoubt { why, after },
            other => other.harmless(),
        }
    }

    /// Whether it speaks of Vault's health, and not of our request.
    pub(super) const fn of_the_server(&self) -> bool {
        matches!(
            self.why,
            Reason::Unreachable
                | Reason::Timeout
                | Reason::Sealed
                | Reason::Standby
                | Reason::ServerError
                | Reason::Garbled
        )
    }
}

/// One request.
pub(super) struct Call {
    pub(super) method: Method,
    /// Below `/v1/`.
    pub(super) path: String,
    pub(super) body: Option<Bytes>,
    pub(super) wrap_ttl: Option<Duration>,
    /// Some `sys` paths exist only outside namespaces.
    pub(super) namespaced: bool,
    /// Largest answer taken.
    pub(super) limit: usize,
}

impl Call {
    pub(super) fn get(path: String) -> Self {
        Self {
            method: Method::GET,
            path,
            body: None,
            wrap_ttl: None,
            namespaced: true,
            limit: SMALL,
        }
    }

    pub(super) fn post(path: String, body: Zeroizing<Vec<u8>>) -> Self {
        Self {
            method: Method::POST,
            // Wiped when the last exchange with it is over.
            body: Some(Bytes::from_owner(Wiped(body))),
            ..Self::get(path)
        }
    }
}

/// Lets `Bytes` own a wiping buffer.
pub(super) struct Wiped(pub(super) Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// What came back, whatever its status.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Zeroizing<Vec<u8>>,
    retry_after: Option<Duration>,
}

impl Answer {
    /// The answer if Vault did what it was asked, otherwise what its status means.
    pub(super) fn good(self) -> Result<Self, Failure> {
        match self.failure() {
            None => Ok(self),
            Some(failure) => Err(failure),
        }
    }

    /// What the status means; `None` for success.
    pub(super) fn failure(&self) -> Option<Failure> {
        let second = Duration::from_secs(1);
        let after = |default| self.retry_after.unwrap_or(default);
        Some(match self.status.as_u16() {
            200..=299 => return None,
            300..=399 => Failure::retryable(Reason::Standby, after(second * 2)),
            401 => Failure::permanent(Reason::Unauthenticated),
            403 => Failure::permanent(Reason::Denied),
            404 => Failure::permanent(Reason::UnknownRole),
            // A node that has not caught up with an earlier write.
            412 => Failure::retryable(Reason::Standby, second),
            429 => Failure::retryable(Reason::RateLimited, after(second)),
            472..=474 => Failure::retryable(Reason::Standby, after(second * 10)),
            // Whatever stands in front of Vault says so as well, also of a request that Vault has carried out.
            501 | 503 if wire::is_sealed(&self.body) => {
                Failure::retryable(Reason::Sealed, after(second * 10))
            }
            501 | 503 => Failure::in_doubt(Reason::ServerError, after(second * 10)),
            400..=499 => Failure::permanent(Reason::Rejected),
            // Vault also says 500 when it did what was asked and could not write its own audit log.
            500..=599 => Failure::in_doubt(Reason::ServerError, after(second * 5)),
            _ => Failure::garbled(),
        })
    }
}

/// The client could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum VaultSetupError {
    /// The CA file cannot be read.
    #[error("cannot read {}: {cause}", path.display())]
    CaFile {
        /// Which file.
        path: std::path::PathBuf,
        /// The operating system's error.
        #[source]
        cause: std::io::Error,
    },
    /// The CA file holds no certificate.
    #[error("{} holds no PEM certificate", path.display())]
    NoCertificate {
        /// Which file.
        path: std::path::PathBuf,
    },
    /// The HTTP client.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(String),
    /// The namespace cannot stand in a header.
    #[error("the namespace cannot stand in a header")]
    Namespace,
}

pub(super) struct Transport {
    client: reqwest::Client,
    settings: std::sync::Arc<VaultSettings>,
    namespace: Option<HeaderValue>,
}

impl Transport {
    pub(super) fn new(settings: std::sync::Arc<VaultSettings>) -> Result<Self, VaultSetupError> {
        let mut builder = reqwest::Client::builder()
            // Ours: reqwest would take the token along to any host.
            .redirect(reqwest::redirect::Policy::none())
            .timeout(settings.timeout)
            .connect_timeout(settings.timeout)
            .pool_max_idle_per_host(settings.max_in_flight)
            // Before a server or a load balancer closes it, which some do after five seconds: a request on a connection that is being closed leaves its outcome in doubt.
            .pool_idle_timeout(Duration::from_secs(3))
            .https_only(settings.address.tls())
            .http1_only()
            .no_proxy();
        if let Some(path) = &settings.ca_file {
            let pem = std::fs::read(path).map_err(|cause| VaultSetupError::CaFile {
                path: path.clone(),
                cause,
            })?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem)
                .ok()
                .filter(|found| !found.is_empty())
                .ok_or_else(|| VaultSetupError::NoCertificate { path: path.clone() })?;
            builder = builder.tls_certs_only(certificates);
        }
        let client = builder
            .build()
            .map_err(|error| VaultSetupError::Client(error.without_url().to_string()))?;
        let namespace = settings
            .namespace
            .as_ref()
            .map(|name| HeaderValue::from_str(name.as_str()))
            .transpose()
            .map_err(|_| VaultSetupError::Namespace)?;
        Ok(Self {
            client,
            settings,
            namespace,
        })
    }

    /// One exchange, following a standby's redirect.
    pub(super) async fn send(
        &self,
        call: &Call,
        token: Option<&HeaderValue>,
    ) -> Result<Answer, Failure> {
        let asked = self.settings.address.api(&call.path);
        let mut url = asked.clone();
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.exchange(url, call, token).await?;
            if !matches!(answer.status().as_u16(), 307 | 308) {
                return read(answer, call.limit).await;
            }
            let Some(next) = self.redirected(&asked, &answer) else {
                break;
            };
            url = next;
        }
        Err(Failure::retryable(Reason::Standby, Duration::from_secs(2)))
    }

    async fn exchange(
        &self,
        url: Url,
        call: &Call,
        token: Option<&HeaderValue>,
    ) -> Result<reqwest::Response, Failure> {
        let mut request = self
            .client
            .request(call.method.clone(), url)
            // Agents and proxies in front of Vault can demand it against request forgery.
            .header("x-vault-request", "true");
        if let Some(token) = token {
            request = request.header("x-vault-token", token.clone());
        }
        if let Some(namespace) = self.namespace.as_ref().filter(|_| call.namespaced) {
            request = request.header("x-vault-namespace", namespace.clone());
        }
        if let Some(ttl) = call.wrap_ttl {
            request = request.header("x-vault-wrap-ttl", ttl.as_secs());
        }
        if let Some(body) = &call.body {
            request = request
                .header(header::CONTENT_TYPE, "application/json")
                .body(body.clone());
        }
        request.send().await.map_err(|error| broken(&error))
    }

    /// The same path on the node that a standby names; never away from TLS.
    fn redirected(&self, asked: &Url, answer: &reqwest::Response) -> Option<Url> {
        let location = answer.headers().get(header::LOCATION)?.to_str().ok()?;
        let target = asked.join(location).ok()?;
        let same = target.path() == asked.path() && target.scheme() == asked.scheme();
        let bare = target.username().is_empty() && target.password().is_none();
        (same && bare).then_some(target)
    }
}

/// A connection that failed or broke.
fn broken(error: &reqwest::Error) -> Failure {
    let second = Duration::from_secs(1);
    if error.is_connect() {
        let why = if error.is_timeout() {
            Reason::Timeout
        } else {
            Reason::Unreachable
        };
        // Nothing was sent.
        Failure::retryable(why, second * 5)
    } else if error.is_builder() {
        Failure::permanent(Reason::Rejected)
    } else if error.is_timeout() {
        Failure::in_doubt(Reason::Timeout, second * 5)
    } else {
        Failure::in_doubt(Reason::Unreachable, second * 5)
    }
}

/// Reads the body into a buffer that is wiped, the pieces it came in wherever they are ours alone.
async fn read(mut answer: reqwest::Response, limit: usize) -> Result<Answer, Failure> {
    let status = answer.status();
    let retry_after = answer
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(|seconds| Duration::from_secs(seconds).min(MAX_RETRY_AFTER));
    let announced = answer
        .content_length()
        .map_or(4096, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let mut body = Zeroizing::new(Vec::with_capacity(announced.min(limit)));
    while let Some(chunk) = answer.chunk().await.map_err(|error| broken(&error))? {
        if body.len() + chunk.len() > limit {
            return Err(Failure::garbled());
        }
        append(&mut body, &chunk);
        if let Ok(mut own) = chunk.try_into_mut() {
            own.as_mut().zeroize();
        }
    }
    Ok(Answer {
        status,
        body,
        retry_after,
    })
}

/// Grows by moving into a new buffer, so that the old one is wiped and not just freed.
fn append(body: &mut Zeroizing<Vec<u8>>, piece: &[u8]) {
    let needed = body.len() + piece.len();
    if needed > body.capacity() {
        let mut larger = Zeroizing::new(Vec::with_capacity(needed.max(body.capacity() * 2)));
        larger.extend_from_slice(body);
        *body = larger;
    }
    body.extend_from_slice(piece);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn answered(status: u16) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            body: Zeroizing::default(),
            retry_after: None,
        }
    }

    #[test]
    fn every_status_has_one_meaning() {
        for (status, why, doubt, permanent) in [
            (307, Reason::Standby, false, false),
            (400, Reason::Rejected, false, true),
            (401, Reason::Unauthenticated, false, true),
            (403, Reason::Denied, false, true),
            (404, Reason::UnknownRole, false, true),
            (405, Reason::Rejected, false, true),
            (412, Reason::Standby, false, false),
            (429, Reason::RateLimited, false, false),
            (472, Reason::Standby, false, false),
            (473, Reason::Standby, false, false),
            (474, Reason::Standby, false, false),
            (500, Reason::ServerError, true, false),
            (501, Reason::ServerError, true, false),
            (502, Reason::ServerError, true, false),
            (503, Reason::ServerError, true, false),
            (504, Reason::ServerError, true, false),
            (530, Reason::ServerError, true, false),
            (999, Reason::Garbled, true, false),
        ] {
            let failure = answered(status).failure().unwrap();
            assert_eq!(
                (failure.why, failure.doubt, failure.permanent),
                (why, doubt, permanent),
                "{status}"
            );
            assert_eq!(failure.making().in_doubt(), doubt, "{status}");
            assert!(!failure.harmless().in_doubt(), "{status}");
        }
        assert_eq!(answered(204).failure(), None);
    }

    /// Only Vault's own word says that nothing was done. The hint of when to come back counts either way.
    #[test]
    fn a_server_is_sealed_when_it_says_so_itself() {
        let health = r#"{"initialized":true,"sealed":true,"standby":true}"#;
        let fresh = r#"{"initialized":false,"sealed":true,"standby":true}"#;
        for (body, sealed) in [
            (r#"{"errors":["Vault is sealed"]}"#, true),
            (r#"{"errors":["OpenBao is sealed"]}"#, true),
            (
                r#"{"errors":["error performing token check: Vault is sealed"]}"#,
                true,
            ),
            (r#"{"error":"Vault is sealed."}"#, true),
            (health, true),
            (fresh, true),
            ("", false),
            ("{}", false),
            (r#"{"errors":[]}"#, false),
            (r#"{"errors":["no server available"]}"#, false),
            (r#"{"errors":["the envelope was unsealed"]}"#, false),
            (r#"{"sealed":false}"#, false),
            (r#"{"sealed":"true"}"#, false),
            ("Vault is sealed", false),
            ("<html>503 Service Unavailable: sealed</html>", false),
        ] {
            for status in [501, 503] {
                let answer = Answer {
                    body: Zeroizing::new(body.as_bytes().to_vec()),
                    retry_after: Some(Duration::from_secs(7)),
                    ..answered(status)
                };
                let failure = answer.failure().unwrap();
                assert_eq!(failure.doubt, !sealed, "{status} {body}");
                assert_eq!(failure.why == Reason::Sealed, sealed, "{status} {body}");
                assert_eq!(failure.after, Duration::from_secs(7), "{status} {body}");
            }
        }
    }

    #[test]
    fn a_growing_body_keeps_what_it_had() {
        let mut body = Zeroizing::new(Vec::with_capacity(2));
        for piece in [&b"ab"[..], b"cde", b"", b"f"] {
            append(&mut body, piece);
        }
        assert_eq!(body.as_slice(), b"abcdef");
    }
}
