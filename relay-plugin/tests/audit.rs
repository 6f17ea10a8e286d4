//! `keyturn audit` as an auditor runs it: the real binary, a store on disk, and somebody who edits that store.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod installation;

use std::path::PathBuf;
use std::process::{Command, Output};

use rusqlite::Connection;
use serde_json::Value;

use installation::install;

const ALICE: &str = "npub10xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqpkge6d";
const CLIENT: &str = "client:ext-totp-svc";
const OPERATOR: &str = "instance:operator";

/// What the exit code says.
const WHOLE: i32 = 0;
const FAILED: i32 = 1;
const TOUCHED: i32 = 3;

struct Auditor(tempfile::TempDir);

impl Auditor {
    /// A store with a trail: four entries about a client, some about none.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        install(dir.path(), r#"path = "keyturn.db""#);
        let auditor = Self(dir);
        for line in [
            &format!("group bind ops --welcomer {ALICE}"),
            "client add ext-totp-svc --group ops",
            "client suspend ext-totp-svc",
            "client activate ext-totp-svc",
            "client suspend ext-totp-svc",
            "group suspend ops",
        ] {
            assert_eq!(auditor.configured(line).0, WHOLE, "{line}");
        }
        auditor
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn output(&self, line: &str, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_keyturn"))
            .args(line.split_whitespace())
            .args(more)
            .current_dir(self.0.path())
            .env_clear()
            .output()
            .unwrap()
    }

    fn run(&self, line: &str, more: &[&str]) -> (i32, String) {
        let output = self.output(line, more);
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), text)
    }

    fn configured(&self, line: &str) -> (i32, String) {
        self.run(line, &["--config", "keyturn.toml"])
    }

    /// The findings that `audit verify` reports, and its exit code.
    fn findings(&self, line: &str) -> (i32, Vec<String>) {
        let (code, text) = self.configured(line);
        let findings = text
            .lines()
            .filter_map(|line| line.strip_prefix("    "))
            .map(ToOwned::to_owned);
        (code, findings.collect())
    }

    /// Somebody with write access, who is not stopped by triggers.
    fn tamper(&self, sql: &str) {
        let db = Connection::open(self.path("keyturn.db")).unwrap();
        let triggers: Vec<String> = {
            let mut statement = db
                .prepare("SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name LIKE 'audit%'")
                .unwrap();
            let names = statement.query_map([], |row| row.get(0)).unwrap();
            names.collect::<Result<_, _>>().unwrap()
        };
        for name in triggers {
            db.execute_batch(&format!("DROP TRIGGER {name}")).unwrap();
        }
        db.execute_batch(sql).unwrap();
        assert!(db.changes() > 0, "{sql}");
    }

    /// The document id of the client's head.
    fn head_id(&self) -> String {
        let (_, text) = self.configured("audit verify --client ext-totp-svc --json");
        let report: Value = serde_json::from_str(&text).unwrap();
        report["chains"][0]["id"].as_str().unwrap().to_owned()
    }

    /// A copy to try something else on.
    fn copy(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(self.0.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        Self(dir)
    }
}

/// The document of one entry.
fn entry(chain: &str, seq: u32) -> String {
    format!("json_extract(doc, '$.chain') = '{chain}' AND json_extract(doc, '$.seq') = {seq}")
}

#[test]
fn an_untouched_trail_is_whole_and_its_heads_can_be_noted() {
    let auditor = Auditor::new();
    let (code, heads) = auditor.configured("audit verify");
    assert_eq!(code, WHOLE, "{heads}");
    let mut names: Vec<&str> = heads
        .lines()
        .map(|line| line.rsplit_once(':').unwrap().0)
        .collect();
    names.sort_unstable();
    assert_eq!(names, [format!("{CLIENT}=4"), format!("{OPERATOR}=2")]);

    // The chains grow, and what was noted is still in them.
    std::fs::write(auditor.path("heads"), &heads).unwrap();
    assert_eq!(auditor.configured("client activate ext-totp-svc").0, WHOLE);
    let (code, later) = auditor.configured("audit verify --expect-from heads");
    assert_eq!(code, WHOLE, "{later}");
    assert!(later.contains(&format!("{CLIENT}=5:")), "{later}");
    let head = heads.lines().next().unwrap();
    assert_eq!(
        auditor
            .configured(&format!("audit verify --expect {head}"))
            .0,
        WHOLE
    );

    let (code, text) = auditor.configured("audit verify --client ext-totp-svc --json");
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &report["ok"]), (WHOLE, &true.into()));
    assert_eq!(report["chains"][0]["chain"], CLIENT);
    assert_eq!(report["chains"][0]["seq"], 5);
    assert_eq!(report["chains"].as_array().unwrap().len(), 1);
}

