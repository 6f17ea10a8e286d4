//! What a device publishes on its status topic, parsed once.
//!
//! A status topic also carries whatever else a device reports; only a JSON object with `auth_request` or `auth_result` concerns us. Unknown fields are
//! ignored, the rest is bounded.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::MAX_STATUS;
use super::id::{DeviceId, DeviceNonce};
use super::identity::DeviceSignature;
use crate::error::Invalid;

/// Longest `reason` that is kept; a longer one is cut.
pub const MAX_REASON: usize = 128;

/// The one thing that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Asked {
    /// A fresh AppRole `secret_id`.
    SecretId,
}

/// Asks for a fresh `secret_id`. The answer to a ping is the same message under the ping's nonce.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct AuthRequest {
    /// Fresh for every request.
    pub nonce: DeviceNonce,
    /// Must be the device of the topic.
    pub device_id: DeviceId,
    /// Always `secret_id`.
    pub auth_request: Asked,
    /// Why, in a word: `invalid_secret`, `scheduled`. For people.
    #[serde(default)]
    pub reason: String,
    /// Present when the device has an identity key.
    #[serde(flatten)]
    pub signature: Option<DeviceSignature>,
}

/// Says how it went with the `secret_id` that was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct AuthResult {
    /// The request's.
    pub nonce: DeviceNonce,
    /// May be left out; must be the device of the topic when given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_id: Option<DeviceId>,
    /// `ok` when a login with the new `secret_id` worked; anything else is a failure.
    pub auth_result: String,
    /// Proves possession of what was sent ([`super::proof`]); without it an `ok` leaves the previous `secret_id` to its lifetime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
    /// What went wrong, in a word. For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Present when the device has an identity key.
    #[serde(flatten)]
    pub signature: Option<DeviceSignature>,
}

impl AuthResult {
    /// Whether the device reports success.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.auth_result == "ok"
    }
}

/// A status message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// A request.
    Request(AuthRequest),
    /// A result.
    Result(AuthResult),
    /// A JSON object that is neither: the device's own business.
    Other,
}

/// Every field that is looked at, each of them optional, so that a wrong one can be named.
#[derive(Deserialize)]
struct Fields {
    nonce: Option<String>,
    device_id: Option<String>,
    auth_request: Option<String>,
    auth_result: Option<String>,
    reason: Option<String>,
    proof: Option<String>,
    ts: Option<u64>,
    sig: Option<String>,
}

/// Why a status message is refused, with its nonce where it has a good one: then the device can be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// What is wrong, never the value.
    pub why: Invalid,
    /// The nonce of the message.
    pub nonce: Option<DeviceNonce>,
}

impl Status {
    /// Parses a payload.
    ///
    /// # Errors
    /// [`Unreadable`]: too long, no JSON object, or a field that breaks its rule.
    pub fn parse(payload: &[u8]) -> Result<Self, Unreadable> {
        let anonymous = |why| Unreadable { why, nonce: None };
        if payload.len() > MAX_STATUS {
            return Err(anonymous(Invalid::new("status", "at most 4096 bytes")));
        }
        let rule = Invalid::new("status", "a JSON object whose fields have the right types");
        // A derived struct is also read from an array.
        if payload.trim_ascii_start().first() != Some(&b'{') {
            return Err(anonymous(rule));
        }
        // serde's own message could repeat a value.
        let fields: Fields = serde_json::from_slice(payload).map_err(|_| anonymous(rule))?;
        if fields.auth_request.is_none() && fields.auth_result.is_none() {
            return Ok(Self::Other);
        }
        let nonce: DeviceNonce = fields
            .nonce
            .as_deref()
            .unwrap_or_default()
            .parse()
            .map_err(anonymous)?;
        fields.typed(nonce.clone()).map_err(|why| Unreadable {
            why,
            nonce: Some(nonce),
        })
    }
}

impl Fields {
    fn typed(self, nonce: DeviceNonce) -> Result<Status, Invalid> {
        let Self {
            nonce: _,
            device_id,
            auth_request,
            auth_result,
            reason,
            proof,
            ts,
            sig,
        } = self;
        let signature = DeviceSignature::from_fields(ts, sig)?;
        let reason = word(reason.unwrap_or_default());
        let device_id = device_id.map(|text| text.parse()).transpose()?;
        match (auth_request.as_deref(), auth_result) {
            (Some("secret_id"), None) => Ok(Status::Request(AuthRequest {
                nonce,
                device_id: device_id.ok_or(Invalid::new("device_id", "given in a request"))?,
                auth_request: Asked::SecretId,
                reason,
                signature,
            })),
            (Some(_), None) => Err(Invalid::new("auth_request", "\"secret_id\"")),
            (None, Some(auth_result)) => Ok(Status::Result(AuthResult {
                nonce,
                device_id,
                auth_result: word(auth_result),
                proof,
                reason,
                signature,
            })),
            (Some(_), Some(_)) | (None, None) => Err(Invalid::new(
                "status",
                "either an auth_request or an auth_result",
            )),
        }
    }
}

