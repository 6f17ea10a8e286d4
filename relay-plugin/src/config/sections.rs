//! The sections of the configuration: types, defaults and ranges.
//!
//! Each `read` function is the one list of its section's keys. What `keyturn.example.toml` says of a default is
//! compared with these by a test.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use super::{error::ConfigError, secret::SecretRef, source::Keys};

pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3_600);
pub(super) const DAY: Duration = Duration::from_secs(86_400);

fn missing(key: &str, expected: &str) -> ConfigError {
    ConfigError::Missing {
        key: key.to_owned(),
        expected: expected.to_owned(),
    }
}

/// `[profile]`: which rules the other sections are held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// Everything enforced.
    Production,
    /// Zero delays, plain-http issuers and the requester's own ack are allowed.
    Development,
}

impl Environment {
    pub(super) fn read(keys: &mut Keys) -> Result<Self, ConfigError> {
        let found = keys.text(
            "profile.environment",
            "\"production\" or \"development\"",
            |text| match text {
                "production" => Some(Self::Production),
                "development" => Some(Self::Development),
                _ => None,
            },
        )?;
        Ok(found.unwrap_or(Self::Production))
    }
}

/// `[relay]`: the rnostr relay that `keyturn serve` runs.
#[derive(Debug)]
pub struct Relay {
    /// Address to listen on. TLS is the reverse proxy's.
    pub host: IpAddr,
    /// 0 takes a free port.
    pub port: u16,
    /// rnostr's database goes into `events` below it.
    pub data_dir: PathBuf,
    /// Threads that serve websockets.
    pub http_workers: usize,
    /// Threads that answer REQ. Each holds one of LMDB's 100 reader slots.
    pub reader_threads: usize,
    /// Largest websocket message.
    pub max_message_bytes: usize,
    /// NIP-11 name.
    pub name: String,
    /// NIP-11 description.
    pub description: String,
    /// Header in which a proxy passes the client's address.
    pub real_ip_header: Option<String>,
    /// NIP-42.
    pub auth: RelayAuth,
}

/// `[relay.auth]`: NIP-42, enforced by rnostr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayAuth {
    /// Offers AUTH to every client.
    pub enabled: bool,
    /// EVENT only after AUTH.
    pub require_to_publish: bool,
    /// REQ and COUNT only after AUTH.
    pub require_to_read: bool,
    /// When not empty: only these may publish. Hex.
    pub publish_pubkeys: Vec<String>,
    /// When not empty: only these may read. Hex.
    pub read_pubkeys: Vec<String>,
}

impl Relay {
    pub(super) fn read(keys: &mut Keys) -> Result<Self, ConfigError> {
        let ip = |text: &str| text.parse().ok();
        let relay = Self {
            host: keys
                .text("relay.host", "an IP address", ip)?
                .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            port: keys.number("relay.port", 0..=65_535, 8080)? as u16,
            data_dir: keys
                .path("relay.data_dir", "a directory")?
                .ok_or_else(|| missing("relay.data_dir", "a directory"))?,
            http_workers: keys.number("relay.http_workers", 1..=64, 2)? as usize,
            reader_threads: keys.number("relay.reader_threads", 1..=32, 2)? as usize,
            max_message_bytes: keys.number(
                "relay.max_message_bytes",
                65_536..=8_388_608,
                524_288,
            )? as usize,
            name: keys.text("relay.name", "a text", own)?.unwrap_or_default(),
            description: keys
                .text("relay.description", "a text", own)?
                .unwrap_or_default(),
            real_ip_header: keys.text(
                "relay.real_ip_header",
                "the name of an HTTP header",
                header_name,
            )?,
            auth: RelayAuth::read(keys)?,
        };
        Ok(relay)
    }
}

impl RelayAuth {
    fn read(keys: &mut Keys) -> Result<Self, ConfigError> {
        const HEX_KEYS: &str = "a list of public keys, 64 hex digits each";
        let auth = Self {
            enabled: keys.boolean("relay.auth.enabled", false)?,
            require_to_publish: keys.boolean("relay.auth.require_to_publish", false)?,
            require_to_read: keys.boolean("relay.auth.require_to_read", false)?,
            publish_pubkeys: keys
                .list("relay.auth.publish_pubkeys", HEX_KEYS, public_key)?
                .unwrap_or_default(),
            read_pubkeys: keys
                .list("relay.auth.read_pubkeys", HEX_KEYS, public_key)?
                .unwrap_or_default(),
        };
        let demands = auth.require_to_publish
            || auth.require_to_read
            || !auth.publish_pubkeys.is_empty()
            || !auth.read_pubkeys.is_empty();
        if demands && !auth.enabled {
            return Err(ConfigError::Conflict {
                key: "relay.auth.enabled".to_owned(),
                reason: "is false, but other keys of relay.auth demand authentication".to_owned(),
            });
        }
        Ok(auth)
    }
}

/// `[web]`: our own listener, apart from the relay's.
#[derive(Debug)]
pub struct Web {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// A request that takes longer is cut off.
    pub request_timeout: Duration,
    /// Largest request body.
    pub max_body_bytes: usize,
}

impl Web {
    pub(super) fn read(keys: &mut Keys) -> Result<Self, ConfigError> {
        let address = |text: &str| text.parse().ok();
        Ok(Self {
            listen: keys
                .text(
                    "web.listen",
                    "an address and port such as \"127.0.0.1:8081\"",
                    address,
                )?
                .unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 8081))),
            request_timeout: keys.duration(
                "web.request_timeout",
                Duration::from_secs(1)..=MINUTE,
                Duration::from_secs(10),
            )?,
            max_body_bytes: keys.number("web.max_body_bytes", 1_024..=1_048_576, 65_536)? as usize,
        })
    }
}

