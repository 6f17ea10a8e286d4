//! What the relay tells the admins: the secret itself (rotate-notify, MLS only), and how an action ended (service-notify).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::encoding::from_b64url_array;
use crate::error::{ErrorClass, Invalid};
use crate::ids::{ClientId, RotationId, VersionId};
use crate::secret::Secret;
use crate::time::UnixMs;

/// Everything in a rotate-notify but the secret: the part that may be shown, logged and compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NotifyHeader {
    /// Whose secret.
    pub client_id: ClientId,
    /// Which value.
    pub version_id: VersionId,
    /// Hash under `mac_key_ref`, so that the admin can see what the store will hold: 32 bytes, canonical base64url.
    #[schemars(regex(pattern = r"^[A-Za-z0-9_-]{43}$"))]
    pub secret_hash: String,
    /// The MAC key version used.
    pub mac_key_ref: String,
    /// Earliest promotion.
    pub not_before: UnixMs,
    /// Not earlier than this does the old value die; absent when there is none or no grace.
    pub grace_until: Option<UnixMs>,
    /// Length of the grace window, milliseconds.
    pub grace_duration_ms: u64,
    /// The operation.
    pub rotation_id: RotationId,
    /// When it was made.
    pub issued_at: UnixMs,
    /// Correlates with the rotation document's `distribution_message_id`.
    pub relay_msg_id: String,
}

/// The message that carries a plaintext. It can be composed and parsed, and nothing else.
pub struct RotateNotify {
    /// The public part.
    pub header: NotifyHeader,
    /// The plaintext.
    pub secret: Secret,
}

impl RotateNotify {
    /// Composes the JSON in one zeroising buffer that never grows: the header first, the secret spliced in by hand, because a serializer
    /// would leave copies behind.
    ///
    /// # Errors
    /// [`Invalid`] if the header cannot be serialised.
    pub fn compose(&self) -> Result<Zeroizing<String>, Invalid> {
        let header = serde_json::to_string(&self.header)
            .map_err(|_| Invalid::new("rotate-notify", "serialisable"))?;
        let secret = self.secret.expose();
        let mut out = Zeroizing::new(String::with_capacity(header.len() + secret.len() + 16));
        // base64url needs no JSON escaping, and the header is a non-empty object.
        out.push_str("{\"secret\":\"");
        out.push_str(secret);
        out.push_str("\",");
        out.push_str(header.strip_prefix('{').unwrap_or(&header));
        Ok(out)
    }

    /// Parses what [`Self::compose`] made; unknown fields are ignored. A hash that is not canonical is refused (protocol.md §2).
    ///
    /// # Errors
    /// [`Invalid`] without any part of the input.
    pub fn parse(json: &str) -> Result<Self, Invalid> {
        #[derive(Deserialize)]
        struct SecretField {
            secret: Zeroizing<String>,
        }
        let invalid = |_| Invalid::new("rotate-notify", "a JSON object with all its fields");
        let header: NotifyHeader = serde_json::from_str(json).map_err(invalid)?;
        from_b64url_array::<32>("secret_hash", &header.secret_hash)?;
        let SecretField { secret } = serde_json::from_str(json).map_err(invalid)?;
        Ok(Self {
            header,
            secret: Secret::from_text(secret)?,
        })
    }
}

/// How a rotation ended (protocol.md §4).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The new version is current.
    Promoted,
    /// Withdrawn by an admin, or by recovery.
    Canceled,
    /// No quorum by the ack deadline.
    Expired,
    /// Promoted once, then withdrawn within grace.
    RolledBack,
    /// Its version was revoked.
    Revoked,
}

impl Outcome {
    /// The wire spelling.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Promoted => "promoted",
            Self::Canceled => "canceled",
            Self::Expired => "expired",
            Self::RolledBack => "rolled_back",
            Self::Revoked => "revoked",
        }
    }
}

/// What a service-notify reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum NotifyState {
    /// Admitted and prepared; acks are awaited until `ack_deadline`.
    Accepted {
        /// The pending version.
        version_id: Option<VersionId>,
        /// When it expires without a quorum.
        ack_deadline: Option<UnixMs>,
    },
    /// The operation ended.
    Done {
        /// How.
        outcome: Outcome,
        /// The version that is current now.
        current_version: Option<VersionId>,
        /// The version in grace now.
        previous_version: Option<VersionId>,
        /// The final end of grace.
        grace_until: Option<UnixMs>,
    },
    /// An ack was recorded.
    Acked {
        /// Who acked, proven or not.
        proven: bool,
        /// Proven acks that count so far.
        acks: u32,
        /// How many are needed.
        required: u32,
    },
    /// The previous version reached the end of its grace.
    Retired {
        /// Which.
        version_id: VersionId,
    },
    /// Answer to `status`.
    Status {
        /// Client state: active, suspended or revoked.
        client_status: String,
        /// Current version.
        current_version: Option<VersionId>,
        /// Version in grace.
        previous_version: Option<VersionId>,
        /// End of grace.
        grace_until: Option<UnixMs>,
        /// The active rotation.
        active_rotation: Option<RotationId>,
    },
    /// Refused or failed; nothing was changed.
    Refused {
        /// The class, the only thing said.
        error: ErrorClass,
        /// When it is worth trying again, for limits and lock-outs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
}

