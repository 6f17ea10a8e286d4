//! Looking whether the database can be used, for `keyturn doctor`: each step says what is wrong, and so what mends it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use firestore::gcloud_sdk::google::firestore::v1::precondition::ConditionType;
use firestore::gcloud_sdk::google::firestore::v1::write::Operation;
use firestore::gcloud_sdk::google::firestore::v1::{
    BatchGetDocumentsRequest, CommitRequest, Document as Wire, Precondition, Write,
};
use firestore::gcloud_sdk::tonic::{Code, Status};
use keyturn_proto::UnixMs;

use super::codec::{self, Fields, time_operand};
use super::commit;
use super::open::FirestoreStore;
use super::paths::Path;
use crate::collections::PROBES;

/// What a look at the database found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// By how much our clock is ahead of Firestore's, milliseconds; negative when it is behind. No more exact than `round_trip`.
    pub clock_ahead_ms: i64,
    /// How long the write took.
    pub round_trip: Duration,
}

/// What is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Nothing answers.
    #[error("Firestore does not answer")]
    Unreachable,
    /// The credentials are expired, revoked or of another project.
    #[error("the credentials were not accepted")]
    Credentials,
    /// Right server, wrong name.
    #[error("the database does not exist")]
    NoDatabase,
    /// It may not read.
    #[error("this account may not read documents")]
    MayNotRead,
    /// A credential that is worth something, and an endpoint that is not encrypted.
    #[error("a real credential is not sent over plain HTTP")]
    NotSent,
    /// It may read, but not write.
    #[error("this account may not write documents")]
    MayNotWrite,
    /// Anything else; see the code.
    #[error("Firestore refused the {step}: {code}")]
    Refused {
        /// `read`, `query`, `write`, `update` or `delete`.
        step: &'static str,
        /// The gRPC code's name.
        code: &'static str,
    },
}

impl FirestoreStore {
    /// Reads, writes and deletes a document of its own. One try each: what is asked is how it is now.
    ///
    /// # Errors
    /// [`ProbeError`], for the first step that fails.
    pub async fn probe(&self) -> Result<Probe, ProbeError> {
        let link = self.link();
        let name = commit::name()
            .and_then(|name| Path::new(PROBES, "probe", &name))
            .map(|path| link.name(&path))
            .map_err(|_| ProbeError::Unreachable)?;
        self.probe_read(&name).await?;
        let started = Instant::now();
        let committed = self.probe_write(&name).await?;
        let round_trip = started.elapsed();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = i64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(i64::MAX);
        // Firestore looked at its clock somewhere in between.
        let half = i64::try_from(round_trip.as_millis() / 2).unwrap_or(i64::MAX);
        let theirs = i64::try_from(committed.0).unwrap_or(i64::MAX);
        Ok(Probe {
            clock_ahead_ms: now.saturating_sub(half).saturating_sub(theirs),
            round_trip,
        })
    }

    async fn probe_read(&self, name: &str) -> Result<(), ProbeError> {
        let message = BatchGetDocumentsRequest {
            database: self.link().database().to_owned(),
            documents: vec![name.to_owned()],
            ..BatchGetDocumentsRequest::default()
        };
        let answer = self.link().attempt(
            "get",
            self.soon(),
            message,
            |mut client, request| async move {
                let mut stream = client.batch_get_documents(request).await?.into_inner();
                stream.message().await
            },
        );
        match answer.await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::PermissionDenied => Err(ProbeError::MayNotRead),
            Err(status) => Err(refused("read", &status)),
        }
    }

    /// Creates and deletes the document; the time of the creation.
    async fn probe_write(&self, name: &str) -> Result<UnixMs, ProbeError> {
        let at = UnixMs(0);
        let create = Write {
            current_document: Some(Precondition {
                condition_type: Some(ConditionType::Exists(false)),
            }),
            operation: Some(Operation::Update(Wire {
                name: name.to_owned(),
                fields: Fields::from([("written_at".to_owned(), time_operand(at))]),
                ..Wire::default()
            })),
            ..Write::default()
        };
        let delete = Write {
            operation: Some(Operation::Delete(name.to_owned())),
            ..Write::default()
        };
        let committed = self.probe_commit("write", create).await?;
        self.probe_commit("delete", delete).await?;
        Ok(committed)
    }

    pub(super) async fn probe_commit(
        &self,
        step: &'static str,
        write: Write,
    ) -> Result<UnixMs, ProbeError> {
        let message = CommitRequest {
            database: self.link().database().to_owned(),
            writes: vec![write],
            ..CommitRequest::default()
        };
        let answer = self.link().attempt(
            "commit",
            self.soon(),
            message,
            |mut client, request| async move { client.commit(request).await },
        );
        let committed = match answer.await {
            Ok(response) => response.into_inner().commit_time,
            Err(status) if status.code() == Code::PermissionDenied => {
                return Err(ProbeError::MayNotWrite);
            }
            Err(status) => return Err(refused(step, &status)),
        };
        let time = committed.and_then(|stamp| codec::unix_ms(stamp).ok());
        time.ok_or(ProbeError::Refused {
            step,
            code: "an answer without a time",
        })
    }

    pub(super) fn soon(&self) -> Instant {
        Instant::now() + self.timeout()
    }
}

pub(super) fn refused(step: &'static str, status: &Status) -> ProbeError {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
            ProbeError::Unreachable
        }
        Code::Unauthenticated => ProbeError::Credentials,
        Code::NotFound => ProbeError::NoDatabase,
        // The description of the code, never the message that came with it.
        code => ProbeError::Refused {
            step,
            code: code.description(),
        },
    }
}
