//! The SQLite backend against the contract: in one process, and from two processes on the same file at once.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyturn_store::contract;
use keyturn_store::contract::fixture::{NOW, REQUESTER, audit, npub, operation, reserve};
use keyturn_store::devices;
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::{AuditTrail as _, Registry as _, Reserved, SecretStore as _, Store};

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicU32::new(0);
    contract::run(|| async {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path: PathBuf = dir.path().join(format!("{n}.db"));
        Arc::new(SqliteStore::open(&path).unwrap()) as Arc<dyn Store>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_keeps_the_contract_of_devices() {
    let dir = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicU32::new(0);
    devices::contract::run(|| async {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = dir.path().join(format!("{n}.db"));
        Arc::new(SqliteStore::open(&path).unwrap()) as Arc<dyn devices::contract::Backend>
    })
    .await;
}

/// Set for the second process of the test below: the store to open.
const CHILD: &str = "KEYTURN_TEST_SECOND_PROCESS";

/// How often each process counts a wrong code.
const WRONG_CODES: u32 = 100;

/// Reservations of which one may win, and counts of which none may be lost.
async fn work(path: &Path, ids: Range<u32>) {
    let store = SqliteStore::open(path).unwrap();
    for n in ids {
        match store.reserve(reserve(&operation(n), NOW)).await.unwrap() {
            Reserved::New(_) | Reserved::Busy(_) => {}
            other => panic!("{other:?}"),
        }
    }
    for _ in 0..WRONG_CODES {
        let audit = audit("totp.wrong", NOW);
        store
            .totp_failed(npub(REQUESTER), u32::MAX, 1, NOW, audit, None)
            .await
            .unwrap();
    }
}

/// The command line registers clients while the relay runs: two processes, one file.
#[tokio::test(flavor = "multi_thread")]
async fn two_processes_on_one_file_do_not_lose_each_others_writes() {
    if let Some(path) = std::env::var_os(CHILD) {
        work(path.as_ref(), 40..80).await;
        let store = SqliteStore::open(path.as_ref()).unwrap();
        store.append(audit("child.done", NOW)).await.unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let relay = SqliteStore::open(&path).unwrap();
    contract::World::new(Arc::new(relay.clone())).settle().await;
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "two_processes_on_one_file_do_not_lose_each_others_writes",
        ])
        .env(CHILD, &path)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    work(&path, 2..40).await;
    assert!(child.wait().unwrap().success(), "the other process failed");
    assert_eq!(relay.active_rotations().await.unwrap().len(), 1);
    let trail = relay.read(None, usize::MAX).await.unwrap();
    let count = |event| trail.iter().filter(|record| record.event == event).count();
    assert_eq!((count("child.done"), count("rotation.reserved")), (1, 1));
    let admin = relay.admin(&npub(REQUESTER)).await.unwrap().unwrap();
    assert_eq!(admin.totp.unwrap().failures, 2 * WRONG_CODES);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let before = {
        let store = Arc::new(SqliteStore::open(&path).unwrap());
        contract::World::new(store.clone()).settle().await;
        store.reserve(reserve(&operation(2), NOW)).await.unwrap();
        store.active_rotations().await.unwrap()
    };
    let after = SqliteStore::open(&path).unwrap();
    assert_eq!(after.active_rotations().await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_keeps_the_contract_of_the_embedded_issuer() {
    let dir = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicU32::new(0);
    keyturn_store::approle::contract::run(|| async {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path: PathBuf = dir.path().join(format!("{n}.db"));
        Arc::new(SqliteStore::open(&path).unwrap())
            as Arc<dyn keyturn_store::approle::contract::Backend>
    })
    .await;
}
