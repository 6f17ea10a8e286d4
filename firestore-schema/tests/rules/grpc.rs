//! Everything over gRPC, with the client that the crate `firestore` is made from.

use std::time::Duration;

use firestore::gcloud_sdk::google::firestore::v1::firestore_client::FirestoreClient;
use firestore::gcloud_sdk::google::firestore::v1::listen_response::ResponseType;
use firestore::gcloud_sdk::google::firestore::v1::structured_aggregation_query::{
    self, Aggregation, aggregation,
};
use firestore::gcloud_sdk::google::firestore::v1::structured_query::CollectionSelector;
use firestore::gcloud_sdk::google::firestore::v1::value::ValueType;
use firestore::gcloud_sdk::google::firestore::v1::write::Operation;
use firestore::gcloud_sdk::google::firestore::v1::{
    BatchGetDocumentsRequest, BatchWriteRequest, CommitRequest, CreateDocumentRequest,
    DeleteDocumentRequest, Document, GetDocumentRequest, ListCollectionIdsRequest,
    ListDocumentsRequest, ListenRequest, RunAggregationQueryRequest, RunQueryRequest,
    StructuredAggregationQuery, StructuredQuery, Target, UpdateDocumentRequest, Value, Write,
    listen_request, run_aggregation_query_request, run_query_request, target,
};
use firestore::gcloud_sdk::tonic::transport::Channel;
use firestore::gcloud_sdk::tonic::{Code, Request, Status, Streaming};
use tokio::time::timeout;

use crate::people::Person;
use crate::{Act, MISSING, NEW, Place, THERE, Verdict};

/// A listener that neither answers nor ends within this is stuck.
const STUCK: Duration = Duration::from_secs(20);

pub struct Wire {
    client: FirestoreClient<Channel>,
    database: String,
}

impl Wire {
    pub async fn open(endpoint: &str, project: &str) -> Self {
        Self {
            client: FirestoreClient::connect(endpoint.to_owned()).await.unwrap(),
            database: format!("projects/{project}/databases/keyturn"),
        }
    }

    fn documents(&self) -> String {
        format!("{}/documents", self.database)
    }

    fn name(&self, path: &str) -> String {
        format!("{}/{path}", self.documents())
    }

    fn parent(&self, place: &Place) -> String {
        match &place.parent {
            Some(path) => self.name(path),
            None => self.documents(),
        }
    }

    pub async fn attempt(&self, person: &Person, place: &Place, act: Act) -> Verdict {
        match self.ask(person, place, act).await {
            Ok(()) => Verdict::Allowed,
            Err(status) if status.code() == Code::PermissionDenied => Verdict::Refused,
            Err(status) if status.code() == Code::NotFound && act == Act::GetMissing => {
                Verdict::Allowed
            }
            Err(status) => Verdict::Else(status.to_string()),
        }
    }

