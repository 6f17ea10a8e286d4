//! `keyturn doctor` on a healthy installation, and on one with each part broken in turn: every finding with its mend.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod command;
mod firestore;
mod installation;
mod issuer;
mod keys;
mod mac;
mod member;
mod patient;
mod registry;
mod store;
#[path = "../world/mod.rs"]
mod world;

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use keyturn::config::{Config, Environment};
use keyturn::doctor::{self, Finding, Level, Subject, Visitors};
use keyturn_proto::{ClientId, UnixMs, VersionId};
use keyturn_store::documents::{
    Actor, AuditRecord, ClientDoc, ClientStatus, Origin, VersionDoc, VersionState,
};
use keyturn_store::mac::Maced;
use serde_json::json;

fn now() -> UnixMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    UnixMs(u64::try_from(since.as_millis()).unwrap())
}

fn audit(at: UnixMs) -> AuditRecord {
    serde_json::from_value(
        json!({ "at": at, "actor": Actor::Operator, "event": "test", "reason": "test" }),
    )
    .unwrap()
}

/// An active client with one living version, whose secret was hashed so.
fn client_with_a_version(
    client_id: ClientId,
    version_id: VersionId,
    maced: Maced,
    now: UnixMs,
) -> (ClientDoc, VersionDoc) {
    let client = ClientDoc {
        client_id: client_id.clone(),
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
    let version = VersionDoc {
        client_id,
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
    (client, version)
}

/// A configuration with this in its sections `[store]` and `[mac]`; of the rest there is only what it names.
fn config(store: &str, mac: &str) -> String {
    format!(
        r#"
[relay]
data_dir = "relay"
port = 0
[web]
listen = "127.0.0.1:0"
[mls]
database = "member.db"
storage_key_file = "mls.key"
nostr_secret_key_file = "nostr.nsec"
relays = ["wss://relay.keyturn.dev"]
[store]
{store}
[mac]
{mac}
[issuer]
jwks_file = "jwks.json"
[admission]
challenge_key_file = "challenge.key"
totp_seed_key_file = "totp.key"
"#
    )
}

/// What is found of one part under a configuration, and shows nothing of `canary`.
async fn findings_of(
    check: &str,
    dir: &Path,
    text: &str,
    visitors: Visitors,
    canary: &str,
) -> Vec<Finding> {
    let path = dir.join("keyturn.toml");
    fs::write(&path, text).unwrap();
    let config = Config::load(&path, Environment::default()).unwrap();
    let subject = Subject {
        path: &path,
        config: &config,
        now: now(),
    };
    let report = doctor::examine_with(subject, visitors).await;
    let mut shown = Vec::new();
    report.write_text(&mut shown).unwrap();
    assert!(!String::from_utf8(shown).unwrap().contains(canary));
    let mut findings = report.findings;
    findings.retain(|finding| finding.check == check);
    findings
}

#[track_caller]
fn says(findings: &[Finding], level: Level, what: &str, mend: &str) {
    let fits = |finding: &Finding| {
        finding.level == level
            && finding.what.contains(what)
            && finding.mend.as_deref().unwrap_or_default().contains(mend)
    };
    assert!(
        findings.iter().any(fits),
        "no {level:?} with {what:?} and {mend:?} in {findings:#?}"
    );
}
