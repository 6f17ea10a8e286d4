//! Opening the file: owner-only, WAL, the newest schema.

use std::cmp::Ordering;
use std::fs::OpenOptions;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::durable::Log;
use super::schema::{self, SchemaError};
use super::worker::Worker;
use crate::audit::Instance;
use crate::store::StoreError;

/// How long a transaction waits for another process's.
const BUSY: Duration = Duration::from_secs(5);
/// The same while the file is opened: an operation is tried again by whoever asked for it, a start is not.
const OPENING: Duration = Duration::from_secs(30);

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file is not there, or may not be read or written.
    #[error("cannot open {}: {cause}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        cause: std::io::Error,
    },
    /// Others than the owner may read or write it.
    #[error("{} has mode {mode:04o}; it must be 0600: chmod 600 it", path.display())]
    Mode {
        /// Which file.
        path: PathBuf,
        /// The permission bits found.
        mode: u32,
    },
    /// It is a database of another program, or no database.
    #[error("{} is not a Keyturn database", path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
    },
    /// A newer Keyturn wrote it.
    #[error("{} has schema {found}; this program knows up to {known}", path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Schema number in the file.
        found: i64,
        /// Newest schema number known.
        known: i64,
    },
    /// An older Keyturn wrote it, and it was to be looked at only.
    #[error(
        "{} has schema {found}, older than this program's {known}; nothing was changed. Opening it to work on it brings it up: to try that first, do it with a copy of the file",
        path.display()
    )]
    Older {
        /// Which file.
        path: PathBuf,
        /// Schema number in the file.
        found: i64,
        /// Newest schema number known.
        known: i64,
    },
    /// Its documents could not be brought to the newest schema.
    #[error("{} cannot be brought to the newest schema", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with which kind of document.
        #[source]
        cause: StoreError,
    },
    /// SQLite failed.
    #[error("SQLite cannot use {}", path.display())]
    Sqlite {
        /// Which file.
        path: PathBuf,
        /// SQLite's error; about the file, not about documents.
        #[source]
        cause: rusqlite::Error,
    },
}

/// The SQLite backend. Clones share the same two connections (one writes, one reads).
#[derive(Clone)]
pub struct SqliteStore {
    pub(super) writer: Worker,
    pub(super) reader: Worker,
}

impl SqliteStore {
    /// Opens the file for the operator's commands and for whoever only reads.
    ///
    /// # Errors
    /// As [`Self::open_as`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_as(path, &Instance::operator())
    }

    /// Opens the file, creating it with mode 0600 if needed. Blocks for the time that takes. Audit records that name no client go to the chain of
    /// `instance`.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_as(path: &Path, instance: &Instance) -> Result<Self, OpenError> {
        let file = |cause| OpenError::File {
            path: path.to_owned(),
            cause,
        };
        let sqlite = |cause| OpenError::Sqlite {
            path: path.to_owned(),
            cause,
        };
        own_file(path)?;
        let schema = |error| schema_error(path, error);
        let mut writer = connect_within(path, OPENING).map_err(schema)?;
        schema::migrate(&mut writer, instance).map_err(schema)?;
        write_back(&writer).map_err(sqlite)?;
        let reader = connect_within(path, OPENING).map_err(schema)?;
        for db in [&writer, &reader] {
            db.busy_timeout(BUSY).map_err(sqlite)?;
        }
        reader
            .pragma_update(None, "query_only", true)
            .map_err(sqlite)?;
        let log = Log::of(&writer).map_err(file)?;
        let (one, other) = ("keyturn-store-w", "keyturn-store-r");
        Ok(Self {
            writer: Worker::start(one, writer, log, instance.clone()).map_err(file)?,
            reader: Worker::start(other, reader, None, instance.clone()).map_err(file)?,
        })
    }
}