    async fn ask(&self, person: &Person, place: &Place, act: Act) -> Result<(), Status> {
        let mut client = self.client.clone();
        let there = self.name(&place.document(THERE));
        let new = self.name(&place.document(NEW));
        let touched = |name: &str| Document {
            name: name.to_owned(),
            fields: [("word".to_owned(), text("touched"))].into(),
            create_time: None,
            update_time: None,
        };
        let writes = || {
            let operation = Some(Operation::Update(touched(&new)));
            vec![Write {
                operation,
                ..Write::default()
            }]
        };
        let query = |group| StructuredQuery {
            from: vec![CollectionSelector {
                collection_id: place.collection.clone(),
                all_descendants: group,
            }],
            ..StructuredQuery::default()
        };
        match act {
            Act::Get | Act::GetMissing => {
                let id = if act == Act::Get { THERE } else { MISSING };
                let message = GetDocumentRequest {
                    name: self.name(&place.document(id)),
                    ..GetDocumentRequest::default()
                };
                client.get_document(by(person, message)).await?;
            }
            Act::BatchGet => {
                let message = BatchGetDocumentsRequest {
                    database: self.database.clone(),
                    documents: vec![there],
                    ..BatchGetDocumentsRequest::default()
                };
                drain(
                    client
                        .batch_get_documents(by(person, message))
                        .await?
                        .into_inner(),
                )
                .await?;
            }
            Act::List => {
                let message = ListDocumentsRequest {
                    parent: self.parent(place),
                    collection_id: place.collection.clone(),
                    ..ListDocumentsRequest::default()
                };
                client.list_documents(by(person, message)).await?;
            }
            Act::Query | Act::GroupQuery => {
                let group = act == Act::GroupQuery;
                let message = RunQueryRequest {
                    parent: if group {
                        self.documents()
                    } else {
                        self.parent(place)
                    },
                    query_type: Some(run_query_request::QueryType::StructuredQuery(query(group))),
                    ..RunQueryRequest::default()
                };
                drain(client.run_query(by(person, message)).await?.into_inner()).await?;
            }
            Act::Count => {
                let count = StructuredAggregationQuery {
                    aggregations: vec![Aggregation {
                        alias: "all".to_owned(),
                        operator: Some(aggregation::Operator::Count(aggregation::Count::default())),
                    }],
                    query_type: Some(structured_aggregation_query::QueryType::StructuredQuery(
                        query(false),
                    )),
                };
                use run_aggregation_query_request::QueryType::StructuredAggregationQuery as Counted;
                let message = RunAggregationQueryRequest {
                    parent: self.parent(place),
                    query_type: Some(Counted(count)),
                    ..RunAggregationQueryRequest::default()
                };
                drain(
                    client
                        .run_aggregation_query(by(person, message))
                        .await?
                        .into_inner(),
                )
                .await?;
            }
            Act::Listen => {
                let target = target::QueryTarget {
                    parent: self.parent(place),
                    query_type: Some(target::query_target::QueryType::StructuredQuery(query(
                        false,
                    ))),
                };
                self.listen(person, target).await?;
            }
            Act::Collections => {
                let message = ListCollectionIdsRequest {
                    parent: there,
                    ..ListCollectionIdsRequest::default()
                };
                client.list_collection_ids(by(person, message)).await?;
            }
            Act::Create => {
                let message = CreateDocumentRequest {
                    parent: self.parent(place),
                    collection_id: place.collection.clone(),
                    document_id: NEW.to_owned(),
                    document: Some(touched("")),
                    ..CreateDocumentRequest::default()
                };
                client.create_document(by(person, message)).await?;
            }
            Act::Update => {
                let message = UpdateDocumentRequest {
                    document: Some(touched(&there)),
                    ..UpdateDocumentRequest::default()
                };
                client.update_document(by(person, message)).await?;
            }
            Act::Delete => {
                let message = DeleteDocumentRequest {
                    name: new,
                    ..DeleteDocumentRequest::default()
                };
                client.delete_document(by(person, message)).await?;
            }
            Act::Commit => {
                let message = CommitRequest {
                    database: self.database.clone(),
                    writes: writes(),
                    ..CommitRequest::default()
                };
                client.commit(by(person, message)).await?;
            }
            Act::BatchWrite => {
                let message = BatchWriteRequest {
                    database: self.database.clone(),
                    writes: writes(),
                    ..BatchWriteRequest::default()
                };
                let answer = client.batch_write(by(person, message)).await?.into_inner();
                // A batch can be taken and every write in it be refused.
                if let Some(refused) = answer.status.iter().find(|it| it.code != 0) {
                    return Err(Status::new(
                        Code::from_i32(refused.code),
                        refused.message.clone(),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Until the first result set is complete, or the target is removed with a cause.
    async fn listen(&self, person: &Person, query: target::QueryTarget) -> Result<(), Status> {
        let message = ListenRequest {
            database: self.database.clone(),
            target_change: Some(listen_request::TargetChange::AddTarget(Target {
                target_id: 1,
                target_type: Some(target::TargetType::Query(query)),
                ..Target::default()
            })),
            ..ListenRequest::default()
        };
        let (send, receive) = tokio::sync::mpsc::channel(1);
        send.send(message).await.unwrap();
        let requests = futures::stream::unfold(receive, |mut receive| async move {
            receive.recv().await.map(|message| (message, receive))
        });
        let mut client = self.client.clone();
        let mut request = by(person, requests);
        // A listener names its database twice, as Google's own clients do; without it the emulator answers nothing but "unknown".
        let prefix = self.database.parse().unwrap();
        let header = "google-cloud-resource-prefix";
        request.metadata_mut().insert(header, prefix);
        let answers = async {
            let mut stream = client.listen(request).await?.into_inner();
            while let Some(answer) = stream.message().await? {
                let Some(ResponseType::TargetChange(change)) = answer.response_type else {
                    continue;
                };
                if let Some(cause) = change.cause {
                    return Err(Status::new(Code::from_i32(cause.code), cause.message));
                }
                if !change.resume_token.is_empty() {
                    return Ok(());
                }
            }
            Err(Status::cancelled("the stream ended without a word"))
        };
        let judged = timeout(STUCK, answers).await;
        drop(send);
        judged.unwrap_or_else(|_| Err(Status::deadline_exceeded("the listener is stuck")))
    }
}

fn by<T>(person: &Person, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = &person.token {
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}

fn text(word: &str) -> Value {
    Value {
        value_type: Some(ValueType::StringValue(word.to_owned())),
    }
}

async fn drain<T>(mut stream: Streaming<T>) -> Result<(), Status> {
    while stream.message().await?.is_some() {}
    Ok(())
}
