//! Logs, and what never gets into them.
//!
//! Two filters in a row: the operator's, and a permanent one that no setting loosens. The permanent one lets only our own
//! code below INFO, and silences the libraries that print values (requests to the key service, documents, whole
//! messages) at any level.

use std::{fs::OpenOptions, io, os::unix::fs::OpenOptionsExt as _, path::Path, sync::Arc};

use tracing::{Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer, Registry,
    filter::{FilterExt, Targets},
    fmt::MakeWriter,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::config::{Log, LogFormat};

/// Print values: documents on decode failures, payloads and MACs, answers of services in their errors, whole messages, all settings, key
/// schedules. `experimental` is what Google's libraries log their errors as.
const SILENT: [&str; 10] = [
    "experimental",
    "firestore",
    "gcloud_sdk",
    "google_cloud",
    "nostr_relay::session",
    "nostr_relay::setting",
    "nostr_relay::app",
    "openmls",
    "rumqttc",
    "rumqttd",
];

/// Quiet enough at WARN; at INFO they tell every connection, or every migration of a new database.
const NOISY: [&str; 9] = [
    "actix_server",
    "h2",
    "hyper",
    "nostr_relay_pool",
    "nostr_sdk",
    "refinery_core",
    "reqwest",
    "tonic",
    "tower",
];

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `log.level` does not parse. The configuration checks it, so this is for callers that made their own.
    #[error("log.level: expected a level or a filter such as \"info,keyturn=debug\"")]
    Filter,
    /// Something else in this process logs already.
    #[error("a logger is installed already")]
    Installed,
    /// The log file.
    #[error("cannot open the log file: {0}")]
    File(#[source] io::Error),
}

/// Installs the logger of this process. Lines go to standard error; standard output is for results.
pub fn init(log: &Log) -> Result<(), TelemetryError> {
    subscriber(log, io::stderr)?
        .try_init()
        .map_err(|_| TelemetryError::Installed)
}

/// As [`init`], with the lines appended to a file (mode 0600): a terminal that tells a story is no place for logs.
///
/// # Errors
/// [`TelemetryError`].
pub fn init_to_file(log: &Log, path: &Path) -> Result<(), TelemetryError> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(TelemetryError::File)?;
    subscriber(log, Arc::new(file))?
        .try_init()
        .map_err(|_| TelemetryError::Installed)
}

/// What no operator's filter loosens.
fn permanent() -> Targets {
    Targets::new()
        .with_default(LevelFilter::INFO)
        .with_target("keyturn", LevelFilter::TRACE)
        .with_targets(NOISY.map(|target| (target, LevelFilter::WARN)))
        .with_targets(SILENT.map(|target| (target, LevelFilter::OFF)))
}

fn subscriber<W>(
    log: &Log,
    writer: W,
) -> Result<impl Subscriber + Send + Sync + 'static, TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let wanted: Targets = log.level.parse().map_err(|_| TelemetryError::Filter)?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(false);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match log.format {
        LogFormat::Json => Box::new(lines.json().flatten_event(true)),
        LogFormat::Text => Box::new(lines),
    };
    Ok(tracing_subscriber::registry().with(lines.with_filter(wanted.and(permanent()))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: &str, format: LogFormat, log: impl FnOnce()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = subscriber(
            &Log {
                format,
                level: level.to_owned(),
            },
            move || writer.clone(),
        )
        .unwrap();
        tracing::subscriber::with_default(subscriber, log);
        let bytes = captured.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn targets_that_print_values_stay_silent_at_trace() {
        let text = logged(
            "trace,firestore=trace,google_cloud_kms_v1=trace,nostr_relay::session=debug",
            LogFormat::Text,
            || {
                tracing::error!(target: "firestore::db::query", "canary");
                tracing::error!(target: "google_cloud_kms_v1::tracing", "canary");
                tracing::error!(target: "google_cloud_gax_internal::observability", "canary");
                tracing::error!(target: "google_cloud_auth::credentials", "canary");
                tracing::error!(target: "gcloud_sdk::token_source", "canary");
                tracing::warn!(target: "experimental.client.request", "canary");
                tracing::warn!(target: "experimental.transport.request", "canary");
                tracing::debug!(target: "nostr_relay::session", "canary");
                tracing::info!(target: "nostr_relay::setting", "canary");
                tracing::error!(target: "openmls::group", "canary");
                tracing::debug!(target: "some_library", "canary");
                tracing::info!(target: "hyper::proto", "canary");
                tracing::debug!(target: "keyturn::rotation", "ours");
                tracing::info!(target: "some_library", "theirs");
            },
        );
        assert!(!text.contains("canary"), "{text}");
        assert!(text.contains("ours") && text.contains("theirs"), "{text}");
    }

    #[test]
    fn the_operator_can_ask_for_less() {
        let text = logged("warn", LogFormat::Json, || {
            tracing::info!(target: "keyturn", "quiet");
            tracing::warn!(target: "keyturn", part = "store", "loud");
        });
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(
            (line["message"].as_str(), line["part"].as_str()),
            (Some("loud"), Some("store"))
        );
    }
}
