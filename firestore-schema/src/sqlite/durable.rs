//! When a commit survives a power cut.
//!
//! A connection that writes commits without waiting for the disk (`synchronous=NORMAL`), and its thread then waits for the log here: after every commit, before
//! anybody but those who asked for it is told (`worker.rs`). That is what `synchronous=FULL` does within the commit, taken apart: between the two, a commit is
//! seen by every connection, survives the end of any process, and comes before everything that is committed after it.

use std::fs::File;
use std::path::PathBuf;

use rusqlite::Connection;

use crate::store::{Result, StoreError};

/// The write-ahead log of one database.
pub(super) struct Log(Option<PathBuf>);

impl Log {
    /// Has `db` commit without waiting. A database in memory has no log, and nothing of it survives anything.
    pub(super) fn of(db: &Connection) -> rusqlite::Result<Self> {
        db.pragma_update(None, "synchronous", "NORMAL")?;
        let file = db.path().filter(|path| !path.is_empty());
        Ok(Self(file.map(|path| format!("{path}-wal").into())))
    }

    #[cfg(test)]
    pub(super) const fn at(path: PathBuf) -> Self {
        Self(Some(path))
    }

    /// Waits until everything committed so far is on the disk.
    pub(super) fn sync(&self) -> Result<()> {
        let Some(path) = &self.0 else { return Ok(()) };
        // Opened anew each time, which costs a fiftieth of the wait: who keeps it open would have to know when SQLite begins another file.
        File::open(path)
            .and_then(|log| log.sync_data())
            .map_err(|error| {
                tracing::error!(%error, "the store's log could not be written to the disk");
                StoreError::Unknown {
                    cause: "the disk failed after the commit",
                }
            })
    }
}
