//! The auditors' page: every query on it is that of the catalogue, and finds what it says it finds, asked by an auditor under the rules of a database that the
//! relay's own backend has written.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod page;
mod story;
#[path = "../rules/token.rs"]
mod token;

use std::path::Path;

use keyturn_proto::Action;
use keyturn_proto::notify::Outcome;
use keyturn_store::documents::{Actor, ClientStatus, RotationState};
use keyturn_store::emulator::Emulator;
use keyturn_store::queries::{Operand, auditors};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

const COMMAND: &str = "KEYTURN_REGENERATE=1 cargo test -p keyturn-store --test auditors the_page";

struct Database {
    http: reqwest::Client,
    documents: &'static str,
}

impl Database {
    /// Under the rules, and with the story in it: one for all tests, which only read.
    async fn told() -> Self {
        static TOLD: OnceCell<(Emulator, String)> = OnceCell::const_new();
        let (_, documents) = TOLD
            .get_or_init(|| async {
                let rules = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/firestore.rules"));
                let emulator = Emulator::start(Some(rules)).await;
                let (endpoint, project) = (emulator.endpoint(), emulator.fresh_project());
                story::tell(&endpoint, &project).await;
                let database = format!("projects/{project}/databases/keyturn");
                (emulator, format!("{endpoint}/v1/{database}/documents"))
            })
            .await;
        Self {
            http: reqwest::Client::new(),
            documents,
        }
    }

    /// The fields of what is found, or the status of the refusal.
    async fn run(&self, body: &Value, token: Option<&str>) -> Result<Vec<Value>, u16> {
        let request = self.http.post(format!("{}:runQuery", self.documents));
        let request = match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let answer = request.json(body).send().await.unwrap();
        let status = answer.status().as_u16();
        let rows: Value = answer.json().await.unwrap();
        if status != 200 {
            return Err(status);
        }
        let documents = rows.as_array().unwrap().iter().map(|row| &row["document"]);
        let found = documents.filter(|it| !it.is_null());
        Ok(found.map(|it| it["fields"].clone()).collect())
    }
}

/// One word for each result, in order.
fn words(name: &str, found: &[Value]) -> Vec<String> {
    let text = |fields: &Value, field: &str| match &fields[field]["stringValue"] {
        Value::String(text) => text.clone(),
        other => panic!("{name}: {field} is {other}"),
    };
    let word = |fields: &Value| match name {
        "who-rotated" | "open-past-deadline" | "not-promoted" => text(fields, "rotation_id"),
        "secret-older-than" | "in-grace" => text(fields, "client_id"),
        "revocations" => text(fields, "action_id"),
        "refusals-of-admin" | "refusals-by-reason" => {
            format!("{} {}", text(fields, "event"), text(fields, "reason"))
        }
        "acks-of-rotation" => text(fields, "client_id"),
        "history-of-client" | "changes-by-operators" | "group-alarms" => text(fields, "event"),
        other => panic!("nobody says what {other} finds"),
    };
    found.iter().map(word).collect()
}

