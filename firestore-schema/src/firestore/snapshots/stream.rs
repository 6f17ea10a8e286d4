//! One `Listen` stream on a connection of its own, from its opening to its end.

use std::time::Duration;

use firestore::FirestoreDb;
use firestore::gcloud_sdk::google::firestore::v1::listen_request::TargetChange;
use firestore::gcloud_sdk::google::firestore::v1::target::{DocumentsTarget, TargetType};
use firestore::gcloud_sdk::google::firestore::v1::{ListenRequest, Target};
use firestore::gcloud_sdk::tonic::Request;
use futures::stream;
use tokio::sync::mpsc;

use super::wire;
use crate::firestore::fault::{self, Fault};
use crate::firestore::open;
use crate::firestore::paths::Path;
use crate::firestore::settings::FirestoreSettings;
use crate::verifier::watch::{Heard, TargetId};

/// What is asked of a stream.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    /// Listen to this document.
    Add(TargetId, Path),
    /// No longer.
    Remove(TargetId),
}

/// What a stream says, with its number.
#[derive(Debug)]
pub(super) enum Word {
    Heard(u64, Heard),
    Ended(u64),
}

/// Opens stream `number` and passes on what it says, until it ends.
pub(super) async fn listen(
    settings: FirestoreSettings,
    number: u64,
    asks: mpsc::UnboundedReceiver<Ask>,
    words: mpsc::Sender<Word>,
) {
    let why = run(&settings, number, asks, &words).await;
    tracing::info!(why, "the listener's stream has ended");
    // Without a driver nobody needs to know.
    let _nobody = words.send(Word::Ended(number)).await;
}

/// Why it ended, in words that hold no value.
async fn run(
    settings: &FirestoreSettings,
    number: u64,
    asks: mpsc::UnboundedReceiver<Ask>,
    words: &mpsc::Sender<Word>,
) -> &'static str {
    let Ok(db) = open::connect(settings).await else {
        return "no connection";
    };
    let (database, documents) = (db.get_database_path(), db.get_documents_path());
    let requests = stream::unfold(
        (asks, database.clone(), documents.clone()),
        |(mut asks, database, documents)| async move {
            let ask = asks.recv().await?;
            let request = request(ask, &database, &documents);
            Some((request, (asks, database, documents)))
        },
    );
    let mut client = listening_client(&db);
    let mut answers = match client.listen(Request::new(requests)).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return words_for(fault::of_read(&status)),
    };
    loop {
        match answers.message().await {
            Ok(Some(message)) => {
                for heard in wire::heard(message, documents) {
                    if words.send(Word::Heard(number, heard)).await.is_err() {
                        return "the driver has ended";
                    }
                }
            }
            Ok(None) => return "closed by the server",
            Err(status) => return words_for(fault::of_read(&status)),
        }
    }
}

fn listening_client(db: &FirestoreDb) -> crate::firestore::call::Client {
    db.client().get()
}

const fn words_for(fault: Fault) -> &'static str {
    match fault {
        Fault::Again(cause) | Fault::Doubt(cause) => cause.text(),
        Fault::Refused(cause) => cause,
        Fault::Changed => "Firestore failed",
    }
}

fn request(ask: Ask, database: &str, documents: &str) -> ListenRequest {
    let change = match ask {
        Ask::Add(TargetId(target_id), path) => TargetChange::AddTarget(Target {
            target_id,
            target_type: Some(TargetType::Documents(DocumentsTarget {
                documents: vec![format!("{documents}/{}", path.as_str())],
            })),
            ..Target::default()
        }),
        Ask::Remove(TargetId(target_id)) => TargetChange::RemoveTarget(target_id),
    };
    ListenRequest {
        database: database.to_owned(),
        target_change: Some(change),
        ..ListenRequest::default()
    }
}

/// How many words may wait for the driver; then the stream waits, and with it the server.
pub(super) const WORDS: usize = 1024;
/// The longest that a pause is stretched, so that many verifiers do not come back at once.
pub(super) const SPREAD: Duration = Duration::from_millis(500);
