//! `keyturn doctor` on a healthy installation, and on one with each part broken in turn.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod world;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Parser as _;
use keyturn::{
    cli::Cli,
    config::{Config, Environment, ValidatedConfig},
    doctor::{self, Finding, Level, Report, Subject},
    host::Host,
    running::Keyturn,
};
use keyturn_mls::{GroupSpec, Member, MemberConfig, StorageKey};
use keyturn_proto::{MlsGroupId, Npub, RotationId, UnixMs, VersionId};
use keyturn_store::{
    documents::{
        Actor, AdminDoc, AdminGroupDoc, AuditRecord, ClientDoc, ClientScope, ClientStatus,
        GroupState, Origin, Quorum, RotationDoc, RotationState, TotpState, VersionDoc,
        VersionState,
    },
    mac::{LocalMacKey, MacKey as _},
    sqlite::SqliteStore,
    store::{AuditTrail as _, Registry as _},
};
use nostr::{Keys, ToBech32 as _};
use serde_json::{Value, json};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};
use world::{Handover, PATIENCE};

const CONFIG: &str = r#"
[relay]
port = 0
data_dir = "relay"
[web]
listen = "127.0.0.1:0"
[mls]
database = "member.db"
storage_key_file = "mls.key"
nostr_secret_key_file = "nostr.nsec"
relays = ["wss://relay.keyturn.dev"]
[store]
path = "keyturn.db"
[mac]
key_file = "mac.key"
[issuer]
issuer = "https://auth.keyturn.dev"
[admission]
challenge_key_file = "challenge.key"
totp_seed_key_file = "totp.key"
"#;

