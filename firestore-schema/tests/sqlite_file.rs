//! The SQLite file itself: who may read it, whose it is, two openers at once.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use keyturn_proto::Npub;
use keyturn_store::contract::World;
use keyturn_store::contract::damaged::{self, Spoil};
use keyturn_store::sqlite::{OpenError, SqliteStore, inspect};
use keyturn_store::store::AuditTrail as _;

#[tokio::test]
async fn the_file_and_its_companions_are_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = SqliteStore::open(&path).unwrap();
    store.ping().await.unwrap();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
        names.push(entry.file_name());
    }
    assert!(names.contains(&"store.db-wal".into()), "{names:?}");
}

#[test]
fn a_file_that_others_can_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    drop(SqliteStore::open(&path).unwrap());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let Err(error) = SqliteStore::open(&path) else {
        panic!("a world-readable store was opened")
    };
    assert!(error.to_string().contains("0644"), "{error}");
}

#[test]
fn somebody_elses_database_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.db");
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE theirs (x)").unwrap();
    drop(other);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(
        SqliteStore::open(&path),
        Err(OpenError::Foreign { .. })
    ));

    let text = dir.path().join("notes.txt");
    std::fs::write(
        &text,
        "not a database at all, but longer than a header of one",
    )
    .unwrap();
    std::fs::set_permissions(&text, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(
        SqliteStore::open(&text),
        Err(OpenError::Foreign { .. })
    ));
}

#[test]
fn a_newer_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    drop(SqliteStore::open(&path).unwrap());
    let db = rusqlite::Connection::open(&path).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    let Err(OpenError::Newer { found: 99, .. }) = SqliteStore::open(&path) else {
        panic!("a newer schema was opened")
    };
}

#[test]
fn two_openers_at_once_make_one_schema() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let open = || SqliteStore::open(&path).map(drop);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
        for one in all {
            one.join().unwrap().unwrap();
        }
    });
}

/// A file with one audit record, opened by hand.
async fn used(path: &std::path::Path) -> rusqlite::Connection {
    let store = SqliteStore::open(path).unwrap();
    let record =
        serde_json::json!({ "at": 1, "actor": { "by": "operator" }, "event": "e", "reason": "r" });
    store
        .append(serde_json::from_value(record).unwrap())
        .await
        .unwrap();
    rusqlite::Connection::open(path).unwrap()
}

#[tokio::test]
async fn a_look_through_the_file_counts_what_is_damaged_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    assert!(matches!(inspect(&path), Err(OpenError::File { .. })));
    assert!(!path.exists(), "nothing is created");

    let db = used(&path).await;
    let healthy = inspect(&path).unwrap();
    assert_eq!((healthy.schema, healthy.sound), (healthy.known, true));
    // The entry and the head of its chain.
    assert_eq!((healthy.documents, healthy.damaged), (2, vec![]));

    db.execute_batch(
        "INSERT INTO admins (npub, doc) VALUES ('a', '{}');
         INSERT INTO admin_groups (alias, doc) VALUES ('ops', 'not JSON'), ('dev', '[]');
         PRAGMA user_version = 99;",
    )
    .unwrap();
    let newer = inspect(&path).unwrap();
    assert_eq!((newer.schema, newer.documents), (99, 0));
    assert!(matches!(
        SqliteStore::open(&path),
        Err(OpenError::Newer { .. })
    ));
    db.pragma_update(None, "user_version", healthy.known)
        .unwrap();
    let damaged = inspect(&path).unwrap();
    assert_eq!(damaged.damaged, [("admin", 1), ("admin group", 2)]);
    assert_eq!(damaged.documents, 5);
}

#[tokio::test]
async fn torn_pages_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let db = used(&path).await;
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    let sql = "SELECT rootpage FROM sqlite_schema WHERE name = 'audit'";
    let page: usize = db.query_row(sql, [], |row| row.get(0)).unwrap();
    drop(db);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[(page - 1) * 4096..page * 4096].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    assert!(!inspect(&path).unwrap().sound);
}

#[tokio::test]
async fn one_bad_document_stops_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = SqliteStore::open(&path).unwrap();
    let world = World::new(Arc::new(store.clone()));
    damaged::one_bad_document_stops_nobody(world, |spoil: Spoil| {
        let path = &path;
        async move {
            let (table, key) = match spoil.collection {
                "oauth2_rotations" => ("rotations", "rotation_id"),
                "secrets" => ("versions", "version_id"),
                "outbox" => ("outbox", "event_id"),
                "admin_groups" => ("admin_groups", "alias"),
                "admins" => ("admins", "npub"),
                "devices" => ("devices", "device_id"),
                other => panic!("{other}"),
            };
            let id = match spoil.id.parse::<Npub>() {
                Ok(npub) => npub.to_hex(),
                Err(_) => spoil.id,
            };
            let db = rusqlite::Connection::open(path).unwrap();
            let sql = format!(
                "UPDATE {table} SET doc = json_set(doc, '$.' || ?1, json('[[]]')) WHERE {key} = ?2"
            );
            assert_eq!(db.execute(&sql, [spoil.field, &id]).unwrap(), 1, "{sql}");
        }
    })
    .await;
}
