//! `[devices.issuer]` and `mqtt.webhook_*`: complete, or refused by the key's full name.

use super::{LEAST, parse};

#[test]
fn the_issuer_of_secret_ids_is_complete_or_refused() {
    let with = |lines: &str| parse(&format!("{LEAST}\n[devices.issuer]\n{lines}"));
    let vault = "kind = \"vault\"\naddress = \"https://vault.example.org:8200\"\n";
    for good in [
        "kind = \"embedded\"",
        &format!("{vault}token_file = \"t\"\nwrap_ttl = \"5m\""),
        &format!(
            "{vault}own_role_id = \"r\"\nown_secret_id_file = \"s\"\nown_mount = \"services/approle\"\nnamespace = \"a/b\""
        ),
    ] {
        with(good).unwrap();
    }
    for (wrong, expected) in [
        ("kind = \"consul\"", "devices.issuer.kind: "),
        (
            "kind = \"vault\"\ntoken_file = \"t\"",
            "devices.issuer.address",
        ),
        (vault, "devices.issuer.token_file"),
        ("token_file = \"t\"", "devices.issuer.token"),
        ("wrap_ttl = \"5m\"", "devices.issuer.wrap_ttl"),
        ("kind = \"embedded\"\nmount = \"x\"", "devices.issuer.mount"),
        ("cidrs = [\"10.0.0.1/8\"]", "devices.issuer.cidrs"),
        (
            &format!("{vault}own_role_id = \"r\""),
            "devices.issuer.own_secret_id_file",
        ),
        (
            &format!("{vault}own_secret_id_file = \"s\""),
            "devices.issuer.own_role_id",
        ),
        (
            &format!("{vault}token_file = \"t\"\nown_role_id = \"r\""),
            "devices.issuer.token",
        ),
        (
            &format!("{vault}token_file = \"t\"\nown_mount = \"m\""),
            "devices.issuer.own_mount",
        ),
        (
            "kind = \"vault\"\naddress = \"http://vault.example.org\"\ntoken_file = \"t\"",
            "devices.issuer.address: ",
        ),
        (
            &format!("{vault}token_file = \"t\"\nmount = \"../sys\""),
            "devices.issuer.mount: ",
        ),
    ] {
        let error = with(wrong).unwrap_err();
        assert!(error.contains(expected), "{wrong}: {error}");
    }
}

#[test]
fn the_listener_for_brokers_is_complete_or_refused() {
    let with = |lines: &str| {
        parse(&format!(
            "{LEAST}\n[devices.issuer]\nkind = \"embedded\"\n[mqtt]\nurl = \"mqtt://localhost\"\n{lines}"
        ))
    };
    let whole = [
        "webhook_listen = \"127.0.0.1:0\"",
        "webhook_certificate_file = \"c\"",
        "webhook_certificate_key_file = \"k\"",
        "webhook_client_ca_file = \"ca\"",
        "webhook_client_names = [\"broker.example.org\", \"10.0.0.1\"]",
    ];
    with(&whole.join("\n")).unwrap();
    // No message has to come by subscription then.
    with(&format!("subscribe = false\n{}", whole.join("\n"))).unwrap();
    for (number, line) in whole.iter().enumerate() {
        let mut rest = whole.to_vec();
        rest.remove(number);
        let error = with(&rest.join("\n")).unwrap_err().to_string();
        let key = line.split(' ').next().unwrap();
        assert!(error.contains(&format!("mqtt.{key}")), "{line}: {error}");
    }
    for names in ["[]", "[\"\"]", "[\"not a name\"]"] {
        let mut lines = whole.to_vec();
        let names = format!("webhook_client_names = {names}");
        lines[4] = &names;
        let error = with(&lines.join("\n")).unwrap_err().to_string();
        assert!(error.contains("mqtt.webhook_client_names"), "{error}");
    }
}
