//! The list of audit words is complete and holds nothing else: the sources are read for every place where a record is named.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use keyturn_store::audit::events::EVENTS;

/// Where a record is named, and which argument names it; `None`: the first word among the arguments.
const NAMED_BY: &[(&str, Option<usize>)] = &[
    ("Entry::new(", Some(2)),
    ("Entry::by_relay(", Some(1)),
    ("Entry::by_admin(", Some(2)),
    ("Entry::of_permit(", Some(2)),
    ("Entry::of_opened(", Some(2)),
    ("Entry::of_rotation(", Some(2)),
    ("counting_as(", Some(0)),
    ("consequence(", None),
    (".by_relay(", None),
    (" by_relay(", None),
    (".by_device(", None),
    ("self.record(", None),
    ("acked(", None),
    ("audit(", None),
    ("set_state(", None),
];

/// Production code: without comments, and without the tests at the end of a file.
fn sources(dir: &Path, all: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let of_tests = [
            "tests",
            "tests.rs",
            "machine_tests.rs",
            "contract",
            "contract.rs",
            "scenarios",
            "doctor",
            "vector.rs",
        ];
        if of_tests.contains(&name.as_str()) || path.ends_with("audit/events.rs") {
            continue;
        }
        if path.is_dir() {
            sources(&path, all);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        let code = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        all.push((
            path.display().to_string(),
            code.collect::<Vec<_>>().join("\n"),
        ));
    }
}

fn code() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut all = Vec::new();
    sources(&root.join("relay-plugin/src"), &mut all);
    sources(&root.join("firestore-schema/src"), &mut all);
    assert!(all.len() > 100, "only {} files were found", all.len());
    all
}

/// The text up to the bracket that closes what was opened just before it.
fn arguments(text: &str) -> &str {
    let mut depth = 1;
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[..at];
        }
    }
    text
}

/// The arguments one by one.
fn split(arguments: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut parts) = (0, 0, Vec::new());
    for (at, c) in arguments.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(arguments[begin..at].trim());
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(arguments[begin..].trim());
    parts
}

/// `a.b` in quotes.
fn words(text: &str) -> Vec<&str> {
    let letters =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    text.split('"')
        .skip(1)
        .step_by(2)
        .filter(|word| {
            word.split_once('.')
                .is_some_and(|(a, b)| letters(a) && letters(b))
        })
        .collect()
}

/// Every word that names a record somewhere.
fn named(code: &[(String, String)]) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for (file, text) in code {
        for (call, argument) in NAMED_BY {
            for (at, _) in text.match_indices(call) {
                let begin = &text[..at];
                // The definition itself, or the end of a longer name.
                let longer = begin.ends_with(|c: char| c.is_alphanumeric() || c == '_');
                if begin.ends_with("fn ") || (longer && !call.starts_with(['.', ' '])) {
                    continue;
                }
                let arguments = arguments(&text[at + call.len()..]);
                let named = match argument {
                    Some(place) => split(arguments).get(*place).copied().unwrap_or_default(),
                    None => arguments,
                };
                if let Some(word) = words(named).first() {
                    found.insert(((*word).to_owned(), file.clone()));
                }
            }
        }
        // Chosen first, used later.
        for choice in text.split("let event = ").skip(1) {
            let choice = choice.split(";\n").next().unwrap();
            // A reason for which something is refused in the middle of the choice is no event.
            let lines = choice
                .lines()
                .filter(|line| !line.contains("Err(") && !line.contains("_err("));
            for word in lines.flat_map(words) {
                found.insert((word.to_owned(), file.clone()));
            }
        }
    }
    found
}

#[test]
fn every_word_that_names_a_record_is_listed() {
    let listed: BTreeSet<&str> = EVENTS
        .iter()
        .flat_map(|(_, events)| events.iter().map(|e| e.word))
        .collect();
    let found = named(&code());
    assert!(found.len() > 60, "only {} places were found", found.len());
    let missing: Vec<_> = found
        .iter()
        .filter(|(word, _)| !listed.contains(word.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "add them to firestore-schema/src/audit/events.rs: {missing:#?}"
    );
}

#[test]
fn every_listed_word_is_used_and_listed_once() {
    let code = code();
    let mut seen = BTreeSet::new();
    for (_, events) in EVENTS {
        for event in *events {
            assert!(seen.insert(event.word), "{} is listed twice", event.word);
            let quoted = format!("\"{}\"", event.word);
            assert!(
                code.iter().any(|(_, text)| text.contains(&quoted)),
                "nothing is recorded as {}",
                event.word
            );
        }
    }
}
