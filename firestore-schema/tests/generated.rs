//! Files that are generated from the types and tables say what the types and tables say.
//!
//! To make them again: `KEYTURN_REGENERATE=1 cargo test -p keyturn-store --test generated`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};

use keyturn_store::collections;

const COMMAND: &str = "KEYTURN_REGENERATE=1 cargo test -p keyturn-store --test generated";

fn crate_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Compares, or writes when asked to.
fn settle(path: PathBuf, expected: &str) {
    if std::env::var_os("KEYTURN_REGENERATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, expected).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "{} is out of date; run: {COMMAND}",
        path.display()
    );
}

#[test]
fn the_state_diagram_is_drawn_from_the_tables() {
    let path = crate_folder().join("../docs/generated/lifecycle.md");
    settle(path, &keyturn_store::lifecycle::diagram::page());
}

#[test]
fn the_document_schemas_are_made_from_the_types() {
    let folder = crate_folder().join("schema");
    let all = keyturn_store::schema::all();
    for (name, schema) in &all {
        let text = serde_json::to_string_pretty(schema).unwrap() + "\n";
        settle(folder.join(name), &text);
    }
    let mut found: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut expected: Vec<String> = all.iter().map(|(name, _)| (*name).to_owned()).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "schema/ holds other files; run: {COMMAND}");
}

#[test]
fn the_page_of_audit_events_is_made_from_the_list() {
    let path = crate_folder().join("../docs/generated/audit-events.md");
    settle(path, &keyturn_store::audit::events::page());
}

#[test]
fn the_worked_example_of_a_chain_is_made_by_the_code() {
    let example = keyturn_store::audit::vector::example().unwrap();
    let text = serde_json::to_string_pretty(&example).unwrap() + "\n";
    settle(crate_folder().join("vectors/audit-chain.json"), &text);
}

#[test]
fn the_page_of_the_documents_is_made_from_the_types() {
    let path = crate_folder().join("../docs/generated/documents.md");
    settle(path, &keyturn_store::schema::page::page());
}

#[test]
fn the_index_file_is_made_from_the_query_catalogue() {
    let queries = keyturn_store::queries::all();
    let file = keyturn_store::queries::indexes::file(queries).unwrap();
    let text = serde_json::to_string_pretty(&file).unwrap() + "\n";
    settle(crate_folder().join("firestore.indexes.json"), &text);
}

/// No document that an auditor may read bears a hash of a secret (protocol.md §4).
#[test]
fn what_auditors_read_bears_no_hash() {
    for (name, schema) in keyturn_store::schema::all() {
        let open = collections::ALL.iter().filter(|it| it.auditors);
        if open.filter_map(|it| it.schema).any(|file| file == name) {
            let text = serde_json::to_string(&schema).unwrap();
            for field in [
                "secret_hash",
                "prefilter",
                "prehash",
                "ack_public_key",
                "mac_key_ref",
            ] {
                assert!(
                    !text.contains(&format!("\"{field}\"")),
                    "{name} has {field}"
                );
            }
        }
    }
}
