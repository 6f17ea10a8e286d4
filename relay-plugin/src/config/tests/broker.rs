//! `[mqtt]`: complete, or refused by the key's full name.

use super::{LEAST, parse};

#[test]
fn the_broker_is_complete_or_refused() {
    let with = |lines: &str| {
        parse(&format!(
            "{LEAST}\n[devices.issuer]\nkind = \"embedded\"\n[mqtt]\n{lines}"
        ))
    };
    let tls = "url = \"mqtts://broker.example.org\"\n";
    let whole = format!("{tls}ca_file = \"ca\"\n");
    for good in [
        whole.clone(),
        format!("{whole}username = \"keyturn\"\npassword_file = \"p\""),
        format!("{whole}username = \"keyturn\""),
        format!("{whole}certificate_file = \"c\"\ncertificate_key_file = \"k\""),
        "url = \"mqtt://127.0.0.1:1884\"".to_owned(),
    ] {
        with(&good).unwrap_or_else(|error| panic!("{good}: {error}"));
    }
    for (wrong, expected) in [
        (tls.to_owned(), "mqtt.ca_file"),
        (
            format!("{whole}password_file = \"p\""),
            "mqtt.password: needs mqtt.username",
        ),
        (
            format!("{whole}certificate_file = \"c\""),
            "mqtt.certificate_file: goes with mqtt.certificate_key_file",
        ),
        (
            format!("{whole}certificate_key_file = \"k\""),
            "mqtt.certificate_file: goes with mqtt.certificate_key_file",
        ),
        (
            "url = \"mqtt://broker.example.org\"".to_owned(),
            "mqtt.url: must be an mqtts:// address in production",
        ),
        (
            "url = \"mqtt://localhost\"\nca_file = \"ca\"".to_owned(),
            "mqtt.ca_file: needs an mqtts:// address",
        ),
        (
            "username = \"keyturn\"".to_owned(),
            "mqtt.username: needs mqtt.url",
        ),
        (format!("{whole}version = \"4\""), "mqtt.version"),
        (format!("{whole}share = \"a/b\""), "mqtt.share"),
        (
            format!("{whole}subscribe = false"),
            "mqtt.subscribe: is false",
        ),
    ] {
        let error = with(&wrong).unwrap_err();
        assert!(error.contains(expected), "{wrong}: {error}");
    }
}
