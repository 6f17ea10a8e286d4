//! Whether what is deployed beside the documents is there: the indexes, and rules that keep strangers out. For `keyturn doctor`.

use firestore::gcloud_sdk::google::firestore::v1::precondition::ConditionType;
use firestore::gcloud_sdk::google::firestore::v1::write::Operation;
use firestore::gcloud_sdk::google::firestore::v1::{
    BatchGetDocumentsRequest, CommitRequest, Precondition, RunQueryRequest, Write,
    run_query_request,
};
use firestore::gcloud_sdk::tonic::{Code, Request, Status};
use tokio::time::timeout;

use super::call::Client;
use super::commit;
use super::open::{FirestoreStore, connect_as_stranger};
use super::paths::Path;
use super::probe::{ProbeError, refused};
use super::query::Ask;
use crate::collections::{self, Collection};
use crate::queries::{self, Query};

/// What somebody without any credentials may do: nothing, when the rules are deployed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strangers {
    /// Collections whose documents they read.
    pub read: Vec<&'static str>,
    /// Collections whose documents they delete.
    pub delete: Vec<&'static str>,
}

impl FirestoreStore {
    /// The catalogue's queries, the auditors' included, that the database does not serve: their indexes are missing, or still being built. Reads at most one
    /// document for each.
    ///
    /// # Errors
    /// [`ProbeError`], when that cannot be found out.
    pub async fn unserved(&self) -> Result<Vec<&'static Query>, ProbeError> {
        let mut unserved = Vec::new();
        for query in queries::all() {
            if !self.serves(query).await? {
                unserved.push(query);
            }
        }
        Ok(unserved)
    }

    async fn serves(&self, query: &'static Query) -> Result<bool, ProbeError> {
        let link = self.link();
        let not_asked = ProbeError::Refused {
            step: "query",
            code: "the catalogue has no example for it",
        };
        let ask = Ask::example(query, link.documents()).map_err(|_| not_asked)?;
        let structured = run_query_request::QueryType::StructuredQuery(ask.page(1, None));
        let parent = ask.parent.as_ref().map(|path| link.name(path));
        let message = RunQueryRequest {
            parent: parent.unwrap_or_else(|| link.documents().to_owned()),
            query_type: Some(structured),
            ..RunQueryRequest::default()
        };
        let answer = link.attempt(
            "query",
            self.soon(),
            message,
            |mut client, request| async move {
                let mut stream = client.run_query(request).await?.into_inner();
                while stream.message().await?.is_some() {}
                Ok(())
            },
        );
        match answer.await {
            Ok(()) => Ok(true),
            Err(status) if status.code() == Code::FailedPrecondition => Ok(false),
            Err(status) if status.code() == Code::PermissionDenied => Err(ProbeError::MayNotRead),
            Err(status) => Err(refused("query", &status)),
        }
    }

    /// What somebody who comes without any credentials may do with each collection. Rules that a project was begun with ("test mode") let them do everything.
    /// Changes nothing: the documents that are asked for have names of their own, and a delete is conditional on a document that is not there.
    ///
    /// # Errors
    /// [`ProbeError`], when that cannot be found out.
    pub async fn strangers(&self) -> Result<Strangers, ProbeError> {
        let stranger = connect_as_stranger(&self.link().settings).await;
        let stranger = stranger.map_err(|_| ProbeError::Unreachable)?;
        let nobodys = commit::name().map_err(|_| ProbeError::Unreachable)?;
        let mut open = Strangers::default();
        for collection in collections::ALL {
            let path = place(collection, &nobodys).map_err(|_| ProbeError::Unreachable)?;
            let name = self.link().name(&path);
            if self.reads(stranger.client().get(), name.clone()).await? {
                open.read.push(collection.id);
            }
            if self.deletes(stranger.client().get(), name).await? {
                open.delete.push(collection.id);
            }
        }
        Ok(open)
    }

    async fn reads(&self, mut client: Client, name: String) -> Result<bool, ProbeError> {
        let message = BatchGetDocumentsRequest {
            database: self.link().database().to_owned(),
            documents: vec![name],
            ..BatchGetDocumentsRequest::default()
        };
        let asked = async {
            let mut stream = client
                .batch_get_documents(Request::new(message))
                .await?
                .into_inner();
            stream.message().await.map(drop)
        };
        let_in("read", timeout(self.timeout(), asked).await)
    }

    async fn deletes(&self, mut client: Client, name: String) -> Result<bool, ProbeError> {
        let delete = Write {
            current_document: Some(Precondition {
                condition_type: Some(ConditionType::Exists(true)),
            }),
            operation: Some(Operation::Delete(name)),
            ..Write::default()
        };
        let message = CommitRequest {
            database: self.link().database().to_owned(),
            writes: vec![delete],
            ..CommitRequest::default()
        };
        let asked = async { client.commit(Request::new(message)).await.map(drop) };
        match timeout(self.timeout(), asked).await {
            // The rules are asked first: who hears that there is no such document was let in.
            Ok(Err(status))
                if matches!(status.code(), Code::NotFound | Code::FailedPrecondition) =>
            {
                Ok(true)
            }
            other => let_in("delete", other),
        }
    }
}

/// Where a document `id` of the collection lies.
fn place(collection: &Collection, id: &str) -> crate::store::Result<Path> {
    match collection.parent {
        None => Path::new(collection.id, "probe", id),
        Some(parent) => Path::new(parent, "probe", id)?.below(collection.id, "probe", id),
    }
}

fn let_in<E>(
    step: &'static str,
    answer: Result<Result<(), Status>, E>,
) -> Result<bool, ProbeError> {
    match answer {
        Ok(Ok(())) => Ok(true),
        Ok(Err(status)) => match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => Ok(false),
            _ => Err(refused(step, &status)),
        },
        Err(_) => Err(ProbeError::Unreachable),
    }
}
