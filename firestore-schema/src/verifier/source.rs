//! Where snapshots come from.

use std::sync::Arc;

use async_trait::async_trait;
use keyturn_proto::ClientId;

use super::book::Book;
use super::coverage::Coverage;
use crate::documents::{ClientDoc, ClientStatus, SnapshotEntry};
use crate::store::Registry;

/// What the verifier needs of a client document.
#[derive(Clone, Debug)]
pub struct ClientSnapshot {
    /// Only active clients verify.
    pub status: ClientStatus,
    /// Living versions.
    pub entries: Vec<SnapshotEntry>,
    /// Grows with every change of the document, so that what was read early and comes late replaces nothing; 0 where the source has no such number.
    pub revision: u64,
    /// Set when the source listens to the document: then it need not be read again while the listener keeps up.
    pub coverage: Option<Coverage>,
}

/// The source did not answer; the cause is redacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no snapshot: {cause}")]
pub struct SourceError {
    /// What went wrong.
    pub cause: &'static str,
}

/// Reads one client's snapshot, never torn.
#[async_trait]
pub trait SnapshotSource: Send + Sync {
    /// `None` for an unknown client.
    ///
    /// # Errors
    /// [`SourceError`].
    async fn snapshot(&self, client: &ClientId) -> Result<Option<ClientSnapshot>, SourceError>;

    /// Called once, by the verifier that uses it. A source that hears of changes by itself tells the book.
    fn attach(&self, _book: &Arc<Book>) {}
}

impl From<ClientDoc> for ClientSnapshot {
    fn from(doc: ClientDoc) -> Self {
        Self {
            status: doc.status,
            entries: doc.snapshot,
            revision: 0,
            coverage: None,
        }
    }
}

/// Every store is a source.
#[async_trait]
impl<R: Registry + ?Sized> SnapshotSource for Arc<R> {
    async fn snapshot(&self, client: &ClientId) -> Result<Option<ClientSnapshot>, SourceError> {
        match self.client(client).await {
            Ok(doc) => Ok(doc.map(ClientSnapshot::from)),
            Err(_) => Err(SourceError {
                cause: "the store did not answer",
            }),
        }
    }
}
