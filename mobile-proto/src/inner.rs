//! The JSON inside MLS, told apart by its own fields, because a Marmot rumor and a bare JSON object carry the same content
//! (protocol.md §5).

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::ack::RotateAck;
use crate::error::Invalid;
use crate::ids::{ClientId, RotationId};
use crate::notify::{RotateNotify, ServiceNotify};
use crate::request::ServiceRequest;

/// One parsed application message.
pub enum Inner {
    /// Somebody asks for an action.
    Request(Box<ServiceRequest>),
    /// Somebody acks.
    Ack(Box<RotateAck>),
    /// The relay delivers a secret.
    Notify(Box<RotateNotify>),
    /// The relay reports.
    Service(Box<ServiceNotify>),
    /// Chat and anything else: not ours.
    Foreign,
}

/// Which message a JSON object is, without opening what may bear a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InnerKind {
    /// Has `action_type`.
    Request,
    /// Has `ack_by`.
    Ack,
    /// Has `secret`.
    Notify,
    /// Has `state`.
    Service,
    /// None of these.
    Foreign,
}

impl Inner {
    /// Which message `json` is. Text that is no JSON object at all is foreign.
    #[must_use]
    pub fn classify(json: &str) -> InnerKind {
        // `IgnoredAny` keeps no value: a secret in the text is not copied.
        let fields: std::collections::BTreeMap<String, IgnoredAny> =
            match serde_json::from_str(json) {
                Ok(fields) => fields,
                Err(_) => return InnerKind::Foreign,
            };
        let has = |name: &str| fields.contains_key(name);
        if has("secret") {
            InnerKind::Notify
        } else if has("action_type") {
            InnerKind::Request
        } else if has("ack_by") {
            InnerKind::Ack
        } else if has("state") && has("at") {
            InnerKind::Service
        } else {
            InnerKind::Foreign
        }
    }

    /// Parses by [`Self::classify`].
    ///
    /// # Errors
    /// [`Invalid`] when the object announces itself as one of ours and is malformed.
    pub fn parse(json: &str) -> Result<Self, Invalid> {
        fn typed<T: serde::de::DeserializeOwned>(
            name: &'static str,
            json: &str,
        ) -> Result<Box<T>, Invalid> {
            serde_json::from_str(json).map(Box::new).map_err(|_| {
                Invalid::new(name, "a JSON object with all its fields, each of its type")
            })
        }
        match Self::classify(json) {
            InnerKind::Request => typed("service-request", json).map(Self::Request),
            InnerKind::Ack => typed("rotate-ack", json).map(Self::Ack),
            InnerKind::Notify => RotateNotify::parse(json).map(|n| Self::Notify(Box::new(n))),
            InnerKind::Service => typed("service-notify", json).map(Self::Service),
            InnerKind::Foreign => Ok(Self::Foreign),
        }
    }

    /// The action id and client that a malformed request still names, so that its refusal can be addressed. Untrusted. Nothing else of
    /// the request is copied: its proofs stay where they are.
    #[must_use]
    pub fn hints(json: &str) -> (Option<RotationId>, Option<ClientId>) {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Lenient {
            Text(String),
            Other(IgnoredAny),
        }
        impl Lenient {
            fn parse<T: std::str::FromStr>(self) -> Option<T> {
                match self {
                    Self::Text(text) => text.parse().ok(),
                    Self::Other(_) => None,
                }
            }
        }
        #[derive(Deserialize)]
        struct Hints {
            action_id: Option<Lenient>,
            client_id: Option<Lenient>,
        }
        let Ok(Hints {
            action_id,
            client_id,
        }) = serde_json::from_str(json)
        else {
            return (None, None);
        };
        (
            action_id.and_then(Lenient::parse),
            client_id.and_then(Lenient::parse),
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_is_known_by_its_own_field() {
        for (json, kind) in [
            (r#"{"action_type":1}"#, InnerKind::Request),
            (r#"{"ack_by":null}"#, InnerKind::Ack),
            (
                r#"{"secret":"x","action_type":"rotation"}"#,
                InnerKind::Notify,
            ),
            (r#"{"state":"done","at":1}"#, InnerKind::Service),
            (r#"{"state":"done"}"#, InnerKind::Foreign),
            (r#"{"nested":{"secret":"x"}}"#, InnerKind::Foreign),
            ("hello", InnerKind::Foreign),
            ("[]", InnerKind::Foreign),
            ("", InnerKind::Foreign),
        ] {
            assert_eq!(Inner::classify(json), kind, "{json}");
        }
    }

    #[test]
    fn a_malformed_message_of_ours_is_an_error_and_a_foreign_one_is_not() {
        for json in [
            r#"{"action_type":1}"#,
            r#"{"ack_by":1}"#,
            r#"{"secret":1}"#,
            r#"{"state":1,"at":1}"#,
        ] {
            assert!(Inner::parse(json).is_err(), "{json}");
        }
        assert!(matches!(Inner::parse("hello"), Ok(Inner::Foreign)));
        // Deep nesting is refused by the parser, not by the stack.
        let deep = "[".repeat(200_000);
        assert!(matches!(Inner::parse(&deep), Ok(Inner::Foreign)));
        let deep = format!("{{\"action_type\":{}", "[".repeat(200_000));
        assert!(matches!(Inner::parse(&deep), Ok(Inner::Foreign)));
    }

    #[test]
    fn hints_survive_what_breaks_the_request() {
        let (id, client) = Inner::hints(
            r#"{"action_type":{},"action_id":"01jm8vezamg2dk6t4s9n7tt1c8","client_id":7,"jwt_proof":[1]}"#,
        );
        assert_eq!(id.unwrap().as_str(), "01JM8VEZAMG2DK6T4S9N7TT1C8");
        assert_eq!(client, None);
        let (id, client) = Inner::hints(r#"{"action_id":[[]],"client_id":"c"}"#);
        assert_eq!(id, None);
        assert_eq!(client.unwrap().as_str(), "c");
        assert_eq!(Inner::hints("not json"), (None, None));
    }

    const FIELDS: [&str; 22] = [
        "secret",
        "action_type",
        "ack_by",
        "state",
        "at",
        "action_id",
        "client_id",
        "profile",
        "params",
        "jwt_proof",
        "totp",
        "rotation_id",
        "version_id",
        "secret_hash",
        "mac_key_ref",
        "not_before",
        "grace_until",
        "grace_duration_ms",
        "issued_at",
        "relay_msg_id",
        "outcome",
        "error",
    ];

    fn json_value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            "\\PC{0,12}".prop_map(Into::into),
            prop::sample::select(vec![
                "rotation",
                "done",
                "promoted",
                "refused",
                "01JM8VEZAMG2DK6T4S9N7TT1C8"
            ])
            .prop_map(Into::into),
        ];
        leaf.prop_recursive(3, 24, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::btree_map(prop::sample::select(FIELDS.to_vec()), inner, 0..8)
                    .prop_map(|map| {
                        serde_json::Value::Object(
                            map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
                        )
                    }),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            let _ = Inner::parse(&text);
            let _ = Inner::hints(&text);
        }

        #[test]
        fn no_json_panics(fields in prop::collection::btree_map(prop::sample::select(FIELDS.to_vec()), json_value(), 0..14)) {
            let json = serde_json::to_string(&fields).unwrap();
            let _ = Inner::hints(&json);
            if let Ok(Inner::Request(request)) = Inner::parse(&json) {
                let _ = request.validate();
            }
        }
    }
}
