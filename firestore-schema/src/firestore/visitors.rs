//! What others may do with the database: people under the rules, and accounts with rights of their own. For `keyturn doctor`.
//!
//! What must always hold: a look changes nothing: a document that is asked for has a name of its own and is not there, and a change is conditional on what does
//! not hold. A credential goes nowhere but into the one connection.

use firestore::gcloud_sdk::google::firestore::v1::precondition::ConditionType;
use firestore::gcloud_sdk::google::firestore::v1::run_query_request::QueryType;
use firestore::gcloud_sdk::google::firestore::v1::structured_query::field_filter::Operator;
use firestore::gcloud_sdk::google::firestore::v1::structured_query::filter::FilterType;
use firestore::gcloud_sdk::google::firestore::v1::structured_query::{
    CollectionSelector, FieldFilter, FieldReference, Filter,
};
use firestore::gcloud_sdk::google::firestore::v1::value::ValueType;
use firestore::gcloud_sdk::google::firestore::v1::write::Operation;
use firestore::gcloud_sdk::google::firestore::v1::{
    BatchGetDocumentsRequest, CommitRequest, Document as Wire, Precondition, RunQueryRequest,
    StructuredQuery, Value, Write,
};
use firestore::gcloud_sdk::tonic::{Code, Request, Status};
use http::HeaderValue;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::call::Client;
use super::codec::{Fields, text_value};
use super::commit;
use super::open::{FirestoreStore, connect_as};
use super::paths::Path;
use super::probe::{ProbeError, refused};
use crate::collections::{self, Collection, PROBES};

/// A credential that somebody brings: an access token of Google Cloud, or an id token of Firebase Auth.
pub struct Bearer(Zeroizing<String>);

impl Bearer {
    /// Out of a file's text; `None` if it cannot be one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let token = text.trim();
        let plain = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
        plain.then(|| Self(Zeroizing::new(token.to_owned())))
    }

    /// Nobody signed it: only the emulator takes it, and it is worth nothing elsewhere.
    fn is_unsigned(&self) -> bool {
        self.0.matches('.').count() == 2 && self.0.ends_with('.')
    }

    fn header(&self) -> Option<HeaderValue> {
        let text = Zeroizing::new(format!("Bearer {}", self.0.as_str()));
        let mut header = HeaderValue::from_str(&text).ok()?;
        header.set_sensitive(true);
        Some(header)
    }
}

/// Who comes.
#[derive(Clone, Copy)]
pub enum Visitor<'t> {
    /// Somebody without any credential.
    Nobody,
    /// Whoever this credential is of.
    Bearer(&'t Bearer),
}

/// What somebody may do, by collection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Collections whose documents they read, if they know their names.
    pub read: Vec<&'static str>,
    /// Collections that they can list.
    pub list: Vec<&'static str>,
    /// Collections whose documents they change.
    pub update: Vec<&'static str>,
    /// Collections whose documents they delete.
    pub delete: Vec<&'static str>,
}

/// What is asked of one collection.
#[derive(Clone, Copy)]
enum Deed {
    Update,
    Delete,
}

impl FirestoreStore {
    /// What a visitor may do with each collection. Rules that a project was begun with ("test mode") let everybody do everything.
    ///
    /// # Errors
    /// [`ProbeError`], when that cannot be found out; [`ProbeError::Credentials`] for a credential that is not accepted at all.
    pub async fn access(&self, visitor: Visitor<'_>) -> Result<Access, ProbeError> {
        let client = self.visit(visitor).await?;
        let nobodys = commit::name().map_err(|_| ProbeError::Unreachable)?;
        let mut access = Access::default();
        for collection in collections::ALL {
            let path = place(collection, &nobodys).map_err(|_| ProbeError::Unreachable)?;
            let name = self.link().name(&path);
            if self.reads(client.clone(), name.clone(), visitor).await? {
                access.read.push(collection.id);
            }
            let parent = self.parent_of(&path);
            if self
                .lists(client.clone(), parent, collection, name.clone(), visitor)
                .await?
            {
                access.list.push(collection.id);
            }
            for (deed, list) in [
                (Deed::Update, &mut access.update),
                (Deed::Delete, &mut access.delete),
            ] {
                if self
                    .does(client.clone(), name.clone(), deed, visitor)
                    .await?
                {
                    list.push(collection.id);
                }
            }
        }
        Ok(access)
    }

    /// Whether a visitor may create documents: it tries to create one that we have just made ourselves, and that goes again.
    ///
    /// # Errors
    /// As [`Self::access`].
    pub async fn creates(&self, visitor: Visitor<'_>) -> Result<bool, ProbeError> {
        let client = self.visit(visitor).await?;
        let path = commit::name().and_then(|name| Path::new(PROBES, "probe", &name));
        let name = self
            .link()
            .name(&path.map_err(|_| ProbeError::Unreachable)?);
        let create = || Write {
            current_document: Some(exists(false)),
            ..writes(&name)
        };
        self.probe_commit("write", create()).await?;
        let tried = self.commit_as(client, create()).await;
        let gone = Write {
            operation: Some(Operation::Delete(name.clone())),
            ..Write::default()
        };
        self.probe_commit("delete", gone).await?;
        match tried {
            Err(status) if status.code() == Code::AlreadyExists => Ok(true),
            Err(status) if status.code() == Code::FailedPrecondition => Ok(true),
            other => let_in("write", other, visitor),
        }
    }

