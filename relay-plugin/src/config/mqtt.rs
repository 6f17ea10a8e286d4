//! `[mqtt]` and `[devices]`: the broker, and what devices are held to. Where their secret_ids come from is `[devices.issuer]`.

use std::{path::PathBuf, time::Duration};

use super::{
    Profile,
    error::ConfigError,
    secret::SecretRef,
    sections::{DAY, HOUR, MINUTE},
    source::Keys,
    webhook::Webhook,
};
use crate::devices::mqtt::Version;

/// `[mqtt]`.
#[derive(Debug)]
pub struct Mqtt {
    /// `None`: devices are not served.
    pub broker: Option<Broker>,
    /// How a broker hands messages over by HTTP, if it may.
    pub webhook: Webhook,
}

/// How the broker is reached.
#[derive(Debug)]
pub struct Broker {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// Who may sign the broker's certificate, PEM.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate, PEM.
    pub certificate_file: Option<PathBuf>,
    /// Its key, PEM.
    pub certificate_key: Option<SecretRef>,
    /// 5 or 3.1.1.
    pub version: Version,
    /// `None` for one made from this relay's own identity.
    pub client_id: Option<String>,
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<SecretRef>,
    /// Group of the shared subscription.
    pub share: Option<String>,
    /// Whether we subscribe at all.
    pub subscribe: bool,
    /// How long the broker keeps our session while we are away.
    pub session_expiry: Duration,
    /// How often the connection is tested.
    pub keep_alive: Duration,
}

const URL: &str = "an address such as \"mqtts://broker.example.org:8883\"";

/// Host, port and whether it is encrypted.
fn address(text: &str) -> Option<(String, u16, bool)> {
    let (rest, tls, default) = match text.split_once("://")? {
        ("mqtts", rest) => (rest, true, 8883),
        ("mqtt", rest) => (rest, false, 1883),
        _ => return None,
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.rsplit_once(':') {
        // The last colon of a bare IPv6 address is none before a port.
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (rest, default),
    };
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':');
    let good = !host.is_empty()
        && bare.unwrap_or(host).chars().all(plain)
        && (bare.is_some() || !host.contains(':'));
    good.then(|| (host.to_owned(), port, tls))
}

fn conflict(key: &str, reason: &str) -> ConfigError {
    ConfigError::Conflict {
        key: key.to_owned(),
        reason: reason.to_owned(),
    }
}

fn word(text: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    ((1..=64).contains(&text.len()) && text.chars().all(plain)).then(|| text.to_owned())
}

impl Mqtt {
    pub(super) fn read(keys: &mut Keys, profile: Profile) -> Result<Self, ConfigError> {
        const WORD: &str = "up to 64 letters, digits, '-', '_' and '.'";
        let url = keys.text("mqtt.url", URL, address)?;
        let version = keys.text("mqtt.version", "\"5\" or \"3.1.1\"", |text| match text {
            "5" => Some(Version::V5),
            "3.1.1" => Some(Version::V311),
            _ => None,
        })?;
        let ca_file = keys.path("mqtt.ca_file", "the path of a PEM file")?;
        let certificate_file = keys.path("mqtt.certificate_file", "the path of a PEM file")?;
        let certificate_key =
            keys.optional_secret("mqtt.certificate_key", "a private key in PEM")?;
        let client_id = keys.text("mqtt.client_id", WORD, word)?;
        let username = keys.text("mqtt.username", "a text", |text| {
            (!text.is_empty()).then(|| text.to_owned())
        })?;
        let password = keys.optional_secret("mqtt.password", "the password")?;
        let share = keys.text("mqtt.share", WORD, word)?;
        let subscribe = keys.boolean("mqtt.subscribe", true)?;
        let session_expiry =
            keys.duration("mqtt.session_expiry", Duration::ZERO..=DAY * 7, HOUR)?;
        let keep_alive = keys.duration(
            "mqtt.keep_alive",
            Duration::from_secs(5)..=MINUTE * 10,
            Duration::from_secs(30),
        )?;
        let webhook = Webhook::read(keys)?;
        let Some((host, port, tls)) = url else {
            let given = [
                ("mqtt.ca_file", ca_file.is_some()),
                ("mqtt.certificate_file", certificate_file.is_some()),
                ("mqtt.username", username.is_some()),
                ("mqtt.password", password.is_some()),
                ("mqtt.webhook_secret", webhook.secret.is_some()),
                ("mqtt.webhook_listen", webhook.tls.is_some()),
            ];
            if let Some((key, _)) = given.into_iter().find(|(_, given)| *given) {
                return Err(conflict(key, "needs mqtt.url"));
            }
            return Ok(Self {
                broker: None,
                webhook: Webhook::default(),
            });
        };
        if tls && ca_file.is_none() {
            return Err(ConfigError::Missing {
                key: "mqtt.ca_file".to_owned(),
                expected:
                    "the path of a PEM file with the CAs that may sign the broker's certificate"
                        .to_owned(),
            });
        }
        if !tls && (ca_file.is_some() || certificate_file.is_some()) {
            return Err(conflict(
                "mqtt.ca_file",
                "needs an mqtts:// address in mqtt.url",
            ));
        }
        let loopback = matches!(host.as_str(), "localhost" | "127.0.0.1" | "[::1]");
        if !tls && !loopback && profile == Profile::Production {
            return Err(conflict(
                "mqtt.url",
                "must be an mqtts:// address in production, unless the broker is on this machine",
            ));
        }
        if certificate_file.is_some() != certificate_key.is_some() {
            return Err(conflict(
                "mqtt.certificate_file",
                "goes with mqtt.certificate_key_file; give both or none",
            ));
        }
        if password.is_some() && username.is_none() {
            return Err(conflict("mqtt.password", "needs mqtt.username"));
        }
        if !subscribe && !webhook.is_open() {
            return Err(conflict(
                "mqtt.subscribe",
                "is false, and without mqtt.webhook_secret or mqtt.webhook_listen no message could come in",
            ));
        }
        Ok(Self {
            broker: Some(Broker {
                host,
                port,
                tls,
                ca_file,
                certificate_file,
                certificate_key,
                version: version.unwrap_or(Version::V5),
                client_id,
                username,
                password,
                share,
                subscribe,
                session_expiry,
                keep_alive,
            }),
            webhook,
        })
    }
}

