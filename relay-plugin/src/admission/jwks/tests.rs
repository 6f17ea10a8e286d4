//! The cache against a real HTTP server that can rotate keys, fail, stall and lie.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;
use tokio::sync::Notify;

use super::*;
use crate::admission::scenarios::{Signer, TestIssuer};

const T0: UnixMs = UnixMs(1_760_000_000_000);
const ED: ProofAlgorithm = ProofAlgorithm::EdDsa;

#[derive(Clone)]
enum Mode {
    Serve(String),
    Status(StatusCode),
    RedirectTo(String),
    /// Answers only once released.
    Stall(Arc<Notify>, String),
}

struct Issuer {
    mode: StdMutex<Mode>,
    asked: AtomicUsize,
}

/// The server and its URL; it ends with the test's runtime.
async fn serve(mode: Mode) -> (Arc<Issuer>, String) {
    let issuer = Arc::new(Issuer {
        mode: StdMutex::new(mode),
        asked: AtomicUsize::new(0),
    });
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
    let app = axum::Router::new()
        .route("/jwks.json", axum::routing::get(answer))
        .with_state(Arc::clone(&issuer));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (issuer, url)
}

async fn answer(State(issuer): State<Arc<Issuer>>) -> Response {
    issuer.asked.fetch_add(1, Ordering::SeqCst);
    let mode = issuer.mode.lock().unwrap().clone();
    match mode {
        Mode::Serve(text) => text.into_response(),
        Mode::Status(status) => status.into_response(),
        Mode::RedirectTo(url) => (StatusCode::FOUND, [(header::LOCATION, url)]).into_response(),
        Mode::Stall(release, text) => {
            release.notified().await;
            text.into_response()
        }
    }
}

