//! A whole installation of the embedded kind in a directory of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser as _;
use keyturn::cli::Cli;
use keyturn::config::{Config, Environment, ValidatedConfig};
use keyturn::doctor::{self, Level, Report, Subject};
use keyturn::running::Keyturn;
use keyturn_mls::{GroupSpec, Member, MemberConfig, StorageKey};
use keyturn_proto::{MlsGroupId, Npub, UnixMs, VersionId};
use keyturn_store::documents::{AdminDoc, AdminGroupDoc, ClientScope, GroupState, TotpState};
use keyturn_store::mac::{LocalMacKey, MacKey as _};
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::Registry as _;
use nostr::{Keys, ToBech32 as _};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::world::Handover;
use crate::{audit, client_with_a_version, now, says};

pub const CONFIG: &str = r#"
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
pub fn jwk() -> Value {
    json!({ "kty": "OKP", "crv": "Ed25519", "kid": "k1", "alg": "EdDSA", "use": "sig",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" })
}

/// An installation in a directory of its own; healthy until a test breaks something.
pub struct Patient {
    dir: tempfile::TempDir,
    pub variables: Vec<(String, String)>,
    pub now: UnixMs,
    pub admin: Npub,
}

impl Patient {
    /// Everything that an operator puts in place, and what the first start adds.
    pub async fn new() -> Self {
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

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn file(&self, name: &str, text: &str, mode: u32) {
        fs::write(self.path(name), text).unwrap();
        self.chmod(name, mode);
    }

    pub fn chmod(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    pub fn set(&mut self, key: &str, value: &str) {
        self.variables
            .push((format!("KEYTURN_{key}"), value.to_owned()));
    }

    pub fn member_with_group(&self, identity: Keys) -> MlsGroupId {
        let mut member = Member::open(MemberConfig::new(
            self.path("member.db"),
            StorageKey::from_text(&"07".repeat(32)).unwrap(),
            identity,
        ))
        .unwrap();
        let made = member.create_group(GroupSpec::default(), &[], self.now);
        made.unwrap().group.id
    }

    pub fn store(&self) -> SqliteStore {
        SqliteStore::open(&self.path("keyturn.db")).unwrap()
    }

    pub fn sql(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.path("keyturn.db")).unwrap()
    }

    /// A group, an admin, and a client with one living version.
    pub async fn register(&self, group: MlsGroupId) {
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
        let client_id = "ext-totp-svc".parse().unwrap();
        let key = LocalMacKey::open(&[self.path("mac.key")]).unwrap();
        let version_id = VersionId::generate(now).unwrap();
        let maced = key.sign(&client_id, &version_id, "canary").await.unwrap();
        let (client, version) = client_with_a_version(client_id, version_id, maced, now);
        store
            .create_client(client, Some(version), audit(now))
            .await
            .unwrap();
    }

    pub fn admin_document(&self, locked_until: Option<UnixMs>) -> AdminDoc {
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

    pub fn config(&self) -> ValidatedConfig {
        let environment = Environment::from_pairs(self.variables.iter().cloned());
        Config::load(&self.path("keyturn.toml"), environment).unwrap()
    }

    pub async fn examine(&self) -> Report {
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
    pub fn says_no_secret(&self, report: &Report) {
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
    pub async fn finds(&self, check: &str, level: Level, what: &str, mend: &str) {
        let mut findings = self.examine().await.findings;
        findings.retain(|finding| finding.check == check);
        says(&findings, level, what, mend);
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

pub fn beside_a_running_one(mut patient: Patient) -> (Patient, Keyturn) {
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
