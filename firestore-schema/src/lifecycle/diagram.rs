//! Draws the transition tables as the page `docs/generated/lifecycle.md`, so that the picture cannot drift from the rules.

use std::fmt::{Debug, Write as _};

use super::table::{CLIENT, ROTATION, Table, VERSION};

/// The whole page.
#[must_use]
pub fn page() -> String {
    let mut page = String::from(
        "# Lifecycle\n\nGenerated from the transition tables in `firestore-schema/src/lifecycle/table.rs`; do not edit. To make it again:\n\
         `KEYTURN_REGENERATE=1 cargo test -p keyturn-store --test generated`.\n",
    );
    draw(&mut page, &VERSION);
    draw(&mut page, &ROTATION);
    draw(&mut page, &CLIENT);
    page
}

fn draw<S: Debug, E: Debug>(page: &mut String, table: &Table<S, E>) {
    // Writing to a String cannot fail.
    let _ = write!(
        page,
        "\n## {}\n\n```mermaid\nstateDiagram-v2\n",
        table.title
    );
    for (from, event, to) in table.edges {
        let _ = writeln!(
            page,
            "    {} --> {}: {}",
            node(from),
            node(to),
            words(event)
        );
    }
    page.push_str("```\n");
}

/// `[*]` is mermaid's "nothing yet, or nothing any more".
fn node<S: Debug>(state: &Option<S>) -> String {
    state.as_ref().map_or("[*]".to_owned(), words)
}

/// The spelling of the documents: `QuorumMet` is `quorum_met`.
fn words<T: Debug>(name: &T) -> String {
    let mut text = String::new();
    for letter in format!("{name:?}").chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.extend(letter.to_lowercase());
    }
    text
}
