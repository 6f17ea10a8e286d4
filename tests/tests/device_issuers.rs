//! Where devices' secret_ids come from, in the whole product: a relay process, Mosquitto over TLS, and the embedded issuer or a Vault of somebody else's making
//! (feature: devices get fresh secret_ids over MQTT).
//!
//! What must hold whatever fails: nothing is lost, nothing is issued twice under one request, and what nobody got is destroyed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "device_issuers/canary.rs"]
mod canary;
#[path = "device_issuers/either.rs"]
mod either;
#[path = "device_issuers/firestore.rs"]
mod firestore;
#[path = "device_issuers/recovery.rs"]
mod recovery;
#[path = "device_issuers/runbook.rs"]
mod runbook;
#[path = "device_issuers/trouble.rs"]
mod trouble;
#[path = "device_issuers/webhook.rs"]
mod webhook;
#[path = "device_issuers/wrapped.rs"]
mod wrapped;

use std::collections::BTreeSet;
use std::num::NonZeroU64;

use keyturn_proto::device::DeviceId;
use keyturn_store::collections::APPROLE_SECRET_IDS;
use keyturn_store::devices::DeviceDoc;
use keyturn_store::fake_kms::FakeKms;
use keyturn_store::transfer::{Item, Transfer as _};
use keyturn_tests::iot::{Credential, House, Line};
use keyturn_tests::relay::Relay;
use keyturn_tests::vault::{Rvault, Stand};
use keyturn_tests::world::set;
use keyturn_tests::{eventually, kms};
use serde_json::json;

const PROGRAM: &str = env!("CARGO_BIN_EXE_keyturn-under-test");
const ID: &str = "river-iot-0001";

/// Who issues.
enum Issuer {
    /// With a key file: in one commit.
    Embedded,
    /// The same with a key that is asked over the network.
    InSteps(Box<FakeKms>),
    Vault {
        _server: Box<Rvault>,
        stand: Box<Stand>,
    },
}

impl Issuer {
    /// An `rvault` of its own, with a role for devices.
    async fn vault() -> Self {
        let server = Rvault::start().await;
        let stand = server
            .operator()
            .stand(json!({ "token_ttl": "20m", "secret_id_ttl": "12h" }))
            .await;
        Self::Vault {
            _server: Box::new(server),
            stand: Box::new(stand),
        }
    }

    /// `[devices.issuer]`.
    fn configure(&self, config: &mut toml::Table) {
        match self {
            Self::Embedded => {}
            Self::InSteps(server) => kms::configure(config, server, NonZeroU64::MIN),
            Self::Vault { stand, .. } => vault(config, stand),
        }
    }

    /// Accessors of all secret_ids that exist.
    async fn living(&self, house: &House) -> BTreeSet<String> {
        match self {
            Self::Vault { stand, .. } => stand.accessors().await.into_iter().collect(),
            Self::Embedded | Self::InSteps(_) => {
                let store = house.world.store();
                let page = store.export(APPROLE_SECRET_IDS, None, usize::MAX).await;
                let items = page.unwrap().items.into_iter();
                items
                    .map(|item| match item {
                        Item::SecretId(doc) => doc.accessor.to_string(),
                        _ => panic!("another kind of document"),
                    })
                    .collect()
            }
        }
    }

    async fn logs_in(&self, house: &House, relay: &Relay, credential: &Credential) -> bool {
        match self {
            Self::Vault { stand, .. } => {
                let Credential { role_id, secret_id } = credential;
                stand.log_in(role_id, secret_id).await.is_some()
            }
            Self::Embedded | Self::InSteps(_) => house.logs_in(relay, credential).await,
        }
    }
}

/// `[devices.issuer]` for a Vault, with the operator's own token.
fn vault(config: &mut toml::Table, stand: &Stand) {
    let token = stand.secret("relay-token", stand.operator.token());
    let address = stand.settings().address.to_string();
    let section = [
        ("kind", "vault"),
        ("address", &address),
        ("mount", &stand.mount),
        ("token_file", token.path().unwrap().to_str().unwrap()),
    ];
    let section = section.map(|(key, value)| (key.to_owned(), toml::Value::from(value)));
    set(config, "devices", "issuer", toml::Table::from_iter(section));
}

/// The device, connected.
async fn connect(house: &House) -> Line {
    Line::open(ID, house.broker.port, &house.broker.device(ID)).await
}

/// No request was answered twice, and no secret_id given twice.
fn never_given_twice(device: &Line) {
    let given = device.given();
    let nonces: BTreeSet<&str> = given.iter().map(|(nonce, _)| &**nonce).collect();
    let secrets: BTreeSet<&str> = given.iter().map(|(_, secret)| &**secret).collect();
    assert_eq!(nonces.len(), given.len(), "a request was answered twice");
    assert_eq!(secrets.len(), given.len(), "a secret_id was given twice");
}

/// Waits until nothing is under way for the device and the secret_id it holds is proven; its document, from whatever store there is.
async fn settled(house: &House) -> DeviceDoc {
    let store = house.world.operator().await;
    let id: DeviceId = ID.parse().unwrap();
    eventually("the device is settled", async || {
        let doc = store.device(&id).await.unwrap()?;
        let idle = doc.outstanding.is_none() && doc.doomed.is_empty() && doc.unresolved.is_empty();
        (idle && doc.current.as_ref().is_some_and(|held| held.proven)).then_some(doc)
    })
    .await
}
