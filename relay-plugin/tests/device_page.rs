//! The devices' page lists what the code refuses and measures: every word, every metric, and nothing else.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use keyturn_proto::device::DeviceError;

/// What a sender can be told.
const ERRORS: [DeviceError; 7] = [
    DeviceError::InvalidRequest,
    DeviceError::Unauthorized,
    DeviceError::ClockSkew,
    DeviceError::NonceUsed,
    DeviceError::RateLimited,
    DeviceError::Unavailable,
    DeviceError::Interrupted,
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn page() -> String {
    fs::read_to_string(root().join("docs/devices.md")).unwrap()
}

/// The rows of the table under a heading, cell by cell, without its head.
fn table(page: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    let cells = |line: &str| {
        let cells = line.trim_matches('|').split(" | ");
        cells.map(|cell| cell.trim().to_owned()).collect()
    };
    rows.skip(1).map(cells).collect()
}

/// What stands in backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn sources(path: &Path, all: &mut Vec<PathBuf>) {
    if path.is_file() {
        all.push(path.to_owned());
        return;
    }
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        // Where secret_ids come from is the issuer's business.
        if !path.ends_with("tests") && !path.ends_with("tests.rs") && !path.ends_with("issuer") {
            sources(&path, all);
        }
    }
}

/// Production code of the flow and its doors, without comments and tests.
fn code() -> String {
    let src = root().join("relay-plugin/src");
    let mut files = Vec::new();
    sources(&src.join("devices"), &mut files);
    sources(&src.join("web/webhook.rs"), &mut files);
    sources(&src.join("web/certificate.rs"), &mut files);
    assert!(files.len() > 15, "{files:?}");
    let mut code = String::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        // Tests are the end of a file.
        let ends = ["\n#[cfg(test)]\nmod ", "\n#[cfg(test)]\n#[allow"];
        let end = ends.iter().filter_map(|end| text.find(end)).min();
        let text = &text[..end.unwrap_or(text.len())];
        let lines = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        code.extend(lines.flat_map(|line| [line, "\n"]));
    }
    code
}

/// `"a.b"` and `"not_allowed"`: the words of refusals, not the audit events and not the configuration's keys.
fn words(code: &str) -> BTreeSet<String> {
    let letters =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let dotted = |word: &str| {
        word.split_once('.')
            .is_some_and(|(a, b)| letters(a) && letters(b) && a != "device" && a != "mqtt")
    };
    code.split('"')
        .skip(1)
        .step_by(2)
        .filter(|word| dotted(word) || *word == "not_allowed")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_word_of_a_refusal_is_listed_with_what_its_sender_is_told() {
    let page = page();
    let rows = table(&page, "What is refused");
    let mut listed = BTreeSet::new();
    for row in &rows {
        let [names, came, told] = &row[..] else {
            panic!("not three cells: {row:?}")
        };
        assert!(!came.is_empty());
        for word in quoted(names) {
            assert!(listed.insert(word.to_owned()), "{word} is listed twice");
        }
        let silent = told.starts_with("nothing") || told.parse::<u16>().is_ok();
        let errors = quoted(told);
        assert_ne!(silent, !errors.is_empty(), "{row:?}");
        for error in errors {
            let known = ERRORS.iter().any(|known| known.as_str() == error);
            assert!(known, "{error} is nothing that is told");
        }
    }
    assert_eq!(listed, words(&code()));
}

#[test]
fn every_metric_of_the_flow_is_listed_and_every_label_is_used() {
    let names = fs::read_to_string(root().join("relay-plugin/src/metrics.rs")).unwrap();
    let of_the_flow = |name: &&str| {
        let of = ["device_", "mqtt_", "issuer_", "approle_"];
        name.strip_prefix("keyturn_")
            .is_some_and(|rest| of.iter().any(|prefix| rest.starts_with(prefix)))
    };
    let existing: BTreeSet<&str> = names
        .lines()
        .filter(|line| line.starts_with("pub const "))
        .filter_map(|line| line.split('"').nth(1))
        .filter(of_the_flow)
        .collect();
    let page = page();
    let rows = table(&page, "What is measured");
    let listed = rows.iter().flat_map(|row| quoted(&row[0]));
    assert_eq!(listed.collect::<BTreeSet<&str>>(), existing);

    let mut code = code();
    let issuer = root().join("relay-plugin/src/devices/issuer");
    let mut files = Vec::new();
    for entry in fs::read_dir(&issuer).unwrap() {
        sources(&entry.unwrap().path(), &mut files);
    }
    for file in files {
        code.push_str(&fs::read_to_string(file).unwrap());
    }
    let mut count = 0;
    for row in &rows {
        for word in row.get(1).into_iter().flat_map(|cell| quoted(cell)) {
            let told = ERRORS.iter().any(|error| error.as_str() == word);
            let used = code.contains(&format!("\"{word}\""));
            // The name of a label, a word of the code, or an answer.
            let label = code.contains(&format!("\"{word}\" =>"));
            assert!(told || used || label, "{word}");
            count += 1;
        }
    }
    assert!(count > 40, "{count}");
}