/// The public key of RFC 8037, appendix A.
fn jwk() -> Value {
    json!({ "kty": "OKP", "crv": "Ed25519", "kid": "k1", "alg": "EdDSA", "use": "sig",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" })
}

fn now() -> UnixMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    UnixMs(since.as_millis() as u64)
}

fn audit(at: UnixMs) -> AuditRecord {
    serde_json::from_value(
        json!({ "at": at, "actor": Actor::Operator, "event": "test", "reason": "test" }),
    )
    .unwrap()
}

/// An installation in a directory of its own; healthy until a test breaks something.
struct Patient {
    dir: tempfile::TempDir,
    variables: Vec<(String, String)>,
    now: UnixMs,
    admin: Npub,
}

impl Patient {
    /// Everything that an operator puts in place, and what the first start adds.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut patient = Self {
            dir,
            variables: Vec::new(),
            now: now(),
            admin: Npub::from_bytes(Keys::generate().public_key().to_bytes()),
        };
        patient.file("keyturn.toml", CONFIG, 0o644);
        patient.file("mls.key", &"07".repeat(32), 0o600);
        patient.file("challenge.key", &"08".repeat(32), 0o600);
        patient.file("totp.key", &"09".repeat(32), 0o600);
        let identity = Keys::generate();
        let nsec = identity.secret_key().to_bech32().unwrap();
        patient.file("nostr.nsec", &nsec, 0o600);
        LocalMacKey::create(&patient.path("mac.key")).unwrap();
        patient.file("jwks.json", &json!({ "keys": [jwk()] }).to_string(), 0o644);
        patient.set("ISSUER__JWKS_FILE", "jwks.json");
        fs::create_dir(patient.path("relay")).unwrap();
        let group = patient.member_with_group(identity);
        patient.register(group).await;
        patient
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, text: &str, mode: u32) {
        fs::write(self.path(name), text).unwrap();
        self.chmod(name, mode);
    }

    fn chmod(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn set(&mut self, key: &str, value: &str) {
        self.variables
            .push((format!("KEYTURN_{key}"), value.to_owned()));
    }

    fn member_with_group(&self, identity: Keys) -> MlsGroupId {
        let mut member = Member::open(MemberConfig::new(
            self.path("member.db"),
            StorageKey::from_text(&"07".repeat(32)).unwrap(),
            identity,
        ))
        .unwrap();
        let made = member.create_group(GroupSpec::default(), &[], self.now);
        made.unwrap().group.id
    }

    fn store(&self) -> SqliteStore {
        SqliteStore::open(&self.path("keyturn.db")).unwrap()
    }

    fn sql(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.path("keyturn.db")).unwrap()
    }

    /// A group, an admin, and a client with one living version.
    async fn register(&self, group: MlsGroupId) {
        let (store, now) = (self.store(), self.now);
        let group = AdminGroupDoc {
            alias: "ops".to_owned(),
            mls_group_id: Some(group),
            nostr_group_id: None,
            welcomers: vec![self.admin],
            status: GroupState::Active,
            updated_at: now,
        };
        store.put_group(group, audit(now)).await.unwrap();
        store
            .put_admin(self.admin_document(None), audit(now))
            .await
            .unwrap();
        let client = ClientDoc {
            client_id: "ext-totp-svc".parse().unwrap(),
            current_version: None,
            previous_version: None,
            status: ClientStatus::Active,
            admin_groups: vec!["ops".to_owned()],
            updated_at: now,
            last_rotation_at: None,
            policy: Default::default(),
            active_rotation: None,
            fence: 0,
            snapshot: Vec::new(),
        };
        let key = LocalMacKey::open(&[self.path("mac.key")]).unwrap();
        let version_id = VersionId::generate(now).unwrap();
        let maced = key
            .sign(&client.client_id, &version_id, "canary")
            .await
            .unwrap();
        let version = VersionDoc {
            client_id: client.client_id.clone(),
            version_id,
            secret_hash: maced.hash.as_str().to_owned(),
            algo: "HMAC-SHA-256".to_owned(),
            mac_key_ref: maced.key_ref,
            created_at: now,
            not_before: now,
            not_after: None,
            state: VersionState::Current,
            rotated_by: None,
            rotation_reason: "first".to_owned(),
            rotation_id: None,
            origin: Origin::Imported,
            prefilter: None,
            prehash: None,
            ack_public_key: None,
        };
        store
            .create_client(client, Some(version), audit(now))
            .await
            .unwrap();
    }

    fn admin_document(&self, locked_until: Option<UnixMs>) -> AdminDoc {
        AdminDoc {
            npub: self.admin,
            active: true,
            scope: ClientScope::All,
            signature_keys: Vec::new(),
            totp: Some(TotpState {
                seed_ciphertext: "seed-canary".to_owned(),
                last_step: None,
                failures: 0,
                locked_until,
            }),
            created_at: self.now,
            updated_at: self.now,
        }
    }

    fn config(&self) -> ValidatedConfig {
        let environment = Environment::from_pairs(self.variables.iter().cloned());
        Config::load(&self.path("keyturn.toml"), environment).unwrap()
    }

    async fn examine(&self) -> Report {
        let config = self.config();
        let subject = Subject {
            path: &self.path("keyturn.toml"),
            config: &config,
            now: self.now,
        };
        let report = doctor::examine(subject).await;
        self.says_no_secret(&report);
        commands_exist(&report);
        report
    }

    /// Neither text nor JSON holds a key, a hash or a seed.
    fn says_no_secret(&self, report: &Report) {
        let mut shown = Vec::new();
        report.write_text(&mut shown).unwrap();
        report.write_json(&mut shown).unwrap();
        let shown = String::from_utf8(shown).unwrap();
        let mut secrets = vec!["seed-canary".to_owned()];
        for name in [
            "mls.key",
            "nostr.nsec",
            "challenge.key",
            "totp.key",
            "mac.key",
        ] {
            secrets.extend(fs::read_to_string(self.path(name)));
        }
        // Opening it would make it.
        if self.path("keyturn.db").exists()
            && let Ok(mut query) = self
                .sql()
                .prepare("SELECT doc ->> 'secret_hash' FROM versions")
        {
            let hashes = query.query_map([], |row| row.get::<_, String>(0)).unwrap();
            secrets.extend(hashes.flatten());
        }
        for secret in secrets.iter().filter(|secret| secret.len() > 8) {
            assert!(!shown.contains(secret.as_str()), "a secret is shown");
        }
    }

    /// Examines, and demands a finding.
    async fn finds(&self, check: &str, level: Level, what: &str, mend: &str) {
        let report = self.examine().await;
        let fits = |finding: &&Finding| {
            finding.check == check
                && finding.level == level
                && finding.what.contains(what)
                && finding.mend.as_deref().unwrap_or_default().contains(mend)
        };
        assert!(
            report.findings.iter().any(|finding| fits(&finding)),
            "no {level:?} of {check} with `{what}` and `{mend}` in {:#?}",
            report.findings
        );
    }
}

