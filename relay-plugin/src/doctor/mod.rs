//! What `keyturn doctor` looks at: one file per part, in the order in which one part needs the other.
//!
//! What must always hold: a look changes nothing that matters (no schema is migrated, no database or key is made); a finding says what is wrong
//! and how to mend it, as a command wherever there is one; no finding holds a secret, a hash or a seed.

mod clock;
mod cluster;
mod config;
mod device_issuer;
mod files;
mod firestore;
mod issuer;
mod kms;
mod mac;
mod mls;
mod mqtt;
mod ports;
mod registry;
mod relay;
mod report;
mod secrets;
mod store;
mod timed;
mod visitors;
mod webhook;

use std::path::Path;

use keyturn_proto::UnixMs;

use crate::config::ValidatedConfig;
pub use report::{Finding, Level, Report};
pub use visitors::Visitors;

/// Who is examined.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The configuration file.
    pub path: &'a Path,
    /// What it says.
    pub config: &'a ValidatedConfig,
    /// Now, by this machine's clock.
    pub now: UnixMs,
}

impl Subject<'_> {
    /// A `keyturn` command line on this configuration.
    fn command(&self, command: &str) -> String {
        format!("keyturn {command} --config {}", files::quoted(self.path))
    }
}

/// Looks at every part. One that is broken does not keep the others from being looked at.
pub async fn examine(subject: Subject<'_>) -> Report {
    examine_with(subject, Visitors::default()).await
}

/// The same, and what these may do with the database.
pub async fn examine_with(subject: Subject<'_>, visitors: Visitors) -> Report {
    let mut report = Report::default();
    config::check(subject, &mut report);
    secrets::check(subject, &mut report);
    relay::check(subject, &mut report);
    let running = ports::check(subject, &mut report).await;
    clock::check(subject, &mut report);
    let store = store::check(subject, &visitors, &mut report).await;
    if let Some(store) = store.as_deref() {
        clock::check_trail(subject, store, &mut report).await;
        registry::check(subject, store, &mut report).await;
        timed::check(subject, store, running, &mut report).await;
    }
    mac::check(subject, store.as_deref(), &mut report).await;
    mls::check(subject, store.as_deref(), running, &mut report).await;
    cluster::check(subject, &mut report).await;
    issuer::check(subject, &mut report).await;
    device_issuer::check(subject, store.as_deref(), &mut report).await;
    mqtt::check(subject, &mut report).await;
    webhook::check(subject, &mut report);
    report
}

/// The report on a configuration that cannot even be loaded.
#[must_use]
pub fn unloadable(error: &crate::config::ConfigError) -> Report {
    let mut report = Report::default();
    report.fail(
        "config",
        error.to_string(),
        "keyturn.example.toml documents every key and its default",
    );
    report
}
