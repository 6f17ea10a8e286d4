//! `keyturn audit verify` on Firestore, on the official emulator: whatever somebody who may write everything does to the trail is a finding, and nothing that
//! lies in the way ends the check. The same on the embedded store: `audit.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod installation;

use std::path::Path;
use std::process::Command;

use keyturn_store::emulator::Emulator;
use serde_json::{Value, json};

use installation::install;

const ALICE: &str = "npub10xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqpkge6d";
const CHAIN: &str = "client:ext-totp-svc";

/// What the exit code says.
const WHOLE: i32 = 0;
const TOUCHED: i32 = 3;

/// Somebody with all rights, past the store.
struct Vandal {
    documents: String,
    http: reqwest::Client,
}

impl Vandal {
    async fn get(&self, path: &str) -> Option<Value> {
        let answer = self.http.get(self.url(path)).bearer_auth("owner").send();
        let answer = answer.await.unwrap();
        let found = answer.status().is_success();
        let document: Value = answer.json().await.unwrap();
        found.then(|| document["fields"].clone())
    }

    /// Puts these fields there and no others; `None` deletes the document.
    async fn put(&self, path: &str, fields: Option<&Value>) {
        let url = self.url(path);
        let request = match fields {
            Some(fields) => self.http.patch(url).json(&json!({ "fields": fields })),
            None => self.http.delete(url),
        };
        let answer = request.bearer_auth("owner").send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{}", self.documents, path.replace('\n', "%0A"))
    }
}

fn keyturn(dir: &Path, line: &str) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_keyturn"))
        .args(line.split_whitespace())
        .args(["--config", "keyturn.toml"])
        .current_dir(dir)
        .env_clear()
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code().unwrap(), text)
}

/// One thing that somebody does: documents and what they are made.
struct Deed {
    expected: String,
    changes: Vec<(String, Option<Value>)>,
}

fn with(fields: &Value, name: &str, value: Value) -> Option<Value> {
    let mut fields = fields.clone();
    fields[name] = value;
    Some(fields)
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_done_to_the_trail_is_found() {
    let emulator = Emulator::shared().await;
    let (project, endpoint) = (emulator.fresh_project(), emulator.endpoint());
    let dir = tempfile::tempdir().unwrap();
    let store = format!("kind = \"firestore\"\nproject = \"{project}\"\nendpoint = \"{endpoint}\"");
    install(dir.path(), &store);
    for line in [
        &format!("group bind ops --welcomer {ALICE}"),
        "client add ext-totp-svc --group ops",
        "client suspend ext-totp-svc",
        "client activate ext-totp-svc",
        "client suspend ext-totp-svc",
    ] {
        assert_eq!(keyturn(dir.path(), line).0, WHOLE, "{line}");
    }
    let (code, text) = keyturn(dir.path(), "audit verify --json");
    assert_eq!(code, WHOLE, "{text}");
    let report: Value = serde_json::from_str(&text).unwrap();
    let chains = report["chains"].as_array().unwrap();
    let one = chains.iter().find(|it| it["chain"] == CHAIN).unwrap();
    assert_eq!(one["seq"], 4);
    let id = one["id"].as_str().unwrap();

    let vandal = Vandal {
        documents: format!("{endpoint}/v1/projects/{project}/databases/keyturn/documents"),
        http: reqwest::Client::new(),
    };
    let place = |seq: u32| format!("audit/{id}-{seq:010}");
    let (head_at, client_at) = (
        format!("audit_chains/{id}"),
        "oauth2_clients/ext-totp-svc".to_owned(),
    );
    let mut entries = Vec::new();
    for seq in 1..=4 {
        entries.push(vandal.get(&place(seq)).await.unwrap());
    }
    let head = vandal.get(&head_at).await.unwrap();
    let deed = |expected: &str, changes: Vec<(String, Option<Value>)>| Deed {
        expected: expected.to_owned(),
        changes,
    };
    let text = |text: &str| json!({ "stringValue": text });
    // A document that says it lies elsewhere does not even read.
    let own = |seq: u32| text(place(seq).trim_start_matches("audit/"));
    let time = json!({ "timestampValue": "2026-01-01T00:00:00Z" });
    let mut deeds = vec![
        deed("entry 2 was removed", vec![(place(2), None)]),
        deed(
            "entry 3 was edited",
            vec![(place(3), with(&entries[2], "reason", text("nothing")))],
        ),
        deed(
            "the head names entry 4, but the last one is 3",
            vec![(place(4), None)],
        ),
        deed(
            "the head names entry 4, but there are entries up to 5",
            vec![(place(5), Some(entries[3].clone()))],
        ),
        deed(
            "entry 3 was found in the place of entry 2",
            vec![
                (place(2), with(&entries[2], "id", own(2))),
                (place(3), with(&entries[1], "id", own(3))),
            ],
        ),
        deed(
            "-0000000001 cannot be read",
            vec![(place(1), Some(json!({ "at": text("now") })))],
        ),
        deed(
            "there are entries up to 4, but no head",
            vec![(head_at.clone(), None)],
        ),
        deed(
            "the head's status and the client document differ",
            vec![(head_at.clone(), with(&head, "status", text("active")))],
        ),
        deed(
            "the head's secret_since and the client document differ",
            vec![(head_at.clone(), with(&head, "secret_since", time))],
        ),
        deed(
            "the head tells of a client that is not there",
            vec![(client_at.clone(), None)],
        ),
        deed(
            "ext-totp-svc cannot be read",
            vec![(client_at.clone(), Some(json!({ "status": text("?") })))],
        ),
        deed(
            "the client is there, but no chain tells of it",
            (1..=4)
                .map(|seq| (place(seq), None))
                .chain([(head_at.clone(), None)])
                .collect(),
        ),
        deed(
            "forged does not belong here",
            vec![("audit_chains/forged".to_owned(), Some(head.clone()))],
        ),
        deed(
            "-x does not belong here",
            vec![("audit_chains/-x".to_owned(), Some(head.clone()))],
        ),
    ];
    for stray in [
        "-x".to_owned(),
        "forged-x".to_owned(),
        "0".to_owned(),
        "a\nb".to_owned(),
        id.to_string(),
        format!("{id}-zz"),
        format!("{id}-0000000002x"),
        format!("{id}-0000000000"),
    ] {
        deeds.push(deed(
            &format!("{stray} does not belong here"),
            vec![(format!("audit/{stray}"), Some(entries[1].clone()))],
        ));
    }
    for Deed { expected, changes } in deeds {
        let mut before = Vec::new();
        for (path, made) in &changes {
            before.push((path.clone(), vandal.get(path).await));
            vandal.put(path, made.as_ref()).await;
        }
        let (code, text) = keyturn(dir.path(), "audit verify");
        assert_eq!(code, TOUCHED, "{expected}: {text}");
        assert!(text.contains(&expected), "{expected}: {text}");
        for (path, was) in before {
            vandal.put(&path, was.as_ref()).await;
        }
    }
    let (code, text) = keyturn(dir.path(), "audit verify");
    assert_eq!(code, WHOLE, "{text}");
}
