//! Looking through a store file for what does not belong there, without changing a document or the schema.
//!
//! What must always hold: it creates nothing and migrates nothing, so that it can be run against the file of a running relay, of an older
//! version too; what it reports are kinds and counts, never contents.

use std::path::Path;

use rusqlite::{Connection, ErrorCode};
use serde::de::DeserializeOwned;

use super::open::{OpenError, check_mode, connect, schema_error};
use super::schema;
use crate::documents::{
    ActionDoc, AdminDoc, AdminGroupDoc, AuditChainDoc, AuditEntry, ClientDoc, LeaseDoc, OutboxDoc,
    RotationDoc, VersionDoc,
};
use crate::mac::SecretHash;

/// Newest audit entries that are read; the trail only grows.
const AUDIT_RECORDS: u32 = 100_000;

/// What a look through the file found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Schema number in the file; 0 in one that was never used.
    pub schema: i64,
    /// Newest schema number known.
    pub known: i64,
    /// Whether SQLite finds its own pages and indexes in order.
    pub sound: bool,
    /// Documents read.
    pub documents: u64,
    /// Kinds of documents that do not read as what they are, and how many of each.
    pub damaged: Vec<(&'static str, u64)>,
}

/// Looks through the file. Blocks; takes no lock that would hold a writer up.
///
/// # Errors
/// [`OpenError`].
pub fn inspect(path: &Path) -> Result<Inspection, OpenError> {
    check_mode(path)?;
    let failed = |error| schema_error(path, error);
    let sqlite = |error: rusqlite::Error| failed(error.into());
    let db = connect(path).map_err(failed)?;
    db.pragma_update(None, "query_only", true).map_err(sqlite)?;
    let schema: i64 = db
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(sqlite)?;
    let mut found = Inspection {
        schema,
        known: schema::KNOWN,
        sound: sound(&db).map_err(sqlite)?,
        documents: 0,
        damaged: Vec::new(),
    };
    // The tables of another schema may look different.
    if schema == schema::KNOWN && found.sound {
        found.read_documents(&db).map_err(sqlite)?;
    }
    Ok(found)
}

fn sound(db: &Connection) -> Result<bool, rusqlite::Error> {
    match db.pragma_query_value(None, "quick_check", |row| row.get::<_, String>(0)) {
        Ok(verdict) => Ok(verdict == "ok"),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => Ok(false),
        Err(error) => Err(error),
    }
}

impl Inspection {
    fn read_documents(&mut self, db: &Connection) -> Result<(), rusqlite::Error> {
        let whole = |sql: &str| sql.to_owned();
        self.read::<ClientDoc>(db, "client", whole("SELECT doc FROM clients"), |_| true)?;
        self.read::<VersionDoc>(db, "version", whole("SELECT doc FROM versions"), |doc| {
            SecretHash::parse(&doc.secret_hash).is_ok()
        })?;
        self.read::<RotationDoc>(db, "rotation", whole("SELECT doc FROM rotations"), |_| true)?;
        self.read::<ActionDoc>(db, "action", whole("SELECT doc FROM actions"), |_| true)?;
        self.read::<OutboxDoc>(db, "outbox event", whole("SELECT doc FROM outbox"), |_| {
            true
        })?;
        self.read::<AdminDoc>(db, "admin", whole("SELECT doc FROM admins"), |_| true)?;
        let groups = whole("SELECT doc FROM admin_groups");
        self.read::<AdminGroupDoc>(db, "admin group", groups, |_| true)?;
        self.read::<LeaseDoc>(db, "lease", whole("SELECT doc FROM leases"), |_| true)?;
        let audit = format!("SELECT doc FROM audit ORDER BY position DESC LIMIT {AUDIT_RECORDS}");
        self.read::<AuditEntry>(db, "audit entry", audit, |_| true)?;
        let chains = whole("SELECT doc FROM audit_chains");
        self.read::<AuditChainDoc>(db, "audit chain", chains, |_| true)
    }

    fn read<T: DeserializeOwned>(
        &mut self,
        db: &Connection,
        what: &'static str,
        sql: String,
        holds: impl Fn(&T) -> bool,
    ) -> Result<(), rusqlite::Error> {
        let mut statement = db.prepare(&sql)?;
        let mut rows = statement.query([])?;
        let mut damaged = 0;
        while let Some(row) = rows.next()? {
            let text = row.get_ref(0)?.as_str().ok();
            let read = text.and_then(|text| serde_json::from_str::<T>(text).ok());
            damaged += u64::from(!read.is_some_and(|doc| holds(&doc)));
            self.documents += 1;
        }
        if damaged > 0 {
            self.damaged.push((what, damaged));
        }
        Ok(())
    }
}