/// What is planted for a client beside its chain is not in what one chain says; the report says so, and the whole check finds it.
#[test]
fn a_check_of_one_chain_says_that_it_is_one() {
    const SAID: &str = "only this chain was looked at";
    let auditor = Auditor::new();
    auditor.tamper(
        "INSERT INTO audit (id, client_id, doc) SELECT 'ffffffffffffffffffffffffffffffff-0000000001', client_id, doc FROM audit WHERE client_id = 'ext-totp-svc' LIMIT 1",
    );
    let (code, text) = auditor.configured("audit verify --client ext-totp-svc");
    assert_eq!(code, WHOLE, "{text}");
    assert!(text.contains(SAID), "{text}");
    let (code, found) = auditor.configured("audit verify");
    assert_ne!(code, WHOLE, "{found}");
    assert!(!found.contains(SAID), "{found}");
    for (line, looked) in [
        ("audit verify --json", "trail"),
        ("audit verify --client ext-totp-svc --json", "chain"),
    ] {
        let (_, text) = auditor.configured(line);
        let report: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(report["looked_at"], looked, "{line}");
    }
    // Kept with the heads, it is passed over.
    std::fs::write(auditor.path("heads"), &text).unwrap();
    let (code, text) = auditor.configured("audit verify --client ext-totp-svc --expect-from heads");
    assert_eq!(code, WHOLE, "{text}");
}

