//! Everybody who may come: as a Firebase Auth user with an unsigned token, which is what the emulator takes, or without one.

use serde_json::{Value, json};

use crate::token::token;

pub struct Person {
    pub is: &'static str,
    /// After `Bearer `.
    pub token: Option<String>,
    /// Whether the rules should know an auditor.
    pub auditor: bool,
    /// Not judged by the rules at all.
    pub bypasses: bool,
}

pub fn people() -> Vec<Person> {
    let user = |is, claims: Value| Person {
        is,
        token: Some(token(&claims)),
        auditor: false,
        bypasses: false,
    };
    vec![
        Person {
            is: "nobody",
            token: None,
            auditor: false,
            bypasses: false,
        },
        user("a user", json!({})),
        user("a user who is no auditor", json!({ "auditor": false })),
        user("a text for a claim", json!({ "auditor": "true" })),
        user("a number for a claim", json!({ "auditor": 1 })),
        user("null for a claim", json!({ "auditor": null })),
        user("a list for a claim", json!({ "auditor": [true] })),
        user(
            "a map for a claim",
            json!({ "auditor": { "auditor": true } }),
        ),
        user(
            "another claim",
            json!({ "Auditor": true, "admin": true, "role": "auditor" }),
        ),
        Person {
            auditor: true,
            ..user("an auditor", json!({ "auditor": true }))
        },
        Person {
            is: "owner",
            token: Some("owner".to_owned()),
            auditor: false,
            bypasses: true,
        },
    ]
}
