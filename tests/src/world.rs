//! One world: a folder, a relay process, a development issuer, admins with homes, an operator's store.
//!
//! Everything is real and on loopback. Waiting is always for a condition, with a deadline.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keyturn::admission::SeedKey;
use keyturn::config::{Config, Environment};
use keyturn::crash::Point;
use keyturn::operator::{admins, clients, groups, open_store};
use keyturn::quickstart::issuer::{DevIssuer, DevSigner};
use keyturn::quickstart::setup::Layout;
use keyturn_admin::clock::{Clock as _, SystemClock};
use keyturn_admin::session::Reply;
use keyturn_admin::{AdminSession, NewGroup, OpenedSecret, RequestSpec, SessionConfig};
use keyturn_mls::StorageKey;
use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_proto::{Action, ClientId, MlsGroupId, Npub, Params, RotationId, UnixMs};
use keyturn_store::documents::ClientScope;
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::Store;
use nostr::{Keys, RelayUrl};
use tempfile::TempDir;
use tokio::net::TcpSocket;
use tokio::time::Instant;

use crate::relay::Relay;

/// Nothing here takes longer; a slow machine gets the benefit of the doubt.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long commits settle in tests, on all sides: longer than a busy machine stands still, or what it sees late is a fork.
pub const SETTLE: Duration = Duration::from_secs(3);
/// The alias of the group that [`World::with_group`] makes.
pub const GROUP: &str = "ops";
/// The client that [`World::with_group`] registers.
pub const CLIENT: &str = "ext-totp-svc";

pub fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

pub fn now() -> UnixMs {
    SystemClock.now()
}

/// Polls `probe` until it gives something, or panics at the deadline with `what`.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let until = deadline();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < until, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub struct World {
    pub dir: TempDir,
    pub layout: Layout,
    pub issuer: DevIssuer,
    /// Service npubs of further relays on the same store.
    pub siblings: Vec<Npub>,
    /// How long commits settle in the admins' apps.
    pub settle: Duration,
    program: PathBuf,
    people: BTreeMap<String, Keys>,
}

