//! The queries that the store asks, as Firestore's structured queries.
//!
//! What must always hold: every query orders by the document name last, so that a page can begin exactly where the one before ended.

use firestore::gcloud_sdk::google::firestore::v1::structured_query::{
    CollectionSelector, CompositeFilter, Direction, FieldFilter, FieldReference, Filter, Order,
    Projection, UnaryFilter, composite_filter, field_filter, filter::FilterType, unary_filter,
};
use firestore::gcloud_sdk::google::firestore::v1::value::ValueType;
use firestore::gcloud_sdk::google::firestore::v1::{ArrayValue, Cursor, StructuredQuery, Value};
use keyturn_proto::UnixMs;

use super::codec::{Fields, text_value, time_value, value};
use super::paths::Path;

pub(super) use field_filter::Operator;

/// The document name, as a field of queries.
const NAME: &str = "__name__";

/// One query.
#[derive(Clone, Debug)]
pub(super) struct Query {
    /// The document under which the collection lies; `None` for the root.
    pub(super) parent: Option<Path>,
    collection: &'static str,
    group: bool,
    filters: Vec<Filter>,
    order: Option<(&'static str, Direction)>,
    names: Direction,
    /// The only field that is wanted; `None` for all.
    only: Option<&'static str>,
    /// Most documents asked for.
    pub(super) limit: usize,
}

impl Query {
    /// Every document of a collection, in order of its id.
    pub(super) fn all(collection: &'static str) -> Self {
        Self {
            parent: None,
            collection,
            group: false,
            filters: Vec::new(),
            order: None,
            names: Direction::Ascending,
            only: None,
            limit: usize::MAX,
        }
    }

    /// Every document of the collections of that name, whatever they lie under.
    pub(super) fn group(collection: &'static str) -> Self {
        Self {
            group: true,
            ..Self::all(collection)
        }
    }

    pub(super) fn below(self, parent: Path) -> Self {
        Self {
            parent: Some(parent),
            ..self
        }
    }

    /// Of each document just this field.
    pub(super) fn only(self, field: &'static str) -> Self {
        Self {
            only: Some(field),
            ..self
        }
    }

    pub(super) fn limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    /// Ascending by a field, then by name. Documents without the field are not found; those in which it is null come first.
    pub(super) fn ascending(self, field: &'static str) -> Self {
        Self {
            order: Some((field, Direction::Ascending)),
            ..self
        }
    }

    /// Descending by a field, then by name.
    pub(super) fn descending(self, field: &'static str) -> Self {
        Self {
            order: Some((field, Direction::Descending)),
            names: Direction::Descending,
            ..self
        }
    }

    pub(super) fn is(self, field: &str, text: &str) -> Self {
        self.compared(field, Operator::Equal, text_value(text))
    }

    pub(super) fn is_one_of(self, field: &str, texts: &[&str]) -> Self {
        let values = texts.iter().map(|text| text_value(*text)).collect();
        let list = value(ValueType::ArrayValue(ArrayValue { values }));
        self.compared(field, Operator::In, list)
    }

    pub(super) fn not_after(self, field: &str, time: UnixMs) -> Self {
        self.compared(field, Operator::LessThanOrEqual, time_value(Some(time)))
    }

    /// Has any time at all: nothing of ours lies before 1970, and a comparison with a time never finds a null.
    pub(super) fn is_some(self, field: &str) -> Self {
        self.compared(
            field,
            Operator::GreaterThanOrEqual,
            time_value(Some(UnixMs(0))),
        )
    }

    pub(super) fn is_null(mut self, field: &str) -> Self {
        self.filters.push(Filter {
            filter_type: Some(FilterType::UnaryFilter(UnaryFilter {
                op: unary_filter::Operator::IsNull.into(),
                operand_type: Some(unary_filter::OperandType::Field(reference(field))),
            })),
        });
        self
    }

    /// Only documents whose full resource name is greater than, at least, or less than this one's.
    pub(super) fn named(self, op: Operator, name: String) -> Self {
        self.compared(NAME, op, value(ValueType::ReferenceValue(name)))
    }

    fn compared(mut self, field: &str, op: Operator, value: Value) -> Self {
        self.filters.push(Filter {
            filter_type: Some(FilterType::FieldFilter(FieldFilter {
                field: Some(reference(field)),
                op: op.into(),
                value: Some(value),
            })),
        });
        self
    }

    /// The next `limit` documents after the one called `name`, whose fields are `last`.
    pub(super) fn page(&self, limit: usize, last: Option<(&str, &Fields)>) -> StructuredQuery {
        let start_at = last.map(|(name, fields)| {
            let by_field = self.order.map(|(field, _)| {
                let null = || value(ValueType::NullValue(0));
                fields.get(field).cloned().unwrap_or_else(null)
            });
            let name = value(ValueType::ReferenceValue(name.to_owned()));
            Cursor {
                values: by_field.into_iter().chain([name]).collect(),
                before: false,
            }
        });
        let order = self.order.into_iter().chain([(NAME, self.names)]);
        StructuredQuery {
            select: self.only.map(|field| Projection {
                fields: vec![reference(field)],
            }),
            from: vec![CollectionSelector {
                collection_id: self.collection.to_owned(),
                all_descendants: self.group,
            }],
            r#where: self.condition(),
            order_by: order
                .map(|(field, direction)| Order {
                    field: Some(reference(field)),
                    direction: direction.into(),
                })
                .collect(),
            start_at,
            end_at: None,
            offset: 0,
            limit: Some(i32::try_from(limit).unwrap_or(i32::MAX)),
            find_nearest: None,
        }
    }

    fn condition(&self) -> Option<Filter> {
        match self.filters.as_slice() {
            [] => None,
            [one] => Some(one.clone()),
            several => Some(Filter {
                filter_type: Some(FilterType::CompositeFilter(CompositeFilter {
                    op: composite_filter::Operator::And.into(),
                    filters: several.to_vec(),
                })),
            }),
        }
    }
}

fn reference(field: &str) -> FieldReference {
    FieldReference {
        field_path: field.to_owned(),
    }
}
