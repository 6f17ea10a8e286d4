//! The rules against the examples of Firestore's own documentation (index overview, query limitations), and what they must notice.

use Direction::{Ascending as Up, Descending as Down};

use super::*;
use crate::queries::{Audience, Filter, Op, Operand, Order, all, ascending, descending, filter};

const ANY: Operand = Operand::Text("x");

/// Catalogues are static; what a test makes up lives as long as the test process.
fn on(collection: &'static str, filters: &[Filter], order: &[Order]) -> Query {
    Query {
        name: "example",
        audience: Audience::Relay,
        finds: "",
        collection,
        scope: Scope::Collection,
        filters: Box::leak(filters.into()),
        order: Box::leak(order.into()),
        only: &[],
        limit: None,
    }
}

fn cities(filters: &[Filter], order: &[Order]) -> Query {
    on("cities", filters, order)
}

fn composite(keys: &[Key]) -> Result<Need, NotCovered> {
    Ok(Need::Composite(Composite {
        collection: "cities",
        scope: Scope::Collection,
        keys: keys.to_vec(),
    }))
}

#[test]
fn one_field_needs_no_composite_index() {
    let cases = [
        cities(&[filter("state", Op::Is, ANY)], &[]),
        cities(&[filter("country", Op::In, ANY)], &[]),
        cities(&[filter("capital", Op::IsNull, Operand::Nothing)], &[]),
        cities(&[filter("population", Op::Before, ANY)], &[]),
        cities(
            &[
                filter("state", Op::NotBefore, ANY),
                filter("state", Op::NotAfter, ANY),
            ],
            &[],
        ),
        cities(&[], &[descending("name")]),
        cities(
            &[filter("population", Op::After, ANY)],
            &[descending("population")],
        ),
    ];
    for case in cases {
        let found = need(&case).unwrap();
        assert!(
            matches!(&found, Need::Fields(keys) if keys.len() == 1),
            "{found:?}"
        );
        assert!(serves(&file([]).unwrap(), &case).unwrap());
    }
}

#[test]
fn equalities_alone_are_merged() {
    let query = cities(
        &[filter("state", Op::Is, ANY), filter("name", Op::Is, ANY)],
        &[],
    );
    assert_eq!(
        need(&query),
        Ok(Need::Fields(vec![("name", Up), ("state", Up)]))
    );
}

#[test]
fn an_equality_with_a_range_or_an_order_needs_a_composite_index() {
    let range = cities(
        &[
            filter("state", Op::Is, ANY),
            filter("population", Op::Before, ANY),
        ],
        &[],
    );
    assert_eq!(
        need(&range),
        composite(&[("state", Up), ("population", Up)])
    );
    let down = cities(
        &[filter("country", Op::Is, ANY)],
        &[descending("population")],
    );
    assert_eq!(
        need(&down),
        composite(&[("country", Up), ("population", Down)])
    );
    let several = cities(
        &[
            filter("country", Op::In, ANY),
            filter("capital", Op::IsNull, Operand::Nothing),
        ],
        &[ascending("population")],
    );
    let keys = [("capital", Up), ("country", Up), ("population", Up)];
    assert_eq!(need(&several), composite(&keys));
    for query in [range, down, several] {
        assert!(!serves(&file([]).unwrap(), &query).unwrap());
        assert!(serves(&file([&query]).unwrap(), &query).unwrap());
    }
}

#[test]
fn an_order_over_two_fields_needs_a_composite_index_in_those_directions() {
    let query = cities(&[], &[ascending("state"), descending("population")]);
    assert_eq!(
        need(&query),
        composite(&[("state", Up), ("population", Down)])
    );
    let other = cities(&[], &[ascending("state"), ascending("population")]);
    assert!(!serves(&file([&query]).unwrap(), &other).unwrap());
}

#[test]
fn across_a_collection_group_the_own_index_has_to_be_switched_on() {
    let query = Query {
        scope: Scope::CollectionGroup,
        ..on("landmarks", &[filter("category", Op::Is, ANY)], &[])
    };
    assert!(!serves(&file([]).unwrap(), &query).unwrap());
    let made = file([&query]).unwrap();
    assert!(serves(&made, &query).unwrap());
    // Which takes the automatic ones away.
    let within = on("landmarks", &[filter("category", Op::Is, ANY)], &[]);
    assert!(!serves(&made, &within).unwrap());
    assert!(serves(&file([&query, &within]).unwrap(), &within).unwrap());
}

#[test]
fn the_key_of_the_documents_serves_ranges_of_names() {
    let query = cities(&[filter(NAME, Op::After, ANY)], &[]);
    assert_eq!(need(&query), Ok(Need::Key));
    assert_eq!(need(&cities(&[], &[])), Ok(Need::Key));
}

#[test]
fn what_the_rules_do_not_cover_is_said() {
    let cases = [
        cities(&[filter(NAME, Op::Is, ANY)], &[]),
        cities(&[], &[descending(NAME)]),
        cities(&[filter("state", Op::Is, ANY)], &[ascending("state")]),
        cities(&[filter(NAME, Op::After, ANY)], &[ascending("state")]),
        cities(&[filter("state", Op::After, ANY)], &[ascending("name")]),
        cities(
            &[
                filter("state", Op::After, ANY),
                filter("name", Op::After, ANY),
            ],
            &[],
        ),
    ];
    for case in cases {
        assert!(need(&case).is_err(), "{case:?}");
    }
}

#[test]
fn an_exempt_field_serves_nothing() {
    let hash = on(VERSIONS, &[filter("secret_hash", Op::Is, ANY)], &[]);
    let inside = on(CLIENTS, &[filter("snapshot.state", Op::Is, ANY)], &[]);
    let other = on(CLIENTS, &[filter("snapshots", Op::Is, ANY)], &[]);
    let made = file(all()).unwrap();
    assert!(!serves(&made, &hash).unwrap());
    assert!(!serves(&made, &inside).unwrap());
    assert!(serves(&made, &other).unwrap());
}

#[test]
fn without_any_one_of_its_indexes_some_query_is_not_served() {
    let made = file(all()).unwrap();
    assert!(all().all(|query| serves(&made, query).unwrap()));
    let indexes = made["indexes"].as_array().unwrap();
    assert!(indexes.len() >= 8, "{}", indexes.len());
    for (place, left_out) in indexes.iter().enumerate() {
        let mut less = made.clone();
        less["indexes"].as_array_mut().unwrap().remove(place);
        let served = all().all(|query| serves(&less, query).unwrap());
        assert!(!served, "nobody needs {left_out}");
    }
}
