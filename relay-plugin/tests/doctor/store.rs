//! The store of the embedded kind.

use keyturn::doctor::Level;

use crate::patient::Patient;

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
