//! The catalogue's queries ([`crate::queries`]) as Firestore's structured queries: nothing else is asked, so nothing is asked without its index.
//!
//! What must always hold: every query orders by the document name last, so that a page can begin exactly where the one before ended.

use firestore::gcloud_sdk::google::firestore::v1::structured_query::{
    self as wire, CollectionSelector, CompositeFilter, FieldFilter, FieldReference, Projection,
    UnaryFilter, composite_filter, field_filter, filter::FilterType, unary_filter,
};
use firestore::gcloud_sdk::google::firestore::v1::value::ValueType;
use firestore::gcloud_sdk::google::firestore::v1::{ArrayValue, Cursor, StructuredQuery, Value};
use keyturn_proto::UnixMs;

use super::codec::{Fields, null, text_value, time_operand, value};
use super::paths::Path;
use crate::collections;
use crate::queries::{Direction, Filter, NAME, Op, Operand, Query, Scope};
use crate::store::Result;

/// One query of the catalogue with what the asker gives.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    query: &'static Query,
    /// One for each operand that the asker gives, in their order.
    values: Vec<Value>,
    /// The document under which the collection lies; `None` for the root.
    pub(super) parent: Option<Path>,
    only: Option<&'static str>,
    /// Most documents wanted.
    pub(super) limit: usize,
}

impl Ask {
    pub(super) const fn new(query: &'static Query) -> Self {
        Self {
            query,
            values: Vec::new(),
            parent: None,
            only: None,
            limit: usize::MAX,
        }
    }

    /// With something for everything that the asker gives: to see whether it is served, not what it finds. `documents` is the name that those of documents begin with.
    ///
    /// # Errors
    /// [`crate::store::StoreError::InvalidId`].
    pub(super) fn example(query: &'static Query, documents: &str) -> Result<Self> {
        let mut ask = Self::new(query).limit(1);
        for filter in query.filters {
            ask = match filter.operand {
                Operand::AnyText(it) => ask.text(it.example),
                Operand::AnyTime(_) => ask.time(UnixMs(0)),
                Operand::AnyName(it) => {
                    let collection = query.collection;
                    ask.name(format!("{documents}/{collection}/{}", it.example))
                }
                Operand::Text(_) | Operand::Texts(_) | Operand::Epoch | Operand::Nothing => ask,
            };
        }
        let lies_in = collections::ALL.iter().find(|it| it.id == query.collection);
        match (query.scope, lies_in.and_then(|it| it.parent)) {
            (Scope::Collection, Some(above)) => Ok(ask.below(Path::new(above, above, "a")?)),
            (Scope::Collection, None) | (Scope::CollectionGroup, _) => Ok(ask),
        }
    }

    pub(super) fn text(self, text: &str) -> Self {
        self.given(text_value(text))
    }

    pub(super) fn time(self, time: UnixMs) -> Self {
        self.given(time_operand(time))
    }

    /// A document by its full resource name.
    pub(super) fn name(self, name: String) -> Self {
        self.given(value(ValueType::ReferenceValue(name)))
    }

    fn given(mut self, value: Value) -> Self {
        self.values.push(value);
        self
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

    /// The next `limit` documents after the one called `name`, whose fields are `last`.
    pub(super) fn page(&self, limit: usize, last: Option<(&str, &Fields)>) -> StructuredQuery {
        let order = self.query.order;
        let start_at = last.map(|(name, fields)| {
            let by_fields = order
                .iter()
                .map(|key| fields.get(key.field).cloned().unwrap_or_else(null));
            let name = value(ValueType::ReferenceValue(name.to_owned()));
            Cursor {
                values: by_fields.chain([name]).collect(),
                before: false,
            }
        });
        let names = order
            .last()
            .map_or(Direction::Ascending, |key| key.direction);
        let keys = order.iter().map(|key| (key.field, key.direction));
        StructuredQuery {
            select: self.projection(),
            from: vec![CollectionSelector {
                collection_id: self.query.collection.to_owned(),
                all_descendants: self.query.scope == Scope::CollectionGroup,
            }],
            r#where: self.condition(),
            order_by: keys
                .chain([(NAME, names)])
                .map(|(field, direction)| wire::Order {
                    field: Some(reference(field)),
                    direction: match direction {
                        Direction::Ascending => wire::Direction::Ascending.into(),
                        Direction::Descending => wire::Direction::Descending.into(),
                    },
                })
                .collect(),
            start_at,
            end_at: None,
            offset: 0,
            limit: Some(i32::try_from(limit).unwrap_or(i32::MAX)),
            find_nearest: None,
        }
    }

    fn projection(&self) -> Option<Projection> {
        let fields: Vec<FieldReference> = match self.only {
            Some(field) => vec![reference(field)],
            None => self.query.only.iter().map(|it| reference(it)).collect(),
        };
        (!fields.is_empty()).then_some(Projection { fields })
    }

    fn condition(&self) -> Option<wire::Filter> {
        let mut given = self.values.iter().cloned();
        let mut conditions: Vec<wire::Filter> = self
            .query
            .filters
            .iter()
            .map(|filter| condition(filter, &mut given))
            .collect();
        debug_assert!(given.next().is_none(), "more values than operands");
        match conditions.len() {
            0 | 1 => conditions.pop(),
            _ => Some(filter(FilterType::CompositeFilter(CompositeFilter {
                op: composite_filter::Operator::And.into(),
                filters: conditions,
            }))),
        }
    }
}

/// A value that was not given is null, and finds nothing.
fn condition(it: &Filter, given: &mut impl Iterator<Item = Value>) -> wire::Filter {
    let operand = match it.operand {
        Operand::Nothing => {
            return filter(FilterType::UnaryFilter(UnaryFilter {
                op: unary_filter::Operator::IsNull.into(),
                operand_type: Some(unary_filter::OperandType::Field(reference(it.field))),
            }));
        }
        Operand::Text(text) => text_value(text),
        Operand::Texts(texts) => value(ValueType::ArrayValue(ArrayValue {
            values: texts.iter().map(|text| text_value(*text)).collect(),
        })),
        Operand::Epoch => time_operand(UnixMs(0)),
        Operand::AnyText(_) | Operand::AnyTime(_) | Operand::AnyName(_) => {
            given.next().unwrap_or_else(null)
        }
    };
    let op = match it.op {
        Op::Is | Op::IsNull => field_filter::Operator::Equal,
        Op::In => field_filter::Operator::In,
        Op::Before => field_filter::Operator::LessThan,
        Op::NotAfter => field_filter::Operator::LessThanOrEqual,
        Op::After => field_filter::Operator::GreaterThan,
        Op::NotBefore => field_filter::Operator::GreaterThanOrEqual,
    };
    filter(FilterType::FieldFilter(FieldFilter {
        field: Some(reference(it.field)),
        op: op.into(),
        value: Some(operand),
    }))
}

fn filter(filter_type: FilterType) -> wire::Filter {
    wire::Filter {
        filter_type: Some(filter_type),
    }
}

fn reference(field: &str) -> FieldReference {
    FieldReference {
        field_path: field.to_owned(),
    }
}
