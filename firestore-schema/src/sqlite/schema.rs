//! The schema, as numbered steps that are applied once and never edited.

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::migrate;
use crate::audit::Instance;
use crate::store::StoreError;

/// Marks the file as ours ("KTRN"), so that no other program's database is touched.
const APPLICATION_ID: i32 = 0x4b54_524e;

const STEPS: &[Step] = &[
    Step::Sql(STEP_1),
    Step::Sql(STEP_2),
    Step::Code(migrate::chain_the_trail),
    Step::Sql(STEP_4),
    Step::Sql(DEVICES),
    Step::Sql(APPROLE),
    Step::Sql(WITHDRAWN),
    Step::Sql(REFUSED),
    Step::Sql(DEVICES_BY_ROW),
];

enum Step {
    Sql(&'static str),
    /// What SQL cannot do; the instance is the one that opens the file.
    Code(fn(&Transaction<'_>, &Instance) -> Result<(), StoreError>),
}

/// The newest schema number known.
pub(super) const KNOWN: i64 = STEPS.len() as i64;

const STEP_1: &str = "
CREATE TABLE clients (
    client_id TEXT NOT NULL PRIMARY KEY,
    doc TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE versions (
    client_id TEXT NOT NULL REFERENCES clients (client_id),
    version_id TEXT NOT NULL,
    state TEXT NOT NULL,
    rotation_id TEXT,
    due_at INTEGER,
    doc TEXT NOT NULL,
    PRIMARY KEY (client_id, version_id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX versions_one_current ON versions (client_id) WHERE state = 'current';
CREATE UNIQUE INDEX versions_one_grace ON versions (client_id) WHERE state = 'grace';
CREATE UNIQUE INDEX versions_one_pending ON versions (client_id) WHERE state = 'pending';
CREATE UNIQUE INDEX versions_one_per_rotation ON versions (rotation_id) WHERE rotation_id IS NOT NULL;
CREATE INDEX versions_due ON versions (due_at) WHERE due_at IS NOT NULL;
CREATE TRIGGER versions_stay_dead BEFORE UPDATE OF state ON versions
    WHEN old.state IN ('retired', 'cancelled') AND new.state <> old.state
    BEGIN SELECT RAISE(ABORT, 'a dead version stays dead'); END;

CREATE TABLE rotations (
    rotation_id TEXT NOT NULL PRIMARY KEY,
    client_id TEXT NOT NULL REFERENCES clients (client_id),
    done INTEGER NOT NULL,
    due_at INTEGER,
    doc TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX rotations_one_active ON rotations (client_id) WHERE done = 0;
CREATE INDEX rotations_due ON rotations (due_at) WHERE due_at IS NOT NULL;

CREATE TABLE actions (
    action_id TEXT NOT NULL PRIMARY KEY,
    client_id TEXT NOT NULL,
    doc TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE outbox (
    event_id TEXT NOT NULL PRIMARY KEY,
    rotation_id TEXT NOT NULL REFERENCES rotations (rotation_id),
    published INTEGER NOT NULL,
    delete_after INTEGER,
    doc TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX outbox_by_rotation ON outbox (rotation_id);
CREATE INDEX outbox_unpublished ON outbox (event_id) WHERE published = 0;
CREATE INDEX outbox_due ON outbox (delete_after) WHERE delete_after IS NOT NULL;

CREATE TABLE admins (
    npub TEXT NOT NULL PRIMARY KEY,
    doc TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE admin_groups (
    alias TEXT NOT NULL PRIMARY KEY,
    doc TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE nonces (
    nonce_hash TEXT NOT NULL PRIMARY KEY,
    owner_event TEXT NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX nonces_expiry ON nonces (expires_at);

CREATE TABLE leases (
    name TEXT NOT NULL PRIMARY KEY,
    doc TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    client_id TEXT,
    doc TEXT NOT NULL
) STRICT;
CREATE INDEX audit_by_client ON audit (client_id, seq) WHERE client_id IS NOT NULL;
CREATE TRIGGER audit_is_append_only_update BEFORE UPDATE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END;
CREATE TRIGGER audit_is_append_only_delete BEFORE DELETE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END;
";

/// The audit trail in chains. Index and triggers go with the old table, whose name they bear.
const STEP_2: &str = "
DROP TRIGGER audit_is_append_only_update;
DROP TRIGGER audit_is_append_only_delete;
DROP INDEX audit_by_client;
ALTER TABLE audit RENAME TO audit_unchained;

CREATE TABLE audit (
    position INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    client_id TEXT,
    doc TEXT NOT NULL
) STRICT;
CREATE INDEX audit_by_client ON audit (client_id, position) WHERE client_id IS NOT NULL;

CREATE TABLE audit_chains (
    id TEXT NOT NULL PRIMARY KEY,
    doc TEXT NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Once the old records are in their chains.
const STEP_4: &str = "
DROP TABLE audit_unchained;
CREATE TRIGGER audit_is_append_only_update BEFORE UPDATE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END;
CREATE TRIGGER audit_is_append_only_delete BEFORE DELETE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END;
CREATE TRIGGER audit_chains_never_end BEFORE DELETE ON audit_chains
    BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END;
";

/// Devices that get their `secret_id` over MQTT.
const DEVICES: &str = "
CREATE TABLE devices (
    device_id TEXT NOT NULL PRIMARY KEY,
    owner TEXT,
    due_at INTEGER,
    doc TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX devices_due ON devices (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX devices_owner ON devices (owner) WHERE owner IS NOT NULL;
";

/// Roles and secret_ids of the embedded issuer.
const APPROLE: &str = "
CREATE TABLE approle_roles (
    role TEXT NOT NULL PRIMARY KEY,
    role_id TEXT NOT NULL UNIQUE,
    doc TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE approle_secret_ids (
    accessor TEXT NOT NULL PRIMARY KEY,
    role TEXT NOT NULL,
    nonce_hash TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    doc TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX approle_secret_ids_by_nonce ON approle_secret_ids (role, nonce_hash);
CREATE INDEX approle_secret_ids_expiry ON approle_secret_ids (expires_at);
";

/// Whether an event is in a relay is asked of that relay; what was withdrawn is remembered.
const WITHDRAWN: &str = "
DROP INDEX outbox_unpublished;
ALTER TABLE outbox DROP COLUMN published;
ALTER TABLE outbox ADD COLUMN withdrawn_at INTEGER;
CREATE INDEX outbox_kept ON outbox (event_id) WHERE withdrawn_at IS NULL;
CREATE INDEX outbox_withdrawn ON outbox (withdrawn_at, event_id) WHERE withdrawn_at IS NOT NULL;
";

/// How an event was refused, beside what was used once.
const REFUSED: &str = "ALTER TABLE nonces ADD COLUMN refused TEXT;";

/// Without row ids a device's whole document was part of its key, and every step of a search for one took a copy of those it passed.
const DEVICES_BY_ROW: &str = "
DROP INDEX devices_due;
DROP INDEX devices_owner;
ALTER TABLE devices RENAME TO devices_by_key;
CREATE TABLE devices (
    device_id TEXT NOT NULL PRIMARY KEY,
    owner TEXT,
    due_at INTEGER,
    doc TEXT NOT NULL
) STRICT;
INSERT INTO devices (device_id, owner, due_at, doc) SELECT device_id, owner, due_at, doc FROM devices_by_key;
DROP TABLE devices_by_key;
CREATE INDEX devices_due ON devices (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX devices_owner ON devices (owner) WHERE owner IS NOT NULL;
";

/// Why a file's schema cannot be used.
#[derive(Debug)]
pub(super) enum SchemaError {
    Sql(rusqlite::Error),
    Damaged(StoreError),
    Foreign,
    Newer { found: i64, known: i64 },
}

impl From<rusqlite::Error> for SchemaError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

/// Refuses another program's database.
pub(super) fn check_ours(db: &Connection) -> Result<(), SchemaError> {
    let application: i32 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let empty: bool = db.query_row(
        "SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)",
        [],
        |row| row.get(0),
    )?;
    if application == APPLICATION_ID || empty {
        Ok(())
    } else {
        Err(SchemaError::Foreign)
    }
}

/// The schema number in the file.
pub(super) fn number(db: &Connection) -> Result<i64, SchemaError> {
    Ok(db.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

/// The schema as it was first, for tests of the steps that follow.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) fn first(db: &Connection) {
    db.execute_batch(STEP_1).unwrap();
    db.pragma_update(None, "user_version", 1).unwrap();
}

/// Brings the file to the newest schema, in one transaction; two processes that start together apply it once.
pub(super) fn migrate(db: &mut Connection, instance: &Instance) -> Result<(), SchemaError> {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let known = KNOWN;
    let found: i64 = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > known {
        return Err(SchemaError::Newer { found, known });
    }
    let done = usize::try_from(found).unwrap_or(0);
    for step in STEPS.iter().skip(done) {
        match step {
            Step::Sql(sql) => tx.execute_batch(sql)?,
            Step::Code(step) => step(&tx, instance).map_err(SchemaError::Damaged)?,
        }
    }
    if found < known {
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", known)?;
    }
    tx.commit()?;
    Ok(())
}
