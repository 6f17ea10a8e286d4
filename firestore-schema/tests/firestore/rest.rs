//! Raw documents over REST, past the store: what lies there, and what somebody else put there.

use serde_json::{Map, Value, json};

use super::Place;

impl Place {
    fn documents(&self) -> String {
        format!(
            "{}/v1/projects/{}/databases/keyturn/documents",
            self.endpoint, self.project
        )
    }

    /// Every document of a collection, the path of its parent given (empty at the root).
    pub async fn list(&self, parent: &str, collection: &str) -> Vec<Value> {
        let parent = if parent.is_empty() {
            String::new()
        } else {
            format!("/{parent}")
        };
        let (mut all, mut token) = (Vec::new(), String::new());
        loop {
            let url = format!(
                "{}{parent}/{collection}?pageSize=300&pageToken={token}",
                self.documents()
            );
            let found: Value = reqwest::Client::new()
                .get(url)
                .bearer_auth("owner")
                .send()
                .await
                .unwrap()
                .json()
                .await
                .unwrap();
            all.extend(found["documents"].as_array().cloned().unwrap_or_default());
            match found["nextPageToken"].as_str() {
                Some(next) => token = next.to_owned(),
                None => return all,
            }
        }
    }

    /// Sets one field of a document, whatever it was.
    pub async fn set(&self, path: &str, field: &str, value: Value) {
        let url = format!("{}/{path}?updateMask.fieldPaths={field}", self.documents());
        let answer = reqwest::Client::new()
            .patch(url)
            .bearer_auth("owner")
            .json(&json!({ "fields": { field: value } }))
            .send()
            .await
            .unwrap();
        assert!(answer.status().is_success(), "{}", answer.status());
    }
}

/// The path of a document below `…/documents/`.
pub fn path(document: &Value) -> &str {
    let name = document["name"].as_str().unwrap();
    name.split_once("/documents/").unwrap().1
}

/// A document's fields as the store's own JSON; every timestamp as milliseconds, and only there.
pub fn plain(document: &Value) -> Map<String, Value> {
    fields(document["fields"].as_object().unwrap())
}

fn fields(found: &Map<String, Value>) -> Map<String, Value> {
    found
        .iter()
        .map(|(name, value)| (name.clone(), plain_value(value)))
        .collect()
}

fn plain_value(value: &Value) -> Value {
    let (kind, inner) = value.as_object().unwrap().iter().next().unwrap();
    match kind.as_str() {
        "nullValue" => Value::Null,
        "booleanValue" | "stringValue" => inner.clone(),
        "integerValue" => json!(inner.as_str().unwrap().parse::<i64>().unwrap()),
        "timestampValue" => {
            let time = humantime::parse_rfc3339(inner.as_str().unwrap()).unwrap();
            let since = time.duration_since(std::time::UNIX_EPOCH).unwrap();
            assert_eq!(since.subsec_nanos() % 1_000_000, 0, "whole milliseconds");
            json!(u64::try_from(since.as_millis()).unwrap())
        }
        "arrayValue" => inner["values"]
            .as_array()
            .into_iter()
            .flatten()
            .map(plain_value)
            .collect(),
        "mapValue" => Value::Object(fields(inner["fields"].as_object().unwrap_or(&Map::new()))),
        other => panic!("a value of the type {other}"),
    }
}

/// The type that a field of a document was stored with.
pub fn kind<'v>(document: &'v Value, field: &str) -> &'v str {
    let value = document["fields"][field].as_object();
    let value = value.unwrap_or_else(|| panic!("{field} is not there"));
    value.keys().next().unwrap()
}
