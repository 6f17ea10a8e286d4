//! The JSON inside MLS, told apart by its own fields, because a Marmot rumor and a bare JSON object carry the same content
//! (protocol.md §5).

use serde_json::Value;

use crate::ack::RotateAck;
use crate::error::Invalid;
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
        let fields: std::collections::BTreeMap<String, serde::de::IgnoredAny> =
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

    /// The action id and client that a malformed request still names, so that its refusal can be addressed. Untrusted.
    #[must_use]
    pub fn hints(json: &str) -> (Option<crate::ids::RotationId>, Option<crate::ids::ClientId>) {
        let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(json) else {
            return (None, None);
        };
        let text = |name: &str| fields.get(name).and_then(Value::as_str);
        (
            text("action_id").and_then(|t| t.parse().ok()),
            text("client_id").and_then(|t| t.parse().ok()),
        )
    }
}
