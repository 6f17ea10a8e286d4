//! Where the last sync ended. Losing it costs time and nothing else: the member knows what it has seen.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::SyncError;

/// Unix seconds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Positions {
    /// Gift wraps.
    pub(super) wraps: Option<u64>,
    /// Group events, by MLS group id.
    pub(super) groups: BTreeMap<String, u64>,
}

pub(super) struct Cursor {
    path: Option<PathBuf>,
    pub(super) positions: Positions,
}

impl Cursor {
    /// A file that does not parse is only a lost optimisation: everything is read again.
    pub(super) fn load(path: Option<PathBuf>) -> Result<Self, SyncError> {
        let positions = match &path {
            None => Positions::default(),
            Some(file) => match std::fs::read(file) {
                Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Positions::default(),
                Err(source) => {
                    return Err(SyncError::Cursor {
                        path: file.clone(),
                        source,
                    });
                }
            },
        };
        Ok(Self { path, positions })
    }

    /// Written beside and renamed: a crash leaves the old one.
    pub(super) fn save(&self) -> Result<(), SyncError> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let failed = |source| SyncError::Cursor {
            path: path.clone(),
            source,
        };
        let json =
            serde_json::to_vec(&self.positions).map_err(|error| failed(io::Error::other(error)))?;
        let partial = path.with_extension("partial");
        std::fs::write(&partial, json).map_err(failed)?;
        std::fs::rename(&partial, path).map_err(failed)
    }
}
