//! Every query that the product asks Firestore or that the documents offer auditors: one list, as data.
//!
//! What must always hold: whoever asks the database takes the query from here, and `firestore.indexes.json` is made from here ([`indexes`]). Firestore refuses
//! a query without its index only in production: the emulator enforces none, so this list is the fence.

pub mod auditors;
pub mod indexes;
pub mod relay;
pub mod rest;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// The relay and the operator's commands, with IAM.
    Relay,
    /// Auditors, under the security rules.
    Auditors,
}

/// Which documents are looked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// One collection.
    Collection,
    /// All collections of that id, whatever they lie under.
    CollectionGroup,
}

/// How a field is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Equal.
    Is,
    /// Equal to one of several.
    In,
    /// Null, and there.
    IsNull,
    /// Smaller.
    Before,
    /// Smaller or equal.
    NotAfter,
    /// Greater.
    After,
    /// Greater or equal.
    NotBefore,
}

impl Op {
    /// Whether it finds a range of values rather than single ones.
    #[must_use]
    pub const fn is_range(self) -> bool {
        match self {
            Self::Is | Self::In | Self::IsNull => false,
            Self::Before | Self::NotAfter | Self::After | Self::NotBefore => true,
        }
    }
}

/// What a field is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// Always this text.
    Text(&'static str),
    /// Always these texts.
    Texts(&'static [&'static str]),
    /// Always the first moment of 1970: with [`Op::NotBefore`], any time at all.
    Epoch,
    /// Nothing, with [`Op::IsNull`].
    Nothing,
    /// A text that the asker gives.
    AnyText(Parameter),
    /// A time that the asker gives.
    AnyTime(Parameter),
    /// A document of the same collection that the asker gives.
    AnyName(Parameter),
}

/// Something the asker gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// What it is called.
    pub name: &'static str,
    /// What stands there in the documents and in tests; times as RFC 3339.
    pub example: &'static str,
}

/// One condition; all of a query's hold together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Path of the field, [`NAME`] for the document itself.
    pub field: &'static str,
    /// How.
    pub op: Op,
    /// With what.
    pub operand: Operand,
}

/// Which way results are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Smallest first.
    Ascending,
    /// Greatest first.
    Descending,
}

/// One key of the order. Ties are broken by the document name in the direction of the last key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Path of the field.
    pub field: &'static str,
    /// Which way.
    pub direction: Direction,
}

/// The document name, as a field.
pub const NAME: &str = "__name__";

/// One query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// What it is called, here and in the documents.
    pub name: &'static str,
    /// Who asks it.
    pub audience: Audience,
    /// What it finds.
    pub finds: &'static str,
    /// Id of the collection, one of [`crate::collections::ALL`].
    pub collection: &'static str,
    /// Where.
    pub scope: Scope,
    /// Which documents.
    pub filters: &'static [Filter],
    /// In which order; by name alone when empty.
    pub order: &'static [Order],
    /// The fields wanted; the whole document when empty.
    pub only: &'static [&'static str],
    /// Most results asked for, where the query itself says so.
    pub limit: Option<u32>,
}

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Query> {
    relay::ALL.iter().chain(auditors::ALL).copied()
}

pub(crate) const fn filter(field: &'static str, op: Op, operand: Operand) -> Filter {
    Filter { field, op, operand }
}

pub(crate) const fn is(field: &'static str, text: &'static str) -> Filter {
    filter(field, Op::Is, Operand::Text(text))
}

pub(crate) const fn ascending(field: &'static str) -> Order {
    Order {
        field,
        direction: Direction::Ascending,
    }
}

pub(crate) const fn descending(field: &'static str) -> Order {
    Order {
        field,
        direction: Direction::Descending,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::collections;

    #[test]
    fn names_are_unique_and_collections_known() {
        let mut names = BTreeSet::new();
        for query in all() {
            assert!(names.insert(query.name), "{} twice", query.name);
            let known = collections::ALL.iter().find(|it| it.id == query.collection);
            assert!(known.is_some(), "{}: {}", query.name, query.collection);
        }
    }

    #[test]
    fn auditors_are_offered_only_what_they_may_read() {
        for query in auditors::ALL {
            let open = |it: &&collections::Collection| it.auditors && it.parent.is_none();
            let readable = collections::ALL.iter().filter(open);
            assert_eq!(query.audience, Audience::Auditors);
            assert_eq!(query.scope, Scope::Collection, "{}", query.name);
            assert!(
                readable.map(|it| it.id).any(|id| id == query.collection),
                "{}",
                query.name
            );
        }
        assert!(relay::ALL.iter().all(|it| it.audience == Audience::Relay));
    }

    /// Firestore refuses others.
    #[test]
    fn a_range_is_over_the_first_field_of_the_order() {
        for query in all() {
            let ranges = query.filters.iter().filter(|it| it.op.is_range());
            let fields: BTreeSet<&str> = ranges.map(|it| it.field).collect();
            assert!(fields.len() <= 1, "{}", query.name);
            let first = query.order.first().map_or(NAME, |it| it.field);
            assert!(fields.iter().all(|it| *it == first), "{}", query.name);
        }
    }
}