/// `[mls]`: our own member of the admin groups.
#[derive(Debug)]
pub struct Mls {
    /// SQLCipher database. Never back it up, copy or restore it.
    pub database: PathBuf,
    /// Encrypts the database.
    pub storage_key: SecretRef,
    /// Our Nostr identity, nsec or hex.
    pub nostr_secret_key: SecretRef,
    /// Relays that our key packages advertise.
    pub relays: Vec<String>,
    /// How long a commit waits for a rival before it settles.
    pub settle: Duration,
}

impl Mls {
    pub(super) fn read(keys: &mut Keys) -> Result<Self, ConfigError> {
        const RELAYS: &str = "a list of at least one ws:// or wss:// address";
        let relay = |text: &str| {
            (text.starts_with("wss://") || text.starts_with("ws://")).then(|| text.to_owned())
        };
        Ok(Self {
            database: keys
                .path("mls.database", "the path of the member database")?
                .ok_or_else(|| missing("mls.database", "the path of the member database"))?,
            storage_key: keys.secret("mls.storage_key", "64 hex digits")?,
            nostr_secret_key: keys.secret("mls.nostr_secret_key", "an nsec or 64 hex digits")?,
            relays: keys
                .list("mls.relays", RELAYS, relay)?
                .filter(|relays| !relays.is_empty())
                .ok_or_else(|| missing("mls.relays", RELAYS))?,
            settle: keys.duration(
                "mls.settle",
                Duration::ZERO..=MINUTE * 5,
                Duration::from_secs(10),
            )?,
        })
    }
}

/// `[outbox]`.
#[derive(Debug, Clone, Copy)]
pub struct Outbox {
    /// How long notify ciphertexts stay after the rotation has ended.
    pub retention: Duration,
}

impl Outbox {
    pub(super) fn read(keys: &mut Keys) -> Result<Self, ConfigError> {
        Ok(Self {
            retention: keys.duration("outbox.retention", Duration::ZERO..=DAY * 30, DAY)?,
        })
    }
}

/// `[cluster]`: other relays on the same store.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// The service npubs of the other instances.
    pub siblings: Vec<keyturn_proto::Npub>,
    /// Their relays, to mirror from.
    pub peers: Vec<String>,
    /// How long this instance may act before it has to renew its lease.
    pub lease: Duration,
}

impl Cluster {
    pub(super) fn read(keys: &mut Keys) -> Result<Self, ConfigError> {
        const PEERS: &str = "a list of ws:// or wss:// addresses";
        let peer = |text: &str| {
            let relay = text.starts_with("wss://") || text.starts_with("ws://");
            (relay && nostr::RelayUrl::parse(text).is_ok()).then(|| text.to_owned())
        };
        let cluster = Self {
            siblings: keys
                .list("cluster.siblings", "a list of npubs", |text| {
                    text.parse().ok()
                })?
                .unwrap_or_default(),
            peers: keys.list("cluster.peers", PEERS, peer)?.unwrap_or_default(),
            lease: keys.duration(
                "cluster.lease",
                Duration::from_secs(2)..=MINUTE,
                Duration::from_secs(15),
            )?,
        };
        if cluster.siblings.is_empty() != cluster.peers.is_empty() {
            return Err(ConfigError::Conflict {
                key: "cluster.peers".to_owned(),
                reason: "belongs together with cluster.siblings: give both or neither".to_owned(),
            });
        }
        Ok(cluster)
    }
}

/// `[queue]`.
#[derive(Debug, Clone, Copy)]
pub struct Queue {
    /// Events that may wait for the core; beyond it, senders are told to try again.
    pub capacity: usize,
}

impl Queue {
    pub(super) fn read(keys: &mut Keys) -> Result<Self, ConfigError> {
        Ok(Self {
            capacity: keys.number("queue.capacity", 1..=65_536, 1_024)? as usize,
        })
    }
}

/// `[log]`.
#[derive(Debug, Clone)]
pub struct Log {
    /// One JSON object per line, or text for people.
    pub format: LogFormat,
    /// A filter such as "info" or "info,keyturn=debug". Targets that print values stay silent whatever it says.
    pub level: String,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For machines.
    Json,
    /// For people.
    Text,
}

impl Log {
    pub(super) fn read(keys: &mut Keys) -> Result<Self, ConfigError> {
        let format = keys.text("log.format", "\"json\" or \"text\"", |text| match text {
            "json" => Some(LogFormat::Json),
            "text" => Some(LogFormat::Text),
            _ => None,
        })?;
        let level = keys.text(
            "log.level",
            "a level or a filter such as \"info,keyturn=debug\"",
            |text| valid_filter(text).then(|| text.to_owned()),
        )?;
        Ok(Self {
            format: format.unwrap_or(LogFormat::Json),
            level: level.unwrap_or_else(|| "info".to_owned()),
        })
    }
}

/// Stricter than the parser of `Targets`, which takes a misspelt level for a target to be shown in full.
fn valid_filter(text: &str) -> bool {
    text.split(',').all(|directive| {
        let level = directive
            .split_once('=')
            .map_or(directive, |(_, level)| level);
        level
            .parse::<tracing_subscriber::filter::LevelFilter>()
            .is_ok()
    })
}

fn own(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn public_key(text: &str) -> Option<String> {
    nostr::PublicKey::from_hex(text)
        .ok()
        .map(|key| key.to_hex())
}

fn header_name(text: &str) -> Option<String> {
    axum::http::HeaderName::try_from(text)
        .ok()
        .map(|name| name.as_str().to_owned())
}
