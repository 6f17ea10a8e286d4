//! What is described is recorded, and what is recorded is described.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use ::metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

use super::*;

/// All names by the identifier they have in `metrics.rs`.
fn names() -> Vec<(String, String)> {
    let text = include_str!("../metrics.rs");
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.strip_prefix("pub const ")?.split_once(": &str = ")?;
            Some((name.to_owned(), value.trim_matches(['"', ';']).to_owned()))
        })
        .collect()
}

fn sources(dir: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path.display().to_string(), text));
        }
    }
}

/// The sources of this crate but for the list of names and its tests.
fn others() -> Vec<(String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&src, &mut found);
    found.retain(|(path, _)| !path.contains("/metrics.rs") && !path.contains("/tests"));
    found
}

#[test]
fn every_name_is_recorded_and_no_name_is_written_elsewhere() {
    let names = names();
    assert_eq!(
        names.len(),
        COUNTERS.len() + GAUGES.len() + HISTOGRAMS.len(),
        "every name is described"
    );
    let others = others();
    for (constant, name) in &names {
        assert!(name.starts_with("keyturn_"), "{name}");
        let recorded = [format!("names::{constant})"), format!("names::{constant},")]
            .into_iter()
            .chain([
                format!("metrics::{constant})"),
                format!("metrics::{constant},"),
            ])
            .chain([format!("!({constant})"), format!("!({constant},")]);
        let recorded: Vec<String> = recorded.collect();
        assert!(
            others
                .iter()
                .any(|(_, text)| recorded.iter().any(|use_of| text.contains(use_of))),
            "{constant} promises what nobody records"
        );
    }
    for (path, text) in &others {
        for macro_name in ["counter!(\"", "gauge!(\"", "histogram!(\""] {
            assert!(!text.contains(macro_name), "{path} names a metric itself");
        }
    }
}

#[test]
fn every_metric_is_shown_with_its_help_text() {
    let recorder = builder().unwrap().build_recorder();
    let shown = metrics::with_local_recorder(&recorder, || {
        describe();
        for (name, _) in COUNTERS {
            metrics::counter!(name).increment(1);
        }
        for (name, _) in GAUGES {
            metrics::gauge!(name).set(1.0);
        }
        for (name, _, _) in HISTOGRAMS {
            metrics::histogram!(name).record(0.01);
        }
        recorder.handle().render()
    });
    let kinds = COUNTERS
        .iter()
        .map(|(name, help)| (name, help, "counter"))
        .chain(GAUGES.iter().map(|(name, help)| (name, help, "gauge")))
        .chain(
            HISTOGRAMS
                .iter()
                .map(|(name, _, help)| (name, help, "histogram")),
        );
    for (name, help, kind) in kinds {
        assert!(shown.contains(&format!("# HELP {name} {help}\n")), "{name}");
        assert!(shown.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
    }
}

/// Takes down what is described.
#[derive(Default)]
struct Described(std::sync::Mutex<std::collections::BTreeMap<String, (&'static str, String)>>);

impl Described {
    fn note(&self, name: &KeyName, kind: &'static str, help: &SharedString) {
        let mut all = self.0.lock().unwrap();
        all.insert(name.as_str().to_owned(), (kind, help.to_string()));
    }
}

impl Recorder for Described {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.note(&name, "counter", &help);
    }
    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.note(&name, "gauge", &help);
    }
    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.note(&name, "histogram", &help);
    }
    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }
    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }
    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

const COMMAND: &str = "KEYTURN_REGENERATE=1 cargo test -p keyturn --lib metrics::tests::the_page";

#[test]
fn the_page_lists_every_metric_with_its_help_text() {
    let described = Described::default();
    ::metrics::with_local_recorder(&described, describe);
    let mut page = format!(
        "# Metrics\n\nGenerated from `relay-plugin/src/metrics.rs` and `firestore-schema/src/metrics.rs`; do not edit. To make it again: `{COMMAND}`.\n\n\
         What rnostr itself counts is not here. Which of them deserve an alert: [operations.md](../operations.md), \"What to watch\".\n\n\
         | metric | | what |\n|---|---|---|\n"
    );
    let all = described.0.into_inner().unwrap();
    let ours = all.iter().filter(|(name, _)| name.starts_with("keyturn_"));
    for (name, (kind, help)) in ours {
        page.push_str(&format!("| `{name}` | {kind} | {help} |\n"));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/generated/metrics.md");
    if std::env::var_os("KEYTURN_REGENERATE").is_some() {
        fs::write(&path, &page).unwrap();
        return;
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == page,
        "docs/generated/metrics.md is out of date; run: {COMMAND}"
    );
}
