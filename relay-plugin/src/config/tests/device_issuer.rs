//! `[devices.issuer]`: complete, or refused by the key's full name.

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