#[test]
fn whatever_is_done_to_the_trail_is_found() {
    let untouched = Auditor::new();
    let client = |seq| entry(CLIENT, seq);
    let cases = [
        (
            format!("DELETE FROM audit WHERE {}", client(2)),
            "entry 2 was removed",
        ),
        (
            format!(
                "UPDATE audit SET doc = json_set(doc, '$.reason', 'nothing') WHERE {}",
                client(3)
            ),
            "entry 3 was edited",
        ),
        (
            format!("DELETE FROM audit WHERE {}", client(4)),
            "the head names entry 4, but the last one is 3",
        ),
        (
            format!("DELETE FROM audit_chains WHERE json_extract(doc, '$.chain') = '{CLIENT}'"),
            "there are entries up to 4, but no head",
        ),
        (
            format!(
                "UPDATE audit_chains SET doc = json_set(doc, '$.seq', 3) WHERE json_extract(doc, '$.chain') = '{CLIENT}'"
            ),
            "the head names entry 3, but there are entries up to 4",
        ),
        (
            format!("UPDATE audit SET doc = 'x' WHERE {}", client(1)),
            "-0000000001 cannot be read",
        ),
        (
            format!(
                "UPDATE audit SET doc = (SELECT doc FROM audit WHERE {}) WHERE {}",
                entry(OPERATOR, 1),
                client(2)
            ),
            "does not belong here",
        ),
        (
            format!(
                "UPDATE audit SET doc = (SELECT doc FROM audit WHERE {}) WHERE {}",
                client(3),
                client(2)
            ),
            "entry 3 was found in the place of entry 2",
        ),
        (
            format!(
                "UPDATE audit_chains SET doc = json_set(doc, '$.status', 'active') WHERE json_extract(doc, '$.chain') = '{CLIENT}'"
            ),
            "the head's status and the client document differ",
        ),
        (
            format!(
                "UPDATE audit_chains SET doc = json_set(doc, '$.grace_until', 1, '$.last_rotation_at', 1) WHERE json_extract(doc, '$.chain') = '{CLIENT}'"
            ),
            "the head's last_rotation_at, grace_until and the client document differ",
        ),
        (
            format!(
                "UPDATE audit_chains SET doc = json_set(doc, '$.client_id', NULL) WHERE json_extract(doc, '$.chain') = '{CLIENT}'"
            ),
            "the head's client_id and the client document differ",
        ),
        (
            "INSERT INTO audit_chains (id, doc) VALUES ('-x', '{}')".to_owned(),
            "-x does not belong here",
        ),
        (
            "DELETE FROM clients".to_owned(),
            "the head tells of a client that is not there",
        ),
        (
            "UPDATE clients SET doc = 'x'".to_owned(),
            "ext-totp-svc cannot be read",
        ),
        (
            format!(
                "DELETE FROM audit WHERE json_extract(doc, '$.chain') = '{CLIENT}';
                 DELETE FROM audit_chains WHERE json_extract(doc, '$.chain') = '{CLIENT}'"
            ),
            "the client is there, but no chain tells of it",
        ),
        (
            // Everything holds, but what came after.
            format!(
                "INSERT INTO audit (id, client_id, doc)
                 SELECT replace(id, '-0000000004', '-0000000005'), client_id, doc FROM audit WHERE {}",
                client(4)
            ),
            "the head names entry 4, but there are entries up to 5",
        ),
    ];
    // Before, within and behind the places of a chain's entries, and where no chain is.
    let strays = ["planted", "-x", "forged-x", "0", "zz-0000000001"].map(ToOwned::to_owned);
    let head = untouched.head_id();
    let near = [
        "-zz",
        "-",
        "",
        "-0000000002x",
        "-00000000002",
        "-0000000000",
    ];
    let strays = strays
        .into_iter()
        .chain(near.map(|tail| format!("{head}{tail}")));
    for id in strays {
        let auditor = untouched.copy();
        auditor.tamper(&format!(
            "INSERT INTO audit (id, client_id, doc) SELECT '{id}', client_id, doc FROM audit WHERE {}",
            client(2)
        ));
        let (code, found) = auditor.findings("audit verify");
        assert_eq!(code, TOUCHED, "{id}: {found:?}");
        assert_eq!(found, [format!("{id} does not belong here")]);
    }
    for (sql, words) in cases {
        let auditor = untouched.copy();
        auditor.tamper(&sql);
        let (code, found) = auditor.findings("audit verify");
        assert_eq!(code, TOUCHED, "{sql}: {found:?}");
        assert!(
            found.iter().any(|line| line.contains(words)),
            "{sql}: {found:?}"
        );
        let (code, text) = auditor.configured("audit verify --json");
        let report: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((code, &report["ok"]), (TOUCHED, &false.into()), "{sql}");
    }
    assert_eq!(untouched.configured("audit verify").0, WHOLE);
}

#[test]
fn a_chain_that_was_written_anew_is_found_by_what_was_noted() {
    let auditor = Auditor::new();
    let (_, heads) = auditor.configured("audit verify");
    // The last entry and all memory of it are gone, consistently; so is a whole chain.
    let shorter = auditor.copy();
    shorter.tamper(&format!(
        "DELETE FROM audit WHERE {};
         UPDATE audit_chains SET doc = json_set(doc, '$.seq', 3, '$.hash',
             (SELECT json_extract(doc, '$.hash') FROM audit WHERE {}))
             WHERE json_extract(doc, '$.chain') = '{CLIENT}'",
        entry(CLIENT, 4),
        entry(CLIENT, 3)
    ));
    assert_eq!(
        shorter.configured("audit verify").0,
        WHOLE,
        "whole in itself"
    );
    std::fs::write(shorter.path("heads"), &heads).unwrap();
    let (code, found) = shorter.findings("audit verify --expect-from heads");
    assert_eq!(
        (code, &*found),
        (
            TOUCHED,
            &["entry 4 is not the one that was noted".to_owned()][..]
        )
    );

    let gone = auditor.copy();
    gone.tamper(&format!(
        "DELETE FROM audit WHERE json_extract(doc, '$.chain') = '{CLIENT}';
         DELETE FROM audit_chains WHERE json_extract(doc, '$.chain') = '{CLIENT}'"
    ));
    std::fs::write(gone.path("heads"), &heads).unwrap();
    // The client itself tells that there was one.
    assert_eq!(gone.configured("audit verify").0, TOUCHED);
    assert_eq!(
        gone.configured("audit verify --expect-from heads").0,
        TOUCHED
    );
    assert_eq!(
        gone.configured("audit verify --client ext-totp-svc").0,
        FAILED
    );
}

