//! How Vault is reached and who we are there. Checked once; what is inside can be used as it is.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use reqwest::Url;

use crate::config::SecretRef;
use crate::devices::issuer::names::{InvalidName, MountPath};

/// Everything the client needs to know.
pub struct VaultSettings {
    /// Where Vault is.
    pub address: VaultAddress,
    /// Enterprise or OpenBao namespace.
    pub namespace: Option<MountPath>,
    /// Where the devices' AppRole method is mounted, below `auth/`.
    pub mount: MountPath,
    /// When given, only certificates signed by one of these (PEM) are trusted; otherwise the machine's own list decides.
    pub ca_file: Option<PathBuf>,
    /// Who we are.
    pub auth: VaultAuth,
    /// Longest time for one exchange, connecting and reading included.
    pub timeout: Duration,
    /// Most exchanges under way at once.
    pub max_in_flight: usize,
    /// How long a call waits for its turn before it is told that too many are waiting.
    pub max_wait: Duration,
    /// Names this instance in the metadata of what it issues.
    pub instance: String,
}

/// Our own credential. Files are read again whenever a token is needed, so that an agent or an operator can replace them.
#[derive(Clone)]
pub enum VaultAuth {
    /// A token that somebody else made.
    Token(Arc<SecretRef>),
    /// We log in ourselves and do so again when renewing ends.
    AppRole {
        /// Where the method for services is mounted, below `auth/`.
        mount: MountPath,
        /// Our role's id.
        role_id: String,
        /// Our own secret_id.
        secret_id: Arc<SecretRef>,
    },
}

/// Vault's base address: `https`, or `http` to this very machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultAddress(Url);

impl VaultAddress {
    /// What [`VaultAddress::parse`] takes, for messages.
    pub const EXPECTED: &'static str =
        "an https:// address without query (http:// only to a loopback address)";

    /// Reads an address such as `https://vault.example.org:8200`.
    ///
    /// # Errors
    /// [`InvalidName`] for anything else: other schemes, credentials, a query, plain http that leaves the machine.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let invalid = InvalidName {
            expected: Self::EXPECTED,
        };
        let mut url = Url::parse(text).map_err(|_| invalid)?;
        let host = url.host_str().ok_or(invalid)?.trim_matches(['[', ']']);
        let loopback = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        let safe = url.scheme() == "https" || (url.scheme() == "http" && loopback);
        let bare = url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        if !safe || !bare {
            return Err(invalid);
        }
        let path = format!("{}/", url.path().trim_end_matches('/'));
        url.set_path(&path);
        Ok(Self(url))
    }

    /// The address of an API path such as `sys/health`, which holds checked names only.
    pub(super) fn api(&self, path: &str) -> Url {
        let mut url = self.0.clone();
        let whole = format!("{}v1/{path}", url.path());
        url.set_path(&whole);
        url
    }

    /// Whether only TLS will do.
    pub(super) fn tls(&self) -> bool {
        self.0.scheme() == "https"
    }
}

impl std::fmt::Display for VaultAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_stays_on_this_machine() {
        for good in [
            "https://vault.example.org:8200",
            "https://proxy.example.org/vault/",
            "http://127.0.0.1:8200",
            "http://[::1]:8200",
            "http://localhost:8200",
        ] {
            assert!(VaultAddress::parse(good).is_ok(), "{good}");
        }
        for wrong in [
            "",
            "vault.example.org",
            "http://vault.example.org",
            "http://10.0.0.1:8200",
            "ftp://127.0.0.1",
            "https://user:secret@vault.example.org",
            "https://vault.example.org/?x=1",
            "unix:///run/vault.sock",
        ] {
            assert!(VaultAddress::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_path_of_a_proxy_is_kept() {
        let address = VaultAddress::parse("https://proxy.example.org/vault").unwrap();
        assert_eq!(
            address.api("sys/health").as_str(),
            "https://proxy.example.org/vault/v1/sys/health"
        );
        assert_eq!(address.to_string(), "https://proxy.example.org/vault");
    }
}