/// `[devices]`.
#[derive(Debug, Clone)]
pub struct Devices {
    /// A device without an identity key is refused.
    pub require_signed: bool,
    /// A device without a sealing key is refused.
    pub require_sealed: bool,
    /// Calls to the issuer at once.
    pub concurrency: usize,
    /// Requests that may wait for the issuer.
    pub queue: usize,
    /// How long one call to the issuer may take.
    pub issue_timeout: Duration,
    /// How long a request may wait.
    pub max_wait: Duration,
    /// How long the device's result is awaited.
    pub confirm_timeout: Duration,
    /// How long the broker keeps an answer for a device that is not there.
    pub answer_expiry: Duration,
    /// How long after a call of unknown outcome an empty search says nothing.
    pub orphan_wait: Duration,
    /// secret_ids of one device within an hour.
    pub requests_per_hour: u32,
    /// Messages of one device within a minute.
    pub messages_per_minute: u32,
    /// Messages of all devices within a second.
    pub messages_per_second: u32,
    /// How far a device's clock may be off.
    pub clock_skew: Duration,
    /// How often a device on the schedule is invited.
    pub schedule: Duration,
    /// How soon again when it does not answer.
    pub schedule_retry: Duration,
}

impl Devices {
    pub(super) fn read(keys: &mut Keys, profile: Profile) -> Result<Self, ConfigError> {
        let second = Duration::from_secs(1);
        let strict = profile == Profile::Production;
        Ok(Self {
            require_signed: keys.boolean("devices.require_signed", strict)?,
            require_sealed: keys.boolean("devices.require_sealed", strict)?,
            concurrency: keys.number("devices.concurrency", 1..=256, 16)? as usize,
            queue: keys.number("devices.queue", 1..=200_000, 20_000)? as usize,
            issue_timeout: keys.duration("devices.issue_timeout", second..=MINUTE * 5, MINUTE)?,
            max_wait: keys.duration("devices.max_wait", second * 10..=HOUR, MINUTE * 5)?,
            confirm_timeout: keys.duration(
                "devices.confirm_timeout",
                second * 10..=HOUR * 6,
                MINUTE * 5,
            )?,
            answer_expiry: keys.duration("devices.answer_expiry", second * 5..=HOUR, MINUTE)?,
            orphan_wait: keys.duration("devices.orphan_wait", second..=HOUR, second * 90)?,
            // The store counts no more of them.
            requests_per_hour: keys.number("devices.requests_per_hour", 1..=32, 12)? as u32,
            messages_per_minute: keys.number("devices.messages_per_minute", 1..=10_000, 60)? as u32,
            messages_per_second: keys.number("devices.messages_per_second", 1..=100_000, 5_000)?
                as u32,
            clock_skew: keys.duration("devices.clock_skew", second..=MINUTE * 25, MINUTE * 5)?,
            schedule: keys.duration("devices.schedule", MINUTE..=DAY * 7, HOUR * 6)?,
            schedule_retry: keys.duration(
                "devices.schedule_retry",
                second * 10..=DAY,
                MINUTE * 15,
            )?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_scheme_a_host_and_perhaps_a_port() {
        for (text, expected) in [
            ("mqtt://localhost", Some(("localhost", 1883, false))),
            (
                "mqtts://b.example.org/",
                Some(("b.example.org", 8883, true)),
            ),
            ("mqtts://b.example.org:1", Some(("b.example.org", 1, true))),
            ("mqtt://[::1]:5", Some(("[::1]", 5, false))),
            ("mqtt://[::1]", Some(("[::1]", 1883, false))),
            ("mqtt://::1", None),
            ("mqtt://", None),
            ("mqtt://user@host", None),
            ("mqtt://a/b", None),
            ("mqtt://a:b", None),
            ("http://a", None),
            ("a:1883", None),
        ] {
            let found = address(text);
            let found = found
                .as_ref()
                .map(|(host, port, tls)| (host.as_str(), *port, *tls));
            assert_eq!(found, expected, "{text}");
        }
    }
}