#[test]
fn an_export_can_be_checked_without_the_store() {
    let auditor = Auditor::new();
    let (code, lines) = auditor.configured("audit export");
    assert_eq!(code, WHOLE);
    assert_eq!(lines.lines().count(), 6);
    assert_eq!(
        auditor.configured("audit export").1,
        lines,
        "always the same"
    );
    let of_client = auditor
        .configured("audit export --client ext-totp-svc --format jsonl")
        .1;
    let first: Value = serde_json::from_str(of_client.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&first["event"], &first["seq"]),
        (&"client.added".into(), &1.into())
    );
    assert_eq!(first["previous"], "0".repeat(64));
    assert_eq!(of_client.lines().count(), 4);
    assert_eq!(auditor.configured("audit export --since 2999-01-01").1, "");

    let verify = |name: &str, text: &str, more: &[&str]| {
        std::fs::write(auditor.path(name), text).unwrap();
        let mut arguments = vec!["--from", name];
        arguments.extend(more);
        auditor.run("audit verify", &arguments)
    };
    let (code, heads) = verify("whole", &lines, &[]);
    assert_eq!(code, WHOLE, "{heads}");
    assert!(heads.contains(&format!("{CLIENT}=4:")), "{heads}");

    let all: Vec<&str> = of_client.lines().collect();
    let without_second = [all[0], all[2], all[3]].join("\n");
    let (code, text) = verify("holed", &without_second, &[]);
    assert_eq!(code, TOUCHED, "{text}");
    assert!(text.contains("entry 2 was removed"), "{text}");
    let edited = of_client.replace("client.suspended", "client.activated");
    assert_eq!(verify("edited", &edited, &[]).0, TOUCHED);
    let swapped = [all[0], all[2], all[1], all[3]].join("\n");
    assert_eq!(verify("swapped", &swapped, &[]).0, TOUCHED);
    assert_eq!(verify("junk", "{}\n", &[]).0, TOUCHED);
    // The tail of a file is missed only by who knows where it should end.
    let cut = all[..3].join("\n");
    assert_eq!(verify("cut", &cut, &[]).0, WHOLE);
    std::fs::write(auditor.path("heads"), &heads).unwrap();
    assert_eq!(verify("cut", &cut, &["--expect-from", "heads"]).0, TOUCHED);
    // A part begins somewhere, and says so.
    let part = all[2..].join("\n");
    assert_eq!(verify("part", &part, &[]).0, TOUCHED);
    assert_eq!(verify("part", &part, &["--partial"]).0, WHOLE);
}

/// More of them than are read at once.
#[test]
fn what_was_planted_between_entries_hides_none_of_them_from_an_export() {
    let auditor = Auditor::new();
    let before = auditor.configured("audit export --client ext-totp-svc");
    let head = auditor.head_id();
    auditor.tamper(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1200)
         INSERT INTO audit (id, client_id, doc)
         SELECT printf('{head}-0000000001x%04d', i), client_id, doc FROM audit, n WHERE {}",
        entry(CLIENT, 2)
    ));
    let (_, after) = auditor.configured("audit export --client ext-totp-svc");
    for line in before.1.lines() {
        assert!(after.lines().any(|it| it == line), "{line}");
    }
    assert_eq!(auditor.configured("audit verify").0, TOUCHED);
}

#[test]
fn what_cannot_be_checked_is_no_finding() {
    let auditor = Auditor::new();
    assert_eq!(auditor.configured("audit verify --client nobody").0, FAILED);
    assert_eq!(
        auditor.run("audit verify", &["--from", "nowhere"]).0,
        FAILED
    );
    let usage = 2;
    assert_eq!(
        auditor.run("audit verify", &[]).0,
        usage,
        "neither a store nor a file"
    );
    assert_eq!(
        auditor.configured("audit verify --expect client:a=1:ff").0,
        usage
    );
    assert_eq!(
        auditor.configured("audit export --since yesterday").0,
        usage
    );
}
