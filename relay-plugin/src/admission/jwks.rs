//! The issuer's keys, cached by `kid`.
//!
//! What must always hold: at most one fetch at a time, and at most one per `refresh_min_interval`, whatever tokens name; a fetch is bounded in
//! time and size and follows no redirect; while the issuer is away the last good set is used for `cache_ttl + stale_for` and no longer, so
//! that a key withdrawn by the issuer dies here too.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use keyturn_proto::UnixMs;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Mutex;

use super::jwk::{KeySet, MAX_BYTES};
use super::jws::IssuerKey;
use super::settings::{IssuerSettings, JwksSource, ProofAlgorithm};
use crate::metrics::JWKS_FETCHES;

/// Why there is no key to verify with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoKey {
    /// The issuer has no such key.
    UnknownKid,
    /// The issuer has that key, for another algorithm.
    WrongAlgorithm,
    /// The issuer cannot be asked and what we have is too old.
    Unavailable {
        /// When it will be asked again.
        retry_after: Duration,
    },
}

/// Why a key set could not be had. Redacted: says nothing that the issuer sent.
#[derive(Debug, thiserror::Error)]
pub enum JwksError {
    /// The HTTP client could not be set up.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(String),
    /// No answer.
    #[error("the issuer's JWKS cannot be fetched: {0}")]
    Fetch(String),
    /// An answer, but not a good one.
    #[error("the issuer's JWKS is unusable: {0}")]
    Unusable(&'static str),
}

#[derive(Clone)]
struct Cached {
    keys: Arc<KeySet>,
    fetched_at: UnixMs,
}

/// The cache.
pub(super) struct Jwks {
    source: Source,
    cache_ttl: Duration,
    stale_for: Duration,
    refresh_min_interval: Duration,
    cached: RwLock<Option<Cached>>,
    /// When a fetch was last tried. Held across the fetch: that is the single flight.
    last_try: Mutex<Option<UnixMs>>,
}

enum Source {
    Url {
        client: reqwest::Client,
        url: String,
    },
    File(std::path::PathBuf),
}

/// What came from the source.
struct Answer {
    text: Vec<u8>,
    /// The `Date` header, as it was sent.
    date: Option<String>,
}

impl Source {
    fn new(settings: &IssuerSettings) -> Result<Self, JwksError> {
        Ok(match &settings.jwks {
            JwksSource::File(path) => Self::File(path.clone()),
            JwksSource::Url(url) => {
                let client = reqwest::Client::builder()
                    .redirect(reqwest::redirect::Policy::none())
                    .timeout(settings.fetch_timeout)
                    .connect_timeout(settings.fetch_timeout)
                    .no_proxy()
                    .build()
                    .map_err(|error| JwksError::Client(error.without_url().to_string()))?;
                Self::Url {
                    client,
                    url: url.clone(),
                }
            }
        })
    }

    async fn read(&self) -> Result<Answer, JwksError> {
        match self {
            Self::File(path) => Ok(Answer {
                text: read_file(path).await?,
                date: None,
            }),
            Self::Url { client, url } => get(client, url).await,
        }
    }
}

/// What one look at the issuer found, for `keyturn doctor`.
#[derive(Debug)]
pub struct IssuerReport {
    /// Usable keys by `kid`, sorted, and the algorithm each is for. A `kid` is the issuer's own text.
    pub keys: Vec<(String, ProofAlgorithm)>,
    /// Why other keys cannot be used, one entry for each.
    pub left_out: Vec<&'static str>,
    /// The `Date` header of the answer, as it was sent.
    pub date: Option<String>,
}

/// Asks the issuer once, past every cache.
///
/// # Errors
/// [`JwksError`].
pub async fn examine(settings: &IssuerSettings) -> Result<IssuerReport, JwksError> {
    let Answer { text, date } = Source::new(settings)?.read().await?;
    let (keys, left_out) = KeySet::parse_and_tell(&text).map_err(JwksError::Unusable)?;
    let mut keys: Vec<_> = keys
        .names()
        .map(|(kid, alg)| (kid.to_owned(), alg))
        .collect();
    keys.sort_by(|one, other| (&one.0, one.1.jose()).cmp(&(&other.0, other.1.jose())));
    Ok(IssuerReport {
        keys,
        left_out,
        date,
    })
}

impl Jwks {
    pub(super) fn new(settings: &IssuerSettings) -> Result<Self, JwksError> {
        Ok(Self {
            source: Source::new(settings)?,
            cache_ttl: settings.cache_ttl,
            stale_for: settings.stale_for,
            refresh_min_interval: settings.refresh_min_interval,
            cached: RwLock::new(None),
            last_try: Mutex::new(None),
        })
    }

