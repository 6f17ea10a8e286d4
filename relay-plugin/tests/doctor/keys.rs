//! The MAC key, of whatever kind: which keys are in use, which may go, and what must be mended.

use std::fs;
use std::num::NonZeroU64;
use std::path::PathBuf;

use keyturn::doctor::{Finding, Level, Visitors};
use keyturn_proto::{ClientId, VersionId};
use keyturn_store::fake_kms::{Algorithm, Failure, FakeKms, Method, Purpose, State};
use keyturn_store::mac::cloud_kms::{KeyName, Settings};
use keyturn_store::mac::{CloudKmsKey, LocalMacKey, MacKey};
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::Registry as _;

use crate::{audit, client_with_a_version, config, findings_of, now, says};

const SECRET: &str = "canary-of-the-doctor";

/// A store and a configuration; of the rest only what the configuration names.
struct Patient {
    dir: tempfile::TempDir,
}

impl Patient {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        drop(SqliteStore::open(&dir.path().join("keyturn.db")).unwrap());
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A client whose living version `key` hashed.
    async fn client(&self, id: &str, key: &dyn MacKey) {
        let now = now();
        let client_id: ClientId = id.parse().unwrap();
        let version_id = VersionId::generate(now).unwrap();
        let made = key.sign(&client_id, &version_id, SECRET).await.unwrap();
        let (client, version) = client_with_a_version(client_id, version_id, made, now);
        let store = SqliteStore::open(&self.path("keyturn.db")).unwrap();
        store
            .create_client(client, Some(version), audit(now))
            .await
            .unwrap();
    }

    /// The findings about the MAC key under this `[mac]` section.
    async fn findings(&self, mac: &str) -> Vec<Finding> {
        let text = config("path = \"keyturn.db\"", mac);
        findings_of("mac", self.dir.path(), &text, Visitors::default(), SECRET).await
    }
}

fn key_of(server: &FakeKms, version: NonZeroU64) -> CloudKmsKey {
    CloudKmsKey::new(Settings {
        endpoint: Some(server.endpoint().parse().unwrap()),
        ..Settings::new(server.key().clone(), version)
    })
}

fn section(server: &FakeKms, version: u64) -> String {
    let (key, endpoint) = (server.key(), server.endpoint());
    format!("kind = \"cloud_kms\"\nkey = \"{key}\"\nversion = {version}\nendpoint = \"{endpoint}\"")
}

fn says_nothing_of(findings: &[Finding], words: &str) {
    let silent = findings.iter().all(|finding| !finding.what.contains(words));
    assert!(silent, "{words:?} is in {findings:#?}");
}

