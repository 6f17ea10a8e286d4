//! Two relays on one store: the world's own, and a sibling with its own identity, member and event database.

use std::path::{Path, PathBuf};
use std::time::Duration;

use keyturn::crash::Point;
use keyturn::quickstart::setup::key_file;
use keyturn_admin::clock::SystemClock;
use keyturn_admin::transport::Connection;
use keyturn_proto::Npub;
use nostr::{Filter, Keys, Kind, RelayUrl};

use crate::relay::Relay;
use crate::world::{World, deadline, eventually, free_port, npub, set};

/// How long a lease lasts in these tests.
pub const LEASE: Duration = Duration::from_secs(3);

/// A commit travels by way of the mirror, and one that comes later than this is refused.
pub const SETTLE: Duration = Duration::from_secs(5);

/// The second instance. Its files lie in a folder of its own; the store, its keys and the issuer are the world's.
pub struct Sibling {
    root: PathBuf,
    program: PathBuf,
    /// Its service npub.
    pub npub: Npub,
}

impl Sibling {
    /// Lays out a sibling of `world`, and makes the two know each other. Neither runs yet.
    pub fn of(world: &mut World, program: &str) -> Self {
        let root = world.dir.path().join("sibling");
        std::fs::create_dir_all(root.join("secrets")).unwrap();
        for name in ["mls-storage", "nostr"] {
            key_file(&root.join(format!("secrets/{name}.key"))).unwrap();
        }
        let hex = std::fs::read_to_string(root.join("secrets/nostr.key")).unwrap();
        let sibling = Self {
            npub: npub(&Keys::parse(hex.trim()).unwrap()),
            program: PathBuf::from(program),
            root,
        };
        let (first, second) = (free_port(), free_port());
        let text = std::fs::read_to_string(world.layout.config()).unwrap();
        let mut theirs: toml::Table = text.parse().unwrap();
        join(&mut theirs, second, sibling.npub_of(world), first);
        theirs["web"]["listen"] = format!("127.0.0.1:{}", free_port()).into();
        for (section, key) in [
            ("store", "path"),
            ("mac", "key_file"),
            ("admission", "challenge_key_file"),
            ("admission", "totp_seed_key_file"),
        ] {
            // A store on no disk has no path.
            let Some(shared) = theirs[section].get(key).and_then(toml::Value::as_str) else {
                assert_eq!((section, key), ("store", "path"));
                continue;
            };
            let shared = world.layout.root().join(shared);
            theirs[section][key] = shared.to_str().unwrap().into();
        }
        std::fs::write(sibling.config(), theirs.to_string()).unwrap();
        world.configure(|config| join(config, first, sibling.npub, second));
        world.siblings.push(sibling.npub);
        world.settle = SETTLE;
        sibling
    }

    fn npub_of(&self, world: &World) -> Npub {
        world.service()
    }

    fn config(&self) -> PathBuf {
        self.root.join("keyturn.toml")
    }

    /// Its files.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What it has logged.
    pub fn log(&self) -> PathBuf {
        self.root.join("relay.log")
    }

    /// Starts it, or starts it again over the same files.
    pub async fn relay(&self) -> Relay {
        self.start(None).await
    }

    async fn start(&self, crash_at: Option<Point>) -> Relay {
        let (program, config, log) = (self.program.clone(), self.config(), self.log());
        let started =
            tokio::task::spawn_blocking(move || Relay::start(&program, &config, &log, crash_at));
        started.await.unwrap().unwrap_or_else(|status| {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            panic!("the sibling ended with {status}: {log}")
        })
    }
}

/// One instance's part of the configuration.
fn join(config: &mut toml::Table, port: u16, sibling: Npub, peer: u16) {
    config["relay"]["port"] = i64::from(port).into();
    config["mls"]["relays"] = vec![format!("ws://127.0.0.1:{port}")].into();
    config["mls"]["settle"] = format!("{}s", SETTLE.as_secs()).into();
    set(config, "cluster", "siblings", vec![sibling.to_string()]);
    let peers = vec![format!("ws://127.0.0.1:{peer}")];
    set(config, "cluster", "peers", peers);
    let lease = format!("{}s", LEASE.as_secs());
    set(config, "cluster", "lease", lease);
}

/// Waits until `relay` shows a key package of `author`, from wherever it came.
pub async fn key_package_of(author: Npub, relay: &Relay) {
    let author = nostr::PublicKey::from_slice(author.as_bytes()).unwrap();
    let filter = Filter::new().author(author).kind(Kind::from_u16(30443));
    let url = RelayUrl::parse(&relay.url).unwrap();
    let patience = Duration::from_secs(10);
    let clock = std::sync::Arc::new(SystemClock);
    let reader = Keys::generate();
    let connection = Connection::open(&url, &reader, patience, clock);
    let connection = connection.await.unwrap();
    eventually("the key package is mirrored", async || {
        let found = connection.fetch_all(&filter, deadline()).await.unwrap();
        (!found.is_empty()).then_some(())
    })
    .await;
    connection.close().await;
}
