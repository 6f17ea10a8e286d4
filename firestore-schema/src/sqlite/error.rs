//! SQLite's errors as the port's: stable causes, no values. SQLite's own messages can quote column contents, so they stop here.

use rusqlite::{Error, ErrorCode};

use crate::store::StoreError;

/// An error before the commit: nothing was changed.
pub(super) fn sql(error: Error) -> StoreError {
    let cause = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another process held the write lock for too long"
        }
        Some(ErrorCode::DiskFull) => "the disk is full",
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            "the database file cannot be written"
        }
        Some(ErrorCode::SystemIoFailure) => "the disk failed",
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            return StoreError::Damaged { what: "database" };
        }
        // A unique index or a trigger refused what the lifecycle let through.
        Some(ErrorCode::ConstraintViolation) => {
            return StoreError::Conflict {
                why: "store.constraint",
            };
        }
        _ => "the database refused the statement",
    };
    tracing::warn!(code = ?error.sqlite_error_code(), cause, "sqlite");
    StoreError::Unavailable { cause }
}

/// An error of the commit itself. Busy and constraint errors roll back; after an input/output error nobody can say.
pub(super) fn commit(error: Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::ConstraintViolation,
        ) => sql(error),
        code => {
            tracing::error!(?code, "sqlite commit");
            StoreError::Unknown {
                cause: "the commit failed half-way",
            }
        }
    }
}
