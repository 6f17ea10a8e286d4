//! Every key by name: right, wrong, missing, unknown, overridden, and documented.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, path::Path, time::Duration};

use super::{Config, Environment, Profile, ValidatedConfig};

mod broker;
mod device_issuer;
mod mac;

const EXAMPLE: &str = include_str!("../../../keyturn.example.toml");

/// Only what has no default.
const LEAST: &str = r#"
[relay]
data_dir = "data/relay"
[mls]
database = "data/member.db"
storage_key_file = "secrets/mls-storage.key"
nostr_secret_key_file = "secrets/nostr.nsec"
relays = ["wss://relay.example.org"]
[store]
path = "data/keyturn.db"
[mac]
key_file = "secrets/mac.key"
[issuer]
jwks_url = "https://auth.example.org/.well-known/jwks.json"
[admission]
challenge_key_file = "secrets/challenge.key"
totp_seed_key_file = "secrets/totp-seed.key"
"#;

fn parse(text: &str) -> Result<ValidatedConfig, String> {
    Config::parse(
        text,
        Path::new("/etc/keyturn/keyturn.toml"),
        Environment::default(),
    )
    .map_err(|e| e.to_string())
}

fn with_environment<const N: usize>(pairs: [(&str, &str); N]) -> Result<ValidatedConfig, String> {
    Config::parse(
        LEAST,
        Path::new("/etc/keyturn/keyturn.toml"),
        Environment::from_pairs(pairs),
    )
    .map_err(|e| e.to_string())
}

/// `LEAST` with one key set, whether or not it has a value already.
fn least_with(key: &str, value: &str) -> String {
    let (section, field) = key.rsplit_once('.').unwrap();
    let mut document = LEAST.parse::<toml::Table>().unwrap();
    let table = section.split('.').fold(&mut document, |table, name| {
        table
            .entry(name)
            .or_insert_with(|| toml::Value::Table(Default::default()))
            .as_table_mut()
            .unwrap()
    });
    let parsed = format!("v = {value}").parse::<toml::Table>().unwrap();
    table.insert(field.to_owned(), parsed["v"].clone());
    document.to_string()
}

/// Keys of the example by full name, those behind a comment sign included.
fn keys_in_example() -> BTreeSet<String> {
    let mut section = String::new();
    let mut keys = BTreeSet::new();
    for line in EXAMPLE.lines() {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            section = name.to_owned();
        }
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some((name, _)) = line.split_once(" = ")
            && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        {
            assert!(
                keys.insert(format!("{section}.{name}")),
                "{section}.{name} is in the example twice"
            );
        }
    }
    keys
}

#[test]
fn the_example_documents_every_key_and_no_other() {
    let path = Path::new("/etc/keyturn/keyturn.toml");
    let (_, known) = Config::parse_with_keys(EXAMPLE, path, Environment::default()).unwrap();
    let documented = keys_in_example();
    assert_eq!(
        known.difference(&documented).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "keys missing from the example"
    );
    assert_eq!(
        documented.difference(&known).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "keys that nobody reads"
    );
}

#[test]
fn the_example_states_the_defaults() {
    // Name and description have no useful default; the example shows a value.
    let mut least = parse(LEAST).unwrap();
    let example = parse(EXAMPLE).unwrap();
    least.relay.name.clone_from(&example.relay.name);
    least
        .relay
        .description
        .clone_from(&example.relay.description);
    assert_eq!(format!("{least:#?}"), format!("{example:#?}"));
}

#[test]
fn every_key_of_the_wrong_type_is_refused_by_its_full_name() {
    let path = Path::new("/etc/keyturn/keyturn.toml");
    let (_, known) = Config::parse_with_keys(EXAMPLE, path, Environment::default()).unwrap();
    for key in known {
        let error = parse(&least_with(&key, "{ a = 1 }")).unwrap_err();
        assert!(error.starts_with(&format!("{key}: ")), "{key}: {error}");
    }
}

