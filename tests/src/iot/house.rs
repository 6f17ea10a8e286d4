//! A relay process, a broker, devices: everything real, each message over TLS and past the broker's access rules.

use keyturn_proto::device::DeviceId;
use keyturn_store::devices::{DeviceDoc, DeviceStore as _};
use keyturn_store::documents::AuditRecord;
use keyturn_store::store::AuditTrail as _;
use serde_json::{Value, json};

use super::{Broker, Client, Credential, Device, Mqtt};
use crate::relay::Relay;
use crate::world::{PATIENCE, World, eventually, set};

/// What the log says when the broker has taken the subscription.
const SUBSCRIBED: &str = "subscribed to the devices' messages";

/// See the module.
pub struct House {
    pub world: World,
    pub broker: Broker,
    program: String,
    http: reqwest::Client,
}

impl House {
    /// A broker, and a relay that is configured for it and does not run yet: `keyturn.toml` with the embedded issuer. `tune` changes it.
    pub async fn new(program: &str, version: Mqtt, tune: impl FnOnce(&mut toml::Table)) -> Self {
        let broker = Broker::start().await;
        let service = broker.service();
        let url = format!("mqtts://127.0.0.1:{}", broker.service_port);
        let world = World::new(program, |config| {
            let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
            set(config, "mqtt", "url", url);
            set(config, "mqtt", "version", version.as_str());
            set(config, "mqtt", "ca_file", path(&service.ca));
            set(
                config,
                "mqtt",
                "certificate_file",
                path(&service.certificate),
            );
            set(config, "mqtt", "certificate_key_file", path(&service.key));
            set(config, "devices", "requests_per_hour", 32);
            set(config, "devices", "orphan_wait", "3s");
            let mut issuer = toml::Table::new();
            issuer.insert("kind".to_owned(), "embedded".into());
            issuer.insert("logins_per_minute".to_owned(), 10_000.into());
            set(config, "devices", "issuer", issuer);
            tune(config);
        })
        .await;
        Self {
            world,
            broker,
            program: program.to_owned(),
            http: reqwest::Client::new(),
        }
    }

    /// Starts the relay; returns when it hears the devices.
    pub async fn relay(&self) -> Relay {
        let before = self.subscriptions();
        let relay = self.world.relay().await;
        self.until_subscribed(before).await;
        relay
    }

    /// How often the relay has subscribed.
    pub fn subscriptions(&self) -> usize {
        self.world.log().matches(SUBSCRIBED).count()
    }

    /// Waits until it has more often than `before`.
    pub async fn until_subscribed(&self, before: usize) {
        eventually("the relay subscribed", async || {
            (self.subscriptions() > before).then_some(())
        })
        .await;
    }

    /// Runs `keyturn device …`.
    pub async fn operator(&self, words: &[&str]) {
        let output = tokio::process::Command::new(&self.program)
            .arg("device")
            .args(words)
            .arg("--config")
            .arg(self.world.layout.config())
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    }

    /// What `keyturn doctor` says of the broker.
    pub async fn doctor(&self) -> Value {
        let output = tokio::process::Command::new(&self.program)
            .args(["doctor", "--json", "--config"])
            .arg(self.world.layout.config())
            .output()
            .await
            .unwrap();
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("no report: {output:?}"));
        let findings = report["findings"].as_array().unwrap();
        let of_mqtt: Vec<&Value> = findings.iter().filter(|f| f["check"] == "mqtt").collect();
        assert_eq!(of_mqtt.len(), 1, "{report}");
        of_mqtt[0].clone()
    }

    /// Puts a device on the list.
    pub async fn allow(&self, id: &str, more: &[String]) {
        let mut words = vec!["allow", id, "--role", "river-iot"];
        words.extend(more.iter().map(String::as_str));
        self.operator(&words).await;
    }

    /// A device with a certificate, which may or may not be on the list.
    pub fn device(&self, id: &str, relay: &Relay) -> Device {
        let login = format!("{}/kr/v1/approle/login", relay.web);
        Device::new(id, self.broker.port, self.broker.device(id), login)
    }

    /// Mosquitto's client under the relay's certificate.
    pub fn service(&self) -> Client {
        Client {
            port: self.broker.service_port,
            who: self.broker.service(),
            version: Mqtt::V5,
        }
    }

    /// Whether a login with `credential` works. Whoever does not say that is asked again.
    pub async fn logs_in(&self, relay: &Relay, credential: &Credential) -> bool {
        let url = format!("{}/kr/v1/approle/login", relay.web);
        let login = json!({ "role_id": credential.role_id, "secret_id": credential.secret_id });
        eventually("the login says yes or no", async || {
            let answer = self.http.post(&url).json(&login).send().await.ok()?;
            match answer.status().as_u16() {
                200 => Some(true),
                400 => Some(false),
                _ => None,
            }
        })
        .await
    }

    /// The device's document.
    pub async fn document(&self, id: &str) -> DeviceDoc {
        let id: DeviceId = id.parse().unwrap();
        self.world.store().device(&id).await.unwrap().unwrap()
    }

    /// What is recorded about a device, oldest first.
    pub async fn trail(&self, id: &str) -> Vec<AuditRecord> {
        let mut trail = self.world.store().read(None, usize::MAX).await.unwrap();
        trail.retain(|record| {
            record
                .device
                .as_ref()
                .is_some_and(|device| device.device_id.as_str() == id)
        });
        trail
    }

    /// How often `event` is recorded about a device.
    pub async fn count(&self, id: &str, event: &str) -> usize {
        let trail = self.trail(id).await;
        trail.iter().filter(|record| record.event == event).count()
    }

    /// Waits until a refusal with this reason is recorded, of whomever.
    pub async fn refused(&self, reason: &str) -> AuditRecord {
        eventually(reason, async || {
            let trail = self.world.store().read(None, usize::MAX).await.unwrap();
            trail
                .into_iter()
                .find(|record| record.event == "device.refused" && record.reason == reason)
        })
        .await
    }

    /// How many secret_ids of the embedded issuer are alive, whoever knows of them.
    pub fn living(&self) -> u32 {
        let store = rusqlite::Connection::open(self.world.layout.store()).unwrap();
        store.busy_timeout(PATIENCE).unwrap();
        let query = "SELECT count(*) FROM approle_secret_ids";
        store.query_row(query, [], |row| row.get(0)).unwrap()
    }

    /// Waits until nothing is under way for a device, and nothing waits for its destruction.
    pub async fn settled(&self, id: &str) -> DeviceDoc {
        eventually("the device is settled", async || {
            let doc = self.document(id).await;
            let idle = doc.outstanding.is_none() && doc.doomed.is_empty();
            (idle && doc.unresolved.is_empty()).then_some(doc)
        })
        .await
    }
}
