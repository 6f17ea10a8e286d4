//! The device flow over a real Mosquitto, with devices played by its own command-line clients, the embedded issuer and real logins over HTTP.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use keyturn::clock::SystemClock;
use keyturn::config::{Config, Environment, ValidatedConfig};
use keyturn::devices::issuer::choose::choose;
use keyturn::devices::issuer::embedded::{Parts, login::AppRoleLogin};
use keyturn::devices::start::{Needs, Running, start};
use keyturn::rotation::ports::Clock as _;
use keyturn::running::Keyturn;
use keyturn::service::{
    ChallengeIssuer, ChallengeUnavailable, Ports, Service, ServiceFactory, StartError,
};
use keyturn::web::Webhook;
use keyturn_proto::Npub;
use keyturn_proto::device::{DeviceId, DeviceNonce, proof};
use keyturn_store::devices::{Change, DeviceOptions, DeviceStore as _};
use keyturn_store::mac::LocalMacKey;
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::AuditTrail as _;
use serde_json::{Value, json};
use tokio::time::Instant;

const DEADLINE: Duration = Duration::from_secs(60);
const SECRET: &str = "a-secret-of-the-webhook-0123456789abcdef";

fn found(program: &str) {
    let found = Command::new(program)
        .arg("--help")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(
        found.is_ok(),
        "{program} is missing: apt-get install mosquitto mosquitto-clients"
    );
}

/// A broker on a port of its own; dies with the test.
struct Broker {
    port: u16,
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Broker {
    fn start() -> Self {
        found("mosquitto");
        found("mosquitto_rr");
        // Mosquitto takes no port 0; one that was free a moment ago is taken instead.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut broker = Self {
            port,
            dir: tempfile::tempdir().unwrap(),
            child: None,
        };
        let config = format!("listener {port} 127.0.0.1\nallow_anonymous true\n");
        std::fs::write(broker.dir.path().join("mosquitto.conf"), config).unwrap();
        broker.up();
        broker
    }

