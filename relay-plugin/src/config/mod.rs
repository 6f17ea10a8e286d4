//! The configuration: one TOML file, overridden by `KEYTURN_SECTION__FIELD` variables.
//!
//! What must always hold: a wrong, missing, unknown or contradictory value stops the start, with the key's full name and
//! what was expected; nothing outside this module reads the environment; a secret's value is in no error and no `Debug`.
//! Every key is documented in `keyturn.example.toml`, which a test holds against the readers here.

mod device_issuer;
mod duration;
mod error;
mod mac;
mod mqtt;
mod rules;
mod secret;
mod sections;
mod source;
mod store;
mod webhook;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

pub use device_issuer::{
    DeviceIssuer, IssuerKind, LOGINS_PER_MINUTE, LOGINS_PER_SECOND, VaultLogin, VaultSection,
};
pub use error::ConfigError;
pub use mac::{CloudKms, Mac};
pub use mqtt::{Broker, Devices, Mqtt};
pub use rules::{Admission, Algorithm, Issuer, JwksSource, Policy, TotpPolicy};
pub use secret::{SecretKey, SecretRef, SecretText, read_private};
pub use sections::{
    Cluster, Environment as Profile, Log, LogFormat, Mls, Outbox, Queue, Relay, RelayAuth, Web,
};
pub use source::Environment;
pub use store::Store;
pub(crate) use store::{database as store_database, project as store_project};
pub use webhook::{Webhook, WebhookTls};

/// The configuration as an operator wrote it. Only [`Config::load`] and [`Config::parse`] make a [`ValidatedConfig`].
pub struct Config;

/// A configuration every value of which has been checked.
#[derive(Debug)]
pub struct ValidatedConfig {
    /// `[profile]`.
    pub profile: Profile,
    /// `[relay]`. Not used when the extension sits in somebody else's relay.
    pub relay: Relay,
    /// `[web]`.
    pub web: Web,
    /// `[mls]`.
    pub mls: Mls,
    /// `[store]`.
    pub store: Store,
    /// `[mac]`.
    pub mac: Mac,
    /// `[issuer]`.
    pub issuer: Issuer,
    /// `[admission]`.
    pub admission: Admission,
    /// `[policy]`.
    pub policy: Policy,
    /// `[devices]`.
    pub devices: Devices,
    /// `[devices.issuer]`.
    pub device_issuer: DeviceIssuer,
    /// `[mqtt]`.
    pub mqtt: Mqtt,
    /// `[outbox]`.
    pub outbox: Outbox,
    /// `[cluster]`.
    pub cluster: Cluster,
    /// `[queue]`.
    pub queue: Queue,
    /// `[log]`.
    pub log: Log,
}

impl Config {
    /// Reads and checks a configuration file. Relative paths in it are relative to the file's directory.
    pub fn load(path: &Path, environment: Environment) -> Result<ValidatedConfig, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let text = zeroize::Zeroizing::new(fs::read_to_string(path).map_err(unreadable)?);
        let path = std::path::absolute(path).map_err(unreadable)?;
        Self::parse(&text, &path, environment)
    }

    /// As [`Config::load`], with the text already read. Pure: touches no file.
    pub fn parse(
        text: &str,
        path: &Path,
        environment: Environment,
    ) -> Result<ValidatedConfig, ConfigError> {
        Self::parse_with_keys(text, path, environment).map(|(config, _)| config)
    }

    fn parse_with_keys(
        text: &str,
        path: &Path,
        environment: Environment,
    ) -> Result<(ValidatedConfig, BTreeSet<String>), ConfigError> {
        let root = text
            .parse::<toml::Table>()
            .map_err(|error| syntax(text, path, &error))?;
        let base = path
            .parent()
            .map(Path::to_owned)
            .unwrap_or_else(|| PathBuf::from("."));
        let mut keys = source::Keys::new(root, environment, &base);
        let profile = Profile::read(&mut keys)?;
        let config = ValidatedConfig {
            profile,
            relay: Relay::read(&mut keys)?,
            web: Web::read(&mut keys)?,
            mls: Mls::read(&mut keys)?,
            store: Store::read(&mut keys)?,
            mac: Mac::read(&mut keys)?,
            issuer: Issuer::read(&mut keys, profile)?,
            admission: Admission::read(&mut keys)?,
            policy: Policy::read(&mut keys, profile)?,
            devices: Devices::read(&mut keys, profile)?,
            device_issuer: DeviceIssuer::read(&mut keys)?,
            mqtt: Mqtt::read(&mut keys, profile)?,
            outbox: Outbox::read(&mut keys)?,
            cluster: Cluster::read(&mut keys)?,
            queue: Queue::read(&mut keys)?,
            log: Log::read(&mut keys)?,
        };
        let nobody = matches!(config.device_issuer.kind, IssuerKind::None);
        if config.mqtt.broker.is_some() && nobody {
            return Err(ConfigError::Conflict {
                key: "mqtt.url".to_owned(),
                reason: "is given, and devices.issuer.kind names nobody who issues secret_ids"
                    .to_owned(),
            });
        }
        Ok((config, keys.finish()?))
    }
}

/// The parser's own rendering repeats the source line, which may hold a secret; this keeps the words and the place.
fn syntax(text: &str, path: &Path, error: &toml::de::Error) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start);
    let line = 1 + text.bytes().take(start).filter(|b| *b == b'\n').count();
    ConfigError::Syntax {
        path: path.to_owned(),
        line,
        message: error.message().to_owned(),
    }
}

#[cfg(test)]
mod tests;
