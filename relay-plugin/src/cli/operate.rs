//! What `admin`, `client` and `group` have in common: they open the configured store, change or show it, and end.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keyturn_proto::UnixMs;
use keyturn_store::mac::MacKey;
use keyturn_store::store::Store;
use serde::Serialize;

use super::{CliError, ConfigFile};
use crate::admission::SeedKey;
use crate::config::ValidatedConfig;
use crate::operator::{self, OperatorError};

/// What a command works with.
pub struct Operator<'a> {
    /// The store; a running relay may use it at the same time.
    pub store: &'a dyn Store,
    /// Now.
    pub now: UnixMs,
    /// What the issuer that the configuration names calls itself.
    pub issuer: Option<String>,
    /// Standard output.
    pub out: &'a mut dyn Write,
    /// Where the MAC key is opened, by the one command that needs it.
    pub mac: &'a dyn Fn() -> Result<Arc<dyn MacKey>, OperatorError>,
    /// Where the TOTP seed key is read from, by the one command that needs it.
    pub seed_key: &'a dyn Fn() -> Result<SeedKey, OperatorError>,
}

impl Operator<'_> {
    /// One JSON document and a newline.
    pub(super) fn json<T: Serialize>(&mut self, value: &T) -> Result<(), OperatorError> {
        serde_json::to_writer_pretty(&mut *self.out, value)?;
        Ok(writeln!(self.out)?)
    }
}

/// Runs a command against the configured store.
pub(super) fn run(
    config: &ConfigFile,
    command: impl AsyncFnOnce(&mut Operator<'_>) -> Result<(), OperatorError>,
) -> Result<(), CliError> {
    let config = config.load()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(OperatorError::Runtime)?;
    let mut out = io::stdout().lock();
    runtime.block_on(async {
        let store = operator::open_store(&config).await?;
        command(&mut Operator {
            store: store.as_ref(),
            now: now(),
            issuer: config.device_issuer.name(),
            out: &mut out,
            mac: &|| operator::open_mac(&config),
            seed_key: &|| seed_key(&config),
        })
        .await
    })?;
    Ok(out.flush().map_err(OperatorError::Output)?)
}

fn seed_key(config: &ValidatedConfig) -> Result<SeedKey, OperatorError> {
    Ok(SeedKey::new(
        config.admission.totp_seed_key.key32()?.expose(),
    ))
}

/// The clock of this machine.
pub(super) fn now() -> UnixMs {
    // A clock before 1970 counts as 1970.
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    UnixMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A time as people read it: RFC 3339, seconds.
pub(super) fn time(at: UnixMs) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_secs(at.as_secs()));
    at.map_or_else(
        || "never".to_owned(),
        |at| humantime::format_rfc3339_seconds(at).to_string(),
    )
}

/// Any value that serialises as a plain text, as that text.
pub(super) fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "?".to_owned(),
    }
}

/// An optional value, or a dash.
pub(super) fn or_dash<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}
