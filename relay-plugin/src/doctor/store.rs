//! The document store: opens, schema, writable, nothing damaged, audit trail readable.

use std::{path::Path, sync::Arc};

use keyturn_store::{
    sqlite::{self, Inspection, OpenError, SqliteStore},
    store::{AuditTrail, Store},
};
use tokio::task::spawn_blocking;

use super::{Report, Subject, Visitors, files, firestore};
use crate::config;

pub(super) const CHECK: &str = "store";

/// The store, for the checks that read it; `None` when that is not possible or would change it.
pub(super) async fn check(
    subject: Subject<'_>,
    visitors: &Visitors,
    report: &mut Report,
) -> Option<Arc<dyn Store>> {
    match &subject.config.store {
        config::Store::Sqlite { path } => {
            let store: Arc<dyn Store> = Arc::new(file(subject, path, report).await?);
            match store.read(None, 1).await {
                Ok(_) => report.ok(CHECK, "the audit trail can be read"),
                Err(error) => report.fail(
                    CHECK,
                    format!("the audit trail cannot be read: {error}"),
                    RESTORE,
                ),
            }
            Some(store)
        }
        config::Store::Firestore(settings) => {
            firestore::check(subject, settings, visitors, report).await
        }
    }
}

/// The embedded store's file.
async fn file(subject: Subject<'_>, path: &Path, report: &mut Report) -> Option<SqliteStore> {
    let metadata = files::there_or_possible(CHECK, "the store", path, report)?;
    if !files::ours(CHECK, path, &metadata, report) {
        return None;
    }
    let looked = spawn_blocking({
        let path = path.to_owned();
        move || sqlite::inspect(&path)
    });
    let inspection = match looked.await {
        Ok(Ok(inspection)) => inspection,
        Ok(Err(error)) => {
            unusable(&error, report);
            return None;
        }
        Err(_) => {
            report.fail(
                CHECK,
                "the look at the store ended with a panic",
                "report it",
            );
            return None;
        }
    };
    if !fit(subject, &inspection, report) {
        return None;
    }
    let opened = spawn_blocking({
        let path = path.to_owned();
        move || SqliteStore::open(&path)
    });
    let store = match opened.await.ok()? {
        Ok(store) => store,
        // It could be read a moment ago.
        Err(error) => {
            report.fail(CHECK, format!("it cannot be written: {error}"), WRITE);
            return None;
        }
    };
    match AuditTrail::ping(&store).await {
        Ok(()) => report.ok(CHECK, format!("schema {}, writable", inspection.schema)),
        Err(error) => report.fail(CHECK, format!("it cannot be written: {error}"), WRITE),
    }
    Some(store)
}

const WRITE: &str = "look at the disk (df -h), its mount options, the owner of the directory, and who holds the file (fuser -v)";
const RESTORE: &str = "stop the service, keep a copy of the file, and restore the latest backup (docs/operations.md, \"Backup\")";

/// Whether it can be opened without changing it, and holds what it should.
fn fit(subject: Subject<'_>, inspection: &Inspection, report: &mut Report) -> bool {
    let Inspection {
        schema,
        known,
        sound,
        documents,
        damaged,
    } = inspection;
    if !sound {
        report.fail(CHECK, "SQLite finds damaged pages in the file", RESTORE);
        return false;
    }
    if schema > known {
        report.fail(
            CHECK,
            format!("schema {schema} is newer than this program, which knows {known}"),
            "install the keyturn that wrote it, or a newer one",
        );
        return false;
    }
    if schema < known {
        report.warn(
            CHECK,
            format!(
                "schema {schema} is older than this program's {known}; the next start upgrades it"
            ),
            format!("back the store up, then {}", subject.command("serve")),
        );
        return false;
    }
    if damaged.is_empty() {
        report.ok(
            CHECK,
            format!("{documents} documents, all of them readable"),
        );
    }
    for (what, count) in damaged {
        report.fail(
            CHECK,
            format!("{count} damaged documents of the kind {what}"),
            RESTORE,
        );
    }
    true
}

fn unusable(error: &OpenError, report: &mut Report) {
    let mend = match error {
        OpenError::Mode { path, .. } => files::chmod_600(path),
        OpenError::File { .. } => "let the service's user read and write it".to_owned(),
        OpenError::Foreign { .. } => "set store.path to Keyturn's own file".to_owned(),
        // Only for who looks; doctor has looked at the number before.
        OpenError::Older { .. } => "start keyturn once: it brings the file up".to_owned(),
        OpenError::Newer { .. } => "install the keyturn that wrote it, or a newer one".to_owned(),
        OpenError::Sqlite { .. } | OpenError::Damaged { .. } => RESTORE.to_owned(),
    };
    report.fail(CHECK, error.to_string(), mend);
}