#[test]
fn values_out_of_range_name_the_key_and_what_was_expected() {
    for (key, value, expected) in [
        ("relay.port", "65536", "a whole number from 0 to 65535"),
        ("relay.port", "-1", "a whole number from 0 to 65535"),
        ("relay.host", "\"localhost\"", "an IP address"),
        ("web.listen", "\"8081\"", "an address and port"),
        ("mls.relays", "[\"https://a\"]", "ws:// or wss://"),
        ("mls.settle", "\"10\"", "\"10m\""),
        ("store.kind", "\"postgres\"", "\"sqlite\""),
        (
            "issuer.jwks_url",
            "\"http://auth.example.org\"",
            "an https:// address",
        ),
        (
            "issuer.algorithms",
            "[\"HS256\"]",
            "\"RS256\", \"ES256\", \"EdDSA\"",
        ),
        (
            "admission.max_proof_lifetime",
            "\"301s\"",
            "from \"1s\" to \"5m\"",
        ),
        (
            "admission.totp",
            "\"none\"",
            "\"proof\", \"relay\", \"both\" or \"either\"",
        ),
        ("policy.max_grace", "\"31d\"", "from \"0s\" to \"30d\""),
        (
            "policy.min_not_before_delay",
            "\"0s\"",
            "from \"1s\" to \"1d\"",
        ),
        ("policy.quorum", "0", "from 1 to 100"),
        ("log.level", "\"loud\"", "a level or a filter"),
        (
            "profile.environment",
            "\"staging\"",
            "\"production\" or \"development\"",
        ),
    ] {
        let error = parse(&least_with(key, value)).unwrap_err();
        assert!(
            error.starts_with(&format!("{key}: expected ")) && error.contains(expected),
            "{key} = {value}: {error}"
        );
    }
}

#[test]
fn contradictions_are_refused() {
    for (key, value, reason) in [
        ("policy.default_grace", "\"30d\"", None),
        (
            "policy.max_grace",
            "\"1d\"",
            Some("policy.default_grace: is longer than policy.max_grace"),
        ),
        (
            "policy.require_proven_ack",
            "false",
            Some("policy.require_proven_ack: must be true in production"),
        ),
        (
            "policy.requester_ack_counts",
            "true",
            Some("policy.requester_ack_counts: must be false in production"),
        ),
        (
            "issuer.jwks_file",
            "\"jwks.json\"",
            Some("issuer.jwks_url: given together with issuer.jwks_file"),
        ),
        (
            "issuer.algorithms",
            "[]",
            Some("issuer.algorithms: is empty"),
        ),
        (
            "relay.auth.require_to_read",
            "true",
            Some("relay.auth.enabled: is false"),
        ),
        (
            "mls.storage_key",
            "\"00\"",
            Some("mls.storage_key: given both here and by mls.storage_key_file"),
        ),
    ] {
        let result = parse(&least_with(key, value));
        match reason {
            None => assert!(result.is_ok(), "{key} = {value}: {:?}", result.err()),
            Some(reason) => assert!(
                result.as_ref().is_err_and(|e| e.starts_with(reason)),
                "{key} = {value}: {:?}",
                result.err()
            ),
        }
    }
}

#[test]
fn each_value_without_default_is_missed_by_name() {
    for line in LEAST.lines().filter(|line| line.contains(" = ")) {
        let error = parse(&LEAST.replace(line, "")).unwrap_err();
        let field = line.split_once(" = ").unwrap().0;
        assert!(
            error.contains(&format!(".{field}: missing; expected ")),
            "{line}: {error}"
        );
    }
}

#[test]
fn unknown_keys_sections_and_variables_are_refused() {
    assert_eq!(
        parse(&format!("{LEAST}\n[relay.auht]\nenabled = true")).unwrap_err(),
        "relay.auht.enabled: unknown key"
    );
    assert_eq!(
        parse(&format!("{LEAST}\n[polcy]")).unwrap_err(),
        "polcy: unknown key"
    );
    assert_eq!(
        parse(&format!("port = 1\n{LEAST}")).unwrap_err(),
        "port: unknown key"
    );
    assert!(
        with_environment([("KEYTURN_RELAY__PROT", "1")])
            .unwrap_err()
            .contains("KEYTURN_RELAY__PROT: unknown")
    );
    assert!(
        with_environment([("KEYTURN_HOME", "/"), ("PATH", "/bin")]).is_ok(),
        "not ours"
    );
}

