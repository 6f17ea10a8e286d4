//! Which index a query needs, by the rules that Firestore documents, and `firestore.indexes.json` made from them.
//!
//! The rules (<https://firebase.google.com/docs/firestore/query-data/index-overview>):
//! 1. Every field is indexed by itself, both ways, within its collection, unless the index file says otherwise for that field.
//! 2. A query over one field is served by that field's own index, ranges and order included.
//! 3. Several equalities without a range or an order are served by merging the fields' own indexes.
//! 4. Equalities together with a range or an order over another field need a composite index: the fields compared for equality, then those of the order,
//!    each in its direction. A range orders ascending by its field unless the query says otherwise. `in` and `== null` count as equalities.
//! 5. A field's own index does not reach across collections of one id (a collection group): that has to be switched on for the field, and then the file must list
//!    every index of the field that is wanted, since it replaces rule 1.
//! 6. The key of the documents orders them by name, ascending; every index ends with the name, in the direction of its last field.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Value, json};

use super::{Direction, NAME, Query, Scope};
use crate::collections::{
    ADMINS, APPROLE_SECRET_IDS, AUDIT, CLIENTS, DEVICES, GROUPS, NONCES, OUTBOX, PROBES, ROTATIONS,
    VERSIONS,
};

/// A field that holds a time after which Firestore itself may delete the document (within a day of it).
const EXPIRING: &[(&str, &str)] = &[(NONCES, "expires_at"), (APPROLE_SECRET_IDS, "expires_at")];

/// Fields that nobody may ask for: an index would be another copy of what should lie in one place (hashes, seeds), or only cost (ciphertext, lists).
const UNINDEXED: &[(&str, &str)] = &[
    (CLIENTS, "snapshot"),
    (CLIENTS, "policy"),
    (VERSIONS, "secret_hash"),
    (VERSIONS, "prefilter"),
    (VERSIONS, "prehash"),
    (VERSIONS, "ack_public_key"),
    (ADMINS, "totp"),
    (ADMINS, "signature_keys"),
    (GROUPS, "welcomers"),
    (OUTBOX, "event_json"),
    (OUTBOX, "roster_hash"),
    (ROTATIONS, "quorum"),
    (ROTATIONS, "readers"),
    (ROTATIONS, "request_digest"),
    (AUDIT, "hash"),
    (AUDIT, "previous"),
    (PROBES, "written_at"),
    (DEVICES, "current"),
    (DEVICES, "earlier"),
    (DEVICES, "nonces"),
    (APPROLE_SECRET_IDS, "secret_hash"),
    (APPROLE_SECRET_IDS, "prefilter"),
    (APPROLE_SECRET_IDS, "cidrs"),
];

/// One field of an index.
pub type Key = (&'static str, Direction);

/// A composite index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Composite {
    /// Collection id.
    pub collection: &'static str,
    /// Where it reaches.
    pub scope: Scope,
    /// At least two.
    pub keys: Vec<Key>,
}

/// What a query needs to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// The key of the documents (rule 6).
    Key,
    /// The fields' own indexes (rules 2 and 3).
    Fields(Vec<Key>),
    /// Rule 4.
    Composite(Composite),
}

/// As the Cloud console shows it.
impl fmt::Display for Composite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = match self.scope {
            Scope::Collection => "",
            Scope::CollectionGroup => ", the whole collection group",
        };
        write!(f, "{}{group}:", self.collection)?;
        for (number, (field, direction)) in self.keys.iter().enumerate() {
            let way = match direction {
                Direction::Ascending => "ascending",
                Direction::Descending => "descending",
            };
            let comma = if number == 0 { "" } else { "," };
            write!(f, "{comma} {field} {way}")?;
        }
        Ok(())
    }
}

/// A query that these rules do not cover.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{query}: {why}")]
pub struct NotCovered {
    query: &'static str,
    why: &'static str,
}

