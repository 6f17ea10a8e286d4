//! Reading one document, on a connection that is replaced when it does not answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use firestore::FirestoreDb;
use firestore::gcloud_sdk::google::firestore::v1::batch_get_documents_response::Result as GetResult;
use firestore::gcloud_sdk::google::firestore::v1::{BatchGetDocumentsRequest, Document};
use firestore::gcloud_sdk::tonic::{Code, Request, Status};
use keyturn_proto::{ClientId, UnixMs};
use tokio::sync::Mutex;

use super::wire;
use crate::firestore::codec;
use crate::firestore::cost;
use crate::firestore::fault::{self, Fault};
use crate::firestore::open::{self, OpenError};
use crate::firestore::paths::Path;
use crate::firestore::settings::FirestoreSettings;
use crate::verifier::{ClientSnapshot, SourceError};

/// The lease that a relay renews every few seconds.
pub(super) const HEARTBEAT_LEASE: &str = "rotation";
/// Reads of one document before it is said that the source does not answer.
const TRIES: u32 = 2;

pub(super) struct ReadLink {
    settings: FirestoreSettings,
    db: RwLock<Arc<FirestoreDb>>,
    /// Whether Firestore did not answer the last time it was asked.
    away: AtomicBool,
    /// Held by the one who replaces the connection.
    replacing: Mutex<()>,
}

impl ReadLink {
    pub(super) async fn open(settings: &FirestoreSettings) -> Result<Self, OpenError> {
        Ok(Self {
            db: RwLock::new(Arc::new(open::connect(settings).await?)),
            settings: settings.clone(),
            away: AtomicBool::new(false),
            replacing: Mutex::new(()),
        })
    }

    /// One client's snapshot.
    pub(super) async fn client(
        &self,
        client: &ClientId,
    ) -> Result<Option<ClientSnapshot>, SourceError> {
        let path = Path::client(client).map_err(|_| SourceError {
            cause: "the client's id cannot name a document",
        })?;
        let Some(document) = self.document(&path).await? else {
            return Ok(None);
        };
        wire::snapshot(&path, document)
            .map(Some)
            .ok_or(SourceError {
                cause: "a client document is damaged",
            })
    }

    /// When the heartbeat was last written; `None` if it never was.
    pub(super) async fn heartbeat(&self) -> Result<Option<UnixMs>, SourceError> {
        let path = Path::lease(HEARTBEAT_LEASE).map_err(|_| SourceError {
            cause: "the heartbeat's id cannot name a document",
        })?;
        let document = self.document(&path).await?;
        let written = document.and_then(|document| document.update_time);
        Ok(written.and_then(|at| codec::unix_ms(at).ok()))
    }

    /// Whether nothing can be read at present, as far as is known.
    pub(super) fn away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }

    async fn document(&self, path: &Path) -> Result<Option<Document>, SourceError> {
        let found = self.ask(path).await;
        self.away.store(found.is_err(), Ordering::Relaxed);
        found
    }

    async fn ask(&self, path: &Path) -> Result<Option<Document>, SourceError> {
        let mut left = TRIES;
        loop {
            left -= 1;
            let db = self.db();
            let status = match self.attempt(&db, path).await {
                Ok(found) => return Ok(found),
                Err(status) => status,
            };
            // Silence can be the connection's: the next read goes over another.
            if is_silence(&status) {
                self.replace(&db).await;
            }
            match fault::of_read(&status) {
                Fault::Again(_) | Fault::Doubt(_) | Fault::Changed if left > 0 => {}
                Fault::Again(cause) | Fault::Doubt(cause) => {
                    return Err(SourceError {
                        cause: cause.text(),
                    });
                }
                Fault::Changed => {
                    return Err(SourceError {
                        cause: "Firestore failed",
                    });
                }
                Fault::Refused(cause) => return Err(SourceError { cause }),
            }
        }
    }

    async fn attempt(&self, db: &FirestoreDb, path: &Path) -> Result<Option<Document>, Status> {
        let mut request = Request::new(BatchGetDocumentsRequest {
            database: db.get_database_path().clone(),
            documents: vec![format!("{}/{}", db.get_documents_path(), path.as_str())],
            ..BatchGetDocumentsRequest::default()
        });
        let started = Instant::now();
        let limit = self.settings.attempt();
        request.set_timeout(limit);
        let mut client = db.client().get();
        let get = async {
            let mut answers = client.batch_get_documents(request).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                match answer.result {
                    Some(GetResult::Found(document)) => return Ok(Some(document)),
                    Some(GetResult::Missing(_)) => return Ok(None),
                    None => {}
                }
            }
            // Neither there nor missing: an answer that was cut off.
            Err(Status::unavailable(""))
        };
        let answer = tokio::time::timeout(limit, get).await;
        cost::took("get", started.elapsed());
        answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("")))
    }

    fn db(&self) -> Arc<FirestoreDb> {
        Arc::clone(&self.db.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces `old`, unless somebody has or is about to.
    async fn replace(&self, old: &Arc<FirestoreDb>) {
        let Ok(_mine) = self.replacing.try_lock() else {
            return;
        };
        if !Arc::ptr_eq(&self.db(), old) {
            return;
        }
        match open::connect(&self.settings).await {
            Ok(new) => {
                *self.db.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
            }
            Err(error) => tracing::warn!(%error, "the connection for reads was not replaced"),
        }
    }
}

/// No answer in time. Two clocks run, ours and the library's, and the library's says CANCELLED when it is the first.
fn is_silence(status: &Status) -> bool {
    matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled)
}

#[cfg(test)]
mod tests {
    use firestore::gcloud_sdk::tonic::TimeoutExpired;

    use super::*;

    #[test]
    fn silence_is_silence_whichever_clock_runs_out_first() {
        // What tonic makes of the timeout that a request carries.
        let library = Status::from_error(Box::new(TimeoutExpired(())));
        for silent in [library, Status::deadline_exceeded("")] {
            assert!(is_silence(&silent), "{:?}", silent.code());
        }
        assert!(!is_silence(&Status::unavailable("")));
        assert!(!is_silence(&Status::permission_denied("")));
    }
}