/// Cut to [`MAX_REASON`] characters, control characters replaced: it goes into logs and the audit trail.
fn word(text: String) -> String {
    text.chars()
        .take(MAX_REASON)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONCE: &str = "0123456789abcdef";

    fn request() -> AuthRequest {
        AuthRequest {
            nonce: NONCE.parse().unwrap(),
            device_id: "river-1".parse().unwrap(),
            auth_request: Asked::SecretId,
            reason: "invalid_secret".to_owned(),
            signature: None,
        }
    }

    #[test]
    fn the_messages_of_the_seed_are_read() {
        let json = br#"{"nonce":"0123456789abcdef","device_id":"river-1","auth_request":"secret_id","reason":"invalid_secret"}"#;
        assert_eq!(Status::parse(json), Ok(Status::Request(request())));
        assert_eq!(serde_json::to_vec(&request()).unwrap(), json);
        let json = br#"{"nonce":"0123456789abcdef","auth_result":"ok"}"#;
        let Ok(Status::Result(result)) = Status::parse(json) else {
            panic!("not read as a result");
        };
        assert!(result.is_ok());
        assert_eq!(serde_json::to_vec(&result).unwrap(), json);
    }

    #[test]
    fn unknown_fields_are_ignored_and_other_reports_left_alone() {
        let json = br#"{"nonce":"0123456789abcdef","device_id":"river-1","auth_request":"secret_id","reason":"invalid_secret","battery":[1,{"v":3.9}]}"#;
        assert_eq!(Status::parse(json), Ok(Status::Request(request())));
        for other in [&b"{}"[..], br#"{"online":true}"#, br#"{"nonce":"x"}"#] {
            assert_eq!(Status::parse(other), Ok(Status::Other));
        }
    }

    #[test]
    fn what_breaks_a_rule_is_refused_and_never_repeated() {
        let long = format!(
            r#"{{"auth_request":"secret_id","x":"{}"}}"#,
            "x".repeat(MAX_STATUS)
        );
        for (json, answerable) in [
            ("", false),
            ("null", false),
            ("[]", false),
            (
                r#"["0123456789abcdef","a","secret_id",null,null,null,null,null]"#,
                false,
            ),
            ("\u{7f}", false),
            (long.as_str(), false),
            (r#"{"auth_request":"secret_id"}"#, false),
            (
                r#"{"nonce":"Canary","device_id":"a","auth_request":"secret_id"}"#,
                false,
            ),
            (
                r#"{"nonce":5,"device_id":"a","auth_request":"secret_id"}"#,
                false,
            ),
            (
                r#"{"nonce":"0123456789abcdef","nonce":"0123456789abcdeF","auth_result":"ok"}"#,
                false,
            ),
            (
                r#"{"nonce":"0123456789abcdef","auth_request":"secret_id"}"#,
                true,
            ),
            (
                r#"{"nonce":"0123456789abcdef","device_id":"Canary/a","auth_request":"secret_id"}"#,
                true,
            ),
            (
                r#"{"nonce":"0123456789abcdef","device_id":"a","auth_request":"Canary"}"#,
                true,
            ),
            (
                r#"{"nonce":"0123456789abcdef","device_id":"a","auth_request":"secret_id","auth_result":"ok"}"#,
                true,
            ),
            (
                r#"{"nonce":"0123456789abcdef","device_id":"a","auth_request":"secret_id","ts":1}"#,
                true,
            ),
            (
                r#"{"nonce":"0123456789abcdef","device_id":"a","auth_request":"secret_id","sig":"Canary"}"#,
                true,
            ),
        ] {
            let refused = Status::parse(json.as_bytes()).unwrap_err();
            assert_eq!(refused.nonce.is_some(), answerable, "{json}");
            assert!(!format!("{refused:?}").contains("Canary"), "{refused:?}");
        }
    }

    #[test]
    fn a_reason_is_cut_and_cannot_forge_a_log_line() {
        let reason = "a\n\u{1b}".repeat(200);
        let json = serde_json::json!({ "nonce": NONCE, "auth_result": "failed", "reason": reason });
        let Ok(Status::Result(result)) = Status::parse(json.to_string().as_bytes()) else {
            panic!("not read as a result");
        };
        assert_eq!(result.reason.chars().count(), MAX_REASON);
        assert!(!result.reason.contains(char::is_control));
    }

    proptest! {
        #[test]
        fn no_payload_panics(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Status::parse(&payload);
        }
    }
}