impl Issuer {
    fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn cache(jwks: JwksSource) -> Jwks {
    Jwks::new(&IssuerSettings {
        jwks,
        audience: String::new(),
        issuer: None,
        algorithms: vec![ED],
        leeway: Duration::ZERO,
        max_lifetime: Duration::ZERO,
        cache_ttl: Duration::from_secs(600),
        stale_for: Duration::from_secs(3600),
        refresh_min_interval: Duration::from_secs(30),
        fetch_timeout: Duration::from_secs(60),
    })
    .unwrap()
}

/// A set with one key under `kid`.
fn set(kid: &str) -> String {
    let mut jwk = TestIssuer::new().jwk(Signer::Ed);
    jwk["kid"] = json!(kid);
    json!({ "keys": [jwk] }).to_string()
}

fn at(seconds: u64) -> UnixMs {
    UnixMs(T0.0 + seconds * 1000)
}

async fn ask(jwks: &Jwks, kid: &str, seconds: u64) -> Result<(), NoKey> {
    jwks.key(kid, ED, at(seconds)).await.map(drop)
}

#[tokio::test]
async fn keys_are_fetched_once_and_again_when_their_time_is_over() {
    let (issuer, url) = serve(Mode::Serve(set("a"))).await;
    let jwks = cache(JwksSource::Url(url));
    for seconds in [0, 1, 599] {
        ask(&jwks, "a", seconds).await.unwrap();
    }
    assert_eq!(issuer.asked(), 1);
    ask(&jwks, "a", 600).await.unwrap();
    assert_eq!(issuer.asked(), 2);
}

#[tokio::test]
async fn a_rotated_key_is_found_and_the_withdrawn_one_forgotten() {
    let (issuer, url) = serve(Mode::Serve(set("old"))).await;
    let jwks = cache(JwksSource::Url(url));
    ask(&jwks, "old", 0).await.unwrap();
    issuer.set(Mode::Serve(set("new")));
    ask(&jwks, "new", 31).await.unwrap();
    assert_eq!(issuer.asked(), 2);
    assert_eq!(ask(&jwks, "old", 62).await, Err(NoKey::UnknownKid));
}

#[tokio::test]
async fn unknown_kids_cause_no_more_than_one_fetch_per_interval() {
    let (issuer, url) = serve(Mode::Serve(set("a"))).await;
    let jwks = cache(JwksSource::Url(url));
    ask(&jwks, "a", 0).await.unwrap();
    for seconds in 0..30 {
        assert_eq!(
            ask(&jwks, &format!("x{seconds}"), seconds).await,
            Err(NoKey::UnknownKid)
        );
    }
    assert_eq!(issuer.asked(), 1);
    assert_eq!(ask(&jwks, "x", 30).await, Err(NoKey::UnknownKid));
    assert_eq!(issuer.asked(), 2);
}

#[tokio::test]
async fn many_at_once_share_one_fetch() {
    let release = Arc::new(Notify::new());
    let (issuer, url) = serve(Mode::Stall(Arc::clone(&release), set("a"))).await;
    let jwks = Arc::new(cache(JwksSource::Url(url)));
    let asking: Vec<_> = (0..50)
        .map(|_| {
            let jwks = Arc::clone(&jwks);
            tokio::spawn(async move { ask(&jwks, "a", 0).await })
        })
        .collect();
    // A permit is kept for a fetch that has not begun to wait yet.
    release.notify_one();
    for answer in asking {
        answer.await.unwrap().unwrap();
    }
    assert_eq!(issuer.asked(), 1);
}

#[tokio::test]
async fn while_the_issuer_is_away_known_keys_live_on_for_the_stated_time() {
    let (issuer, url) = serve(Mode::Serve(set("a"))).await;
    let jwks = cache(JwksSource::Url(url));
    ask(&jwks, "a", 0).await.unwrap();
    issuer.set(Mode::Status(StatusCode::INTERNAL_SERVER_ERROR));
    ask(&jwks, "a", 600).await.unwrap();
    ask(&jwks, "a", 4199).await.unwrap();
    let away = |seconds| {
        Err(NoKey::Unavailable {
            retry_after: Duration::from_secs(seconds),
        })
    };
    assert_eq!(
        ask(&jwks, "b", 4199).await,
        away(30),
        "nobody can say whether b exists"
    );
    assert_eq!(
        ask(&jwks, "a", 4200).await,
        away(29),
        "600 + 3600 seconds are over"
    );
    assert_eq!(issuer.asked(), 3, "and no fetch came too early");
    issuer.set(Mode::Serve(set("a")));
    ask(&jwks, "a", 4229).await.unwrap();
}

#[tokio::test]
async fn an_issuer_that_never_answered_is_unavailable_not_wrong() {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let jwks = cache(JwksSource::Url(url.clone()));
    assert!(matches!(
        ask(&jwks, "a", 0).await,
        Err(NoKey::Unavailable { .. })
    ));
    let error = jwks.probe(at(0)).await.unwrap_err().to_string();
    assert!(
        !error.contains(&url),
        "the URL may bear credentials: {error}"
    );
}

#[tokio::test]
async fn a_clock_set_back_does_not_keep_old_keys_alive() {
    let (issuer, url) = serve(Mode::Serve(set("a"))).await;
    let jwks = cache(JwksSource::Url(url));
    ask(&jwks, "a", 100_000).await.unwrap();
    ask(&jwks, "a", 0).await.unwrap();
    assert_eq!(issuer.asked(), 2);
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let (target, url) = serve(Mode::Serve(set("a"))).await;
    let (_issuer, redirecting) = serve(Mode::RedirectTo(url)).await;
    let jwks = cache(JwksSource::Url(redirecting));
    assert!(matches!(
        ask(&jwks, "a", 0).await,
        Err(NoKey::Unavailable { .. })
    ));
    assert_eq!(target.asked(), 0);
}

#[tokio::test]
async fn an_endless_or_senseless_answer_is_refused_and_the_old_keys_stay() {
    let (issuer, url) = serve(Mode::Serve(set("a"))).await;
    let jwks = cache(JwksSource::Url(url));
    ask(&jwks, "a", 0).await.unwrap();
    let too_long = format!("{}{}", set("a"), " ".repeat(MAX_BYTES));
    for (round, text) in [too_long, "<html>".to_owned(), "{\"keys\":[]}".to_owned()]
        .into_iter()
        .enumerate()
    {
        issuer.set(Mode::Serve(text));
        let seconds = 600 + 30 * round as u64;
        assert!(jwks.probe(at(seconds)).await.is_err());
        ask(&jwks, "a", seconds).await.unwrap();
    }
}

#[tokio::test]
async fn a_stalling_issuer_is_given_up() {
    let (_issuer, url) = serve(Mode::Stall(Arc::new(Notify::new()), String::new())).await;
    let mut settings_cache = cache(JwksSource::Url(url.clone()));
    settings_cache.source = Source::Url {
        client: reqwest::Client::builder()
            .timeout(Duration::from_millis(200))
            .no_proxy()
            .build()
            .unwrap(),
        url,
    };
    let answer = tokio::time::timeout(Duration::from_secs(60), ask(&settings_cache, "a", 0)).await;
    assert!(matches!(answer.unwrap(), Err(NoKey::Unavailable { .. })));
}

#[tokio::test]
async fn a_file_is_read_again_for_an_unknown_kid() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jwks.json");
    std::fs::write(&path, set("a")).unwrap();
    let jwks = cache(JwksSource::File(path.clone()));
    ask(&jwks, "a", 0).await.unwrap();
    std::fs::write(&path, set("b")).unwrap();
    ask(&jwks, "b", 30).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(jwks.probe(at(60)).await.is_err());
}