impl SqliteStore {
    /// Opens a file that is there for reading, and changes no document and no table in it: whatever would write is refused by SQLite. Blocks for the time that
    /// takes.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::Older`] for a file whose documents would have to be brought to the newest schema first.
    pub fn open_to_look(path: &Path) -> Result<Self, OpenError> {
        let file = |cause| OpenError::File {
            path: path.to_owned(),
            cause,
        };
        check_mode(path)?;
        let look = || -> Result<Connection, OpenError> {
            let failed = |error| schema_error(path, error);
            // Not opened read-only: SQLite needs the log's index beside the file even to read, and must be allowed to make it.
            let db = connect(path).map_err(failed)?;
            db.pragma_update(None, "query_only", true)
                .map_err(|error| failed(error.into()))?;
            let found = schema::number(&db).map_err(|error| schema_error(path, error))?;
            let (path, known) = (path.to_owned(), schema::KNOWN);
            match found.cmp(&known) {
                Ordering::Less => Err(OpenError::Older { path, found, known }),
                Ordering::Equal => Ok(db),
                Ordering::Greater => Err(OpenError::Newer { path, found, known }),
            }
        };
        let instance = Instance::operator();
        let (one, other) = ("keyturn-store-w", "keyturn-store-r");
        Ok(Self {
            writer: Worker::start(one, look()?, None, instance.clone()).map_err(file)?,
            reader: Worker::start(other, look()?, None, instance).map_err(file)?,
        })
    }
}

pub(super) fn schema_error(path: &Path, error: SchemaError) -> OpenError {
    let path = path.to_owned();
    match error {
        SchemaError::Sql(cause)
            if cause.sqlite_error_code() == Some(rusqlite::ErrorCode::NotADatabase) =>
        {
            OpenError::Foreign { path }
        }
        SchemaError::Sql(cause) => OpenError::Sqlite { path, cause },
        SchemaError::Foreign => OpenError::Foreign { path },
        SchemaError::Damaged(cause) => OpenError::Damaged { path, cause },
        SchemaError::Newer { found, known } => OpenError::Newer { path, found, known },
    }
}

/// Creates the file owner-only, or checks that an existing one is. SQLite gives its `-wal` and `-shm` files the mode of the database.
fn own_file(path: &Path) -> Result<(), OpenError> {
    let fail = |cause| OpenError::File {
        path: path.to_owned(),
        cause,
    };
    let created = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match created {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => check_mode(path),
        Err(error) => Err(fail(error)),
    }
}

/// The file is there and its owner's alone.
pub(super) fn check_mode(path: &Path) -> Result<(), OpenError> {
    let metadata = std::fs::metadata(path).map_err(|cause| OpenError::File {
        path: path.to_owned(),
        cause,
    })?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(OpenError::Mode {
        path: path.to_owned(),
        mode,
    })
}

/// Turns on the write-ahead log. The first opener takes an exclusive lock for it, and SQLite asks no busy handler there: another one that comes at the
/// same moment is told "busy" at once, so the waiting is done here.
fn write_ahead(db: &Connection, wait: Duration) -> Result<(), rusqlite::Error> {
    let until = Instant::now() + wait;
    loop {
        let turned =
            db.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0));
        match turned {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && Instant::now() < until =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            turned => return turned.map(drop),
        }
    }
}

/// Copies what the log holds into the database, which has a wait for the disk of its own. A disk may have failed under the process before: what it could not write
/// of the log is reported once, and would be a gap in it for ever after. Waits for nobody who works on the file meanwhile.
fn write_back(db: &Connection) -> rusqlite::Result<()> {
    db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}

pub(super) fn connect(path: &Path) -> Result<Connection, SchemaError> {
    connect_within(path, BUSY)
}

fn connect_within(path: &Path, wait: Duration) -> Result<Connection, SchemaError> {
    // No OPEN_CREATE: the file exists by now, and a URI in its name must not be interpreted.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(wait)?;
    // Before the journal mode, which would be written into somebody else's file.
    schema::check_ours(&db)?;
    write_ahead(&db, wait)?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "foreign_keys", true)?;
    // Purged ciphertext must not linger in free pages.
    db.pragma_update(None, "secure_delete", true)?;
    db.pragma_update(None, "trusted_schema", false)?;
    // 8 MiB instead of 2: thousands of devices that ask at once have their documents read again soon after.
    db.pragma_update(None, "cache_size", -8_192)?;
    db.set_prepared_statement_cache_capacity(64);
    Ok(db)
}