    fn up(&mut self) {
        let config = self.dir.path().join("mosquitto.conf");
        let child = Command::new("mosquitto")
            .arg("-c")
            .arg(config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let until = std::time::Instant::now() + DEADLINE;
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(
                std::time::Instant::now() < until,
                "mosquitto does not listen"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn client(&self, program: &str) -> tokio::process::Command {
        let mut client = tokio::process::Command::new(program);
        client
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-q", "1"])
            .kill_on_drop(true);
        client
    }

    async fn publish(&self, device: &str, message: &[u8], retain: bool) {
        let file = self.dir.path().join("message");
        std::fs::write(&file, message).unwrap();
        let mut client = self.client("mosquitto_pub");
        client
            .arg("-t")
            .arg(format!("iot/{device}/status"))
            .arg("-f")
            .arg(&file);
        if retain {
            client.arg("-r");
        }
        assert!(client.status().await.unwrap().success());
    }

    /// Publishes a request and waits a little for what comes on the command topic.
    async fn ask_once(&self, device: &str, nonce: &str) -> Option<Value> {
        let request = json!({ "nonce": nonce, "device_id": device, "auth_request": "secret_id", "reason": "invalid_secret" });
        let mut client = self.client("mosquitto_rr");
        client.args(["-V", "311", "-W", "4", "-m", &request.to_string()]);
        client
            .arg("-t")
            .arg(format!("iot/{device}/status"))
            .arg("-e")
            .arg(format!("iot/{device}/command"));
        let output = client.output().await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .find_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|answer| answer["nonce"] == nonce)
    }

    /// As firmware does: asks again under a fresh nonce until there is a secret_id.
    async fn ask(&self, device: &str) -> Value {
        let until = Instant::now() + DEADLINE;
        loop {
            let nonce = DeviceNonce::generate().unwrap();
            match self.ask_once(device, nonce.as_str()).await {
                Some(answer) if answer["secret_id"].is_string() => return answer,
                _ => assert!(Instant::now() < until, "no secret_id came"),
            }
        }
    }

    async fn confirm(&self, device: &str, command: &Value) {
        let nonce: DeviceNonce = command["nonce"].as_str().unwrap().parse().unwrap();
        let proof = proof::proof(command["secret_id"].as_str().unwrap(), &nonce);
        let message = json!({ "nonce": nonce, "auth_result": "ok", "proof": proof });
        self.publish(device, message.to_string().as_bytes(), false)
            .await;
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.down();
    }
}

fn config(dir: &Path, more: &[(&str, &str)]) -> ValidatedConfig {
    let text = r#"
        [profile]
        environment = "development"
        [relay]
        port = 0
        data_dir = "relay"
        [web]
        listen = "127.0.0.1:0"
        [mls]
        database = "member.db"
        storage_key_file = "mls.key"
        nostr_secret_key_file = "nostr.nsec"
        relays = ["ws://127.0.0.1:1"]
        [store]
        path = "keyturn.db"
        [mac]
        key_file = "mac.key"
        [issuer]
        jwks_file = "jwks.json"
        [admission]
        challenge_key_file = "challenge.key"
        totp_seed_key_file = "totp.key"
        [devices]
        requests_per_hour = 32
        [devices.issuer]
        kind = "embedded"
    "#;
    let environment = Environment::from_pairs(more.iter().copied());
    Config::parse(text, &dir.join("keyturn.toml"), environment).unwrap()
}

/// Only what devices need of the service.
struct Devices {
    login: Option<Arc<AppRoleLogin>>,
    webhook: Arc<Webhook>,
    running: Mutex<Option<Running>>,
}

#[async_trait]
impl Service for Devices {
    fn challenges(&self) -> Arc<dyn ChallengeIssuer> {
        Arc::new(|| Err(ChallengeUnavailable))
    }
    fn approle(&self) -> Option<Arc<AppRoleLogin>> {
        self.login.clone()
    }
    fn webhook(&self) -> Option<Arc<Webhook>> {
        Some(Arc::clone(&self.webhook))
    }
    async fn shutdown(&self, deadline: Instant) {
        let running = self.running.lock().unwrap().take();
        running.unwrap().shutdown(deadline).await;
    }
}

struct Factory(Arc<Mutex<Option<Arc<SqliteStore>>>>);

#[async_trait]
impl ServiceFactory for Factory {
    async fn start(self: Box<Self>, ports: Ports) -> Result<Arc<dyn Service>, StartError> {
        let keyturn::config::Store::Sqlite { path } = &ports.config.store else {
            unreachable!("the test's store is SQLite");
        };
        let store = Arc::new(SqliteStore::open(path).unwrap());
        *self.0.lock().unwrap() = Some(Arc::clone(&store));
        let parts = Parts {
            store: store.clone(),
            mac: Arc::new(LocalMacKey::from_keys(&[7; 32], &[])),
            clock: Arc::new(SystemClock),
        };
        let chosen = choose(&ports.config.device_issuer, "relay", parts, store.clone())
            .unwrap()
            .unwrap();
        let needs = Needs {
            devices: store.clone(),
            store,
            issuer: chosen.issuer,
            clock: Arc::new(SystemClock),
            identity: Npub::from_bytes([1; 32]),
            stopping: ports.stopping.clone(),
        };
        let broker = ports.config.mqtt.broker.as_ref().unwrap();
        let running = start(&ports.config, broker, needs).unwrap();
        Ok(Arc::new(Devices {
            login: chosen.login,
            webhook: Arc::new(Webhook::new(Arc::clone(&running.devices), SECRET)),
            running: Mutex::new(Some(running)),
        }))
    }
}

struct World {
    _dir: tempfile::TempDir,
    broker: Broker,
    keyturn: Keyturn,
    store: Arc<SqliteStore>,
    http: reqwest::Client,
}

impl World {
    async fn start(more: &[(&str, &str)]) -> Self {
        // Another test of this process may have been first.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start());
        let url = format!("mqtt://127.0.0.1:{}", broker.port);
        let mut pairs = vec![("KEYTURN_MQTT__URL", url.as_str())];
        pairs.extend(more);
        let slot = Arc::new(Mutex::new(None));
        let config = Arc::new(config(dir.path(), &pairs));
        let keyturn = Keyturn::start(config, Box::new(Factory(Arc::clone(&slot)))).unwrap();
        keyturn.started().await.unwrap();
        let store = slot.lock().unwrap().clone().unwrap();
        let world = Self {
            _dir: dir,
            broker,
            keyturn,
            store,
            http: reqwest::Client::new(),
        };
        let change = Change::Allow {
            role: "river-iot".to_owned(),
            options: DeviceOptions::default(),
        };
        world
            .store
            .change_device(&device(), change, SystemClock.now())
            .await
            .unwrap();
        world
    }

    /// Whether the secret_id of `command` logs in.
    async fn logs_in(&self, command: &Value) -> bool {
        let url = format!("http://{}/kr/v1/approle/login", self.keyturn.web_address());
        let login = json!({ "role_id": command["role_id"], "secret_id": command["secret_id"] });
        self.http
            .post(url)
            .json(&login)
            .send()
            .await
            .unwrap()
            .status()
            .is_success()
    }

    async fn until<F: AsyncFn(&Self) -> bool>(&self, what: &str, condition: F) {
        let until = Instant::now() + DEADLINE;
        while !condition(self).await {
            assert!(Instant::now() < until, "never: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn refused(&self, reason: &str) -> bool {
        let trail = self.store.read(None, usize::MAX).await.unwrap();
        trail
            .iter()
            .any(|record| record.event == "device.refused" && record.reason == reason)
    }

    async fn stop(self) {
        let keyturn = self.keyturn;
        let deadline = Instant::now() + DEADLINE;
        tokio::task::spawn_blocking(move || keyturn.shutdown(deadline))
            .await
            .unwrap();
    }
}

fn device() -> DeviceId {
    "river-1".parse().unwrap()
}

async fn two_rounds(more: &[(&str, &str)]) {
    let w = World::start(more).await;
    let first = w.broker.ask("river-1").await;
    assert!(w.logs_in(&first).await);
    w.broker.confirm("river-1", &first).await;
    w.until("the first one is confirmed", async |w| {
        let doc = w.store.device(&device()).await.unwrap().unwrap();
        doc.current.is_some_and(|held| held.proven)
    })
    .await;
    let second = w.broker.ask("river-1").await;
    assert!(
        w.logs_in(&second).await && w.logs_in(&first).await,
        "both live until the device confirms"
    );
    w.broker.confirm("river-1", &second).await;
    w.until("the first one is destroyed", async |w| {
        !w.logs_in(&first).await
    })
    .await;
    assert!(w.logs_in(&second).await);
    w.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_rotates_its_secret_id_over_mqtt_5() {
    two_rounds(&[
        ("KEYTURN_MQTT__VERSION", "5"),
        ("KEYTURN_MQTT__SHARE", "keyturn"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_rotates_its_secret_id_over_mqtt_3_1_1() {
    two_rounds(&[("KEYTURN_MQTT__VERSION", "3.1.1")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_was_killed_is_used_again_and_forgets_nothing_of_ours() {
    let mut w = World::start(&[]).await;
    let first = w.broker.ask("river-1").await;
    w.broker.down();
    w.broker.up();
    let second = w.broker.ask("river-1").await;
    assert_ne!(first["secret_id"], second["secret_id"]);
    // The first was never confirmed: the newer request has superseded it.
    w.until("the superseded one is destroyed", async |w| {
        !w.logs_in(&first).await
    })
    .await;
    assert!(w.logs_in(&second).await);
    w.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retained_and_oversized_messages_are_refused_and_cost_the_others_nothing() {
    for version in ["5", "3.1.1"] {
        let mut w = World::start(&[("KEYTURN_MQTT__VERSION", version)]).await;
        w.broker.ask("river-1").await;
        w.broker.publish("river-1", &vec![b'x'; 5_000], false).await;
        w.until("the long one is refused", async |w| {
            w.refused("message.oversized").await
        })
        .await;
        // More than we read at all: MQTT 5 brokers keep it; a 3.1.1 broker sends it, and we lose the connection once.
        w.broker
            .publish("river-1", &vec![b'x'; 200_000], false)
            .await;
        w.broker.ask("river-1").await;
        // A kept message reaches whoever subscribes anew.
        let old = json!({ "nonce": "0123456789abcdef", "device_id": "river-1", "auth_request": "secret_id" });
        w.broker
            .publish("river-1", old.to_string().as_bytes(), true)
            .await;
        w.broker.down();
        w.broker.up();
        w.broker
            .publish("river-1", old.to_string().as_bytes(), true)
            .await;
        w.broker.ask("river-1").await;
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_calls_http_is_heard_when_it_shows_the_secret() {
    let w = World::start(&[
        ("KEYTURN_MQTT__SUBSCRIBE", "false"),
        ("KEYTURN_MQTT__WEBHOOK_SECRET", SECRET),
    ])
    .await;
    let url = format!("http://{}/kr/v1/mqtt/webhook", w.keyturn.web_address());
    let nonce = DeviceNonce::generate().unwrap();
    let request = json!({ "nonce": nonce, "device_id": "river-1", "auth_request": "secret_id", "reason": "invalid_secret" });
    let call = json!({ "topic": "iot/river-1/status", "payload": request.to_string(), "qos": 1, "clientid": "river-1", "flags": { "retain": false } });
    for wrong in [None, Some("Bearer "), Some("Bearer wrong"), Some(SECRET)] {
        let mut request = w.http.post(&url).json(&call);
        if let Some(shown) = wrong {
            request = request.header("authorization", shown);
        }
        assert_eq!(request.send().await.unwrap().status(), 401);
    }
    assert!(w.refused("webhook.unauthenticated").await);
    let good = |body: String| w.http.post(&url).bearer_auth(SECRET).body(body).send();
    assert_eq!(good("[]".to_owned()).await.unwrap().status(), 400);

    // The answer comes over MQTT.
    let mut listener = w.broker.client("mosquitto_sub");
    listener.args([
        "-t",
        "iot/river-1/command",
        "-C",
        "1",
        "-W",
        "50",
        "-i",
        "river-1",
        "-c",
    ]);
    // A first, empty visit leaves a session behind, so that nothing is missed before the subscription stands.
    let mut visit = w.broker.client("mosquitto_sub");
    visit.args(["-t", "iot/river-1/command", "-E", "-i", "river-1", "-c"]);
    assert!(visit.status().await.unwrap().success());
    let answer = good(call.to_string()).await.unwrap();
    assert_eq!(
        answer.json::<Value>().await.unwrap(),
        json!({ "result": "accepted" })
    );
    let output = listener.output().await.unwrap();
    let command: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(command["nonce"], json!(nonce));
    assert!(w.logs_in(&command).await);
    let mut retained = call.clone();
    retained["flags"]["retain"] = json!(true);
    let answer = good(retained.to_string()).await.unwrap();
    assert_eq!(
        answer.json::<Value>().await.unwrap(),
        json!({ "result": "refused" })
    );
    w.stop().await;
}
