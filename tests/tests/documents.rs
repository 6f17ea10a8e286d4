//! What the documents draw is what the manifests say.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

const PACKAGES: [(&str, &str); 6] = [
    ("keyturn-proto", "mobile-proto"),
    ("keyturn-admin", "mobile-proto/admin"),
    ("keyturn-mls", "mls"),
    ("keyturn-store", "firestore-schema"),
    ("keyturn", "relay-plugin"),
    ("keyturn-tests", "tests"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

#[test]
fn the_drawn_arrows_are_the_dependencies() {
    let text = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let house = text
        .split("```mermaid")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let drawn: BTreeSet<(String, String)> = house
        .lines()
        .filter_map(|line| line.split_once(" --> "))
        .map(|(from, to)| (from.trim().to_owned(), to.trim().to_owned()))
        .collect();
    let mut real = BTreeSet::new();
    for (name, folder) in PACKAGES {
        let manifest = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        for dependency in manifest["dependencies"].as_table().unwrap().keys() {
            if PACKAGES.iter().any(|(package, _)| package == dependency) {
                real.insert((name.to_owned(), dependency.clone()));
            }
        }
    }
    assert_eq!(drawn, real);
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let docs = root().join("docs");
    let mut pages = vec![root().join("README.md")];
    pages.extend(
        std::fs::read_dir(&docs)
            .unwrap()
            .map(|entry| entry.unwrap().path()),
    );
    let mut links = 0;
    for page in pages
        .iter()
        .filter(|page| page.extension().is_some_and(|end| end == "md"))
    {
        let text = std::fs::read_to_string(page).unwrap();
        for target in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            if target.contains("://") || target.starts_with('#') {
                continue;
            }
            links += 1;
            let file = target.split('#').next().unwrap();
            assert!(
                page.parent().unwrap().join(file).exists(),
                "{} links to {target}",
                page.display()
            );
        }
    }
    assert!(links > 10, "only {links} links were found");
}
