//! Until when each peer was heard completely, kept in a file: times and addresses, nothing else.
//!
//! What must always hold: the file is replaced as a whole; one that is missing or damaged means asking the peers for everything again.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use keyturn_proto::UnixMs;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Cursors {
    path: Arc<PathBuf>,
    at: Arc<Mutex<BTreeMap<String, UnixMs>>>,
}

impl Cursors {
    /// Reads the file, if there is one.
    #[must_use]
    pub fn open(path: PathBuf) -> Self {
        let at = std::fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        Self {
            path: Arc::new(path),
            at: Arc::new(Mutex::new(at)),
        }
    }

    /// Until when `peer` was heard completely.
    #[must_use]
    pub fn get(&self, peer: &str) -> Option<UnixMs> {
        let at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        at.get(peer).copied()
    }

    /// Moves a cursor forward. A file that cannot be written costs asking again after a restart.
    pub fn set(&self, peer: &str, until: UnixMs) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        let known = at.entry(peer.to_owned()).or_default();
        *known = until.max(*known);
        if let Err(error) = self.write(&at) {
            tracing::warn!(%error, "the mirror's place could not be written down");
        }
    }

    fn write(&self, at: &BTreeMap<String, UnixMs>) -> std::io::Result<()> {
        let new = self.path.with_extension("new");
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&serde_json::to_vec(at)?)?;
        file.sync_data()?;
        std::fs::rename(new, self.path.as_path())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_a_restart_and_never_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mirror.json");
        let cursors = Cursors::open(path.clone());
        assert_eq!(cursors.get("ws://a"), None);
        cursors.set("ws://a", UnixMs(5));
        cursors.set("ws://a", UnixMs(3));
        cursors.set("ws://b", UnixMs(1));
        let again = Cursors::open(path.clone());
        assert_eq!(again.get("ws://a"), Some(UnixMs(5)));
        assert_eq!(again.get("ws://b"), Some(UnixMs(1)));
        std::fs::write(&path, "{").unwrap();
        assert_eq!(Cursors::open(path).get("ws://a"), None);
    }
}