/// What `query` needs.
///
/// # Errors
/// [`NotCovered`], so that a new kind of query is thought about rather than guessed at.
pub fn need(query: &Query) -> Result<Need, NotCovered> {
    let not_covered = |why| {
        Err(NotCovered {
            query: query.name,
            why,
        })
    };
    let mut equal = BTreeSet::new();
    let mut ranged = BTreeSet::new();
    for filter in query.filters {
        match (filter.field, filter.op.is_range()) {
            (NAME, true) => {}
            (NAME, false) => return not_covered("a document by its name is no query"),
            (field, false) => {
                equal.insert(field);
            }
            (field, true) => {
                ranged.insert(field);
            }
        }
    }
    let mut order: Vec<Key> = query
        .order
        .iter()
        .map(|it| (it.field, it.direction))
        .collect();
    if order.is_empty() {
        order.extend(ranged.iter().map(|field| (*field, Direction::Ascending)));
    }
    if order.iter().any(|(field, _)| *field == NAME) {
        return not_covered("an order by name beside others");
    }
    if order.iter().any(|(field, _)| equal.contains(field)) {
        return not_covered("an order by a field that is compared for equality");
    }
    let by_name = query.filters.iter().any(|it| it.field == NAME);
    if by_name && !order.is_empty() {
        return not_covered("a range of names in another order");
    }
    let ordered_first = order.first().map(|(field, _)| *field);
    if ranged.iter().any(|field| Some(*field) != ordered_first) {
        return not_covered("a range over a field that is not the first of the order");
    }
    let single = equal.is_empty() && order.len() <= 1;
    let equal = equal.into_iter().map(|it| (it, Direction::Ascending));
    let keys: Vec<Key> = equal.chain(order.iter().copied()).collect();
    Ok(if keys.is_empty() {
        Need::Key
    } else if single || order.is_empty() {
        Need::Fields(keys)
    } else {
        Need::Composite(Composite {
            collection: query.collection,
            scope: query.scope,
            keys,
        })
    })
}

/// One line of a field's own indexes in the file.
type Own = (Scope, Direction);

/// The file, for a catalogue of queries.
///
/// # Errors
/// As [`need`].
pub fn file<'q>(queries: impl IntoIterator<Item = &'q Query>) -> Result<Value, NotCovered> {
    let mut composites = BTreeSet::new();
    let mut own: BTreeSet<(&str, &str, Own)> = BTreeSet::new();
    for query in queries {
        match need(query)? {
            Need::Key => {}
            Need::Fields(keys) => own.extend(
                keys.iter()
                    .map(|(field, way)| (query.collection, *field, (query.scope, *way))),
            ),
            Need::Composite(index) => {
                composites.insert(index);
            }
        }
    }
    let across = own
        .iter()
        .filter(|(_, _, (scope, _))| *scope == Scope::CollectionGroup)
        .map(|(collection, field, _)| (*collection, *field));
    let named = UNINDEXED.iter().chain(EXPIRING).copied();
    let listed: BTreeSet<(&str, &str)> = across.chain(named).collect();
    let overrides: Vec<Value> = listed
        .into_iter()
        .map(|(collection, field)| {
            let indexes: Vec<Value> = own
                .iter()
                .filter(|(of, path, _)| (*of, *path) == (collection, field))
                .map(|(_, _, (scope, way))| json!({ "order": way.word(), "queryScope": scope.word() }))
                .collect();
            let mut entry = json!({ "collectionGroup": collection, "fieldPath": field });
            if EXPIRING.contains(&(collection, field)) {
                entry["ttl"] = json!(true);
            }
            entry["indexes"] = Value::Array(indexes);
            entry
        })
        .collect();
    let composites: Vec<Value> = composites.iter().map(Composite::entry).collect();
    Ok(json!({ "indexes": composites, "fieldOverrides": overrides }))
}

/// Whether a database with this index file serves the query: what Firestore would judge, and the emulator does not.
///
/// # Errors
/// As [`need`].
pub fn serves(file: &Value, query: &Query) -> Result<bool, NotCovered> {
    let list = |name: &str| file[name].as_array().cloned().unwrap_or_default();
    Ok(match need(query)? {
        Need::Key => true,
        Need::Fields(keys) => keys.iter().all(|(field, way)| {
            let said = list("fieldOverrides").into_iter().find(|entry| {
                entry["collectionGroup"] == query.collection
                    && entry["fieldPath"]
                        .as_str()
                        .is_some_and(|it| covers(it, field))
            });
            let wanted = json!({ "order": way.word(), "queryScope": query.scope.word() });
            match said.as_ref().and_then(|entry| entry["indexes"].as_array()) {
                Some(indexes) => indexes.contains(&wanted),
                None => query.scope == Scope::Collection,
            }
        }),
        Need::Composite(index) => list("indexes").contains(&index.entry()),
    })
}

/// What is said of a map holds for the fields in it.
fn covers(said: &str, field: &str) -> bool {
    field
        .strip_prefix(said)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

impl Composite {
    fn entry(&self) -> Value {
        let keys = self.keys.iter();
        let fields: Vec<Value> = keys
            .map(|(path, way)| json!({ "fieldPath": path, "order": way.word() }))
            .collect();
        json!({
            "collectionGroup": self.collection,
            "queryScope": self.scope.word(),
            "fields": fields,
        })
    }
}

impl Scope {
    /// As the index file calls it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Collection => "COLLECTION",
            Self::CollectionGroup => "COLLECTION_GROUP",
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
