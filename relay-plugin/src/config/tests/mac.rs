//! `[mac]`: the two kinds, and what does not go together.

use std::time::Duration;

use super::{LEAST, parse, with_environment};
use crate::config::{CloudKms, Mac, ValidatedConfig};

const KEY: &str = "projects/p/locations/europe-west3/keyRings/r/cryptoKeys/pepper";

fn with_mac(section: &str) -> Result<ValidatedConfig, String> {
    parse(&LEAST.replace(
        "key_file = \"secrets/mac.key\"\n[issuer]",
        &format!("{section}\n[issuer]"),
    ))
}

fn kms(more: &str) -> Result<CloudKms, String> {
    let section = format!("kind = \"cloud_kms\"\nkey = \"{KEY}\"\nversion = 3\n{more}");
    match with_mac(&section)?.mac {
        Mac::CloudKms(kms) => Ok(kms),
        Mac::Local { .. } => Err("local".to_owned()),
    }
}

#[test]
fn cloud_kms_needs_a_key_and_a_version_and_has_defaults_for_the_rest() {
    let found = kms("").unwrap();
    assert_eq!(found.key.as_str(), KEY);
    assert_eq!(found.version.get(), 3);
    assert_eq!(found.endpoint, None);
    assert!(found.previous_keys.is_empty() && found.previous_key_files.is_empty());
    let second = Duration::from_secs(1);
    assert_eq!(
        (found.timeout, found.attempt_timeout),
        (second * 10, second * 3)
    );

    let other = "projects/p/locations/l/keyRings/r/cryptoKeys/old";
    let found = kms(&format!(
        "previous_keys = [\"{other}\"]\nprevious_key_files = [\"secrets/mac.key\"]\nendpoint = \"https://kms.internal:8443\"\ntimeout = \"5s\"\nattempt_timeout = \"2s\""
    ))
    .unwrap();
    assert_eq!(found.previous_keys[0].as_str(), other);
    assert_eq!(
        found.previous_key_files[0].to_str(),
        Some("/etc/keyturn/secrets/mac.key"),
        "relative to the configuration"
    );
    assert_eq!(
        found.endpoint.unwrap().as_str(),
        "https://kms.internal:8443"
    );
}

#[test]
fn a_local_key_may_have_predecessors() {
    let config =
        with_mac("key_file = \"new.key\"\nprevious_key_files = [\"old.key\", \"older.key\"]")
            .unwrap();
    let Mac::Local {
        key_file,
        previous_key_files,
    } = config.mac
    else {
        unreachable!("local is the default")
    };
    assert!(key_file.ends_with("new.key"));
    assert_eq!(previous_key_files.len(), 2);
}

#[test]
fn what_is_missing_wrong_or_of_the_other_kind_is_named() {
    for (section, error) in [
        (
            "kind = \"vault\"",
            "mac.kind: expected \"local\" or \"cloud_kms\"",
        ),
        (
            "kind = \"cloud_kms\"\nversion = 1",
            "mac.key: missing; expected the full name of a key",
        ),
        (
            &format!("kind = \"cloud_kms\"\nkey = \"{KEY}\""),
            "mac.version: missing",
        ),
        (
            &format!("kind = \"cloud_kms\"\nkey = \"{KEY}\"\nversion = 0"),
            "mac.version: expected a whole number from 1",
        ),
        (
            &format!("kind = \"cloud_kms\"\nversion = 1\nkey = \"{KEY}/cryptoKeyVersions/1\""),
            "mac.key: expected the full name of a key",
        ),
        (
            &format!("kind = \"cloud_kms\"\nversion = 1\nkey = \"{KEY}\"\nkey_file = \"mac.key\""),
            "mac.key_file: is only for mac.kind = \"local\"; name it in mac.previous_key_files",
        ),
        (
            &format!("key_file = \"mac.key\"\nkey = \"{KEY}\""),
            "mac.key: is only for mac.kind = \"cloud_kms\"",
        ),
        (
            "key_file = \"mac.key\"\nversion = 1",
            "mac.version: is only for mac.kind = \"cloud_kms\"",
        ),
        (
            "key_file = \"mac.key\"\nprevious_keys = []",
            "mac.previous_keys: is only for",
        ),
        (
            "key_file = \"mac.key\"\nendpoint = \"https://a\"",
            "mac.endpoint: is only for",
        ),
    ] {
        let found = with_mac(section).unwrap_err();
        assert!(found.starts_with(error), "{section}: {found}");
    }
    for (more, error) in [
        (
            "endpoint = \"http://kms.internal\"",
            "mac.endpoint: expected https://",
        ),
        (
            "timeout = \"2s\"\nattempt_timeout = \"3s\"",
            "mac.attempt_timeout: is longer than mac.timeout",
        ),
        (
            &format!("previous_keys = [\"{KEY}\"]"),
            "mac.previous_keys: names mac.key",
        ),
        (
            "previous_keys = [\"pepper\"]",
            "mac.previous_keys: expected a list of full names of keys",
        ),
        (
            "previous_key_files = [\"\"]",
            "mac.previous_key_files: expected a list of paths",
        ),
    ] {
        let found = kms(more).err().unwrap();
        assert!(found.starts_with(error), "{more}: {found}");
    }
}

#[test]
fn variables_choose_the_version() {
    let without_file = LEAST.replace("key_file = \"secrets/mac.key\"\n", "");
    assert!(without_file.contains("[mac]\n[issuer]"));
    let error = with_environment([("KEYTURN_MAC__KIND", "cloud_kms")]).unwrap_err();
    assert!(error.starts_with("mac.key_file: is only for"), "{error}");
    let config = crate::config::Config::parse(
        &without_file,
        std::path::Path::new("/etc/keyturn/keyturn.toml"),
        crate::config::Environment::from_pairs([
            ("KEYTURN_MAC__KIND", "cloud_kms"),
            ("KEYTURN_MAC__KEY", KEY),
            ("KEYTURN_MAC__VERSION", "12"),
            ("KEYTURN_MAC__ENDPOINT", "http://127.0.0.1:9"),
        ]),
    )
    .unwrap();
    let Mac::CloudKms(found) = config.mac else {
        unreachable!("it was chosen")
    };
    assert_eq!(found.version.get(), 12);
    assert!(found.endpoint.unwrap().is_plain());
}