    async fn visit(&self, visitor: Visitor<'_>) -> Result<Client, ProbeError> {
        let settings = &self.link().settings;
        let header = match visitor {
            Visitor::Nobody => None,
            Visitor::Bearer(bearer) if settings.is_emulator() && !bearer.is_unsigned() => {
                return Err(ProbeError::NotSent);
            }
            Visitor::Bearer(bearer) => Some(bearer.header().ok_or(ProbeError::Credentials)?),
        };
        let db = connect_as(settings, header).await;
        Ok(db.map_err(|_| ProbeError::Unreachable)?.client().get())
    }

    async fn reads(
        &self,
        mut client: Client,
        name: String,
        visitor: Visitor<'_>,
    ) -> Result<bool, ProbeError> {
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
        let asked = timeout(self.timeout(), asked).await;
        let_in("read", asked.unwrap_or_else(|_| Err(slow())), visitor)
    }

    /// What a collection lies below.
    fn parent_of(&self, path: &Path) -> String {
        let documents = format!("{}/documents", self.link().database());
        match path.as_str().rsplitn(3, '/').nth(2) {
            Some(document) => format!("{documents}/{document}"),
            None => documents,
        }
    }

    /// Asks for what has a name that nothing has: rules judge the question, not what it finds.
    async fn lists(
        &self,
        mut client: Client,
        parent: String,
        collection: &Collection,
        name: String,
        visitor: Visitor<'_>,
    ) -> Result<bool, ProbeError> {
        let named = FieldFilter {
            field: Some(FieldReference {
                field_path: "__name__".to_owned(),
            }),
            op: Operator::Equal.into(),
            value: Some(Value {
                value_type: Some(ValueType::ReferenceValue(name)),
            }),
        };
        let query = StructuredQuery {
            from: vec![CollectionSelector {
                collection_id: collection.id.to_owned(),
                all_descendants: false,
            }],
            r#where: Some(Filter {
                filter_type: Some(FilterType::FieldFilter(named)),
            }),
            limit: Some(1),
            ..StructuredQuery::default()
        };
        let message = RunQueryRequest {
            parent,
            query_type: Some(QueryType::StructuredQuery(query)),
            ..RunQueryRequest::default()
        };
        let asked = async {
            let mut stream = client.run_query(Request::new(message)).await?.into_inner();
            stream.message().await.map(drop)
        };
        let asked = timeout(self.timeout(), asked).await;
        let_in("list", asked.unwrap_or_else(|_| Err(slow())), visitor)
    }

    async fn does(
        &self,
        client: Client,
        name: String,
        deed: Deed,
        visitor: Visitor<'_>,
    ) -> Result<bool, ProbeError> {
        let (step, write) = match deed {
            Deed::Update => ("update", writes(&name)),
            Deed::Delete => {
                let delete = Write {
                    operation: Some(Operation::Delete(name)),
                    ..Write::default()
                };
                ("delete", delete)
            }
        };
        let write = Write {
            current_document: Some(exists(true)),
            ..write
        };
        match self.commit_as(client, write).await {
            // Rights are asked for first: who hears that there is no such document was let in.
            Err(status) if matches!(status.code(), Code::NotFound | Code::FailedPrecondition) => {
                Ok(true)
            }
            other => let_in(step, other, visitor),
        }
    }

    async fn commit_as(&self, mut client: Client, write: Write) -> Result<(), Status> {
        let message = CommitRequest {
            database: self.link().database().to_owned(),
            writes: vec![write],
            ..CommitRequest::default()
        };
        let asked = async { client.commit(Request::new(message)).await.map(drop) };
        let asked = timeout(self.timeout(), asked).await;
        asked.unwrap_or_else(|_| Err(slow()))
    }
}

fn slow() -> Status {
    Status::deadline_exceeded("")
}

fn exists(there: bool) -> Precondition {
    Precondition {
        condition_type: Some(ConditionType::Exists(there)),
    }
}

/// A document with something in it.
fn writes(name: &str) -> Write {
    Write {
        operation: Some(Operation::Update(Wire {
            name: name.to_owned(),
            fields: Fields::from([("written_by".to_owned(), text_value("keyturn doctor"))]),
            ..Wire::default()
        })),
        ..Write::default()
    }
}

/// Where a document `id` of the collection lies.
fn place(collection: &Collection, id: &str) -> crate::store::Result<Path> {
    match collection.parent {
        None => Path::new(collection.id, "probe", id),
        Some(parent) => Path::new(parent, "probe", id)?.below(collection.id, "probe", id),
    }
}

fn let_in(
    step: &'static str,
    answer: Result<(), Status>,
    visitor: Visitor<'_>,
) -> Result<bool, ProbeError> {
    let Err(status) = answer else { return Ok(true) };
    match (status.code(), visitor) {
        (Code::PermissionDenied, _) | (Code::Unauthenticated, Visitor::Nobody) => Ok(false),
        // Expired, or of another project: that says nothing of what its owner may do.
        _ => Err(refused(step, &status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_word_and_an_unsigned_one_is_known() {
        for bad in ["", "  \n", "a b", "a\nb", "ü"] {
            assert!(Bearer::parse(bad).is_none(), "{bad:?}");
        }
        let unsigned = |text| Bearer::parse(text).is_some_and(|it| it.is_unsigned());
        assert!(unsigned("eyJhbGciOiJub25lIn0.e30.\n"));
        for real in ["ya29.token", "a.b.c", "a.b", "owner", "a.."] {
            assert_eq!(unsigned(real), real == "a..", "{real}");
        }
    }
}
