//! One commit, and finding out what became of it.
//!
//! What must always hold: an answer is given only for a commit that is known to have happened. A commit of which that is not known leaves a mark if it did: the
//! first audit entry that it creates bears a random name of the commit, under an id that nobody else can take as well. The mark there: it happened.
//! Another's entry there: it did not, and never will. Nothing there: it is sent again, the same to the byte. Its conditions let it happen once at most,
//! also when the first one is still on its way.

use firestore::gcloud_sdk::google::firestore::v1::value::ValueType;
use firestore::gcloud_sdk::google::firestore::v1::{CommitRequest, Write};

use super::codec::{Fields, text_value};
use super::fault::{self, Cause, Fault};
use super::paths::Path;
use super::turn::Turn;
use crate::store::{Result, StoreError};

/// The field of an audit entry that names its commit. Not part of the record: the chain's hash does not cover it.
pub(super) const COMMIT: &str = "commit";

/// What a commit leaves behind.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    path: Path,
    name: String,
}

impl Mark {
    /// A mark in the audit entry that will lie at `path`.
    pub(super) fn new(path: Path, name: String) -> Self {
        Self { path, name }
    }
}

/// A random name for one commit.
///
/// # Errors
/// [`StoreError::Unavailable`] if the generator fails.
pub(super) fn name() -> Result<String> {
    let mut random = [0u8; 16];
    getrandom::fill(&mut random).map_err(|_| StoreError::Unavailable {
        cause: "the random generator failed",
    })?;
    Ok(hex::encode(random))
}

/// The mark as an audit entry bears it.
pub(super) fn field(name: &str) -> Fields {
    Fields::from([(COMMIT.to_owned(), text_value(name))])
}

/// What became of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Committed {
    /// It happened, once.
    Yes,
    /// It did not, and will not: something was not as it was read.
    No,
    /// It left no mark that would tell. Whoever asked must read, and judge by what is there.
    Ask,
}

impl Turn<'_> {
    /// Sends the writes as one commit, again if need be, until it is known what became of it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it certainly did not happen; [`StoreError::Unknown`] when the time is over and nobody can say.
    pub(super) async fn commit(
        &self,
        writes: Vec<Write>,
        mark: Option<&Mark>,
    ) -> Result<Committed> {
        let documents = writes.len();
        let message = CommitRequest {
            database: self.link.database().to_owned(),
            writes,
            transaction: Vec::new(),
            request_options: None,
        };
        let mut doubt = false;
        loop {
            self.link.counters.commit();
            let attempt = self.link.attempt(
                "commit",
                self.deadline,
                message.clone(),
                |mut client, request| async move { client.commit(request).await },
            );
            let status = match attempt.await {
                Ok(_) => {
                    self.link.counters.writes(documents);
                    return Ok(Committed::Yes);
                }
                Err(status) => status,
            };
            let cause = match fault::of_commit(&status) {
                // Also without a doubt of ours: something between here and there may have sent it twice.
                Fault::Changed => return self.settle_changed(mark, doubt).await,
                Fault::Refused(cause) if doubt => return Err(self.unknown(cause)),
                Fault::Refused(cause) => return Err(self.refused(cause)),
                Fault::Again(cause) => cause,
                Fault::Doubt(cause) => {
                    doubt = true;
                    cause
                }
            };
            if !self.again(cause).await {
                return Err(if doubt {
                    self.unknown(cause.text())
                } else {
                    StoreError::Unavailable {
                        cause: cause.text(),
                    }
                });
            }
            if doubt {
                let Some(mark) = mark else {
                    return Ok(Committed::Ask);
                };
                match self.found(mark).await {
                    Ok(Some(happened)) => return Ok(happened),
                    Ok(None) => {}
                    Err(_) => return Err(self.unknown(cause.text())),
                }
            }
        }
    }

    async fn settle_changed(&self, mark: Option<&Mark>, doubt: bool) -> Result<Committed> {
        let Some(mark) = mark else {
            return Ok(if doubt { Committed::Ask } else { Committed::No });
        };
        match self.found(mark).await {
            Ok(Some(happened)) => Ok(happened),
            // Its conditions are broken for good, so it cannot happen any more.
            Ok(None) => Ok(Committed::No),
            // The first copy of it may be what changed the documents.
            Err(_) => Err(self.unknown(Cause::Unreachable.text())),
        }
    }

    /// Whether the mark is there, another's entry, or nothing.
    async fn found(&self, mark: &Mark) -> Result<Option<Committed>> {
        let mut reading = self.read();
        reading.fetch([mark.path.clone()]).await?;
        let Some(Some(entry)) = reading.seen(&mark.path) else {
            return Ok(None);
        };
        let theirs = entry.fields.get(COMMIT).and_then(|v| v.value_type.as_ref());
        let ours = matches!(theirs, Some(ValueType::StringValue(name)) if *name == mark.name);
        Ok(Some(if ours { Committed::Yes } else { Committed::No }))
    }

    fn unknown(&self, cause: &'static str) -> StoreError {
        self.log(cause, "nobody can say whether it was committed");
        StoreError::Unknown { cause }
    }
}
