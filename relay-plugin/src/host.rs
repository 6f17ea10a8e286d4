//! The relay that `keyturn serve` runs: rnostr on an actix System in a thread of its own.
//!
//! rnostr's own `web_server()` binds late, handles signals itself and takes half a minute to leave open websockets, so
//! the server is built here. What must always hold: the port is bound before any actor starts; what rnostr understood of
//! its settings is what we meant, or the start fails; shutting down ends within the deadline, open websockets or not.

use std::{
    fs::DirBuilder,
    io,
    net::{SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt as _,
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use actix_web::{HttpServer, dev::ServerHandle, web};
use nostr_db::Db;
use nostr_extensions::{
    Auth,
    auth::{AuthSetting, Permission},
};
use nostr_relay::{App, Server, Setting, create_web_app, setting::SettingWrapper};
use serde_json::json;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Relay, RelayAuth},
    delivery::rnostr::AttachError,
};

/// rnostr writes every 100 ms; what it had taken when the server stopped is committed by then.
const LAST_BATCH: Duration = Duration::from_millis(150);
/// Seconds a connection that does not close may keep the server. Well within the five of the whole process.
const LINGER: u64 = 2;
/// The event database, in the data directory.
const EVENTS: &str = "events";

/// Why the relay cannot run.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// `relay.host` and `relay.port` cannot be had.
    #[error("relay.host, relay.port: cannot listen on {address}: {source}")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// `relay.data_dir` cannot be used.
    #[error("relay.data_dir: cannot open the event database in {path}: {reason}")]
    Database {
        /// The directory.
        path: std::path::PathBuf,
        /// Why.
        reason: String,
    },
    /// rnostr replaced a section by its defaults.
    #[error(
        "relay.{section}: rnostr did not take these settings; it would run with its defaults instead"
    )]
    Settings {
        /// Which of our keys.
        section: &'static str,
    },
    /// The extension cannot reach the relay.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// No thread.
    #[error("cannot start the relay's threads: {0}")]
    Threads(#[source] io::Error),
    /// The relay's thread ended while it started.
    #[error("the relay's thread ended while it started")]
    Died,
}

/// The running relay.
pub struct Host {
    address: SocketAddr,
    server: ServerHandle,
    db: Weak<Db>,
    thread: thread::JoinHandle<()>,
    ended: CancellationToken,
}

impl Host {
    /// Makes `relay.data_dir`, which only we can read. Before anything else starts: the service's own files lie there by default.
    ///
    /// # Errors
    /// [`HostError::Database`].
    pub fn prepare(relay: &Relay) -> Result<(), HostError> {
        let path = relay.data_dir.join(EVENTS);
        // LMDB would answer with a bare errno for a directory that cannot be made, and make one that everybody can read.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|error| HostError::Database {
            reason: error.to_string(),
            path,
        })
    }

    /// Binds, opens the database, and serves. `extend` adds extensions; it runs where the relay's actors live. NIP-42 is
    /// in place before it.
    pub async fn start(
        relay: &Relay,
        extend: impl FnOnce(App) -> Result<App, HostError> + Send + 'static,
    ) -> Result<Self, HostError> {
        Self::prepare(relay)?;
        let wanted = SocketAddr::new(relay.host, relay.port);
        let listening = |source| HostError::Listen {
            address: wanted,
            source,
        };
        let listener = TcpListener::bind(wanted).map_err(listening)?;
        let address = listener.local_addr().map_err(listening)?;
        let plan = Plan {
            setting: setting(relay, address)?,
            auth: relay.auth.clone(),
            data_dir: relay.data_dir.clone(),
            workers: relay.http_workers,
        };
        let (report, reported) = oneshot::channel();
        let ended = CancellationToken::new();
        let end = ended.clone().drop_guard();
        let thread = thread::Builder::new()
            .name("keyturn-relay".to_owned())
            .spawn(move || {
                let _end = end;
                actix::System::new().block_on(plan.run(listener, extend, report));
            })
            .map_err(HostError::Threads)?;
        let (server, db) = reported.await.map_err(|_| HostError::Died)??;
        tracing::info!(%address, "the relay listens");
        Ok(Self {
            address,
            server,
            db,
            thread,
            ended,
        })
    }

    /// Where the relay really listens; differs from the configuration when that said port 0.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resolves when the relay's thread has ended, whyever.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Stops accepting, closes what is open, commits what was taken, and closes the database. The sessions themselves
    /// are told by the extension.
    pub async fn shutdown(self, deadline: tokio::time::Instant) {
        let _ = tokio::time::timeout_at(deadline, self.server.stop(true)).await;
        let ended = async {
            while !self.thread.is_finished() || self.db.strong_count() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout_at(deadline, ended).await.is_err() {
            tracing::warn!("the relay did not stop in time; what it had acknowledged is stored");
        }
    }
}