    /// The key that a token names.
    pub(super) async fn key(
        &self,
        kid: &str,
        algorithm: ProofAlgorithm,
        now: UnixMs,
    ) -> Result<IssuerKey, NoKey> {
        if let Some(found) = self.fresh(now).filter(|keys| keys.knows(kid)) {
            return pick(&found, kid, algorithm);
        }
        let next_try = self.refresh(kid, now).await;
        match self.usable(now) {
            Some(keys) if keys.knows(kid) => pick(&keys, kid, algorithm),
            // With a set that is up to date the kid is unknown; with a stale one nobody can say.
            Some(_) if self.fresh(now).is_some() => Err(NoKey::UnknownKid),
            _ => Err(NoKey::Unavailable {
                retry_after: next_try,
            }),
        }
    }

    /// Fetches now, for `doctor` and readiness.
    pub(super) async fn probe(&self, now: UnixMs) -> Result<(), JwksError> {
        let mut last_try = self.last_try.lock().await;
        *last_try = Some(now);
        self.store(self.fetch().await?, now);
        Ok(())
    }

    /// Fetches unless somebody just did, or it is too early. Returns how long until the next try may be made.
    async fn refresh(&self, kid: &str, now: UnixMs) -> Duration {
        let mut last_try = self.last_try.lock().await;
        // Whoever held the lock before us may have brought what we need.
        if self.fresh(now).is_some_and(|keys| keys.knows(kid)) {
            return Duration::ZERO;
        }
        if let Some(wait) =
            last_try.and_then(|last| remaining(last, self.refresh_min_interval, now))
        {
            return wait;
        }
        *last_try = Some(now);
        match self.fetch().await {
            Ok(keys) => self.store(keys, now),
            Err(error) => tracing::warn!(%error, "the issuer's keys could not be refreshed"),
        }
        self.refresh_min_interval
    }

    async fn fetch(&self) -> Result<KeySet, JwksError> {
        let fetched = async {
            let answer = self.source.read().await?;
            KeySet::parse(&answer.text).map_err(JwksError::Unusable)
        }
        .await;
        let result = if fetched.is_ok() { "ok" } else { "failed" };
        metrics::counter!(JWKS_FETCHES, "result" => result).increment(1);
        fetched
    }

    fn store(&self, keys: KeySet, now: UnixMs) {
        let cached = Cached {
            keys: Arc::new(keys),
            fetched_at: now,
        };
        *self.cached.write().unwrap_or_else(PoisonError::into_inner) = Some(cached);
    }

    fn fresh(&self, now: UnixMs) -> Option<Arc<KeySet>> {
        self.not_older_than(self.cache_ttl, now)
    }

    fn usable(&self, now: UnixMs) -> Option<Arc<KeySet>> {
        self.not_older_than(self.cache_ttl.saturating_add(self.stale_for), now)
    }

    fn not_older_than(&self, age: Duration, now: UnixMs) -> Option<Arc<KeySet>> {
        let cached = self.cached.read().unwrap_or_else(PoisonError::into_inner);
        let cached = cached.as_ref()?;
        remaining(cached.fetched_at, age, now).map(|_| Arc::clone(&cached.keys))
    }
}

fn pick(keys: &KeySet, kid: &str, algorithm: ProofAlgorithm) -> Result<IssuerKey, NoKey> {
    keys.find(kid, algorithm)
        .cloned()
        .ok_or(NoKey::WrongAlgorithm)
}

/// What is left of `span` after `from`; nothing when it is over, or when the clock was set back before `from`: then nothing is known about age.
fn remaining(from: UnixMs, span: Duration, now: UnixMs) -> Option<Duration> {
    if now < from {
        return None;
    }
    span.checked_sub(now.since(from))
        .filter(|left| !left.is_zero())
}

async fn read_file(path: &std::path::Path) -> Result<Vec<u8>, JwksError> {
    let unreadable = |error: std::io::Error| JwksError::Fetch(error.kind().to_string());
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let mut text = Vec::new();
    file.take(MAX_BYTES as u64 + 1)
        .read_to_end(&mut text)
        .await
        .map_err(unreadable)?;
    within_size(text)
}

async fn get(client: &reqwest::Client, url: &str) -> Result<Answer, JwksError> {
    let failed = |error: reqwest::Error| JwksError::Fetch(error.without_url().to_string());
    let mut answer = client.get(url).send().await.map_err(failed)?;
    if answer.status() != reqwest::StatusCode::OK {
        return Err(JwksError::Fetch(format!(
            "HTTP status {}",
            answer.status().as_u16()
        )));
    }
    let date = answer
        .headers()
        .get(reqwest::header::DATE)
        .and_then(|date| date.to_str().ok())
        .map(str::to_owned);
    let mut text = Vec::new();
    // Chunk by chunk: a `content-length` may be absent or a lie.
    while let Some(chunk) = answer.chunk().await.map_err(failed)? {
        text.extend_from_slice(&chunk);
        if text.len() > MAX_BYTES {
            break;
        }
    }
    Ok(Answer {
        text: within_size(text)?,
        date,
    })
}

fn within_size(text: Vec<u8>) -> Result<Vec<u8>, JwksError> {
    if text.len() > MAX_BYTES {
        return Err(JwksError::Unusable("it is larger than 256 KiB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
