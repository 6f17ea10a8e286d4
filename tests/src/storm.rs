//! A relay that serves a fleet: its configuration, its allow-list, and what its store says of the devices afterwards.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use keyturn_store::devices::{Change, DeviceDoc, DeviceOptions, DeviceStore};
use keyturn_store::store::AuditTrail as _;
use tokio::time::Instant;

use crate::fleet;
use crate::vault::{Fault, Stand};
use crate::world::{World, now};

/// How long ten thousand reports may take on a busy machine.
const SETTLED: Duration = Duration::from_secs(240);
/// Between two looks at all devices.
const LOOK: Duration = Duration::from_millis(200);

/// The role of every device.
pub const ROLE: &str = "river-iot";

/// `[mqtt]` and `[devices]` for `broker`; everything else as shipped.
pub fn serve_devices(config: &mut toml::Table, broker: SocketAddr) {
    let mqtt = toml::Table::from_iter([("url".to_owned(), format!("mqtt://{broker}").into())]);
    config.insert("mqtt".to_owned(), mqtt.into());
    config.insert("devices".to_owned(), toml::Table::new().into());
}

fn devices(config: &mut toml::Table) -> &mut toml::Table {
    config["devices"].as_table_mut().unwrap()
}

/// Has secret_ids issued by the relay itself.
pub fn embedded_issuer(config: &mut toml::Table) {
    let issuer = toml::Table::from_iter([("kind".to_owned(), "embedded".into())]);
    devices(config).insert("issuer".to_owned(), issuer.into());
}

/// Has secret_ids issued by a Vault, with so many calls at once.
pub fn vault_issuer(
    config: &mut toml::Table,
    stand: &Stand,
    address: &str,
    token: &str,
    at_once: usize,
) {
    let token_file = stand.secret_file("relay-token", token);
    let at_once = i64::try_from(at_once).unwrap();
    let issuer = toml::Table::from_iter([
        ("kind".to_owned(), "vault".into()),
        ("address".to_owned(), address.into()),
        ("mount".to_owned(), stand.mount.as_str().into()),
        ("token_file".to_owned(), token_file.to_str().unwrap().into()),
        ("max_in_flight".to_owned(), at_once.into()),
    ]);
    let devices = devices(config);
    devices.insert("concurrency".to_owned(), at_once.into());
    devices.insert("issuer".to_owned(), issuer.into());
}

fn settled(doc: &DeviceDoc) -> bool {
    let proven = doc.current.as_ref().is_some_and(|held| held.proven);
    doc.outstanding.is_none() && doc.doomed.is_empty() && proven
}

impl World {
    /// Puts devices on the allow-list, without keys: what is measured and counted here is the flow.
    pub async fn allow_devices(&self, which: Range<usize>) {
        let store = self.store();
        stream::iter(which)
            .for_each_concurrent(64, async |n| {
                let change = Change::Allow {
                    role: ROLE.to_owned(),
                    options: DeviceOptions::default(),
                };
                store
                    .change_device(&fleet::id(n), change, now())
                    .await
                    .unwrap();
            })
            .await;
    }

    /// The documents of all devices.
    pub async fn devices(&self) -> Vec<DeviceDoc> {
        self.store().devices(None, usize::MAX).await.unwrap()
    }

    /// Waits until every device's report is believed and nothing is left to destroy; then the documents.
    pub async fn settled_devices(&self, which: Range<usize>) -> Vec<DeviceDoc> {
        let store = self.store();
        let until = Instant::now() + SETTLED;
        loop {
            let mut docs = store.devices(None, usize::MAX).await.unwrap();
            docs.retain(|doc| which.contains(&fleet::number(&doc.device_id)));
            let open = docs.iter().filter(|doc| !settled(doc)).count();
            if open == 0 {
                return docs;
            }
            assert!(
                Instant::now() < until,
                "{open} devices' reports are not recorded, or their old secret_ids not destroyed: {:?}",
                docs.iter().find(|doc| !settled(doc))
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// How often the audit trail has `event`.
    pub async fn recorded(&self, event: &str) -> usize {
        let trail = self.store().read(None, usize::MAX).await.unwrap();
        trail.iter().filter(|record| record.event == event).count()
    }
}

/// Waits until one device's report is believed, as [`World::settled_devices`] does for many.
pub async fn settled_device(store: &dyn DeviceStore, n: usize) {
    let until = Instant::now() + SETTLED;
    loop {
        let doc = store.device(&fleet::id(n)).await.unwrap().unwrap();
        if settled(&doc) {
            return;
        }
        assert!(
            Instant::now() < until,
            "its report is not recorded: {doc:?}"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A Vault that takes so long for each secret_id.
pub fn slow(by: Duration) -> Fault {
    Fault::slow("secret-id", by).times(usize::MAX)
}
