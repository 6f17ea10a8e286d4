//! `keyturn store copy` as an operator runs it: the real binary, a file, and the Firestore emulator.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::{Command, Output};

use keyturn_store::contract::World;
use keyturn_store::contract::fixture::{NOW, client_id};
use keyturn_store::documents::ClientStatus;
use keyturn_store::emulator::Emulator;
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::{Registry as _, SecretStore as _};
use keyturn_store::transfer::{Item, Transfer as _};
use serde_json::Value;

/// What the exit code says.
const DONE: i32 = 0;
const FAILED: i32 = 1;
const WRONG_ARGUMENTS: i32 = 2;
const CONTRADICTION: i32 = 4;

fn copy(from: &str, to: &str, also: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_keyturn"))
        .args(["store", "copy", "--from", from, "--to", to])
        .args(also)
        .output()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The report of a run that succeeded, and of it the collection of the clients.
fn clients(output: &Output) -> (Value, Value) {
    assert_eq!(code(output), DONE, "{}", stderr(output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = report["collections"].as_array().unwrap();
    let one = all.iter().find(|it| it["collection"] == "oauth2_clients");
    let one = one.unwrap().clone();
    (report, one)
}

fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(path).unwrap()
}

async fn settled(path: &Path) {
    let store = open(path);
    World::new(std::sync::Arc::new(store)).settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_goes_to_firestore_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keyturn.db");
    settled(&path).await;
    let emulator = Emulator::shared().await;
    let endpoint = emulator.endpoint();
    let from = format!("sqlite:{}", path.display());
    let to = format!("firestore:{}/keyturn", emulator.fresh_project());
    let at = ["--endpoint", &endpoint, "--json"];

    let (report, one) = clients(&copy(&from, &to, &[&at[..], &["--dry-run"]].concat()));
    assert_eq!(report["dry_run"], true);
    assert_eq!((&one["copied"], &one["verified"]), (&1.into(), &0.into()));

    let (report, one) = clients(&copy(&from, &to, &at));
    assert_eq!((&one["copied"], &one["verified"]), (&1.into(), &1.into()));
    assert!(report["chains_verified"].as_u64().unwrap() >= 2);

    let (_, one) = clients(&copy(&from, &to, &at));
    let told = (&one["copied"], &one["already_there"], &one["verified"]);
    assert_eq!(told, (&0.into(), &1.into(), &1.into()));

    let back = dir.path().join("back.db");
    let (_, one) = clients(&copy(&to, &format!("sqlite:{}", back.display()), &at));
    assert_eq!(one["verified"], 1);
    let (ours, theirs) = (open(&path), open(&back));
    assert_eq!(
        ours.client(&client_id()).await.unwrap(),
        theirs.client(&client_id()).await.unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_copied_is_told_by_the_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("keyturn.db"), dir.path().join("other.db"));
    let from = format!("sqlite:{}", path.display());
    let to = format!("sqlite:{}", other.display());

    let missing = copy(&from, &to, &[]);
    assert_eq!(code(&missing), FAILED);
    assert!(!path.exists(), "a source was made");
    assert_eq!(code(&copy("keyturn.db", &to, &[])), WRONG_ARGUMENTS);

    settled(&path).await;
    assert_eq!(code(&copy(&from, &from, &[])), FAILED);
    assert_eq!(code(&copy(&from, &to, &["--dry-run"])), FAILED);
    assert!(!other.exists(), "a dry run made a file");

    let store = open(&path);
    let mut changed = store.client(&client_id()).await.unwrap().unwrap();
    changed.status = ClientStatus::Suspended;
    open(&other).import(&[Item::Client(changed)]).await.unwrap();
    let differs = copy(&from, &to, &[]);
    assert_eq!(code(&differs), CONTRADICTION);
    let told = stderr(&differs);
    assert!(told.contains("1 documents of oauth2_clients"), "{told}");
    assert!(!told.contains("ext-totp-svc"), "{told}");

    // A relay holds its lease until long after this test.
    let year = 365 * 24 * 3_600_000 * 100;
    store.lease("rotation", "relay-a", year, NOW).await.unwrap();
    let served = copy(&from, &to, &[]);
    assert_eq!(code(&served), FAILED);
    assert!(
        stderr(&served).contains("stop every relay"),
        "{}",
        stderr(&served)
    );
}