impl World {
    /// A world whose issuer's key lies where `dev-proof` finds it, so that admins' programs get proofs by their command.
    pub async fn with_issuer_key_on_disk(program: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("secrets")).unwrap();
        let signer = DevSigner::at(&dir.path().join("secrets/issuer.key")).unwrap();
        Self::build(program, dir, signer, |_| {}).await
    }

    /// A world without a running relay. `program` is `env!("CARGO_BIN_EXE_keyturn-under-test")`. `tune` changes the configuration.
    pub async fn new(program: &str, tune: impl FnOnce(&mut toml::Table)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::build(program, dir, DevSigner::generate().unwrap(), tune).await
    }

    async fn build(
        program: &str,
        dir: TempDir,
        signer: DevSigner,
        tune: impl FnOnce(&mut toml::Table),
    ) -> Self {
        let issuer = DevIssuer::start(signer).await.unwrap();
        let layout = Layout::prepare(dir.path(), free_port(), &issuer.jwks_url()).unwrap();
        let mut config: toml::Table = std::fs::read_to_string(layout.config())
            .unwrap()
            .parse()
            .unwrap();
        config["mls"]["settle"] = format!("{}s", SETTLE.as_secs()).into();
        // Fixed for this world, so that admins find the relay again after a restart.
        config["web"]["listen"] = format!("127.0.0.1:{}", free_port()).into();
        tune(&mut config);
        std::fs::write(layout.config(), config.to_string()).unwrap();
        Self {
            dir,
            layout,
            issuer,
            siblings: Vec::new(),
            settle: SETTLE,
            program: PathBuf::from(program),
            people: BTreeMap::new(),
        }
    }

    /// Starts the relay, or starts it again over the same files.
    pub async fn relay(&self) -> Relay {
        self.try_relay(None)
            .await
            .unwrap_or_else(|status| panic!("the relay ended with {status}: {}", self.log()))
    }

    /// Starts the relay armed with a crash point; `Err` if it died before it was ready.
    pub async fn try_relay(
        &self,
        crash_at: Option<Point>,
    ) -> Result<Relay, std::process::ExitStatus> {
        let (program, config, log) = (self.program.clone(), self.layout.config(), self.log_path());
        tokio::task::spawn_blocking(move || Relay::start(&program, &config, &log, crash_at))
            .await
            .unwrap()
    }

    /// Changes the configuration for the next start.
    pub fn configure(&self, tune: impl FnOnce(&mut toml::Table)) {
        let path = self.layout.config();
        let mut config: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        tune(&mut config);
        std::fs::write(path, config.to_string()).unwrap();
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.path().join("relay.log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The embedded store, as the operator sees it; the relay may run meanwhile.
    pub fn store(&self) -> SqliteStore {
        SqliteStore::open(&self.layout.store()).unwrap()
    }

    /// The store that the configuration names, as the operator's commands open it; the relay may run meanwhile.
    pub async fn operator(&self) -> Arc<dyn Store> {
        let config = Config::load(&self.layout.config(), Environment::default()).unwrap();
        open_store(&config).await.unwrap()
    }

    /// The relay's own npub.
    pub fn service(&self) -> Npub {
        let hex = std::fs::read_to_string(self.dir.path().join("secrets/nostr.key")).unwrap();
        npub(&Keys::parse(hex.trim()).unwrap())
    }

    /// The npubs of every relay of this world.
    fn services(&self) -> Vec<Npub> {
        let mut services = vec![self.service()];
        services.extend(&self.siblings);
        services
    }

    /// The key of a person of this world; made on first use.
    pub fn keys(&mut self, name: &str) -> Keys {
        self.people
            .entry(name.to_owned())
            .or_insert_with(Keys::generate)
            .clone()
    }

    pub fn npub(&mut self, name: &str) -> Npub {
        npub(&self.keys(name))
    }

    /// The operator enrols a person as an admin for everything. TOTP stays with the issuer unless the policy says otherwise.
    pub async fn enrol(&mut self, name: &str) -> admins::Enrolled {
        let enrolment = admins::Enrolment {
            npub: self.npub(name),
            scope: ClientScope::All,
            keys: Vec::new(),
            new_seed: false,
            issuer: "keyturn-tests".to_owned(),
        };
        admins::enrol(
            self.operator().await.as_ref(),
            &self.seed_key(),
            enrolment,
            now(),
        )
        .await
        .unwrap()
    }

    pub fn seed_key(&self) -> SeedKey {
        let hex = std::fs::read_to_string(self.dir.path().join("secrets/totp-seed.key")).unwrap();
        let mut key = [0u8; 32];
        hex::decode_to_slice(hex.trim(), &mut key).unwrap();
        SeedKey::new(&key)
    }

    /// The operator binds `alias`, with `welcomer` allowed to welcome the service into it.
    pub async fn bind(&mut self, alias: &str, welcomer: &str) {
        let binding = groups::Binding {
            alias: alias.to_owned(),
            mls_group_id: None,
            nostr_group_id: None,
            welcomers: vec![self.npub(welcomer)],
        };
        groups::bind(self.operator().await.as_ref(), binding, now())
            .await
            .unwrap();
    }

    /// The operator registers a client without a secret.
    pub async fn client(&self, id: &str, aliases: &[&str]) -> ClientId {
        let client: ClientId = id.parse().unwrap();
        let aliases = aliases.iter().map(|&alias| alias.to_owned()).collect();
        clients::add(
            self.operator().await.as_ref(),
            client.clone(),
            aliases,
            now(),
        )
        .await
        .unwrap();
        client
    }

    /// A connected admin app with a database of its own; the same name finds the same database again.
    pub async fn admin(&mut self, name: &str, relay: &Relay) -> AdminSession {
        let config = self.session_config(name, relay);
        AdminSession::open(config, deadline()).await.unwrap()
    }

    /// What [`World::admin`] opens.
    pub fn session_config(&mut self, name: &str, relay: &Relay) -> SessionConfig {
        let keys = self.keys(name);
        let home = self.home(name);
        std::fs::create_dir_all(&home).unwrap();
        let storage_key = StorageKey::from_file_or_create(&home.join("member.key")).unwrap();
        let url = RelayUrl::parse(&relay.url).unwrap();
        SessionConfig {
            service_urls: vec![relay.web.clone()],
            services: self.services(),
            welcomers: self.people.values().map(npub).collect(),
            sync_path: Some(home.join("sync.json")),
            settle: self.settle,
            ..SessionConfig::new(url, keys, home.join("member.db"), storage_key)
        }
    }

    pub fn home(&self, name: &str) -> PathBuf {
        self.dir.path().join("admins").join(name)
    }

    /// The usual beginning: alice and bob enrolled, group `ops` bound to alice, client registered; relay up, everybody joined and settled.
    pub async fn with_group(&mut self) -> (Relay, AdminSession, AdminSession, MlsGroupId) {
        self.enrol("alice").await;
        self.enrol("bob").await;
        self.bind(GROUP, "alice").await;
        self.client(CLIENT, &[GROUP]).await;
        let relay = self.relay().await;
        let mut alice = self.admin("alice", &relay).await;
        let mut bob = self.admin("bob", &relay).await;
        let group = self.found(GROUP, &mut alice, &mut [&mut bob]).await;
        (relay, alice, bob, group)
    }

    /// `founder` makes a group of everybody and the service, and waits until all have joined, renewed their leaves and settled.
    pub async fn found(
        &self,
        name: &str,
        founder: &mut AdminSession,
        others: &mut [&mut AdminSession],
    ) -> MlsGroupId {
        founder.publish_key_package(deadline()).await.unwrap();
        for other in others.iter_mut() {
            other.publish_key_package(deadline()).await.unwrap();
        }
        let new = NewGroup {
            name: name.to_owned(),
            admins: others.iter().map(|other| other.npub()).collect(),
            members: self.services(),
        };
        let group = founder.create_group(new, deadline()).await.unwrap().id;
        for other in others.iter_mut() {
            other.sync(deadline()).await.unwrap();
        }
        // Epoch 1 is the creation; every invited one renews its leaf.
        let wanted = 1 + others.len() as u64 + self.services().len() as u64;
        let mut everybody: Vec<&mut AdminSession> = vec![founder];
        everybody.extend(others.iter_mut().map(|other| &mut **other));
        eventually("everybody joined and renewed their leaf", async || {
            let mut done = true;
            for session in &mut everybody {
                session
                    .next_update(Instant::now() + Duration::from_millis(20))
                    .await
                    .unwrap();
                done &= epoch(session, &group) >= wanted;
            }
            done.then_some(())
        })
        .await;
        for session in everybody {
            session.ready(&group, deadline()).await.unwrap();
        }
        group
    }

    /// Asks for an action with a proof of the development issuer.
    pub async fn ask(
        &self,
        who: &mut AdminSession,
        group: &MlsGroupId,
        action: Action,
        params: Params,
    ) -> Result<Reply, keyturn_admin::session::RequestError> {
        let spec = RequestSpec {
            action,
            client: CLIENT.parse().unwrap(),
            params,
            action_id: None,
            group: group.clone(),
            totp: None,
        };
        who.request(spec, self.issuer.signer(), deadline()).await
    }

    /// A whole rotation: alice asks, both open and ack, promoted. What both opened.
    pub async fn rotate(
        &self,
        alice: &mut AdminSession,
        bob: &mut AdminSession,
        group: &MlsGroupId,
    ) -> (RotationId, OpenedSecret) {
        let reply = self
            .ask(alice, group, Action::Rotation, reason("test"))
            .await
            .unwrap();
        let opened = open_and_ack(alice, &reply.action_id).await;
        let same = open_and_ack(bob, &reply.action_id).await;
        assert_eq!(opened.notify.secret.expose(), same.notify.secret.expose());
        let done = alice
            .await_done(&reply.action_id, deadline())
            .await
            .unwrap();
        assert!(
            matches!(
                done.body,
                NotifyState::Done {
                    outcome: Outcome::Promoted,
                    ..
                }
            ),
            "{done:?}"
        );
        (reply.action_id, opened)
    }
}

/// Waits for the secret of `rotation`, opens it, and acks with a proof.
pub async fn open_and_ack(session: &mut AdminSession, rotation: &RotationId) -> OpenedSecret {
    let waiting = session.await_secret(rotation, deadline()).await.unwrap();
    let opened = session.open_secret(&waiting).unwrap();
    session.ack(&opened, deadline()).await.unwrap();
    opened
}

pub fn reason(text: &str) -> Params {
    Params {
        rotation_reason: text.to_owned(),
        ..Params::default()
    }
}

pub fn npub(keys: &Keys) -> Npub {
    Npub::from_bytes(keys.public_key().to_bytes())
}

pub fn epoch(session: &AdminSession, group: &MlsGroupId) -> u64 {
    session
        .groups()
        .unwrap()
        .into_iter()
        .find(|info| info.id == *group)
        .map_or(0, |info| info.epoch)
}

/// A port for a process that has to be told its own before it has it, and that may leave it and come back.
///
/// It stays ours until the test program ends: a socket that is bound and does not listen keeps the kernel from giving the port to anybody
/// who asks for any, incoming or outgoing, and hinders no server that asks for this one with `SO_REUSEADDR`, as servers do.
pub fn free_port() -> u16 {
    static HELD: Mutex<Vec<TcpSocket>> = Mutex::new(Vec::new());
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let port = socket.local_addr().unwrap().port();
    HELD.lock().unwrap().push(socket);
    port
}

/// For the search of files: everything below `root` but what `skip` names.
pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Sets `section.key` of a configuration, whether it is there or not.
pub fn set(config: &mut toml::Table, section: &str, key: &str, value: impl Into<toml::Value>) {
    let section = config
        .entry(section)
        .or_insert_with(|| toml::Table::new().into());
    section
        .as_table_mut()
        .unwrap()
        .insert(key.to_owned(), value.into());
}
