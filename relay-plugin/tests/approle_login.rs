//! `POST /kr/v1/approle/login` over a real socket, with the issuer and the logins that the configuration chooses.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use keyturn::clock::SystemClock;
use keyturn::devices::issuer::choose::{Chosen, choose};
use keyturn::devices::issuer::embedded::{Parts, login::AppRoleLogin};
use keyturn::devices::issuer::{IssueRequest, Issued, NonceHash, RoleName, SecretIdIssuer};
use keyturn::running::Keyturn;
use keyturn::service::{
    ChallengeIssuer, ChallengeUnavailable, Ports, Service, ServiceFactory, StartError,
};
use keyturn_store::mac::LocalMacKey;
use keyturn_store::sqlite::SqliteStore;
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;
use world::config;

/// Only what devices need of the service.
struct Devices {
    login: Option<Arc<AppRoleLogin>>,
}

#[async_trait]
impl Service for Devices {
    fn challenges(&self) -> Arc<dyn ChallengeIssuer> {
        Arc::new(|| Err(ChallengeUnavailable))
    }

    fn approle(&self) -> Option<Arc<AppRoleLogin>> {
        self.login.clone()
    }

    async fn shutdown(&self, _deadline: Instant) {}
}

type Slot = Arc<Mutex<Option<Arc<dyn SecretIdIssuer>>>>;

/// Chooses as the assembly does, and hands the issuer to the test.
struct Factory(Slot);

#[async_trait]
impl ServiceFactory for Factory {
    async fn start(self: Box<Self>, ports: Ports) -> Result<Arc<dyn Service>, StartError> {
        let keyturn::config::Store::Sqlite { path } = &ports.config.store else {
            unreachable!("the test's store is SQLite");
        };
        let store = Arc::new(SqliteStore::open(path).unwrap());
        let parts = Parts {
            store: store.clone(),
            mac: Arc::new(LocalMacKey::from_keys(&[7; 32], &[])),
            clock: Arc::new(SystemClock),
        };
        let chosen = choose(&ports.config.device_issuer, "relay", parts, store).unwrap();
        let login = chosen.map(|Chosen { issuer, login }| {
            *self.0.lock().unwrap() = Some(issuer);
            login
        });
        Ok(Arc::new(Devices {
            login: login.flatten(),
        }))
    }
}

struct World {
    _dir: tempfile::TempDir,
    keyturn: Keyturn,
    issuer: Option<Arc<dyn SecretIdIssuer>>,
}

impl World {
    async fn start(more: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let slot = Slot::default();
        let config = Arc::new(config(dir.path(), more));
        let keyturn = Keyturn::start(config, Box::new(Factory(Arc::clone(&slot)))).unwrap();
        keyturn.started().await.unwrap();
        let issuer = slot.lock().unwrap().clone();
        Self {
            _dir: dir,
            keyturn,
            issuer,
        }
    }

    async fn issue(&self, num_uses: u32) -> Issued {
        let role: RoleName = "river-iot".parse().unwrap();
        let nonce = NonceHash::of("a nonce");
        let request = IssueRequest {
            role: &role,
            device: "pump-7",
            nonce: &nonce,
            ttl: Duration::from_secs(3600),
            num_uses,
            cidrs: &[],
            wrap_ttl: None,
        };
        let issuer = self.issuer.as_ref().unwrap();
        issuer.issue(request).await.ok().unwrap()
    }

    async fn post(&self, body: &str) -> Response {
        let url = format!("http://{}/kr/v1/approle/login", self.keyturn.web_address());
        let request = Client::new().post(url).body(body.to_owned());
        request.send().await.unwrap()
    }

    async fn log_in(&self, role_id: &str, secret_id: &str) -> (StatusCode, Value) {
        let body = json!({ "role_id": role_id, "secret_id": secret_id }).to_string();
        let response = self.post(&body).await;
        assert_eq!(response.headers()["cache-control"], "no-store");
        let status = response.status();
        (status, response.json().await.unwrap())
    }
}

const EMBEDDED: (&str, &str) = ("KEYTURN_DEVICES__ISSUER__KIND", "embedded");

#[tokio::test(flavor = "multi_thread")]
async fn a_device_logs_in_with_what_it_was_issued() {
    let world = World::start(&[EMBEDDED]).await;
    let issued = world.issue(2).await;
    let secret_id = issued.credential.text().expose();
    for uses in [1, -1] {
        let (status, body) = world.log_in(&issued.role_id, secret_id).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        let data = &body["data"];
        assert_eq!(data["role_name"], "river-iot");
        assert_eq!(data["device_id"], "pump-7");
        assert_eq!(data["secret_id_accessor"], issued.accessor.as_str());
        assert_eq!(data["secret_id_num_uses"], uses);
        assert_eq!(body["lease_duration"], 60);
        assert!(!body.to_string().contains(secret_id));
    }
    let (status, body) = world.log_in(&issued.role_id, secret_id).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(body, json!({ "errors": ["invalid role or secret ID"] }));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_login_is_refused_without_being_repeated() {
    let world = World::start(&[EMBEDDED]).await;
    for body in [
        "",
        "telltale",
        "[]",
        r#"{"role_id":"x"}"#,
        r#"{"role_id":7,"secret_id":"telltale"}"#,
        r#"{"role_id":"x","secret_id":"telltale"}"#,
    ] {
        let response = world.post(body).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{body}");
        let text = response.text().await.unwrap();
        assert!(text.starts_with(r#"{"errors":["#), "{text}");
        assert!(!text.contains("telltale"), "{text}");
    }
    let large = format!(r#"{{"role_id":"x","secret_id":"{}"}}"#, "x".repeat(100_000));
    let response = world.post(&large).await;
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_tries_are_told_when_to_come_back() {
    let few = ("KEYTURN_DEVICES__ISSUER__LOGINS_PER_MINUTE", "3");
    let world = World::start(&[EMBEDDED, few]).await;
    let mut last = None;
    for _ in 0..4 {
        last = Some(world.post(r#"{"role_id":"x","secret_id":"y"}"#).await);
    }
    let last = last.unwrap();
    assert_eq!(last.status(), StatusCode::TOO_MANY_REQUESTS);
    let seconds: u64 = last.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_devices_are_not_served_there_is_nothing_to_log_in_to() {
    let world = World::start(&[]).await;
    assert!(world.issuer.is_none());
    let (status, body) = world.log_in("x", "y").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(body, json!({ "errors": ["no secret_ids are issued here"] }));
}
