//! Everything over REST.

use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::people::Person;
use crate::{Act, MISSING, NEW, Place, THERE, Verdict};

pub struct Wire {
    http: Client,
    /// `http://127.0.0.1:PORT/v1/`.
    root: String,
    /// `projects/…/databases/keyturn/documents`.
    documents: String,
}

impl Wire {
    pub async fn open(endpoint: &str, project: &str) -> Self {
        Self {
            http: Client::new(),
            root: format!("{endpoint}/v1/"),
            documents: format!("projects/{project}/databases/keyturn/documents"),
        }
    }

    fn name(&self, path: &str) -> String {
        format!("{}/{path}", self.documents)
    }

    /// What a collection lies under.
    fn parent(&self, place: &Place) -> String {
        match &place.parent {
            Some(path) => self.name(path),
            None => self.documents.clone(),
        }
    }

    fn request(&self, method: Method, name: &str, token: Option<&str>) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{name}", self.root));
        match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub async fn seed(&self, place: &Place) {
        let name = self.name(&place.document(THERE));
        let fields = json!({ "fields": { "word": { "stringValue": "untouched" } } });
        let request = self.request(Method::PATCH, &name, Some("owner"));
        let answer = request.json(&fields).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }

    /// Whether the seed is as it was, and alone.
    pub async fn untouched(&self, place: &Place) -> bool {
        let request = self.request(Method::GET, &self.name(&place.path()), Some("owner"));
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        let documents = answer["documents"].as_array().unwrap();
        documents.len() == 1
            && documents[0]["fields"] == json!({ "word": { "stringValue": "untouched" } })
    }

    pub async fn attempt(&self, person: &Person, place: &Place, act: Act) -> Verdict {
        let token = person.token.as_deref();
        let get = |name: &str| self.request(Method::GET, name, token);
        let post = |name: &str, body: Value| self.request(Method::POST, name, token).json(&body);
        let there = self.name(&place.document(THERE));
        let new = self.name(&place.document(NEW));
        let touched = json!({ "fields": { "word": { "stringValue": "touched" } } });
        let query = |group: bool| json!({ "from": [{ "collectionId": place.collection, "allDescendants": group }] });
        let write = json!({ "writes": [{
            "update": { "name": new, "fields": touched["fields"] },
        }] });
        let request = match act {
            Act::Get => get(&there),
            Act::GetMissing => get(&self.name(&place.document(MISSING))),
            Act::BatchGet => {
                let name = format!("{}:batchGet", self.documents);
                post(&name, json!({ "documents": [there] }))
            }
            Act::List => get(&self.name(&place.path())),
            Act::Query => {
                let name = format!("{}:runQuery", self.parent(place));
                post(&name, json!({ "structuredQuery": query(false) }))
            }
            Act::Count => {
                let name = format!("{}:runAggregationQuery", self.parent(place));
                let count = json!([{ "alias": "all", "count": {} }]);
                post(
                    &name,
                    json!({ "structuredAggregationQuery": {
                    "structuredQuery": query(false),
                    "aggregations": count,
                } }),
                )
            }
            Act::GroupQuery => {
                let name = format!("{}:runQuery", self.documents);
                post(&name, json!({ "structuredQuery": query(true) }))
            }
            Act::Collections => post(&format!("{there}:listCollectionIds"), json!({})),
            Act::Create => {
                let name = format!("{}?documentId={NEW}", self.name(&place.path()));
                post(&name, touched)
            }
            Act::Update => self.request(Method::PATCH, &there, token).json(&touched),
            Act::Delete => self.request(Method::DELETE, &new, token),
            Act::Commit => post(&format!("{}:commit", self.documents), write),
            Act::BatchWrite => post(&format!("{}:batchWrite", self.documents), write),
            Act::Listen => return Verdict::Else("REST has no listen".to_owned()),
        };
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        match status {
            // A batch can be taken and every write in it be refused.
            StatusCode::OK if act == Act::BatchWrite => batch(&text),
            StatusCode::OK => Verdict::Allowed,
            StatusCode::NOT_FOUND if act == Act::GetMissing => Verdict::Allowed,
            StatusCode::FORBIDDEN => Verdict::Refused,
            _ => Verdict::Else(format!("{status}: {text}")),
        }
    }
}

fn batch(text: &str) -> Verdict {
    let answer: Value = serde_json::from_str(text).unwrap();
    match answer["status"][0]["code"].as_i64() {
        None | Some(0) => Verdict::Allowed,
        Some(7) => Verdict::Refused,
        Some(_) => Verdict::Else(text.to_owned()),
    }
}
