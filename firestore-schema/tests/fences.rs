//! The page says of every method of the port by what a stale holder of the lease is kept from it; the port may not have a method that the page does not know.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

/// Methods that change nothing.
const READS: [&str; 8] = [
    "active_rotations",
    "decided",
    "due",
    "next_due",
    "outbox",
    "outbox_page",
    "rotation",
    "withdrawn",
];

/// Methods that change a client: each takes a fence, and has a case in `contract/fences.rs`.
const FENCED: [&str; 10] = [
    "cancel",
    "prepare",
    "promote",
    "record_ack",
    "reserve",
    "retire",
    "revoke",
    "rollback",
    "take_over",
    "withdraw",
];

fn methods(source: &str) -> BTreeSet<&str> {
    let port = source.split("pub trait SecretStore").nth(1).unwrap();
    let port = port.split("\n}\n").next().unwrap();
    let names = port.lines().filter_map(|line| {
        let name = line.trim().strip_prefix("async fn ")?;
        name.split('(').next()
    });
    names.collect()
}

#[test]
fn every_method_that_writes_is_in_the_table_of_fences() {
    let page = include_str!("../../docs/architecture.md");
    let table = page.split("| method | conditional on |").nth(1).unwrap();
    let table = table.split("\n\n").next().unwrap();
    let told: BTreeSet<&str> = table
        .lines()
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    let mut written = methods(include_str!("../src/store.rs"));
    for read in READS {
        assert!(written.remove(read), "{read} is no method any more");
    }
    // A method of the trail, but it is written beside these.
    written.insert("append");
    assert_eq!(told, written);
}

#[test]
fn every_method_that_changes_a_client_is_tried_with_a_stale_fence() {
    let written = methods(include_str!("../src/store.rs"));
    let cases = include_str!("../src/contract/fences.rs");
    for method in FENCED {
        assert!(written.contains(method), "{method} is no method any more");
        assert!(
            cases.contains(&format!("store.{method}(")) || cases.contains(&format!(".{method}(")),
            "no case for {method}"
        );
    }
    // What is left changes no client: see the table.
    let rest: Vec<&str> = written
        .into_iter()
        .filter(|name| !FENCED.contains(name) && !READS.contains(name))
        .collect();
    let unfenced = [
        "burn_nonce",
        "forget_nonces",
        "lease",
        "mark_announced",
        "purge",
        "record",
        "totp_failed",
    ];
    assert_eq!(rest, unfenced);
}
