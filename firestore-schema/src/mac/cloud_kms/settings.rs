//! Which keys, reached how, and how long anything may take.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use super::breaker;
use super::name::KeyName;

/// How a [`super::CloudKmsKey`] works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The key whose `version` makes new hashes.
    pub key: KeyName,
    /// The version of `key` that makes new hashes. All its other versions go on verifying what they made.
    pub version: NonZeroU64,
    /// Keys that only verify what they made.
    pub previous_keys: Vec<KeyName>,
    /// Another address than Google's public one.
    pub endpoint: Option<Endpoint>,
    /// How long one attempt may take, from the credentials to the last byte.
    pub attempt_timeout: Duration,
    /// How long one operation may take with all its attempts and pauses.
    pub timeout: Duration,
    /// Attempts of one operation.
    pub attempts: u32,
    /// Pause before the second attempt; doubled for each further one, then shortened at random.
    pub first_pause: Duration,
    /// When nobody is asked any more, and for how long.
    pub breaker: breaker::Settings,
}

impl Settings {
    /// The defaults for a key version.
    #[must_use]
    pub fn new(key: KeyName, version: NonZeroU64) -> Self {
        Self {
            key,
            version,
            previous_keys: Vec::new(),
            endpoint: None,
            attempt_timeout: Duration::from_secs(3),
            timeout: Duration::from_secs(10),
            attempts: 4,
            first_pause: Duration::from_millis(100),
            breaker: breaker::Settings::default(),
        }
    }
}

/// Where the service is: `https://host[:port]`, or `http://` on loopback, which means a test server and no credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    url: String,
    plain: bool,
}

/// Not an endpoint that payloads may be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected https://HOST[:PORT], or http://127.0.0.1:PORT for a test server")]
pub struct NotAnEndpoint;

impl Endpoint {
    /// The address.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.url
    }

    /// Whether it is an unencrypted test server on this machine.
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        self.plain
    }
}

impl FromStr for Endpoint {
    type Err = NotAnEndpoint;

    fn from_str(text: &str) -> Result<Self, NotAnEndpoint> {
        let (scheme, rest) = text.split_once("://").ok_or(NotAnEndpoint)?;
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let host = match authority.strip_prefix('[') {
            Some(v6) => {
                let (host, port) = v6.split_once(']').ok_or(NotAnEndpoint)?;
                valid_port(port)?;
                host.parse::<std::net::Ipv6Addr>()
                    .map_err(|_| NotAnEndpoint)?;
                host
            }
            None => {
                let (host, port) =
                    authority.split_at(authority.find(':').unwrap_or(authority.len()));
                valid_port(port)?;
                host
            }
        };
        let named = |byte: u8| byte.is_ascii_alphanumeric() || b".-:".contains(&byte);
        if host.is_empty() || !host.bytes().all(named) {
            return Err(NotAnEndpoint);
        }
        let loopback = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let plain = match scheme {
            "https" => false,
            "http" if loopback => true,
            _ => return Err(NotAnEndpoint),
        };
        Ok(Self {
            url: format!("{scheme}://{authority}"),
            plain,
        })
    }
}

/// Nothing, or a colon and a port.
fn valid_port(text: &str) -> Result<(), NotAnEndpoint> {
    match text.strip_prefix(':') {
        None if text.is_empty() => Ok(()),
        Some(port) if port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(()),
        _ => Err(NotAnEndpoint),
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn payloads_go_nowhere_in_the_clear_but_to_this_machine() {
        for (text, plain) in [
            ("https://cloudkms.googleapis.com", false),
            ("https://europe-west3-cloudkms.googleapis.com/", false),
            ("https://kms.internal:8443", false),
            ("https://[2001:db8::1]:443", false),
            ("http://127.0.0.1:9", true),
            ("http://[::1]:9", true),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.is_plain(), plain, "{text}");
            assert_eq!(endpoint.as_str(), text.trim_end_matches('/'));
        }
        for text in [
            "",
            "cloudkms.googleapis.com",
            "http://cloudkms.googleapis.com",
            "http://localhost:9",
            "http://127.0.0.1.example.org",
            "https://",
            "https://:443",
            "https://host:0",
            "https://host:x",
            "https://user:password@host",
            "https://host/path",
            "https://host?query",
            "https://host#fragment",
            "https://[::1",
            "https://[x]:1",
            "ftp://127.0.0.1",
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(NotAnEndpoint), "{text}");
        }
    }
}
