//! `docs/auditors.md`: its JSON blocks that bear a query's name.

use std::path::Path;

use keyturn_store::queries::{Query, auditors};
use serde_json::Value;

const OPEN: &str = "```json ";
const CLOSE: &str = "\n```\n";

pub fn path() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/auditors.md"))
}

/// The named blocks of the page, in order.
pub fn blocks(text: &str) -> Vec<(String, Value)> {
    text.split(OPEN)
        .skip(1)
        .map(|rest| {
            let (name, rest) = rest.split_once('\n').unwrap();
            let (body, _) = rest.split_once("\n```").unwrap();
            (name.to_owned(), serde_json::from_str(body).unwrap())
        })
        .collect()
}

/// The page with each named block as the catalogue has it.
pub fn with_queries(text: &str) -> String {
    let mut parts = text.split(OPEN);
    let mut page = parts.next().unwrap().to_owned();
    for part in parts {
        let (name, rest) = part.split_once('\n').unwrap();
        let (body, after) = rest.split_once("```\n").unwrap();
        assert!(body.is_empty() || body.ends_with('\n'), "{name}");
        let query = auditors::ALL.iter().find(|it| it.name == name);
        let query = query.unwrap_or_else(|| panic!("the page shows {name}, which nobody lists"));
        page.push_str(&format!("{OPEN}{name}\n{}{CLOSE}{after}", lines(query)));
    }
    page
}

/// One line for each part of the query, and for each of its conditions.
fn lines(query: &Query) -> String {
    let body = query.body("", &Default::default());
    let query = body["structuredQuery"].as_object().unwrap();
    let mut parts = Vec::new();
    for name in ["select", "from", "where", "orderBy", "limit"] {
        let Some(value) = query.get(name) else {
            continue;
        };
        let filters = value["compositeFilter"]["filters"].as_array();
        parts.push(match filters {
            Some(filters) => {
                let filters: Vec<String> = filters.iter().map(|it| format!("    {it}")).collect();
                let filters = filters.join(",\n");
                format!(
                    "  \"{name}\": {{\"compositeFilter\": {{\"op\": \"AND\", \"filters\": [\n{filters}\n  ]}}}}"
                )
            }
            None => format!("  \"{name}\": {value}"),
        });
    }
    format!("{{\"structuredQuery\": {{\n{}\n}}}}", parts.join(",\n"))
}
