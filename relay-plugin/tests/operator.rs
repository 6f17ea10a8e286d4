//! The operator's commands as an operator runs them: the real binary, a configuration file, a store on disk.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod installation;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use installation::install;

const ALICE: &str = "npub10xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqpkge6d";

struct Operator(tempfile::TempDir);

impl Operator {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        install(dir.path(), r#"path = "keyturn.db""#);
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn run(&self, line: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_keyturn"))
            .args(line.split_whitespace())
            .arg("--config")
            .arg(self.path().join("keyturn.toml"))
            .env_clear()
            .output()
            .unwrap()
    }

    /// Standard output of a command that succeeds.
    fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(line)).unwrap()
    }

    /// Exit code and standard error of a command that fails; it printed no result.
    fn fails(&self, line: &str) -> (i32, String) {
        let output = self.run(line);
        assert!(output.stdout.is_empty(), "{line}");
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }
}

#[test]
fn an_operator_sets_up_a_group_a_client_and_an_admin() {
    let operator = Operator::new();
    operator.ok(&format!("group bind ops --welcomer {ALICE}"));
    operator.ok(&format!(
        "group bind ops --mls-group-id 0a0b --nostr-group-id {} --welcomer {ALICE}",
        "0c".repeat(32)
    ));
    operator.ok("client add ext-totp-svc --group ops");
    let enrolled = operator.json(&format!(
        "admin enroll {ALICE} --client ext-totp-svc --json"
    ));
    assert_eq!(enrolled["npub"], ALICE);
    let uri = enrolled["otpauth"].as_str().unwrap();
    assert!(uri.starts_with("otpauth://totp/"), "{uri}");

    let group = &operator.json("group list --json")[0];
    assert_eq!(
        (&group["alias"], &group["mls_group_id"]),
        (&"ops".into(), &"0a0b".into())
    );
    assert_eq!(group["status"]["state"], "active");
    let client = operator.json("client show ext-totp-svc --json");
    assert_eq!(
        (&client["current_version"], &client["versions"]),
        (&Value::Null, &Value::Array(vec![]))
    );
    assert_eq!(
        operator.json("client list --json")[0]["admin_groups"][0],
        "ops"
    );
    let admin = &operator.json("admin list --json")[0];
    assert_eq!(
        (&admin["active"], &admin["totp"]),
        (&true.into(), &true.into())
    );
    assert_eq!(admin["scope"]["only"][0], "ext-totp-svc");

    for (line, word) in [
        ("group suspend ops", "suspended"),
        ("group list", "suspended: by the operator"),
        ("group approve ops", "served"),
        ("client suspend ext-totp-svc", "suspended"),
        ("client list", "suspended by the operator"),
        ("client activate ext-totp-svc", "active"),
        ("client show ext-totp-svc", "groups ops"),
        (&format!("admin revoke {ALICE}"), "revoked"),
        ("admin list", "revoked"),
    ] {
        let shown = operator.ok(line);
        assert!(shown.contains(word), "{line}: {shown}");
    }
}

#[test]
fn a_seed_is_shown_once_and_lies_nowhere_in_the_clear() {
    let operator = Operator::new();
    let shown = operator.ok(&format!("admin enroll {ALICE}"));
    let uri = shown.lines().last().unwrap();
    assert!(shown.contains('\u{2588}'), "with a QR code");
    let secret = uri
        .split_once("secret=")
        .unwrap()
        .1
        .split('&')
        .next()
        .unwrap()
        .to_owned();
    assert_eq!(secret.len(), 32, "160 bits in base32");

    let again = operator.ok(&format!("admin enroll {ALICE}"));
    let listed = operator.ok("admin list --json") + &operator.ok("admin list");
    for later in [again, listed] {
        assert!(
            !later.contains("otpauth") && !later.contains(&secret),
            "{later}"
        );
    }
    for file in std::fs::read_dir(operator.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(
            !bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes())
        );
    }
    let renewed = operator.json(&format!("admin enroll {ALICE} --new-seed --json"));
    assert!(!renewed["otpauth"].as_str().unwrap().contains(&secret));
}

#[test]
fn what_cannot_be_done_says_why_and_exits_with_a_code() {
    let operator = Operator::new();
    for (line, code, words) in [
        (
            "client add c --group nowhere",
            1,
            "there is no group `nowhere`",
        ),
        ("client show nobody", 1, "there is no client `nobody`"),
        ("client add a/b --group ops", 2, "client_id"),
        ("group approve nowhere", 1, "there is no group `nowhere`"),
        ("group bind ops", 2, "--welcomer"),
        ("admin revoke npub1", 2, "npub"),
        (&format!("admin revoke {ALICE}"), 1, "there is no admin"),
        (
            &format!("admin enroll {ALICE} --key-package /nonexistent"),
            1,
            "/nonexistent",
        ),
    ] {
        let (exit, stderr) = operator.fails(line);
        assert_eq!(exit, code, "{line}: {stderr}");
        assert!(stderr.contains(words), "{line}: {stderr}");
    }
    std::fs::remove_file(operator.path().join("totp-seed.key")).unwrap();
    let (exit, stderr) = operator.fails(&format!("admin enroll {ALICE}"));
    assert_eq!(exit, 2, "{stderr}");
    assert!(stderr.contains("admission.totp_seed_key"), "{stderr}");
}
