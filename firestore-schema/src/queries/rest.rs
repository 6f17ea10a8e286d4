//! A query as the body of the REST method `runQuery` (<https://firebase.google.com/docs/firestore/reference/rest/v1/projects.databases.documents/runQuery>).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Direction, Filter, Op, Operand, Parameter, Query, Scope};

/// Values of parameters by name; what is not given stands as its example.
pub type Values<'v> = BTreeMap<&'v str, String>;

impl Query {
    /// The body. `documents` is the resource name `projects/P/databases/D/documents`, which names of documents begin with.
    #[must_use]
    pub fn body(&self, documents: &str, values: &Values<'_>) -> Value {
        let mut query = serde_json::Map::new();
        if !self.only.is_empty() {
            let fields: Vec<Value> = self.only.iter().map(|it| field(it)).collect();
            query.insert("select".to_owned(), json!({ "fields": fields }));
        }
        let from = match self.scope {
            Scope::Collection => json!([{ "collectionId": self.collection }]),
            Scope::CollectionGroup => {
                json!([{ "collectionId": self.collection, "allDescendants": true }])
            }
        };
        query.insert("from".to_owned(), from);
        let mut conditions: Vec<Value> = self
            .filters
            .iter()
            .map(|it| self.condition(it, documents, values))
            .collect();
        if conditions.len() > 1 {
            let all = json!({ "compositeFilter": { "op": "AND", "filters": conditions } });
            conditions = vec![all];
        }
        if let Some(condition) = conditions.pop() {
            query.insert("where".to_owned(), condition);
        }
        if !self.order.is_empty() {
            let order: Vec<Value> = self
                .order
                .iter()
                .map(|it| json!({ "field": field(it.field), "direction": it.direction.word() }))
                .collect();
            query.insert("orderBy".to_owned(), Value::Array(order));
        }
        if let Some(limit) = self.limit {
            query.insert("limit".to_owned(), json!(limit));
        }
        json!({ "structuredQuery": query })
    }

    fn condition(&self, filter: &Filter, documents: &str, values: &Values<'_>) -> Value {
        let given = |it: &Parameter| {
            let example = || it.example.to_owned();
            values.get(it.name).cloned().unwrap_or_else(example)
        };
        let value = match &filter.operand {
            Operand::Text(text) => json!({ "stringValue": text }),
            Operand::Texts(texts) => {
                let values: Vec<Value> = texts
                    .iter()
                    .map(|text| json!({ "stringValue": text }))
                    .collect();
                json!({ "arrayValue": { "values": values } })
            }
            Operand::Epoch => json!({ "timestampValue": "1970-01-01T00:00:00Z" }),
            Operand::Nothing => {
                return json!({ "unaryFilter": { "field": field(filter.field), "op": "IS_NULL" } });
            }
            Operand::AnyText(it) => json!({ "stringValue": given(it) }),
            Operand::AnyTime(it) => json!({ "timestampValue": given(it) }),
            Operand::AnyName(it) => {
                let name = format!("{documents}/{}/{}", self.collection, given(it));
                json!({ "referenceValue": name })
            }
        };
        json!({ "fieldFilter": {
            "field": field(filter.field),
            "op": filter.op.word(),
            "value": value,
        } })
    }
}

impl Op {
    /// As the REST and gRPC interfaces call it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Is => "EQUAL",
            Self::In => "IN",
            Self::IsNull => "IS_NULL",
            Self::Before => "LESS_THAN",
            Self::NotAfter => "LESS_THAN_OR_EQUAL",
            Self::After => "GREATER_THAN",
            Self::NotBefore => "GREATER_THAN_OR_EQUAL",
        }
    }
}

impl Direction {
    /// As the interfaces and the index file call it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ascending => "ASCENDING",
            Self::Descending => "DESCENDING",
        }
    }
}

fn field(path: &str) -> Value {
    json!({ "fieldPath": path })
}