fn all_ok(findings: &[Finding]) {
    let ok = findings.iter().all(|finding| finding.level == Level::Ok);
    assert!(ok && !findings.is_empty(), "{findings:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pepper_rotation_can_be_watched_to_its_end() {
    let (server, patient) = (FakeKms::start().await.unwrap(), Patient::new());
    let [first, second, third] = [
        NonZeroU64::MIN,
        server.add_version(server.key()),
        server.add_version(server.key()),
    ];
    patient.client("a", &key_of(&server, first)).await;
    patient.client("b", &key_of(&server, first)).await;

    let found = patient.findings(&section(&server, 1)).await;
    all_ok(&found);
    says(
        &found,
        Level::Ok,
        "cryptoKeyVersions/1 signs and verifies",
        "",
    );
    says(
        &found,
        Level::Ok,
        "cryptoKeyVersions/1 (ENABLED, HSM) hashed 2 living versions of 2 clients",
        "",
    );
    says(
        &found,
        Level::Ok,
        "cryptoKeyVersions/2 (ENABLED, HSM) is not used yet: it makes new hashes once mac.version is 2",
        "",
    );
    says(
        &found,
        Level::Ok,
        "every living version can be verified",
        "",
    );
    says_nothing_of(&found, "may be destroyed");

    patient.client("c", &key_of(&server, third)).await;
    let found = patient.findings(&section(&server, 3)).await;
    all_ok(&found);
    says(&found, Level::Ok, "/1 (ENABLED, HSM) hashed 2 living", "");
    says(&found, Level::Ok, "/3 (ENABLED, HSM) hashed 1 living", "");
    says(
        &found,
        Level::Ok,
        "/2 (ENABLED, HSM) is used by no living version of this store and may be destroyed: gcloud kms keys versions destroy 2 --key pepper --keyring ring --location europe-west3 --project test",
        "",
    );
    server.set_state(server.key(), second, State::Destroyed);
    let found = patient.findings(&section(&server, 3)).await;
    all_ok(&found);
    says_nothing_of(&found, "/2 (");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_in_use_that_is_not_enabled_is_a_failure_with_the_way_back() {
    let (server, patient) = (FakeKms::start().await.unwrap(), Patient::new());
    let first = NonZeroU64::MIN;
    let second = server.add_version(server.key());
    patient.client("a", &key_of(&server, first)).await;
    for (state, shown, mend) in [
        (
            State::Disabled,
            "DISABLED",
            "gcloud kms keys versions enable 1 ",
        ),
        (
            State::DestroyScheduled,
            "DESTROY_SCHEDULED",
            "gcloud kms keys versions restore 1 ",
        ),
        (State::Destroyed, "DESTROYED", "cannot come back"),
    ] {
        server.set_state(server.key(), first, state);
        let found = patient.findings(&section(&server, 2)).await;
        let what =
            format!("({shown}, HSM) hashed 1 living versions of 1 clients, which nobody can");
        says(&found, Level::Fail, &what, mend);
        says(
            &found,
            Level::Fail,
            "secrets of 1 clients cannot be verified under projects/test",
            "",
        );
        says_nothing_of(&found, "every living version");
    }
    server.set_state(server.key(), second, State::Disabled);
    let found = patient.findings(&section(&server, 2)).await;
    says(
        &found,
        Level::Fail,
        "should make new hashes: nothing can be rotated",
        "versions enable 2 ",
    );
    let found = patient.findings(&section(&server, 7)).await;
    says(
        &found,
        Level::Fail,
        "has no such version",
        "set mac.version to a version that exists",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_not_named_any_more_are_missed_by_the_clients_that_need_them() {
    let (server, patient) = (FakeKms::start().await.unwrap(), Patient::new());
    LocalMacKey::create(&patient.path("old.key")).unwrap();
    let file = LocalMacKey::open(&[patient.path("old.key")]).unwrap();
    patient.client("from-a-file", &file).await;
    let other: KeyName = "projects/test/locations/l/keyRings/r/cryptoKeys/before"
        .parse()
        .unwrap();
    server.create_key(&other, Purpose::Mac, Algorithm::HmacSha256);
    let version = server.add_version(&other);
    let before = CloudKmsKey::new(Settings {
        endpoint: Some(server.endpoint().parse().unwrap()),
        ..Settings::new(other.clone(), version)
    });
    patient.client("from-another-key", &before).await;

    let found = patient.findings(&section(&server, 1)).await;
    says(
        &found,
        Level::Fail,
        "is not here, and secrets of 1 clients cannot be verified without it: from-a-file",
        "mac.previous_key_files",
    );
    says(
        &found,
        Level::Fail,
        "cannot be verified without it: from-another-key",
        "mac.previous_keys, if it is yours",
    );
    let named = format!(
        "{}\nprevious_keys = [\"{other}\"]\nprevious_key_files = [\"old.key\"]",
        section(&server, 1)
    );
    let found = patient.findings(&named).await;
    all_ok(&found);
    says(&found, Level::Ok, "local:hmac-sha-256:", "");
    says(&found, Level::Ok, "makes new hashes; none lives yet", "");

    // The way back: what Cloud KMS hashed cannot be verified by a file.
    let found = patient.findings("key_file = \"old.key\"").await;
    says(
        &found,
        Level::Fail,
        "from-another-key",
        "set mac.kind = \"cloud_kms\" again",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn old_key_files_may_go_when_nothing_needs_them() {
    let patient = Patient::new();
    for name in ["new.key", "old.key", "older.key"] {
        LocalMacKey::create(&patient.path(name)).unwrap();
    }
    let old = LocalMacKey::open(&[patient.path("old.key")]).unwrap();
    patient.client("a", &old).await;
    let section = "key_file = \"new.key\"\nprevious_key_files = [\"old.key\", \"older.key\"]";
    let found = patient.findings(section).await;
    all_ok(&found);
    let old_ref = old.primary_ref();
    says(&found, Level::Ok, &format!("{old_ref} hashed 1 living"), "");
    says(
        &found,
        Level::Ok,
        "its file may go from mac.previous_key_files",
        "",
    );
    let spare = found
        .iter()
        .filter(|finding| finding.what.contains("may go"));
    assert_eq!(spare.count(), 1, "{found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_missing_is_named() {
    let (server, patient) = (FakeKms::start().await.unwrap(), Patient::new());
    patient.client("a", &key_of(&server, NonZeroU64::MIN)).await;
    for permission in ["cloudkms.cryptoKeyVersions.list", "cloudkms.cryptoKeys.get"] {
        server.deny(permission);
    }
    let found = patient.findings(&section(&server, 1)).await;
    says(
        &found,
        Level::Warn,
        "cannot be listed, so their states are not known: the permission cloudkms.cryptoKeyVersions.list is missing",
        "--role roles/cloudkms.viewer",
    );
    says(
        &found,
        Level::Ok,
        "hashed 1 living versions of 1 clients",
        "",
    );
    assert_eq!(
        found
            .iter()
            .filter(|finding| finding.level != Level::Ok)
            .count(),
        1,
        "the relay itself needs neither: {found:#?}"
    );
    for permission in [
        "cloudkms.cryptoKeyVersions.useToSign",
        "cloudkms.cryptoKeyVersions.useToVerify",
    ] {
        server.deny(permission);
        let found = patient.findings(&section(&server, 1)).await;
        says(
            &found,
            Level::Fail,
            &format!("the permission {permission} is missing on the key"),
            "--role roles/cloudkms.signerVerifier",
        );
        server.allow(permission);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_for_something_else_and_a_service_that_is_away_are_named() {
    let (server, patient) = (FakeKms::start().await.unwrap(), Patient::new());
    patient.client("a", &key_of(&server, NonZeroU64::MIN)).await;
    let cipher: KeyName = "projects/test/locations/l/keyRings/r/cryptoKeys/cipher"
        .parse()
        .unwrap();
    server.create_key(&cipher, Purpose::EncryptDecrypt, Algorithm::HmacSha512);
    server.add_version(&cipher);
    let other = section(&server, 1).replace(server.key().as_str(), cipher.as_str());
    let found = patient.findings(&other).await;
    says(
        &found,
        Level::Fail,
        "cipher is not a key for MACs",
        "--purpose mac --default-algorithm hmac-sha256",
    );
    says(&found, Level::Fail, "is not one for HMAC_SHA256", "");

    server.fail(Failure::Proxy(503));
    let found = patient.findings(&section(&server, 1)).await;
    says(&found, Level::Fail, "it cannot sign", "look at the network");
    says(
        &found,
        Level::Warn,
        "cannot be listed",
        "look at the network",
    );
    server.heal();
    server.fail_on(Method::Sign, Failure::CorruptMac);
    let found = patient.findings(&section(&server, 1)).await;
    says(
        &found,
        Level::Fail,
        "cannot be believed",
        "a proxy changes what passes",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_called_unused_while_the_clients_are_not_known() {
    let (server, patient) = (FakeKms::start().await.unwrap(), Patient::new());
    server.add_version(server.key());
    LocalMacKey::create(&patient.path("old.key")).unwrap();
    let section = format!(
        "{}\nprevious_key_files = [\"old.key\"]",
        section(&server, 2)
    );
    let found = patient.findings(&section).await;
    all_ok(&found);
    says(&found, Level::Ok, "makes new hashes; none lives yet", "");
    says_nothing_of(&found, "may be destroyed");
    says_nothing_of(&found, "may go");

    for name in ["keyturn.db", "keyturn.db-wal", "keyturn.db-shm"] {
        fs::write(patient.path(name), "this is no database").unwrap();
    }
    let found = patient.findings(&section).await;
    says(
        &found,
        Level::Warn,
        "which keys are still in use is not known",
        "destroy no key until then",
    );
    says_nothing_of(&found, "may be destroyed");
    says_nothing_of(&found, "may go");
    says_nothing_of(&found, "none lives yet");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_does_not_exist_comes_with_the_commands_that_make_it() {
    let (server, patient) = (FakeKms::start().await.unwrap(), Patient::new());
    let absent = "projects/p/locations/l/keyRings/ring/cryptoKeys/absent";
    let section = section(&server, 1).replace(&server.key().to_string(), absent);
    let found = patient.findings(&section).await;
    for command in [
        "gcloud kms keyrings create ring --location l --project p",
        "gcloud kms keys create absent --keyring ring --location l --project p --purpose mac",
    ] {
        says(&found, Level::Warn, "cannot be listed", command);
    }
    let failed = |finding: &Finding| finding.level == Level::Fail;
    assert!(found.iter().any(failed), "{found:#?}");
}
