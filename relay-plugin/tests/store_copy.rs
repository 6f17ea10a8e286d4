//! `keyturn store copy` as an operator runs it: the real binary, a file, and the Firestore emulator.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../firestore-schema/tests/firestore/proxy.rs"]
#[allow(dead_code, reason = "it can do more than is needed here")]
mod proxy;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use keyturn_store::contract::World;
use keyturn_store::contract::fixture::{
    DELAY, NOW, REQUESTER, SECOND, ack, at, client_id, operation, prepare, reserve,
};
use keyturn_store::documents::ClientStatus;
use keyturn_store::emulator::Emulator;
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::{Registry as _, Reserved, SecretStore as _};
use keyturn_store::transfer::{Item, Transfer as _};
use proxy::{Fault, Proxy};
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

/// With a version in grace, one under way, and ciphertext.
async fn with_history(path: &Path) {
    settled(path).await;
    let store = open(path);
    for n in [2u32, 3] {
        let now = at(u64::from(n) * 2 * DELAY);
        let Reserved::New(active) = store.reserve(reserve(&operation(n), now)).await.unwrap()
        else {
            panic!("not reserved")
        };
        let then = at((u64::from(n) * 2 + 1) * DELAY);
        store.prepare(prepare(&active, n, then, now)).await.unwrap();
        if n == 2 {
            for by in [REQUESTER, SECOND] {
                let ack = ack(&operation(n), n, by, true, then);
                store.record_ack(ack).await.unwrap();
            }
        }
    }
}

/// Ends the process with SIGKILL: whatever the test does, it does not outlive it.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The copy hangs in a commit that never arrives, or in the answer to one that did, when it is killed. The same command goes on, and both sides are compared.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_killed_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keyturn.db");
    with_history(&path).await;
    let from = format!("sqlite:{}", path.display());
    let emulator = Emulator::shared().await;
    let endpoint = emulator.endpoint();
    for (done, last) in [(1, Fault::Silence), (4, Fault::Kept), (7, Fault::Silence)] {
        let to = format!("firestore:{}/keyturn", emulator.fresh_project());
        let proxy = Proxy::before(&endpoint).await;
        proxy.next_commits(std::iter::repeat_n(Fault::Nothing, done).chain([last]));
        let child = Command::new(env!("CARGO_BIN_EXE_keyturn"))
            .args(["store", "copy", "--from", &from, "--to", &to])
            .args(["--endpoint", &proxy.endpoint()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let killed = Killed(child);
        let deadline = Instant::now() + Duration::from_secs(60);
        while proxy.commits() as usize <= done {
            assert!(
                Instant::now() < deadline,
                "only {} commits",
                proxy.commits()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(killed);
        // What was on its way arrives although nobody waits for it any more.
        proxy.deliver().await;

        let at = ["--endpoint", &endpoint, "--json"];
        let (report, _) = clients(&copy(&from, &to, &at));
        let all = report["collections"].as_array().unwrap();
        let sum = |what: &str| -> u64 { all.iter().map(|it| it[what].as_u64().unwrap()).sum() };
        assert!(sum("already_there") > 0, "it had begun: {report}");
        assert!(sum("copied") > 0, "it had not ended: {report}");
        assert_eq!(sum("verified"), sum("copied") + sum("already_there"));
        let (_, one) = clients(&copy(&from, &to, &at));
        assert_eq!((&one["copied"], &one["verified"]), (&0.into(), &1.into()));
        let back = dir.path().join(format!("back-{done}.db"));
        clients(&copy(&to, &format!("sqlite:{}", back.display()), &at));
        let (ours, theirs) = (open(&path), open(&back));
        assert_eq!(
            ours.versions(&client_id()).await.unwrap(),
            theirs.versions(&client_id()).await.unwrap()
        );
        assert_eq!(
            ours.rotation(&operation(3)).await.unwrap(),
            theirs.rotation(&operation(3)).await.unwrap()
        );
    }
}

/// The schema number before withdrawn events were marked.
const OLDER: i64 = 6;

/// Waits until nobody has a store in there open: its log is folded in by whoever closes it last, in a thread of its own.
async fn closed(dir: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let open = || {
        let names = std::fs::read_dir(dir).unwrap();
        names
            .map(|entry| entry.unwrap().file_name())
            .any(|name| name.to_string_lossy().ends_with("-wal"))
    };
    while open() {
        assert!(Instant::now() < deadline, "a store is still open");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a file holds, with whatever lies beside it.
fn contents(dir: &Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name(), std::fs::read(entry.path()).unwrap())
        })
        // The shared-memory index of the log: SQLite makes it for whoever reads, and it holds nothing of its own.
        .filter(|(name, bytes)| !name.to_string_lossy().ends_with("-shm") && !bytes.is_empty())
        .collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_changes_no_file_not_even_an_older_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keyturn.db");
    settled(&path).await;
    let other = tempfile::tempdir().unwrap();
    let empty = other.path().join("other.db");
    drop(open(&empty));
    let emulator = Emulator::shared().await;
    let endpoint = emulator.endpoint();
    let from = format!("sqlite:{}", path.display());
    let into = format!("sqlite:{}", empty.display());
    let to = format!("firestore:{}/keyturn", emulator.fresh_project());
    let dry = ["--endpoint", &endpoint, "--json", "--dry-run"];

    closed(dir.path()).await;
    closed(other.path()).await;
    let before = (contents(dir.path()), contents(other.path()));
    for to in [&to, &into] {
        let (report, one) = clients(&copy(&from, to, &dry));
        assert_eq!(
            (&report["dry_run"], &one["copied"]),
            (&true.into(), &1.into())
        );
    }
    assert!(before == (contents(dir.path()), contents(other.path())));

    // As an older release left it: how an event was refused, and the marks of withdrawn events, were no columns yet.
    let older = |path: &Path| {
        let db = rusqlite::Connection::open(path).unwrap();
        let step: i64 = db
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap();
        db.execute_batch(
            "ALTER TABLE nonces DROP COLUMN refused;
             DROP INDEX outbox_withdrawn;
             DROP INDEX outbox_kept;
             ALTER TABLE outbox DROP COLUMN withdrawn_at;
             ALTER TABLE outbox ADD COLUMN published INTEGER NOT NULL DEFAULT 0;
             CREATE INDEX outbox_unpublished ON outbox (event_id) WHERE published = 0;",
        )
        .unwrap();
        db.pragma_update(None, "user_version", OLDER).unwrap();
        step
    };
    let known = older(&path);
    let before = contents(dir.path());
    let refused = copy(&from, &to, &dry);
    assert_eq!(code(&refused), FAILED);
    let told = stderr(&refused);
    let schema = format!("has schema {OLDER}, older than this program's {known}");
    assert!(told.contains(&schema), "{told}");
    assert!(
        before == contents(dir.path()),
        "a dry run changed the source"
    );
    // The copy itself brings it up.
    let (_, one) = clients(&copy(&from, &to, &["--endpoint", &endpoint, "--json"]));
    assert_eq!(one["verified"], 1);

    // The same for a destination.
    older(&empty);
    let before = contents(other.path());
    let refused = copy(&from, &into, &dry);
    assert_eq!(code(&refused), FAILED);
    assert!(
        stderr(&refused).contains("older than"),
        "{}",
        stderr(&refused)
    );
    assert!(
        before == contents(other.path()),
        "a dry run changed the destination"
    );
}
