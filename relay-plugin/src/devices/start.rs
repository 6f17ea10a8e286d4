//! From the configuration to the running flow. Everything an operator can have got wrong fails here, by name, before anything runs.

use std::sync::Arc;
use std::time::Duration;

use keyturn_proto::Npub;
use keyturn_store::devices::DeviceStore;
use keyturn_store::store::Store;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::flow::{Devices, Parts};
use super::issuer::SecretIdIssuer;
use super::mqtt::{self, Inbox, Options, Outbox, Tls, outbox};
use super::settings::Settings;
use crate::config::{Broker, ConfigError, ValidatedConfig};
use crate::rotation::ports::Clock;
use crate::web::readiness::Check;

/// Answers that may wait for the connection.
const ANSWERS: usize = 16_384;
/// First and longest pause before connecting again.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// How often the store is asked for work that nobody announced.
const SWEEP: Duration = Duration::from_secs(5);

/// Why the flow did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A secret of the configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file cannot be read.
    #[error("{key}: cannot read {}: {cause}", path.display())]
    File {
        /// The configuration key.
        key: &'static str,
        /// Which file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

/// The flow at work.
pub struct Running {
    /// Takes messages in; for the webhook.
    pub devices: Arc<Devices>,
    flow: JoinHandle<()>,
    link: JoinHandle<()>,
    stop_flow: CancellationToken,
    stop_link: CancellationToken,
}

/// What the flow needs from the rest of the process.
pub struct Needs {
    /// Devices.
    pub devices: Arc<dyn DeviceStore>,
    /// Audit trail and leases.
    pub store: Arc<dyn Store>,
    /// Makes and destroys secret_ids.
    pub issuer: Arc<dyn SecretIdIssuer>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Who we are.
    pub identity: Npub,
    /// Says whether devices are heard.
    pub broker: Check,
    /// Ends the flow when the process is about to stop.
    pub stopping: CancellationToken,
}

/// Starts it. Blocks only for reading a few small files.
///
/// # Errors
/// [`StartError`].
pub fn start(
    config: &ValidatedConfig,
    broker: &Broker,
    needs: Needs,
) -> Result<Running, StartError> {
    let Needs {
        devices,
        store,
        issuer,
        clock,
        identity,
        broker: heard,
        stopping,
    } = needs;
    let options = options(broker, &identity)?;
    let (outlet, inbox): (Outbox, Inbox) = outbox(ANSWERS);
    let devices = Devices::new(Parts {
        devices,
        store,
        issuer,
        outlet: Arc::new(outlet),
        clock,
        settings: settings(config, &identity),
    });
    let (stop_flow, stop_link) = (stopping.child_token(), CancellationToken::new());
    let flow = {
        let (devices, stop) = (Arc::clone(&devices), stop_flow.clone());
        async move {
            let stopped = async {
                stop.cancelled().await;
                devices.give_way();
            };
            tokio::join!(Arc::clone(&devices).run(stop.clone()), stopped);
        }
    };
    let link = mqtt::run(
        options,
        inbox,
        Arc::clone(&devices),
        heard,
        stop_link.clone(),
    );
    Ok(Running {
        flow: tokio::spawn(flow),
        link: tokio::spawn(link),
        devices,
        stop_flow,
        stop_link,
    })
}

impl Running {
    /// Finishes what is under way, then closes the connection. What is left after `deadline` is taken up by the next start.
    pub async fn shutdown(self, deadline: Instant) {
        self.stop_flow.cancel();
        if tokio::time::timeout_at(deadline, self.flow).await.is_err() {
            tracing::warn!("the device flow did not stop in time; the next start recovers");
        }
        self.stop_link.cancel();
        let _ = tokio::time::timeout_at(deadline, self.link).await;
        // What came in meanwhile may have been refused.
        let _ = tokio::time::timeout_at(deadline, self.devices.write_last_refusals()).await;
    }
}

/// What the flow is held to, from the configuration.
#[must_use]
pub fn settings(config: &ValidatedConfig, identity: &Npub) -> Settings {
    let (devices, issuer) = (&config.devices, &config.device_issuer);
    Settings {
        owner: identity.to_string(),
        secret_id_ttl: issuer.secret_id_ttl,
        secret_id_uses: issuer.num_uses,
        cidrs: issuer.cidrs.clone(),
        wrap_ttl: issuer.wrap_ttl,
        require_signed: devices.require_signed,
        require_sealed: devices.require_sealed,
        concurrency: devices.concurrency,
        queue: devices.queue,
        issue_timeout: devices.issue_timeout,
        step: devices.max_wait.max(devices.issue_timeout * 2),
        confirm: devices.confirm_timeout,
        answer_expiry: devices.answer_expiry,
        per_hour: devices.requests_per_hour,
        per_minute: devices.messages_per_minute,
        per_second: devices.messages_per_second,
        skew: devices.clock_skew,
        interval: devices.schedule,
        ping_retry: devices.schedule_retry,
        sweep: SWEEP,
        orphan_wait: devices.orphan_wait,
    }
}

/// How the broker is reached, with its secrets and certificates read.
///
/// # Errors
/// [`StartError`].
pub fn options(broker: &Broker, identity: &Npub) -> Result<Options, StartError> {
    let file = |key, path: &std::path::Path| {
        std::fs::read(path).map_err(|cause| StartError::File {
            key,
            path: path.to_owned(),
            cause,
        })
    };
    let tls = match &broker.ca_file {
        Some(ca) if broker.tls => Some(Tls {
            ca: file("mqtt.ca_file", ca)?,
            client: match (&broker.certificate_file, &broker.certificate_key) {
                (Some(certificate), Some(key)) => {
                    let key = Zeroizing::new(key.text()?.expose().as_bytes().to_vec());
                    Some((file("mqtt.certificate_file", certificate)?, key))
                }
                _ => None,
            },
        }),
        _ => None,
    };
    let login = match (&broker.username, &broker.password) {
        (Some(name), Some(password)) => {
            let password = Zeroizing::new(password.text()?.expose().to_owned());
            Some((name.clone(), password))
        }
        (Some(name), None) => Some((name.clone(), Zeroizing::new(String::new()))),
        (None, _) => None,
    };
    Ok(Options {
        host: broker.host.clone(),
        port: broker.port,
        tls,
        version: broker.version,
        client_id: broker.client_id.clone().unwrap_or_else(|| {
            // 23 characters: every 3.1.1 broker takes that many.
            let hex = identity.to_hex();
            format!("keyturn-{}", hex.get(..15).unwrap_or(&hex))
        }),
        login,
        share: broker.share.clone(),
        subscribe: broker.subscribe,
        session_expiry: broker.session_expiry,
        keep_alive: broker.keep_alive,
        reconnect: RECONNECT,
    })
}
