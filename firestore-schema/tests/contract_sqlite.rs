//! The SQLite backend against the contract: in one process, and from two openers of the same file at once.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::sync::Arc;

use keyturn_store::contract;
use keyturn_store::contract::fixture::{self, NOW, operation, reserve};
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::{Registry as _, Reserved, SecretStore as _, Store};

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
async fn two_openers_of_one_file_do_not_lose_each_others_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let relay = SqliteStore::open(&path).unwrap();
    let cli = SqliteStore::open(&path).unwrap();
    contract::World::new(Arc::new(relay.clone())).settle().await;
    assert!(cli.client(&fixture::client_id()).await.unwrap().is_some());

    let race = |store: &SqliteStore, ids: std::ops::Range<u32>| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut won = 0;
            for n in ids {
                match store.reserve(reserve(&operation(n), NOW)).await.unwrap() {
                    Reserved::New(_) => won += 1,
                    Reserved::Busy(_) => {}
                    other => panic!("{other:?}"),
                }
            }
            won
        })
    };
    let (a, b) = (race(&relay, 2..40), race(&cli, 40..80));
    assert_eq!(a.await.unwrap() + b.await.unwrap(), 1);
    assert_eq!(cli.active_rotations().await.unwrap().len(), 1);
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