/// The non-sensitive answer: never a secret, never a hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceNotify {
    /// The request or rotation it answers; absent when the request could not be parsed.
    pub action_id: Option<RotationId>,
    /// The client, repeated from the request.
    pub client_id: Option<ClientId>,
    /// The 445 event that is answered, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_reply_to: Option<String>,
    /// When.
    pub at: UnixMs,
    /// What happened.
    #[serde(flatten)]
    pub body: NotifyState,
}

/// JSON Schema of a rotate-notify: the header's plus the secret, which has no `Serialize` of its own.
pub(crate) fn rotate_notify_schema() -> schemars::Schema {
    let mut schema = schemars::schema_for!(NotifyHeader);
    schema.insert("title".into(), "RotateNotify".into());
    if let Some(properties) = schema.get_mut("properties").and_then(|p| p.as_object_mut()) {
        properties.insert(
            "secret".into(),
            serde_json::json!({
                "type": "string",
                "pattern": "^[A-Za-z0-9_-]{43}$",
                "description": "The plaintext: 32 bytes, base64url without padding. Only ever inside MLS."
            }),
        );
    }
    if let Some(required) = schema.get_mut("required").and_then(|r| r.as_array_mut()) {
        required.push("secret".into());
    }
    schema
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    const SECRET: &str = "2nC0WJ6d-3Jb0L6Wj7o5n9Jx9aQmH6r1bE3xqfIuF9k";

    fn header() -> NotifyHeader {
        NotifyHeader {
            client_id: "ext-\"totp\"-{svc}".parse().unwrap(),
            version_id: "01JM8VEZAMG2DK6T4S9N7TT1C8".parse().unwrap(),
            secret_hash: "LSDynK4JQHtB-kC5lcSb7pfuuFdYN5g2qn63-HGD764".to_owned(),
            mac_key_ref: "local/1".to_owned(),
            not_before: UnixMs(1_739_750_600_000),
            grace_until: Some(UnixMs(1_740_355_400_000)),
            grace_duration_ms: 604_800_000,
            rotation_id: "01JM8VEZAMG2DK6T4S9N7TT1C9".parse().unwrap(),
            issued_at: UnixMs(1_739_750_000_000),
            relay_msg_id: "m1".to_owned(),
        }
    }

    fn notify() -> RotateNotify {
        RotateNotify {
            header: header(),
            secret: Secret::from_text(Zeroizing::new(SECRET.to_owned())).unwrap(),
        }
    }

    #[test]
    fn what_is_composed_parses_back() {
        let json = notify().compose().unwrap();
        let back = RotateNotify::parse(&json).unwrap();
        assert_eq!(back.header, header());
        assert!(back.secret.expose() == SECRET);
    }

    #[test]
    fn the_buffer_never_grows() {
        let json = notify().compose().unwrap();
        assert!(json.len() <= json.capacity());
        let header = serde_json::to_string(&header()).unwrap();
        assert_eq!(json.len(), header.len() + SECRET.len() + 12);
        assert!(
            json.capacity() >= header.len() + SECRET.len() + 16,
            "it was reallocated"
        );
    }

    #[test]
    fn a_broken_notify_is_refused_without_repeating_it() {
        let good: serde_json::Value = serde_json::from_str(&notify().compose().unwrap()).unwrap();
        let canary = "Canary-3Jb0L6Wj7o5n9Jx9aQmH6r1bE3xqfIuF9k";
        for (field, value) in [
            ("secret", serde_json::json!(canary)),
            ("secret", serde_json::json!([canary])),
            ("secret", serde_json::json!(null)),
            (
                "secret_hash",
                serde_json::json!("LSDynK4JQHtB-kC5lcSb7pfuuFdYN5g2qn63-HGD764="),
            ),
            ("secret_hash", serde_json::json!("")),
            ("version_id", serde_json::json!(canary)),
            ("not_before", serde_json::json!(-1)),
        ] {
            let mut bad = good.clone();
            bad[field] = value;
            let error = RotateNotify::parse(&bad.to_string())
                .map(|_| ())
                .unwrap_err();
            assert!(!format!("{error} {error:?}").contains("Canary"), "{error}");
        }
    }

    #[test]
    fn every_answer_survives_the_round_trip() {
        let id = || Some("01JM8VEZAMG2DK6T4S9N7TT1C8".parse().unwrap());
        for body in [
            NotifyState::Accepted {
                version_id: id(),
                ack_deadline: Some(UnixMs(1)),
            },
            NotifyState::Done {
                outcome: Outcome::RolledBack,
                current_version: id(),
                previous_version: None,
                grace_until: None,
            },
            NotifyState::Acked {
                proven: true,
                acks: 1,
                required: 2,
            },
            NotifyState::Refused {
                error: ErrorClass::PolicyViolation,
                retry_after_ms: Some(5),
            },
        ] {
            let notify = ServiceNotify {
                action_id: None,
                client_id: Some("c".parse().unwrap()),
                in_reply_to: None,
                at: UnixMs(9),
                body,
            };
            let json = serde_json::to_string(&notify).unwrap();
            assert_eq!(
                serde_json::from_str::<ServiceNotify>(&json).unwrap(),
                notify
            );
        }
    }
}
