//! The operator's page says nothing that is not so: its commands parse, its metrics and audit words exist, its links lead somewhere.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use clap::Parser as _;
use keyturn::cli::Cli;
use keyturn::config::{Config, Environment, Store};
use keyturn_admin::cli::args::Cli as AdminCli;

const NPUB: &str = "npub10xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqpkge6d";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn page() -> String {
    fs::read_to_string(root().join("docs/operations.md")).unwrap()
}

/// The fenced blocks: what stands behind the fence, and the lines.
fn blocks(page: &str) -> Vec<(String, Vec<String>)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, Vec<String>)> = None;
    for line in page.lines().map(str::trim) {
        match (line.strip_prefix("```"), open.take()) {
            (Some(info), None) => open = Some((info.to_owned(), Vec::new())),
            (Some(_), Some(block)) => blocks.push(block),
            (None, Some((info, mut lines))) => {
                lines.push(line.to_owned());
                open = Some((info, lines));
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

/// As a shell would split it; the page uses no more than double quotes and variables.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (number, part) in line.split('"').enumerate() {
        if number % 2 == 1 {
            words.push(part.to_owned());
            continue;
        }
        words.extend(part.split_whitespace().map(|word| match word {
            "$ALICE" | "$BOB" | "$SERVICE" | "$SIBLING" => NPUB.to_owned(),
            "$GROUP" => "0a0b".to_owned(),
            "$ADDRESS" => "0c".repeat(32),
            word => word.to_owned(),
        }));
    }
    words
}

#[test]
fn every_command_exists() {
    let mut parsed = 0;
    for (info, lines) in blocks(&page()) {
        for line in lines.iter().filter(|line| !line.is_empty()) {
            let words = words(line);
            let failed = match words[0].as_str() {
                "keyturn" => Cli::try_parse_from(&words).err().map(|e| e.to_string()),
                "keyturn-admin" => AdminCli::try_parse_from(&words)
                    .err()
                    .map(|e| e.to_string()),
                _ => {
                    assert_ne!(info, "sh keyturn", "no command of ours: {line}");
                    continue;
                }
            };
            assert_eq!(info, "sh keyturn", "not marked as ours: {line}");
            assert_eq!(failed, None, "{line}");
            parsed += 1;
        }
    }
    assert!(parsed > 20, "only {parsed} commands were found");
}

/// The page of the production store shows sections that the example file takes.
#[test]
fn the_configuration_of_the_google_cloud_page_is_one() {
    let page = fs::read_to_string(root().join("docs/google-cloud.md")).unwrap();
    let (_, shown) = blocks(&page)
        .into_iter()
        .find(|(info, _)| info == "toml")
        .unwrap();
    let shown: toml::Table = shown.join("\n").parse().unwrap();
    let example = fs::read_to_string(root().join("keyturn.example.toml")).unwrap();
    let mut all: toml::Table = example.parse().unwrap();
    all.extend(shown);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), toml::to_string(&all).unwrap()).unwrap();
    let none = std::iter::empty::<(String, String)>();
    let config = Config::load(file.path(), Environment::from_pairs(none)).unwrap();
    let Store::Firestore(store) = config.store else {
        panic!("another store");
    };
    assert_eq!(store.project, "example-keyturn");
    // The same database as the one that rules and indexes are deployed to.
    let deployed = root().join("firestore-schema/firebase.json");
    let deployed: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(deployed).unwrap()).unwrap();
    assert_eq!(deployed["firestore"]["database"], store.database.as_str());
}

#[test]
fn every_metric_is_one() {
    let ours = fs::read_to_string(root().join("relay-plugin/src/metrics.rs")).unwrap();
    let stores = fs::read_to_string(root().join("firestore-schema/src/metrics.rs")).unwrap();
    let page = page();
    let named = page
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("keyturn_"));
    let mut count = 0;
    for name in named {
        let quoted = format!("\"{name}\"");
        assert!(ours.contains(&quoted) || stores.contains(&quoted), "{name}");
        count += 1;
    }
    assert!(count > 10);
}

fn sources(dir: &Path, text: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_audit_word_and_every_configuration_key_exists() {
    let mut code = String::new();
    sources(&root().join("relay-plugin/src"), &mut code);
    sources(&root().join("firestore-schema/src"), &mut code);
    let mut count = 0;
    let page = page();
    for quoted in page.split('`').skip(1).step_by(2) {
        let word = |c: char| c.is_ascii_lowercase() || c == '_';
        let Some((left, right)) = quoted.split_once('.') else {
            continue;
        };
        let plain = !left.is_empty() && !right.is_empty();
        let ends_as_file = ["db", "key", "toml", "nsec"].contains(&right);
        if plain && left.chars().all(word) && right.chars().all(word) && !ends_as_file {
            // A word, a key, or a section of the configuration.
            let known = [format!("\"{quoted}\""), format!("\"{quoted}.")];
            assert!(known.iter().any(|text| code.contains(text)), "{quoted}");
            count += 1;
        }
    }
    assert!(count > 25, "{count}");
}

#[test]
fn headings_that_findings_name_exist() {
    let mut code = String::new();
    sources(&root().join("relay-plugin/src/doctor"), &mut code);
    let page = page();
    let mut count = 0;
    for named in code.split("docs/operations.md, \\\"").skip(1) {
        let heading = named.split('\\').next().unwrap();
        let found = page
            .lines()
            .any(|line| line.starts_with('#') && line.ends_with(&format!("# {heading}")));
        assert!(found, "{heading}");
        count += 1;
    }
    assert!(count > 3, "{count}");
}

#[test]
fn links_lead_somewhere() {
    let page = page();
    for target in page.split("](").skip(1) {
        let target = target.split(')').next().unwrap();
        if let Some(anchor) = target.strip_prefix('#') {
            let heading = anchor.replace('-', " ");
            assert!(
                page.to_lowercase().contains(&format!("# {heading}\n")),
                "{target}"
            );
        } else {
            assert!(root().join("docs").join(target).exists(), "{target}");
        }
    }
}
