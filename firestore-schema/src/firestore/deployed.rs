//! Whether what is deployed beside the documents is there: the indexes, and rules that keep strangers out. For `keyturn doctor`.

use firestore::gcloud_sdk::google::firestore::v1::{
    BatchGetDocumentsRequest, RunQueryRequest, run_query_request,
};
use firestore::gcloud_sdk::tonic::{Code, Request};
use tokio::time::timeout;

use super::open::{FirestoreStore, connect_as_stranger};
use super::paths::Path;
use super::probe::{ProbeError, refused};
use super::query::Ask;
use crate::collections::CLIENTS;
use crate::queries::{self, Query};

impl FirestoreStore {
    /// Names of the catalogue's queries, the auditors' included, that the database does not serve: their indexes are missing, or still being built. Reads at most one
    /// document for each.
    ///
    /// # Errors
    /// [`ProbeError`], when that cannot be found out.
    pub async fn unserved(&self) -> Result<Vec<&'static str>, ProbeError> {
        let mut unserved = Vec::new();
        for query in queries::all() {
            if !self.serves(query).await? {
                unserved.push(query.name);
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

    /// Whether somebody who comes without any credentials may read a client document. Rules that a project was begun with ("test mode") allow it.
    ///
    /// # Errors
    /// [`ProbeError`], when that cannot be found out.
    pub async fn open_to_strangers(&self) -> Result<bool, ProbeError> {
        let link = self.link();
        let stranger = connect_as_stranger(&link.settings).await;
        let stranger = stranger.map_err(|_| ProbeError::Unreachable)?;
        let path = Path::new(CLIENTS, "client", "a").map_err(|_| ProbeError::Unreachable)?;
        let message = BatchGetDocumentsRequest {
            database: link.database().to_owned(),
            documents: vec![link.name(&path)],
            ..BatchGetDocumentsRequest::default()
        };
        let mut client = stranger.client().get();
        let asked = async {
            let mut stream = client
                .batch_get_documents(Request::new(message))
                .await?
                .into_inner();
            stream.message().await
        };
        match timeout(self.timeout(), asked).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(status)) => match status.code() {
                Code::PermissionDenied | Code::Unauthenticated => Ok(false),
                _ => Err(refused("read", &status)),
            },
            Err(_) => Err(ProbeError::Unreachable),
        }
    }
}