#[test]
fn variables_override_the_file() {
    let config = with_environment([
        ("KEYTURN_RELAY__PORT", "0"),
        ("KEYTURN_RELAY__AUTH__ENABLED", "true"),
        ("KEYTURN_POLICY__MIN_NOT_BEFORE_DELAY", "0s"),
        ("KEYTURN_POLICY__DENYLIST", "a, b"),
        ("KEYTURN_PROFILE__ENVIRONMENT", "development"),
        ("KEYTURN_MLS__STORAGE_KEY", &"07".repeat(32)),
        (
            "KEYTURN_ADMISSION__CHALLENGE_KEY_FILE",
            "/run/secrets/challenge",
        ),
    ])
    .unwrap();
    assert_eq!(
        (config.relay.port, config.relay.auth.enabled, config.profile),
        (0, true, Profile::Development)
    );
    assert_eq!(config.policy.min_not_before_delay, Duration::ZERO);
    assert_eq!(config.policy.denylist, ["a", "b"]);
    assert_eq!(
        config.mls.storage_key.key32().unwrap().expose(),
        &[7; 32],
        "a value overrides a file"
    );
    assert_eq!(
        config.admission.challenge_key.path(),
        Some(Path::new("/run/secrets/challenge"))
    );
    let error = with_environment([("KEYTURN_RELAY__PORT", "many")]).unwrap_err();
    assert!(
        error.starts_with("relay.port: ") && error.contains("KEYTURN_RELAY__PORT"),
        "{error}"
    );
}

#[test]
fn relative_paths_are_relative_to_the_file() {
    let config = parse(LEAST).unwrap();
    assert_eq!(config.relay.data_dir, Path::new("/etc/keyturn/data/relay"));
    assert_eq!(
        config.mls.storage_key.path(),
        Some(Path::new("/etc/keyturn/secrets/mls-storage.key"))
    );
}

#[test]
fn a_syntax_error_tells_the_line_and_not_its_text() {
    let text = LEAST.replace(
        "storage_key_file = \"secrets/mls-storage.key\"",
        "storage_key = \"hunter2",
    );
    let error = parse(&text).unwrap_err();
    assert!(error.contains("line 6"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
}

const FIRESTORE: &str = "kind = \"firestore\"\nproject = \"acme-prod\"";

fn firestore(more: &str) -> Result<ValidatedConfig, String> {
    let store = format!("[store]\n{FIRESTORE}\n{more}");
    parse(&LEAST.replace("[store]\npath = \"data/keyturn.db\"", &store))
}

#[test]
fn the_firestore_store_needs_a_project_and_has_a_database_of_its_own() {
    let super::Store::Firestore(settings) = firestore("").unwrap().store else {
        panic!("not Firestore")
    };
    assert_eq!(settings.project, "acme-prod");
    assert_eq!(settings.database, "keyturn");
    assert_eq!(settings.endpoint(), "https://firestore.googleapis.com");
    assert!(!settings.is_emulator());
    assert_eq!(settings.timeout, Duration::from_secs(10));
    let super::Store::Firestore(settings) = firestore(
        "database = \"keyturn-eu\"\nendpoint = \"http://127.0.0.1:8080\"\ntimeout = \"3s\"",
    )
    .unwrap()
    .store
    else {
        panic!("not Firestore")
    };
    assert_eq!(settings.database, "keyturn-eu");
    assert!(settings.is_emulator());
    assert_eq!(settings.timeout, Duration::from_secs(3));
    let without = LEAST.replace("path = \"data/keyturn.db\"", "kind = \"firestore\"");
    let error = parse(&without).unwrap_err();
    assert!(error.contains("store.project"), "{error}");
}

#[test]
fn what_belongs_to_the_other_store_or_to_nobody_is_refused() {
    for (more, key) in [
        ("path = \"data/keyturn.db\"", "store.path"),
        ("database = \"(default)\"", "store.database"),
        ("database = \"a/b\"", "store.database"),
        ("endpoint = \"http://10.0.0.1:8080\"", "store.endpoint"),
        ("endpoint = \"firestore.googleapis.com\"", "store.endpoint"),
        ("timeout = \"0s\"", "store.timeout"),
    ] {
        let error = firestore(more).unwrap_err();
        assert!(error.contains(key), "{more}: {error}");
    }
    for (key, value) in [
        ("store.project", "\"acme-prod\""),
        ("store.endpoint", "\"http://127.0.0.1:8080\""),
        ("store.kind", "\"postgres\""),
    ] {
        let error = parse(&least_with(key, value)).unwrap_err();
        assert!(error.contains(key), "{key}: {error}");
    }
}

#[test]
fn a_variable_chooses_the_store() {
    let error = with_environment([
        ("KEYTURN_STORE__KIND", "firestore"),
        ("KEYTURN_STORE__PROJECT", "acme-prod"),
    ])
    .unwrap_err();
    assert!(error.contains("store.path"), "{error}");
}
