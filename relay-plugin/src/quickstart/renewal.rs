//! The device's part of the story: on the allow-list, a first secret_id, a second one that replaces it, and the first one destroyed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use keyturn_proto::device::{DeviceId, Suite};
use keyturn_store::devices::{DeviceDoc, DevicePolicy, Held};
use keyturn_store::store::Store;
use tokio::time::Instant;

use super::QuickstartError;
use super::checks::word;
use super::device::{Device, Given};
use super::people::{at, deadline, now};
use super::report::{DeviceSummary, Logins, Narrator};
use crate::cli::serve::Served;
use crate::config::ValidatedConfig;
use crate::operator::{self, devices};

const DEVICE: &str = "river-iot-0001";
const ROLE: &str = "river-iot";
/// Between two looks at the store.
const POLL: Duration = Duration::from_millis(10);

/// What it leaves behind.
pub(super) struct Renewed {
    pub(super) summary: DeviceSummary,
    /// What must not be found anywhere.
    pub(super) given: [Given; 2],
    /// What the broker has carried.
    pub(super) carried: Vec<u8>,
}

/// Tells it.
pub(super) async fn renew(
    config: &ValidatedConfig,
    served: &Served,
    broker: SocketAddr,
    narrator: &Narrator,
) -> Result<Renewed, QuickstartError> {
    let mut elapsed = BTreeMap::new();
    let mut clock = Instant::now();
    let mut lap = |name: &'static str, what: &str| {
        let took = clock.elapsed();
        clock = Instant::now();
        narrator.step(took, what);
        elapsed.insert(name, u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    };
    let (until, web) = (deadline(), served.web_url());
    let http = reqwest::Client::new();
    let store = operator::open_store(config).await.map_err(at("store"))?;
    let id: DeviceId = DEVICE.parse().map_err(at("device"))?;

    let mut device = Device::connect(id.clone(), broker, until).await?;
    let (identity, sealing) = device.keys()?;
    let entry = devices::Entry {
        device_id: id.clone(),
        role: ROLE.to_owned(),
        identity_key: Some(identity),
        sealing_key: Some(sealing),
        suite: Suite::default(),
        retain: false,
        policy: DevicePolicy::OnDemand,
    };
    devices::allow(store.as_ref(), entry, now())
        .await
        .map_err(at("device"))?;
    lap(
        "allowed",
        &format!("device {DEVICE} is on the allow-list, and connected to an embedded broker"),
    );

    let first = device.ask("invalid_secret", until).await?;
    lap(
        "first",
        "it asked over MQTT, signed, and opened its sealed answer: a secret_id",
    );
    let first_login = first.logs_in(&http, &web).await?;
    device.report(&first).await?;
    let old = settled(store.as_ref(), &id, None, until).await?;
    lap(
        "first_login",
        &format!(
            "login with it {}, reported with proof: {} is in use",
            word(first_login),
            old.accessor
        ),
    );

    let second = device.ask("scheduled", until).await?;
    lap("second", "it asked again and has a second secret_id");
    let second_login = second.logs_in(&http, &web).await?;
    let first_until_reported = first.logs_in(&http, &web).await?;
    device.report(&second).await?;
    let new = settled(store.as_ref(), &id, Some(&old), until).await?;
    lap(
        "second_login",
        &format!(
            "login with it {}, with the first one still {}; reported with proof, and {} is destroyed",
            word(second_login),
            word(first_until_reported),
            old.accessor
        ),
    );
    let first_after = first.logs_in(&http, &web).await?;
    lap(
        "destroyed",
        &format!("login with the first one: {}", word(first_after)),
    );

    Ok(Renewed {
        carried: device.carried(),
        given: [first, second],
        summary: DeviceSummary {
            device_id: id,
            destroyed_accessor: old.accessor,
            accessor: new.accessor,
            proven: old.proven && new.proven,
            logins: Logins {
                first: first_login,
                second: second_login,
                first_until_reported,
                first_after,
            },
            elapsed_ms: elapsed,
        },
    })
}

/// Waits until the device's report is believed, and what it replaces is destroyed. Returns what is in use.
async fn settled(
    store: &dyn Store,
    id: &DeviceId,
    before: Option<&Held>,
    until: Instant,
) -> Result<Held, QuickstartError> {
    loop {
        let doc = store.device(id).await.map_err(at("store"))?;
        if let Some(DeviceDoc {
            current: Some(held),
            outstanding: None,
            doomed,
            ..
        }) = doc
            && doomed.is_empty()
            && before.is_none_or(|before| before.accessor != held.accessor)
        {
            return Ok(held);
        }
        if Instant::now() >= until {
            return Err(QuickstartError::Step {
                step: "device",
                cause: "its report came to nothing".to_owned(),
            });
        }
        tokio::time::sleep(POLL).await;
    }
}
