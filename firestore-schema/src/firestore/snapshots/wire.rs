//! What comes over a `Listen` stream, in the machine's words.

use firestore::gcloud_sdk::google::firestore::v1::listen_response::ResponseType;
use firestore::gcloud_sdk::google::firestore::v1::target_change::TargetChangeType;
use firestore::gcloud_sdk::google::firestore::v1::{Document, ListenResponse};
use firestore::gcloud_sdk::prost_types::Timestamp;

use crate::documents::ClientDoc;
use crate::firestore::codec;
use crate::firestore::paths::Path;
use crate::firestore::stored;
use crate::verifier::ClientSnapshot;
use crate::verifier::watch::{Heard, TargetId};

/// One message can say two things: a document can be one target's and no longer another's.
pub(super) fn heard(message: ListenResponse, documents: &str) -> Vec<Heard> {
    match message.response_type {
        Some(ResponseType::TargetChange(change)) => {
            let targets = ids(&change.target_ids);
            let heard = match change.target_change_type() {
                TargetChangeType::NoChange => change
                    .read_time
                    .filter(|_| targets.is_empty())
                    .and_then(|at| codec::unix_ms(at).ok())
                    .map(Heard::Consistent),
                TargetChangeType::Add => None,
                TargetChangeType::Remove => Some(Heard::Removed(targets)),
                TargetChangeType::Current => Some(Heard::Current(targets)),
                TargetChangeType::Reset => Some(Heard::Reset(targets)),
            };
            heard.into_iter().collect()
        }
        Some(ResponseType::DocumentChange(change)) => {
            let mut heard = gone(&change.removed_target_ids);
            if let (Some(document), false) = (change.document, change.target_ids.is_empty()) {
                heard.push(Heard::Changed {
                    targets: ids(&change.target_ids),
                    snapshot: Path::of_name(&document.name, documents)
                        .and_then(|path| snapshot(&path, document)),
                });
            }
            heard
        }
        Some(ResponseType::DocumentDelete(change)) => gone(&change.removed_target_ids),
        Some(ResponseType::DocumentRemove(change)) => gone(&change.removed_target_ids),
        // How many documents a target has, for whoever resumes: nothing is resumed here. Only "none" could contradict what was told.
        Some(ResponseType::Filter(filter)) if filter.count == 0 => gone(&[filter.target_id]),
        Some(ResponseType::Filter(_)) | None => Vec::new(),
    }
}

fn ids(ids: &[i32]) -> Vec<TargetId> {
    ids.iter().copied().map(TargetId).collect()
}

fn gone(targets: &[i32]) -> Vec<Heard> {
    let targets = ids(targets);
    if targets.is_empty() {
        return Vec::new();
    }
    vec![Heard::Gone { targets }]
}

/// A client's snapshot; `None` for a document that breaks the schema. What is wrong with it is not said: that would be its values.
pub(super) fn snapshot(path: &Path, document: Document) -> Option<ClientSnapshot> {
    let revision = document.update_time.and_then(micros)?;
    let client: ClientDoc = stored::parse(path, document.fields).ok()?;
    Some(ClientSnapshot {
        revision,
        ..ClientSnapshot::from(client)
    })
}

/// Firestore's own resolution.
fn micros(at: Timestamp) -> Option<u64> {
    let seconds = u64::try_from(at.seconds).ok()?;
    let nanos = u64::try_from(at.nanos).ok()?;
    seconds.checked_mul(1_000_000)?.checked_add(nanos / 1_000)
}