#[test]
fn the_page_shows_the_queries_of_the_catalogue() {
    let path = page::path();
    let text = std::fs::read_to_string(path).unwrap();
    let expected = page::with_queries(&text);
    if std::env::var_os("KEYTURN_REGENERATE").is_some() {
        std::fs::write(path, &expected).unwrap();
    } else {
        assert!(text == expected, "the page is out of date; run: {COMMAND}");
    }
    let shown: Vec<String> = page::blocks(&expected).into_iter().map(|it| it.0).collect();
    let listed: Vec<&str> = auditors::ALL.iter().map(|it| it.name).collect();
    assert_eq!(shown, listed);
    assert!(listed.len() >= 10);
    for query in auditors::ALL {
        let finds = expected.contains(&format!("### `{}`\n", query.name));
        assert!(finds, "{} has no heading", query.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_page_asks_is_found_by_an_auditor_and_by_nobody_else() {
    let database = Database::told().await;
    let auditor = token::token(&json!({ "auditor": true }));
    let user = token::token(&json!({ "auditor": "true" }));
    let text = std::fs::read_to_string(page::path()).unwrap();
    let blocks = page::blocks(&text);
    assert_eq!(blocks.len(), auditors::ALL.len());
    for (name, body) in blocks {
        let found = database.run(&body, Some(&auditor)).await.unwrap();
        assert_eq!(words(&name, &found), story::expected(&name), "{name}");
        for stranger in [None, Some(user.as_str())] {
            let refused = database.run(&body, stranger).await;
            assert_eq!(refused, Err(403), "{name}: {stranger:?}");
        }
        let text = serde_json::to_string(&found).unwrap();
        for hidden in story::HIDDEN {
            assert!(!text.contains(hidden), "{name} shows {hidden}");
        }
    }
}

/// A word that nobody writes any more would find nothing, and nobody would notice.
#[test]
fn the_words_that_queries_look_for_are_those_that_are_written() {
    let mut sources = String::new();
    for folder in ["src", "../relay-plugin/src"] {
        sources_below(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join(folder),
            &mut sources,
        );
    }
    let mut looked = 0;
    for query in auditors::ALL {
        for filter in query.filters {
            let words = match filter.operand {
                Operand::Text(word) => vec![word],
                Operand::Texts(words) => words.to_vec(),
                _ => continue,
            };
            for word in words {
                looked += 1;
                let known = match filter.field {
                    "event" => sources.contains(&format!("\"{word}\"")),
                    "state" => read::<RotationState>(word),
                    "outcome" => read::<Outcome>(word),
                    "action_type" => read::<Action>(word),
                    "status" => read::<ClientStatus>(word),
                    "actor.by" => serde_json::from_value::<Actor>(json!({ "by": word })).is_ok(),
                    other => panic!("nobody says where the words of {other} come from"),
                };
                assert!(known, "{}: {} is never {word}", query.name, filter.field);
            }
        }
    }
    assert!(looked > 15, "only {looked}");
}

fn read<T: serde::de::DeserializeOwned>(word: &str) -> bool {
    serde_json::from_value::<T>(json!(word)).is_ok()
}

/// All but the catalogue itself.
fn sources_below(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("queries") {
            sources_below(&path, text);
        } else if path.extension().is_some_and(|it| it == "rs") {
            text.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

/// What the page says about acks: who, and with proof or without.
#[tokio::test(flavor = "multi_thread")]
async fn acks_say_who_and_whether_with_proof() {
    let database = Database::told().await;
    let auditor = token::token(&json!({ "auditor": true }));
    let body = auditors::ACKS_OF_ROTATION.body("", &Default::default());
    let found = database.run(&body, Some(&auditor)).await.unwrap();
    let names: Vec<&String> = found[0].as_object().unwrap().keys().collect();
    assert_eq!(
        names,
        ["client_id", "outcome", "quorum", "readers", "state"]
    );
    let acks = &found[0]["quorum"]["mapValue"]["fields"]["acks"]["arrayValue"]["values"];
    let acks: Vec<(String, bool)> = acks
        .as_array()
        .unwrap()
        .iter()
        .map(|ack| {
            let fields = &ack["mapValue"]["fields"];
            let npub = fields["npub"]["stringValue"].as_str().unwrap().to_owned();
            (npub, fields["proven"]["booleanValue"].as_bool().unwrap())
        })
        .collect();
    let said = [
        (story::bob().to_string(), true),
        (story::alice().to_string(), false),
    ];
    assert_eq!(acks, said);
}

/// How the page says that one goes on after a full page: `startAt` behind the last result.
#[tokio::test(flavor = "multi_thread")]
async fn pages_follow_each_other_without_a_gap_or_a_repeat() {
    let database = Database::told().await;
    let auditor = token::token(&json!({ "auditor": true }));
    let body = auditors::HISTORY_OF_CLIENT.body("", &Default::default());
    let whole = database.run(&body, Some(&auditor)).await.unwrap();
    let mut page = body.clone();
    page["structuredQuery"]["limit"] = json!(2);
    let mut joined: Vec<Value> = Vec::new();
    loop {
        let found = database.run(&page, Some(&auditor)).await.unwrap();
        let Some(last) = found.last() else {
            break;
        };
        let behind = json!({ "values": [last["seq"]], "before": false });
        page["structuredQuery"]["startAt"] = behind;
        joined.extend(found);
    }
    assert!(whole.len() > 4);
    assert_eq!(joined, whole);
}