struct Plan {
    setting: Setting,
    auth: RelayAuth,
    data_dir: std::path::PathBuf,
    workers: usize,
}

type Report = oneshot::Sender<Result<(ServerHandle, Weak<Db>), HostError>>;

impl Plan {
    async fn run(
        self,
        listener: TcpListener,
        extend: impl FnOnce(App) -> Result<App, HostError>,
        report: Report,
    ) {
        let workers = self.workers;
        let app = match self.app().and_then(extend) {
            Ok(app) => app,
            Err(error) => {
                let _ = report.send(Err(error));
                return;
            }
        };
        let db = Arc::downgrade(&app.db);
        let app = web::Data::new(app);
        let server = HttpServer::new(move || create_web_app(app.clone()))
            .workers(workers)
            .disable_signals()
            .shutdown_timeout(LINGER)
            .listen(listener);
        let server = match server {
            Ok(server) => server.run(),
            Err(error) => {
                let _ = report.send(Err(HostError::Threads(error)));
                return;
            }
        };
        if report.send(Ok((server.handle(), db))).is_err() {
            return;
        }
        if let Err(error) = server.await {
            tracing::error!(%error, "the relay's HTTP server failed");
        }
        actix_rt::time::sleep(LAST_BATCH).await;
    }

    fn app(self) -> Result<App, HostError> {
        let path = self.data_dir.join(EVENTS);
        let database = |error: nostr_db::Error| HostError::Database {
            path: path.clone(),
            reason: error.to_string(),
        };
        let db = Arc::new(Db::open(&path).map_err(database)?);
        db.check_schema().map_err(database)?;
        let setting = SettingWrapper::from(self.setting);
        let server = Server::create_with(Arc::clone(&db), setting.clone());
        let app = App {
            server,
            db,
            setting,
            extensions: Arc::default(),
        }
        .add_extension(Auth::new());
        understood(&app.setting.read(), &self.auth)?;
        Ok(app)
    }
}

/// Our section as rnostr's settings.
fn setting(relay: &Relay, address: SocketAddr) -> Result<Setting, HostError> {
    let mut document = json!({
        "information": { "name": relay.name, "description": relay.description, "software": "keyturn" },
        "data": { "path": relay.data_dir },
        "thread": { "http": relay.http_workers, "reader": relay.reader_threads },
        "network": { "host": address.ip().to_string(), "port": address.port() },
        "limitation": { "max_message_length": relay.max_message_bytes },
        "auth": auth(&relay.auth),
    });
    if let Some(header) = &relay.real_ip_header {
        document["network"]["real_ip_header"] = json!(header);
    }
    let setting: Setting =
        serde_json::from_value(document).map_err(|_| HostError::Settings { section: "*" })?;
    let taken = setting.limitation.max_message_length == relay.max_message_bytes
        && setting.thread.reader == relay.reader_threads
        && setting.network.port == address.port()
        && setting.network.real_ip_header == relay.real_ip_header;
    if taken {
        Ok(setting)
    } else {
        Err(HostError::Settings { section: "*" })
    }
}

