//! Where each document lies (protocol.md §4).
//!
//! What must always hold: no text becomes part of a path before it was checked as a document id, so that nothing a caller passes can name another
//! document than the one meant.

use std::fmt;

use keyturn_proto::device::DeviceId;
use keyturn_proto::{ClientId, Npub, RotationId, VersionId};

use crate::collections::document_id;
use crate::collections::{
    ACTIONS, ADMINS, APPROLE_ROLES, APPROLE_SECRET_IDS, AUDIT, CHAINS, CLIENTS, DEVICES, GROUPS,
    LEASES, NONCES, OUTBOX, REVISIONS, ROTATIONS, VERSIONS,
};
use crate::store::Result;

/// A document's path below `…/documents`, with every id in it checked.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Path(String);

/// A path can hold a client's name; logs name kinds of documents only.
impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.split('/').next().unwrap_or_default())
    }
}

impl Path {
    /// `{collection}/{id}`.
    ///
    /// # Errors
    /// [`StoreError::InvalidId`].
    pub(super) fn new(collection: &str, what: &'static str, id: &str) -> Result<Self> {
        Ok(Self(format!("{collection}/{}", document_id(what, id)?)))
    }

    /// `{self}/{collection}/{id}`.
    pub(super) fn below(&self, collection: &str, what: &'static str, id: &str) -> Result<Self> {
        Ok(Self(format!(
            "{}/{collection}/{}",
            self.0,
            document_id(what, id)?
        )))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// From the full resource name that a server gave.
    pub(super) fn of_name(name: &str, documents: &str) -> Option<Self> {
        let rest = name.strip_prefix(documents)?.strip_prefix('/')?;
        Some(Self(rest.to_owned()))
    }

    /// A document that was met at the root of the database, whatever it is called: somebody else may have put it there under a name that we would not give. Only
    /// for the place where a listing goes on; no document is written by it.
    pub(super) fn met(collection: &str, id: &str) -> Self {
        Self(format!("{collection}/{id}"))
    }

    /// The last part: the document id.
    pub(super) fn id(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    pub(super) fn client(id: &ClientId) -> Result<Self> {
        Self::new(CLIENTS, "client", id.as_str())
    }

    pub(super) fn version(client: &ClientId, id: &VersionId) -> Result<Self> {
        Self::client(client)?.below(VERSIONS, "version", &id.to_string())
    }

    pub(super) fn rotation(id: &RotationId) -> Result<Self> {
        Self::new(ROTATIONS, "rotation", id.as_str())
    }

    pub(super) fn action(id: &RotationId) -> Result<Self> {
        Self::new(ACTIONS, "action", id.as_str())
    }

    pub(super) fn admin(npub: &Npub) -> Result<Self> {
        Self::new(ADMINS, "admin", &npub.to_string())
    }

    pub(super) fn group(alias: &str) -> Result<Self> {
        Self::new(GROUPS, "admin group", alias)
    }

    pub(super) fn outbox(event_id: &str) -> Result<Self> {
        Self::new(OUTBOX, "outbox", event_id)
    }

    pub(super) fn nonce(hash: &str) -> Result<Self> {
        Self::new(NONCES, "nonce", hash)
    }

    pub(super) fn lease(name: &str) -> Result<Self> {
        Self::new(LEASES, "lease", name)
    }

    pub(super) fn audit(id: &str) -> Result<Self> {
        Self::new(AUDIT, "audit", id)
    }

    pub(super) fn chain(id: &str) -> Result<Self> {
        Self::new(CHAINS, "audit chain", id)
    }

    pub(super) fn device(id: &DeviceId) -> Result<Self> {
        Self::new(DEVICES, "device", id.as_str())
    }

    pub(super) fn approle_role(role: &str) -> Result<Self> {
        Self::new(APPROLE_ROLES, "role", role)
    }

    pub(super) fn secret_id(accessor: &VersionId) -> Result<Self> {
        Self::new(APPROLE_SECRET_IDS, "secret_id", &accessor.to_string())
    }

    pub(super) fn revision(collection: &str) -> Result<Self> {
        Self::new(REVISIONS, "revision", collection)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::collections::ID_BYTES;
    use crate::store::StoreError;

    #[test]
    fn what_is_no_document_id_is_refused_whatever_it_names() {
        let long = "x".repeat(ID_BYTES + 1);
        let wrong = [
            "", ".", "..", "a/b", "/", "__x__", "____", "a\nb", "a\0", "\u{85}", &long,
        ];
        type Make = fn(&str) -> Result<Path>;
        let kinds: [(&'static str, Make); 7] = [
            ("admin group", Path::group),
            ("outbox", Path::outbox),
            ("nonce", Path::nonce),
            ("lease", Path::lease),
            ("audit", Path::audit),
            ("audit chain", Path::chain),
            ("role", Path::approle_role),
        ];
        for (what, path) in kinds {
            for id in wrong {
                assert_eq!(path(id), Err(StoreError::InvalidId { what }), "{id:?}");
            }
            for id in ["a", "a.b", "__a", "a__", "Ümläut 1", &long[1..]] {
                assert!(path(id).is_ok(), "{id:?}");
            }
        }
    }

    /// Firestore's limit for a whole name is 6 KiB.
    #[test]
    fn the_longest_path_stays_below_the_limit() {
        let client: ClientId = "c".repeat(ID_BYTES).parse().unwrap();
        let version = "01JM8VEZAMG2DK6T4S9N7TT1C8".parse().unwrap();
        let path = Path::version(&client, &version).unwrap();
        let project_and_database = 30 + 63 + "projects//databases//documents/".len();
        assert!(path.as_str().len() + project_and_database < 6 * 1024);
    }

    #[test]
    fn a_path_shows_only_its_collection() {
        let path = Path::client(&"acme-billing".parse().unwrap()).unwrap();
        assert_eq!(format!("{path:?}"), "oauth2_clients");
        assert_eq!(path.id(), "acme-billing");
    }
}
