//! What the verifier needs beside the port: one document as it changes.

use firestore::{FirestoreDb, FirestoreDocument};
use keyturn_proto::ClientId;

use super::open::FirestoreStore;
use super::paths::Path;
use super::stored;
use crate::collections::CLIENTS;
use crate::documents::ClientDoc;
use crate::store::{Result, StoreError};

impl FirestoreStore {
    /// The connection, for a listener. Its own readers and writers print values when they fail: read and write through the store.
    #[must_use]
    pub fn db(&self) -> &FirestoreDb {
        &self.link().db
    }

    /// The collection of the client documents.
    #[must_use]
    pub const fn clients_collection() -> &'static str {
        CLIENTS
    }

    /// The full resource name of a client's document, as a listener reports it.
    ///
    /// # Errors
    /// [`StoreError::InvalidId`].
    pub fn client_name(&self, id: &ClientId) -> Result<String> {
        Ok(self.link().name(&Path::client(id)?))
    }

    /// The client that a listener was told of.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it is no client, or does not lie where it belongs.
    pub fn client_of(&self, document: FirestoreDocument) -> Result<ClientDoc> {
        let path = Path::of_name(&document.name, self.link().documents())
            .ok_or(StoreError::Damaged { what: "client" })?;
        stored::parse(&path, document.fields)
    }
}
