//! A small world: a relay with the host's habits, a challenge listener, a service that answers, admins in temporary homes.

#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

pub mod relay;
pub mod service;

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use keyturn_admin::proof::{ProofError, ProofSource};
use keyturn_admin::session::{AdminSession, SessionConfig};
use keyturn_mls::StorageKey;
use keyturn_proto::encoding::b64url;
use keyturn_proto::proof::ProofRequest;
use keyturn_proto::request::Bearer;
use nostr::Keys;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::Instant;

/// Long enough for a loaded machine; a test that needs it has failed.
pub const LONG: Duration = Duration::from_secs(60);
/// Commits settle quickly here, but not so quickly that a busy machine looks like somebody who was away. Whole seconds: commits are dated
/// so.
pub const SETTLE: Duration = Duration::from_secs(2);

pub fn soon() -> Instant {
    Instant::now() + LONG
}

/// Looks again and again until `done`; a test that has to wait that long has failed.
pub async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let limit = soon();
    while !done() {
        assert!(Instant::now() < limit, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Patience that is short, but grows for a machine that needs more to get as far as the silence that is tested.
pub fn growing() -> impl Iterator<Item = Duration> {
    [1, 2, 4, 8, 16, 32].map(Duration::from_secs).into_iter()
}

/// Runs a test on a stack that unoptimised tree code fits in.
pub fn run<F: Future<Output = ()> + Send + 'static>(test: F) {
    let outcome = std::thread::Builder::new()
        .stack_size(16 << 20)
        .spawn(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .thread_stack_size(16 << 20)
                .enable_all()
                .build()
                .unwrap()
                .block_on(test);
        })
        .unwrap()
        .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Answers every request with a challenge; its base URL.
pub async fn challenge_listener() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut number = 0u32;
        while let Ok((mut stream, _)) = listener.accept().await {
            number += 1;
            let mut request = vec![0; 2048];
            let length = stream.read(&mut request).await.unwrap_or(0);
            let asked = String::from_utf8_lossy(&request[..length]).into_owned();
            let (status, body) = if asked.starts_with("GET /kr/v1/challenge ") {
                let body = format!(r#"{{"challenge":"challenge-{number}","expires_at":1}}"#);
                ("200 OK", body)
            } else {
                ("404 Not Found", String::new())
            };
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    url
}

/// An issuer that signs anything, badly.
pub struct Unsigned;

pub fn unsigned(request: &ProofRequest) -> String {
    let claims = serde_json::json!({
        "aud": request.aud, "iat": 1, "exp": 2, "amr": ["app_attest", "totp"],
        "npub": request.npub, "mls_group": request.mls_group, "nonce": request.nonce,
    });
    format!("e30.{}.c2ln", b64url(claims.to_string().as_bytes()))
}

#[keyturn_admin::async_trait]
impl ProofSource for Unsigned {
    async fn prove(&self, request: &ProofRequest) -> Result<Bearer, ProofError> {
        Ok(Bearer::new(unsigned(request)))
    }
}

pub struct Person {
    pub keys: Keys,
    pub dir: tempfile::TempDir,
}

impl Person {
    pub fn new() -> Self {
        Self {
            keys: Keys::generate(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn npub(&self) -> keyturn_proto::Npub {
        keyturn_proto::Npub::from_bytes(self.keys.public_key().to_bytes())
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn config(
        &self,
        relay: &relay::TestRelay,
        service: &service::Service,
        welcomers: &[&Self],
    ) -> SessionConfig {
        let key = StorageKey::from_file_or_create(&self.path().join("member.key")).unwrap();
        let mut config = SessionConfig::new(
            relay.url(),
            self.keys.clone(),
            self.path().join("member.db"),
            key,
        );
        config.service_urls = vec![service.url.clone()];
        config.services = vec![service.npub];
        config.welcomers = welcomers.iter().map(|person| person.npub()).collect();
        config.sync_path = Some(self.path().join("sync.json"));
        config.settle = SETTLE;
        config
    }

    pub async fn open(
        &self,
        relay: &relay::TestRelay,
        service: &service::Service,
        welcomers: &[&Self],
    ) -> AdminSession {
        AdminSession::open(self.config(relay, service, welcomers), soon())
            .await
            .unwrap()
    }
}

/// Whether any file under `dir` holds `needle`.
pub fn on_disk(dir: &Path, needle: &str) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return on_disk(&path, needle);
        }
        let bytes = std::fs::read(&path).unwrap();
        bytes
            .windows(needle.len())
            .any(|window| window == needle.as_bytes())
    })
}
