//! `mqtt.webhook_*`: how a broker that calls HTTP on publish shows who it is: by a secret at the web listener, or by a certificate at a listener of its own.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{error::ConfigError, secret::SecretRef, source::Keys};

/// Who may hand messages over, and how they show it. Both ways may be open.
#[derive(Debug, Default)]
pub struct Webhook {
    /// A secret shown at the web listener.
    pub secret: Option<SecretRef>,
    /// A certificate shown at a listener of its own.
    pub tls: Option<WebhookTls>,
}

/// The listener for brokers with a certificate.
#[derive(Debug)]
pub struct WebhookTls {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Our own certificate and what leads to its CA, PEM.
    pub certificate_file: PathBuf,
    /// Its key, PEM.
    pub certificate_key: SecretRef,
    /// Who may sign a broker's certificate, PEM.
    pub client_ca_file: PathBuf,
    /// The names of which a broker's certificate must bear one: the same CA may have signed devices.
    pub client_names: Vec<String>,
}

const LISTEN: &str = "mqtt.webhook_listen";

impl Webhook {
    pub(super) fn read(keys: &mut Keys) -> Result<Self, ConfigError> {
        let secret = keys.optional_secret("mqtt.webhook_secret", "at least 32 characters")?;
        let listen = keys.text(LISTEN, "an address such as \"0.0.0.0:8445\"", |text| {
            text.parse().ok()
        })?;
        let file = "the path of a PEM file";
        let certificate_file = keys.path("mqtt.webhook_certificate_file", file)?;
        let certificate_key =
            keys.optional_secret("mqtt.webhook_certificate_key", "a private key in PEM")?;
        let client_ca_file = keys.path("mqtt.webhook_client_ca_file", file)?;
        let names = "the DNS names or addresses of brokers' certificates";
        let client_names = keys.list("mqtt.webhook_client_names", names, name)?;
        let missing = |key: &str, expected: &str| ConfigError::Missing {
            key: key.to_owned(),
            expected: expected.to_owned(),
        };
        let Some(listen) = listen else {
            let given = [
                ("mqtt.webhook_certificate_file", certificate_file.is_some()),
                ("mqtt.webhook_certificate_key", certificate_key.is_some()),
                ("mqtt.webhook_client_ca_file", client_ca_file.is_some()),
                ("mqtt.webhook_client_names", client_names.is_some()),
            ];
            if let Some((key, _)) = given.into_iter().find(|(_, given)| *given) {
                return Err(ConfigError::Conflict {
                    key: key.to_owned(),
                    reason: format!("needs {LISTEN}"),
                });
            }
            return Ok(Self { secret, tls: None });
        };
        let tls = WebhookTls {
            listen,
            certificate_file: certificate_file
                .ok_or_else(|| missing("mqtt.webhook_certificate_file", file))?,
            certificate_key: certificate_key.ok_or_else(|| {
                missing(
                    "mqtt.webhook_certificate_key_file",
                    "the path of a file holding a private key in PEM",
                )
            })?,
            client_ca_file: client_ca_file
                .ok_or_else(|| missing("mqtt.webhook_client_ca_file", file))?,
            client_names: client_names
                .filter(|names| !names.is_empty())
                .ok_or_else(|| missing("mqtt.webhook_client_names", names))?,
        };
        Ok(Self {
            secret,
            tls: Some(tls),
        })
    }

    /// Whether messages can come in this way at all.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.secret.is_some() || self.tls.is_some()
    }
}

/// A name that a certificate can bear.
fn name(text: &str) -> Option<String> {
    rustls::pki_types::ServerName::try_from(text)
        .ok()
        .map(|_| text.to_owned())
}