/// An empty section would enforce nothing; an empty blacklist of public keys demands one.
fn auth(auth: &RelayAuth) -> serde_json::Value {
    let side = |required: bool, allowed: &[String]| match (required, allowed) {
        (_, [_, ..]) => json!({ "pubkey_whitelist": allowed }),
        (true, []) => json!({ "pubkey_blacklist": [] }),
        (false, []) => serde_json::Value::Null,
    };
    json!({
        "enabled": auth.enabled,
        "event": side(auth.require_to_publish, &auth.publish_pubkeys),
        "req": side(auth.require_to_read, &auth.read_pubkeys),
    })
}

/// Whether rnostr would understand these settings as they are meant. Starts nothing; for `keyturn doctor`.
pub fn check_settings(relay: &Relay) -> Result<(), HostError> {
    understood(
        &setting(relay, SocketAddr::new(relay.host, relay.port))?,
        &relay.auth,
    )
}

/// A type error in a section makes rnostr log one line and take the defaults, authentication off among them.
fn understood(setting: &Setting, meant: &RelayAuth) -> Result<(), HostError> {
    let found: AuthSetting = setting.parse_extension("auth");
    let as_meant = found.enabled == meant.enabled
        && side_as_meant(
            found.event.as_ref(),
            meant.require_to_publish,
            &meant.publish_pubkeys,
        )
        && side_as_meant(
            found.req.as_ref(),
            meant.require_to_read,
            &meant.read_pubkeys,
        );
    if as_meant {
        Ok(())
    } else {
        Err(HostError::Settings { section: "auth" })
    }
}

fn side_as_meant(found: Option<&Permission>, required: bool, allowed: &[String]) -> bool {
    match (found, allowed) {
        (None, []) => !required,
        (None, _) => false,
        (Some(found), []) => {
            required && found.pubkey_blacklist.is_some() && found.pubkey_whitelist.is_none()
        }
        (Some(found), _) => found.pubkey_whitelist.as_ref().is_some_and(|list| {
            allowed.iter().all(|key| list.contains(key)) && list.len() == allowed.len()
        }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn auth_of(publish: &[&str], read: &[&str]) -> RelayAuth {
        let keys = |list: &[&str]| list.iter().map(|key| (*key).to_owned()).collect();
        RelayAuth {
            enabled: true,
            require_to_publish: true,
            require_to_read: false,
            publish_pubkeys: keys(publish),
            read_pubkeys: keys(read),
        }
    }

    fn read_back(document: serde_json::Value, meant: &RelayAuth) -> Result<(), HostError> {
        understood(
            &serde_json::from_value(json!({ "auth": document })).unwrap(),
            meant,
        )
    }

    #[test]
    fn what_we_ask_of_rnostr_is_what_it_understands() {
        for meant in [
            auth_of(&[], &[]),
            auth_of(&["aa"], &[]),
            auth_of(&["aa", "bb"], &["cc"]),
        ] {
            read_back(auth(&meant), &meant).unwrap();
        }
    }

    #[test]
    fn a_section_that_rnostr_resets_or_reads_otherwise_is_noticed() {
        let meant = auth_of(&[], &[]);
        for misread in [
            json!({ "enabled": "yes", "event": { "pubkey_blacklist": [] } }),
            json!({ "enabled": true, "event": {} }),
            json!({ "enabled": true }),
            json!({ "enabled": false, "event": { "pubkey_blacklist": [] } }),
            json!({ "enabled": true, "event": { "pubkey_whitelist": ["aa"] } }),
        ] {
            let error = read_back(misread.clone(), &meant).unwrap_err();
            assert!(
                matches!(error, HostError::Settings { section: "auth" }),
                "{misread}"
            );
        }
        let lists = auth_of(&["aa"], &[]);
        let wrong = json!({ "enabled": true, "event": { "pubkey_whitelist": ["aa", "bb"] } });
        assert!(read_back(wrong, &lists).is_err());
    }
}
