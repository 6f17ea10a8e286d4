//! The member database: OpenMLS state, Keyturn's own tables, one SQLCipher file.
//!
//! What must hold: the file is encrypted under a raw 32-byte key, mode 0600, open in one process; deleted
//! pages are overwritten (`secure_delete`); everything one operation changes is one transaction.

mod codec;
pub(crate) mod commits;
pub(crate) mod events;
pub(crate) mod outbox;
pub(crate) mod rows;
pub(crate) mod snapshot;
pub(crate) mod work;

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use openmls_rust_crypto::RustCrypto;
use openmls_sqlite_storage::{Codec as _, SqliteStorageProvider};
use openmls_traits::OpenMlsProvider;
use rusqlite::{Connection, ErrorCode};

use crate::error::{OpenError, StoreError};
use crate::ids::{MlsGroupId, to_openmls};
use crate::key::StorageKey;
pub(crate) use codec::Cbor;

/// Newest schema of Keyturn's own tables, kept in `PRAGMA user_version`.
const SCHEMA: i64 = 1;

/// What OpenMLS works with: RustCrypto and one connection (a transaction, in practice).
pub(crate) struct Provider<'c> {
    crypto: &'c RustCrypto,
    storage: SqliteStorageProvider<Cbor, &'c Connection>,
}

impl<'c> Provider<'c> {
    pub(crate) fn new(crypto: &'c RustCrypto, connection: &'c Connection) -> Self {
        Self {
            crypto,
            storage: SqliteStorageProvider::new(connection),
        }
    }
}

impl<'c> OpenMlsProvider for Provider<'c> {
    type CryptoProvider = RustCrypto;
    type RandProvider = RustCrypto;
    type StorageProvider = SqliteStorageProvider<Cbor, &'c Connection>;

    fn storage(&self) -> &Self::StorageProvider {
        &self.storage
    }

    fn crypto(&self) -> &Self::CryptoProvider {
        self.crypto
    }

    fn rand(&self) -> &Self::RandProvider {
        self.crypto
    }
}

/// Locks, opens, keys and migrates. The returned file holds the lock for as long as it lives.
pub(crate) fn open(path: &Path, key: &StorageKey) -> Result<(Connection, File), OpenError> {
    let lock = lock(path)?;
    protect(path)?;
    let mut connection = Connection::open(path).map_err(StoreError::from)?;
    // SQLCipher would report a wrong key on stderr; here it is a typed error.
    connection
        .execute_batch("PRAGMA cipher_log_level = NONE; PRAGMA cipher_memory_security = ON;")
        .and_then(|()| connection.execute_batch(&key.pragma()))
        .map_err(StoreError::from)?;
    // The first read decides: without the right key the first page does not authenticate.
    match connection.query_row("SELECT count(*) FROM sqlite_master", [], |row| {
        row.get::<_, i64>(0)
    }) {
        Ok(_) => {}
        Err(rusqlite::Error::SqliteFailure(failure, _))
            if failure.code == ErrorCode::NotADatabase =>
        {
            return Err(OpenError::WrongKey {
                path: path.to_owned(),
            });
        }
        Err(error) => return Err(StoreError::from(error).into()),
    }
    connection
        .execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA secure_delete = ON;
             PRAGMA foreign_keys = ON;
             PRAGMA temp_store = MEMORY;
             PRAGMA trusted_schema = OFF;",
        )
        .map_err(StoreError::from)?;
    connection.set_prepared_statement_cache_capacity(128);
    migrate(&mut connection)?;
    Ok((connection, lock))
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let lock_path = beside(path, ".lock");
    let at = |source| OpenError::Io {
        path: lock_path.clone(),
        source,
    };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(at)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(at(source)),
    }
}

/// SQLite gives its `-wal` the mode of the database, so the database is made first, and privately.
fn protect(path: &Path) -> Result<(), OpenError> {
    let at = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(at)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))
        .map_err(at)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn migrate(connection: &mut Connection) -> Result<(), OpenError> {
    SqliteStorageProvider::<Cbor, &mut Connection>::new(&mut *connection)
        .run_migrations()
        .map_err(|error| OpenError::Migration(Box::new(error)))?;
    let found: i64 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(StoreError::from)?;
    match found {
        SCHEMA => Ok(()),
        0 => {
            let tx = connection.transaction().map_err(StoreError::from)?;
            tx.execute_batch(include_str!("schema.sql"))
                .map_err(StoreError::from)?;
            tx.pragma_update(None, "user_version", SCHEMA)
                .map_err(StoreError::from)?;
            tx.commit().map_err(StoreError::from)?;
            Ok(())
        }
        found => Err(OpenError::Schema {
            found,
            known: SCHEMA,
        }),
    }
}

/// A key of OpenMLS as the codec writes it, for statements of our own on OpenMLS's tables.
pub(crate) fn key<K: serde::Serialize>(key: &K) -> Result<Vec<u8>, StoreError> {
    Cbor::to_vec(key)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)).into())
}

/// The `group_id` column of OpenMLS's tables.
pub(crate) fn group_key(id: &MlsGroupId) -> Result<Vec<u8>, StoreError> {
    key(&to_openmls(id))
}