/// Every `keyturn …` that a finding tells to run is one.
fn commands_exist(report: &Report) {
    let npub = Npub::from_bytes(Keys::generate().public_key().to_bytes()).to_string();
    let mends = report.findings.iter().filter_map(|f| f.mend.as_deref());
    for mend in mends {
        let Some((_, command)) = mend.split_once("keyturn ") else {
            continue;
        };
        let words: Vec<&str> = command
            .split_whitespace()
            .map(|word| match word {
                "NPUB" => npub.as_str(),
                "ALIAS" => "ops",
                "CLIENT_ID" => "ext-totp-svc",
                word => word,
            })
            .collect();
        // "the keyturn that wrote it" is prose.
        if words.contains(&"--config") {
            let parsed = Cli::try_parse_from([&["keyturn"], &words[..]].concat());
            assert!(parsed.is_ok(), "{mend}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_installation_is_in_order() {
    let patient = Patient::new().await;
    let report = patient.examine().await;
    let not_ok: Vec<&Finding> = report
        .findings
        .iter()
        .filter(|finding| finding.level != Level::Ok)
        .collect();
    assert!(not_ok.is_empty(), "{not_ok:#?}");
    assert!(
        report
            .findings
            .iter()
            .any(|finding| finding.what.starts_with("the service is npub1"))
    );
    for check in [
        "config", "secrets", "relay", "ports", "clock", "store", "registry", "timed", "mac", "mls",
        "issuer",
    ] {
        assert!(report.findings.iter().any(|f| f.check == check), "{check}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_start_nothing_is_made_and_nothing_fails() {
    let patient = Patient::new().await;
    for name in [
        "keyturn.db",
        "keyturn.db-wal",
        "keyturn.db-shm",
        "member.db",
        "member.db.lock",
    ] {
        let _ = fs::remove_file(patient.path(name));
    }
    fs::remove_dir(patient.path("relay")).unwrap();
    let report = patient.examine().await;
    assert_eq!(report.count(Level::Fail), 0, "{:#?}", report.findings);
    fs::remove_file(patient.path("totp.key")).unwrap();
    patient
        .finds(
            "secrets",
            Level::Fail,
            "admission.totp_seed_key",
            "(umask 077; openssl rand -hex 32 > ",
        )
        .await;
    for name in ["keyturn.db", "member.db", "member.db.lock", "relay"] {
        assert!(!patient.path(name).exists(), "{name} was made");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_is_judged() {
    let mut patient = Patient::new().await;
    patient.chmod("keyturn.toml", 0o666);
    patient
        .finds("config", Level::Fail, "another issuer", "chmod go-w ")
        .await;
    let inline = CONFIG.replace(
        "storage_key_file = \"mls.key\"",
        &format!("storage_key = \"{}\"", "07".repeat(32)),
    );
    patient.file("keyturn.toml", &inline, 0o644);
    patient
        .finds("config", Level::Fail, "holds secret values", "chmod 600 ")
        .await;
    patient.file("keyturn.toml", CONFIG, 0o644);

    patient.set("MLS__RELAYS", "ws://127.0.0.1:8080");
    patient.set("POLICY__MIN_INTERVAL", "1s");
    patient.set("LOG__LEVEL", "debug");
    for (what, mend) in [
        ("ws://127.0.0.1:8080", "wss://"),
        ("policy.min_interval is 1s", "policy.min_interval"),
        ("log.level", "log.level = \"info\""),
    ] {
        patient.finds("config", Level::Warn, what, mend).await;
    }
    patient.set("PROFILE__ENVIRONMENT", "development");
    patient
        .finds("config", Level::Warn, "development", "production")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_secret_is_judged() {
    let patient = Patient::new().await;
    let nsec = fs::read_to_string(patient.path("nostr.nsec")).unwrap();
    for (name, key, value) in [
        ("mls.key", "mls.storage_key", "07".repeat(32)),
        ("nostr.nsec", "mls.nostr_secret_key", nsec),
        ("challenge.key", "admission.challenge_key", "08".repeat(32)),
        ("totp.key", "admission.totp_seed_key", "09".repeat(32)),
    ] {
        patient.chmod(name, 0o644);
        patient
            .finds("secrets", Level::Fail, key, "chmod 600 ")
            .await;
        patient.file(name, "not a key", 0o600);
        patient.finds("secrets", Level::Fail, key, "").await;
        fs::remove_file(patient.path(name)).unwrap();
        // What was encrypted under it is lost without it; challenges live for minutes.
        let mend = match name {
            "challenge.key" => "(umask 077; openssl rand -hex 32 > ",
            _ => "restore it from its backup",
        };
        patient.finds("secrets", Level::Fail, key, mend).await;
        patient.file(name, &value, 0o600);
    }
    patient.file("totp.key", &"08".repeat(32), 0o600);
    patient
        .finds(
            "secrets",
            Level::Fail,
            "are the same secret",
            "admission.totp_seed_key",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relays_directory_is_judged() {
    let patient = Patient::new().await;
    patient.chmod("relay", 0o777);
    patient
        .finds("relay", Level::Fail, "written by others", "chmod go-w ")
        .await;
    fs::remove_dir(patient.path("relay")).unwrap();
    patient.file("relay", "", 0o600);
    patient
        .finds("relay", Level::Fail, "not a directory", "relay.data_dir")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_that_others_hold_are_named() {
    let mut patient = Patient::new().await;
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port().to_string();
    // Takes connections and never answers: the doctor gives up by itself.
    patient.set("RELAY__PORT", &port);
    patient
        .finds("ports", Level::Fail, "relay.port", &format!(":{port}'"))
        .await;
    patient.set("WEB__LISTEN", &format!("127.0.0.1:{port}"));
    patient
        .finds("ports", Level::Fail, "the same address", "another port")
        .await;
    patient.set("RELAY__PORT", "0");
    patient
        .finds("ports", Level::Fail, "web.listen", &format!(":{port}'"))
        .await;
    // TEST-NET-1 (RFC 5737) is nobody's address.
    patient.set("WEB__LISTEN", "192.0.2.1:1");
    patient
        .finds("ports", Level::Fail, "cannot listen", "ip address")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_keyturn_is_asked_how_it_is() {
    let mut patient = Patient::new().await;
    let config = Arc::new(patient.config());
    let (ports, handed_over) = oneshot::channel();
    let factory = Handover {
        ports,
        served: None,
        fails: false,
    };
    let keyturn = Keyturn::start(Arc::clone(&config), Box::new(factory)).unwrap();
    let ports = timeout(PATIENCE, handed_over).await.unwrap().unwrap();
    patient.set("WEB__LISTEN", &keyturn.web_address().to_string());
    let jwks = ports.readiness.register("jwks");
    jwks.not_ready("the issuer sleeps");
    patient
        .finds(
            "ports",
            Level::Fail,
            "jwks: the issuer sleeps",
            "journalctl",
        )
        .await;

    let extension = keyturn::extension::RotationExtension::of(&keyturn);
    let host = Host::start(&config.relay, move |app| {
        extension.attach(&app)?;
        Ok(app.add_extension(extension))
    });
    let host = host.await.unwrap();
    patient.set("RELAY__PORT", &host.address().port().to_string());
    jwks.ready();
    timeout(PATIENCE, async {
        while !ports.readiness.all_ready() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    patient.finds("ports", Level::Ok, "is ready", "").await;
    patient
        .finds("ports", Level::Ok, "the relay answers", "")
        .await;
    let member = Member::open(MemberConfig::new(
        patient.path("member.db"),
        StorageKey::from_text(&"07".repeat(32)).unwrap(),
        Keys::parse(&fs::read_to_string(patient.path("nostr.nsec")).unwrap()).unwrap(),
    ));
    patient
        .finds(
            "mls",
            Level::Ok,
            "the running keyturn has the database open",
            "",
        )
        .await;
    drop(member);

    let deadline = Instant::now() + PATIENCE;
    drop(ports);
    tokio::task::spawn_blocking(move || keyturn.shutdown(deadline))
        .await
        .unwrap();
    host.shutdown(deadline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_set_back_is_noticed() {
    let mut patient = Patient::new().await;
    let ahead = SystemTime::now() + Duration::from_secs(7_200);
    let file = fs::File::options()
        .write(true)
        .open(patient.path("mac.key"))
        .unwrap();
    file.set_modified(ahead).unwrap();
    patient
        .finds("clock", Level::Fail, "mac.key was written", "timedatectl")
        .await;
    file.set_modified(SystemTime::now()).unwrap();
    let later = patient.now.plus(Duration::from_secs(7_200));
    patient.store().append(audit(later)).await.unwrap();
    patient
        .finds("clock", Level::Fail, "newest audit record", "timedatectl")
        .await;
    patient.now = UnixMs(1_000);
    patient
        .finds("clock", Level::Fail, "before 2026", "timedatectl")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_used_is_named() {
    let mut patient = Patient::new().await;
    let version = |number: i64| {
        let sql = patient.sql();
        sql.pragma_update(None, "user_version", number).unwrap();
    };
    let known: i64 = patient
        .sql()
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    version(known + 1);
    patient
        .finds("store", Level::Fail, "newer than this program", "install")
        .await;
    version(known - 1);
    patient
        .finds("store", Level::Warn, "upgrades it", "back the store up")
        .await;
    version(known);

    patient
        .sql()
        .execute_batch("INSERT INTO admin_groups (alias, doc) VALUES ('x', '{}')")
        .unwrap();
    patient
        .finds(
            "store",
            Level::Fail,
            "1 damaged documents of the kind admin group",
            "backup",
        )
        .await;
    patient
        .sql()
        .execute_batch("DELETE FROM admin_groups WHERE alias = 'x'")
        .unwrap();

    patient.chmod("keyturn.db", 0o644);
    patient
        .finds("store", Level::Fail, "mode 0644", "chmod 600 ")
        .await;
    patient.file(
        "other.db",
        "a letter to my aunt, who collects file formats",
        0o600,
    );
    patient.set("STORE__PATH", "other.db");
    patient
        .finds("store", Level::Fail, "not a Keyturn database", "store.path")
        .await;
    patient.set("STORE__PATH", "nowhere/keyturn.db");
    patient
        .finds("store", Level::Fail, "does not exist", "install -d -m 700 ")
        .await;
    patient.set("STORE__PATH", "lost.db");
    patient
        .finds("store", Level::Warn, "does not exist yet", "first start")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_takes_no_writes_is_named() {
    let patient = Patient::new().await;
    let held = patient.sql();
    held.execute_batch("BEGIN IMMEDIATE").unwrap();
    patient
        .finds("store", Level::Fail, "cannot be written", "df -h")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_does_not_fit_together_is_named() {
    let patient = Patient::new().await;
    let store = patient.store();
    let locked = patient.now.plus(Duration::from_secs(600));
    // A change of the seed is what replaces the lock.
    let mut admin = patient.admin_document(Some(locked));
    if let Some(totp) = &mut admin.totp {
        totp.seed_ciphertext.push('2');
    }
    store.put_admin(admin, audit(patient.now)).await.unwrap();
    patient
        .finds("registry", Level::Warn, "is locked out for", "--new-seed")
        .await;
    let suspended = GroupState::Suspended {
        reason: "welcome.for_a_served_group".to_owned(),
    };
    store
        .set_group_state("ops", suspended, patient.now, audit(patient.now))
        .await
        .unwrap();
    patient
        .finds(
            "registry",
            Level::Warn,
            "suspended (welcome.for_a_served_group)",
            "keyturn group approve ops --config ",
        )
        .await;
    store
        .put_admin(
            AdminDoc {
                active: false,
                ..store.admin(&patient.admin).await.unwrap().unwrap()
            },
            audit(patient.now),
        )
        .await
        .unwrap();
    patient
        .finds(
            "registry",
            Level::Warn,
            "no admin is enrolled",
            "admin enroll",
        )
        .await;
    patient
        .sql()
        .execute_batch("DELETE FROM admin_groups")
        .unwrap();
    patient
        .finds(
            "registry",
            Level::Fail,
            "not bound: ext-totp-svc",
            "group bind",
        )
        .await;
    patient
        .finds("registry", Level::Warn, "no admin group", "group bind")
        .await;
}

fn rotation(patient: &Patient, state: RotationState) -> RotationDoc {
    let long_ago = patient.now.minus(Duration::from_secs(3_600));
    RotationDoc {
        rotation_id: RotationId::generate(long_ago).unwrap(),
        client_id: "ext-totp-svc".parse().unwrap(),
        action: keyturn_proto::Action::Rotation,
        requested_by: patient.admin,
        reason: "test".to_owned(),
        mls_group: "ops".to_owned(),
        request_digest: "00".repeat(32),
        new_version: None,
        old_version: None,
        not_before: long_ago,
        grace_duration_ms: 0,
        grace_until: None,
        distribution_message_id: None,
        readers: Vec::new(),
        quorum: Quorum {
            required: 1,
            require_proven: true,
            requester_counts: false,
            acks: Vec::new(),
        },
        state,
        outcome: None,
        attempt: 1,
        fence: 1,
        created_at: long_ago,
        proof_expires_at: long_ago,
        ack_deadline: long_ago,
        completed_at: None,
        announced_at: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_should_have_moved_on_is_named() {
    let patient = Patient::new().await;
    for (state, word) in [
        (RotationState::Reserved, "reserved"),
        (RotationState::Prepared, "prepared"),
        (RotationState::QuorumMet, "quorum met"),
    ] {
        let rotation = rotation(&patient, state);
        let sql = patient.sql();
        sql.execute(
            "INSERT INTO rotations (rotation_id, client_id, done, due_at, doc) VALUES (?1, ?2, 0, ?3, ?4)",
            (
                rotation.rotation_id.as_str(),
                "ext-totp-svc",
                rotation.created_at.0 as i64,
                serde_json::to_string(&rotation).unwrap(),
            ),
        )
        .unwrap();
        let stuck = format!("stuck as {word} for 1h");
        patient
            .finds("timed", Level::Warn, &stuck, "keyturn serve --config ")
            .await;
        patient
            .finds("timed", Level::Warn, "work has been due for 1h", "")
            .await;
        sql.execute_batch("DELETE FROM rotations").unwrap();
    }

    // Beside a running one it is a failure.
    let (mut patient, keyturn) = beside_a_running_one(patient);
    let due = rotation(&patient, RotationState::Prepared);
    patient
        .sql()
        .execute(
            "INSERT INTO rotations (rotation_id, client_id, done, due_at, doc) VALUES (?1, ?2, 0, 1, ?3)",
            (
                due.rotation_id.as_str(),
                "ext-totp-svc",
                serde_json::to_string(&due).unwrap(),
            ),
        )
        .unwrap();
    patient.set("RELAY__PORT", "0");
    patient
        .finds(
            "timed",
            Level::Fail,
            "although keyturn is running",
            "Stuck rotation",
        )
        .await;
    tokio::task::spawn_blocking(move || keyturn.shutdown(Instant::now() + PATIENCE))
        .await
        .unwrap();
}

fn beside_a_running_one(mut patient: Patient) -> (Patient, Keyturn) {
    let (ports, _) = oneshot::channel();
    let factory = Handover {
        ports,
        served: None,
        fails: false,
    };
    let keyturn = Keyturn::start(Arc::new(patient.config()), Box::new(factory)).unwrap();
    patient.set("WEB__LISTEN", &keyturn.web_address().to_string());
    (patient, keyturn)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mac_key_that_is_wrong_or_gone_is_named() {
    let patient = Patient::new().await;
    patient.chmod("mac.key", 0o640);
    patient
        .finds("mac", Level::Fail, "mode 0640", "chmod 600 ")
        .await;
    fs::remove_file(patient.path("mac.key")).unwrap();
    patient
        .finds("mac", Level::Fail, "mac.key", "restore the key file")
        .await;
    LocalMacKey::create(&patient.path("mac.key")).unwrap();
    patient
        .finds(
            "mac",
            Level::Fail,
            "is not here, and secrets of 1 clients cannot be verified without it: ext-totp-svc",
            "Lost keys",
        )
        .await;
    patient
        .finds("mac", Level::Ok, "signs and verifies", "")
        .await;
    patient.file("mac.key", "short", 0o600);
    patient
        .finds(
            "mac",
            Level::Fail,
            "must hold 32 bytes",
            "restore the key file",
        )
        .await;
    // Nothing was hashed yet: a new key loses nothing.
    patient
        .sql()
        .execute_batch("DELETE FROM versions; DELETE FROM clients")
        .unwrap();
    fs::remove_file(patient.path("mac.key")).unwrap();
    patient
        .finds("mac", Level::Fail, "mac.key", "openssl rand 32 > ")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_database_that_does_not_open_is_named() {
    let patient = Patient::new().await;
    patient.chmod("member.db", 0o640);
    patient
        .finds("mls", Level::Fail, "mode 0640", "chmod 600 ")
        .await;
    patient.file("mls.key", &"06".repeat(32), 0o600);
    patient
        .finds(
            "mls",
            Level::Fail,
            "the storage key does not open",
            "mls.storage_key_file",
        )
        .await;
    patient.file("mls.key", &"07".repeat(32), 0o600);
    let nsec = fs::read_to_string(patient.path("nostr.nsec")).unwrap();
    let stranger = Keys::generate().secret_key().to_bech32().unwrap();
    patient.file("nostr.nsec", &stranger, 0o600);
    patient
        .finds(
            "mls",
            Level::Fail,
            "belongs to",
            "mls.nostr_secret_key_file",
        )
        .await;
    patient.file("nostr.nsec", "not an nsec", 0o600);
    patient
        .finds("mls", Level::Warn, "was not opened", "secrets")
        .await;
    patient.file("nostr.nsec", &nsec, 0o600);
    let open = Member::open(MemberConfig::new(
        patient.path("member.db"),
        StorageKey::from_text(&"07".repeat(32)).unwrap(),
        Keys::parse(&nsec).unwrap(),
    ))
    .unwrap();
    patient
        .finds("mls", Level::Warn, "another process", "fuser")
        .await;
    drop(open);

    let now = patient.now;
    let group = |id: Option<&[u8]>| AdminGroupDoc {
        alias: "ops".to_owned(),
        mls_group_id: id.map(|id| MlsGroupId::from_bytes(id).unwrap()),
        nostr_group_id: None,
        welcomers: vec![patient.admin],
        status: GroupState::Active,
        updated_at: now,
    };
    let store = patient.store();
    store
        .put_group(group(Some(b"another")), audit(now))
        .await
        .unwrap();
    patient
        .finds(
            "mls",
            Level::Fail,
            "member database was lost",
            "Lost member database",
        )
        .await;
    patient
        .finds(
            "mls",
            Level::Warn,
            "which no alias is bound to",
            "--mls-group-id",
        )
        .await;
    let unbound = AdminGroupDoc {
        updated_at: store.groups().await.unwrap()[0].updated_at,
        ..group(None)
    };
    store.put_group(unbound, audit(now)).await.unwrap();
    patient
        .finds(
            "mls",
            Level::Warn,
            "was not joined yet",
            "keyturn-admin group invite",
        )
        .await;
}

/// Answers every connection with these bytes, for as long as the process lives.
fn issuer(answer: impl Fn() -> String + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                head.push(byte[0]);
            }
            let _ = stream.write_all(answer().as_bytes());
        }
    });
    url
}

fn answer(status: &str, date: Option<SystemTime>, body: &str) -> String {
    let date = date.map_or(String::new(), |at| {
        format!("date: {}\r\n", httpdate::fmt_http_date(at))
    });
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\n{date}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

async fn asks(answer: impl Fn() -> String + Send + 'static) -> Patient {
    let mut patient = Patient::new().await;
    patient
        .variables
        .retain(|(key, _)| key != "KEYTURN_ISSUER__JWKS_FILE");
    // Plain http is for trials only.
    patient.set("PROFILE__ENVIRONMENT", "development");
    patient.set("ISSUER__JWKS_URL", &issuer(answer));
    patient.now = now();
    patient
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_without_usable_keys_is_named() {
    let good = json!({ "keys": [jwk()] }).to_string();
    let well = {
        let good = good.clone();
        asks(move || answer("200 OK", Some(SystemTime::now()), &good)).await
    };
    well.finds("issuer", Level::Ok, "1 usable keys: \"k1\" (EdDSA)", "")
        .await;
    well.finds("issuer", Level::Ok, "its clock agrees with ours", "")
        .await;

    let down = asks(|| answer("503 Service Unavailable", None, "")).await;
    down.finds("issuer", Level::Fail, "HTTP status 503", "curl -sS")
        .await;
    let page = asks(|| answer("200 OK", None, "<html>")).await;
    page.finds(
        "issuer",
        Level::Fail,
        "not a JWK set",
        "have the issuer publish",
    )
    .await;
    let mac_only = json!({ "keys": [{ "kty": "oct", "kid": "k", "k": "AAAA" }] }).to_string();
    let mac_only = asks(move || answer("200 OK", None, &mac_only)).await;
    mac_only
        .finds(
            "issuer",
            Level::Fail,
            "no key that may sign proofs",
            "Ed25519",
        )
        .await;

    let odd = json!({ "keys": [jwk(), { "kty": "oct", "kid": "k", "k": "AAAA" }] }).to_string();
    let odd = asks(move || answer("200 OK", None, &odd)).await;
    odd.finds(
        "issuer",
        Level::Warn,
        "1 keys cannot be used: of a type",
        "",
    )
    .await;
    odd.finds("issuer", Level::Warn, "no usable Date header", "date -u")
        .await;

    let mut other = asks(move || answer("200 OK", Some(SystemTime::now()), &good)).await;
    other.set("ISSUER__ALGORITHMS", "RS256");
    other
        .finds(
            "issuer",
            Level::Fail,
            "none of its keys",
            "issuer.algorithms",
        )
        .await;
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    other.set("ISSUER__JWKS_URL", &format!("http://{closed}/jwks.json"));
    other
        .finds("issuer", Level::Fail, "cannot be fetched", "curl -sS")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_disagree_are_named() {
    let good = json!({ "keys": [jwk()] }).to_string();
    for (skew, direction) in [(90, "ahead of"), (-90, "behind")] {
        let good = good.clone();
        let patient = asks(move || {
            let by = Duration::from_secs(90);
            let at = SystemTime::now();
            let at = if skew > 0 { at + by } else { at - by };
            answer("200 OK", Some(at), &good)
        })
        .await;
        patient
            .finds("issuer", Level::Fail, direction, "timedatectl")
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_set_file_that_others_can_write_is_named() {
    let mut patient = Patient::new().await;
    patient.chmod("jwks.json", 0o664);
    patient
        .finds("issuer", Level::Fail, "can make proofs", "chmod go-w ")
        .await;
    patient.set("ISSUER__JWKS_FILE", "gone.json");
    patient
        .finds("issuer", Level::Fail, "cannot be fetched", "gone.json")
        .await;
}

fn run(config: &Path, patient: &Patient, json: bool) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_keyturn"))
        .args(["doctor", "--config"])
        .arg(config)
        .args(json.then_some("--json"))
        .env_clear()
        .envs(patient.variables.iter().cloned())
        .output()
        .unwrap();
    let code = output.status.code().unwrap();
    (code, String::from_utf8(output.stdout).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_reports_and_its_exit_code_says_whether_something_is_to_be_mended() {
    let patient = Patient::new().await;
    let config = patient.path("keyturn.toml");
    let (code, text) = run(&config, &patient, false);
    assert_eq!(code, 0, "{text}");
    assert!(text.ends_with("0 to mend, 0 to look at\n"), "{text}");
    patient.chmod("mac.key", 0o644);
    let (code, text) = run(&config, &patient, false);
    assert_eq!(code, 1);
    assert!(text.contains("FAIL  mac"), "{text}");
    assert!(text.contains("mend: chmod 600 "), "{text}");
    let (code, text) = run(&config, &patient, true);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &report["ok"]), (1, &json!(false)));
    let findings = report["findings"].as_array().unwrap();
    assert!(
        findings
            .iter()
            .any(|finding| finding["check"] == "mac" && finding["level"] == "fail")
    );

    patient.file("keyturn.toml", "[relay]\nprot = 1\n", 0o644);
    let (code, text) = run(&config, &patient, true);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &report["ok"]), (1, &json!(false)));
    assert_eq!(report["findings"][0]["check"], "config");
}
