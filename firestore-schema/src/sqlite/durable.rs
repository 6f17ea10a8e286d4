//! When a commit survives a power cut.
//!
//! As a rule SQLite waits for the disk within the commit (`synchronous=FULL`), before anybody can see it. A transaction of changes that may all be told of early
//! (`worker.rs`) is committed without that wait, and its thread then waits for the log here. In between the commit is seen by everybody, survives the end of any process, and comes before
//! everything that is committed after it: the next ordinary commit would wait for both.

use std::fs::File;
use std::io;

use rusqlite::Connection;

use super::error;
use crate::store::{Result, StoreError};

/// The write-ahead log of one database, kept open: who opens it anew is not told of an error that another has heard of. SQLite takes no other file for it while
/// a connection is open.
pub(super) struct Log {
    file: File,
    /// What was committed and is not on the disk may be lost, and everything behind it with it, even if the next wait succeeds: the system reports a page that
    /// it could not write once, and forgets it.
    lost: bool,
    #[cfg(test)]
    broken: Option<std::path::PathBuf>,
}

impl Log {
    /// The log of `db`, which has read or written before; `None` for a database in memory, of which nothing survives anything.
    pub(super) fn of(db: &Connection) -> io::Result<Option<Self>> {
        let Some(path) = db.path().filter(|path| !path.is_empty()) else {
            return Ok(None);
        };
        let file = File::open(format!("{path}-wal"))?;
        Ok(Some(Self {
            file,
            lost: false,
            #[cfg(test)]
            broken: None,
        }))
    }

    /// Whether anything may still be committed.
    pub(super) const fn is_whole(&self) -> bool {
        !self.lost
    }

    /// Waits until everything committed so far is on the disk. After a failure nothing is committed any more until the file is opened anew.
    pub(super) fn sync(&mut self) -> Result<()> {
        self.wait().map_err(|error| {
            self.lost = true;
            tracing::error!(%error, "the store's log could not be written to the disk; nothing more is written before a restart");
            StoreError::Unknown {
                cause: "the disk failed after the commit",
            }
        })
    }

    fn wait(&self) -> io::Result<()> {
        #[cfg(test)]
        if self.broken.as_ref().is_some_and(|file| file.exists()) {
            return Err(io::Error::other("the test said so"));
        }
        self.file.sync_data()
    }

    /// Has `db` wait for the disk within its next commits, or leave that to [`Log::sync`].
    pub(super) fn wait_within(&mut self, db: &Connection, wait: bool) -> Result<()> {
        let mode = if wait { "FULL" } else { "NORMAL" };
        db.pragma_update(None, "synchronous", mode)
            .map_err(|cause| {
                // Nobody could be told "done" without a wait.
                self.lost = true;
                error::sql(cause)
            })
    }

    /// Fails while there is such a file.
    #[cfg(test)]
    pub(super) fn fails_when(self, broken: std::path::PathBuf) -> Self {
        Self {
            broken: Some(broken),
            ..self
        }
    }
}
