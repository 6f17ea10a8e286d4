//! The service request: an admin asks the relay for an action (protocol.md §5).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::action::{Action, Params};
use crate::error::Invalid;
use crate::ids::{ClientId, RotationId};

/// The profile we speak.
pub const PROFILE: &str = "nip-kr/0.1.0";

/// A bearer value inside a message (`jwt_proof`, `totp`): wiped on drop, redacted in `Debug`. It is serialised because a request has to be
/// composed, but never stored or logged by the relay.
#[derive(Clone, Serialize, JsonSchema, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Bearer(String);

impl Bearer {
    /// Wraps a bearer value.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The value.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Bearer {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Bearer {}

impl<'de> Deserialize<'de> for Bearer {
    /// By hand, because a derived error repeats a value of a wrong type: a TOTP code sent as a number would stand in it. For the same
    /// reason not `deserialize_string`, whose errors are the format's own.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> serde::de::Visitor<'de> for Text {
            type Value = Option<Bearer>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string")
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Some(Bearer::new(text)))
            }
            fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
                Ok(Some(Bearer(text)))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(None)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
                Ok(None)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
                Ok(None)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
                Ok(None)
            }
        }
        deserializer
            .deserialize_any(Text)?
            .ok_or_else(|| serde::de::Error::custom("expected a string"))
    }
}

impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A request for one action on one client, sent as an MLS application message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceRequest {
    /// What is asked for.
    pub action_type: Action,
    /// Idempotency key; for a rotation also its `rotation_id`.
    pub action_id: RotationId,
    /// Whose secret.
    pub client_id: ClientId,
    /// Protocol profile, [`PROFILE`].
    pub profile: String,
    /// Details.
    #[serde(default)]
    pub params: Params,
    /// Compact JWS that authorises exactly this request (protocol.md §6.2).
    pub jwt_proof: Bearer,
    /// RFC 6238 code, when the relay verifies it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub totp: Option<Bearer>,
}

impl ServiceRequest {
    /// Longest `rotation_reason` in bytes.
    pub const MAX_REASON: usize = 500;

    /// Longest `jwt_proof` in bytes.
    pub const MAX_PROOF: usize = 8192;

    /// The checks that need no state: profile, proof size, reason, TOTP shape, and that every parameter belongs to the action. A parameter
    /// that the action would ignore is refused: whoever sent it meant something that is not going to happen.
    ///
    /// # Errors
    /// The first [`Invalid`] field.
    pub fn validate(&self) -> Result<(), Invalid> {
        let Self {
            action_type,
            action_id: _,
            client_id: _,
            profile,
            params,
            jwt_proof,
            totp,
        } = self;
        if profile != PROFILE {
            return Err(Invalid::new("profile", "\"nip-kr/0.1.0\""));
        }
        if !(1..=Self::MAX_PROOF).contains(&jwt_proof.expose().len()) {
            return Err(Invalid::new("jwt_proof", "1 to 8192 bytes"));
        }
        let Params {
            rotation_reason: reason,
            not_before,
            grace_duration_ms,
            target_rotation_id,
            version_id,
        } = params;
        let has_window = not_before.is_some() || grace_duration_ms.is_some();
        if has_window && *action_type != Action::Rotation {
            return Err(Invalid::new(
                "not_before, grace_duration_ms",
                "absent from everything but a rotation",
            ));
        }
        if target_rotation_id.is_some() && !matches!(action_type, Action::Cancel | Action::Rollback)
        {
            return Err(Invalid::new(
                "target_rotation_id",
                "absent from everything but cancel and rollback",
            ));
        }
        if version_id.is_some() && *action_type != Action::Revoke {
            return Err(Invalid::new(
                "version_id",
                "absent from everything but revoke",
            ));
        }
        if *action_type != Action::Status && reason.trim().is_empty() {
            return Err(Invalid::new("rotation_reason", "a non-empty text"));
        }
        if reason.len() > Self::MAX_REASON || reason.chars().any(char::is_control) {
            return Err(Invalid::new(
                "rotation_reason",
                "at most 500 bytes without control characters",
            ));
        }
        if let Some(code) = totp {
            let code = code.expose();
            if !(6..=8).contains(&code.len()) || !code.bytes().all(|b| b.is_ascii_digit()) {
                return Err(Invalid::new("totp", "6 to 8 digits"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use crate::time::UnixMs;

    fn request(action_type: Action) -> ServiceRequest {
        ServiceRequest {
            action_type,
            action_id: "01JM8VEZAMG2DK6T4S9N7TT1C8".parse().unwrap(),
            client_id: "ext-totp-svc".parse().unwrap(),
            profile: PROFILE.to_owned(),
            params: Params {
                rotation_reason: "quarterly".to_owned(),
                ..Params::default()
            },
            jwt_proof: Bearer::new("eyJ.eyJ.sig"),
            totp: Some(Bearer::new("287082")),
        }
    }

    fn refused(change: impl FnOnce(&mut ServiceRequest)) -> &'static str {
        let mut request = request(Action::Rotation);
        change(&mut request);
        request.validate().unwrap_err().field
    }

    #[test]
    fn a_complete_request_passes() {
        for action in [
            Action::Rotation,
            Action::Cancel,
            Action::Rollback,
            Action::Revoke,
            Action::Emergency,
            Action::Status,
        ] {
            assert_eq!(request(action).validate(), Ok(()));
        }
        let mut status = request(Action::Status);
        status.params = Params::default();
        assert_eq!(status.validate(), Ok(()));
    }

    #[test]
    fn each_broken_field_is_named() {
        assert_eq!(refused(|r| r.profile = "nip-kr/9".into()), "profile");
        assert_eq!(refused(|r| r.jwt_proof = Bearer::new("")), "jwt_proof");
        assert_eq!(
            refused(|r| r.jwt_proof = Bearer::new("x".repeat(8193))),
            "jwt_proof"
        );
        for reason in ["", "  ", "a\nb", "\u{1b}]0;x"] {
            assert_eq!(
                refused(|r| r.params.rotation_reason = reason.into()),
                "rotation_reason"
            );
        }
        let long = "x".repeat(501);
        assert_eq!(
            refused(|r| r.params.rotation_reason = long),
            "rotation_reason"
        );
        for code in ["12345", "123456789", "12345a", "１２３４５６", ""] {
            assert_eq!(refused(|r| r.totp = Some(Bearer::new(code))), "totp");
        }
    }

    #[test]
    fn a_parameter_of_another_action_is_refused() {
        let id: RotationId = "01JM8VEZAMG2DK6T4S9N7TT1C8".parse().unwrap();
        assert_eq!(
            refused(|r| r.params.target_rotation_id = Some(id)),
            "target_rotation_id"
        );
        let version = "01JM8VEZAMG2DK6T4S9N7TT1C8".parse().unwrap();
        assert_eq!(
            refused(|r| r.params.version_id = Some(version)),
            "version_id"
        );
        for action in [
            Action::Emergency,
            Action::Revoke,
            Action::Cancel,
            Action::Rollback,
        ] {
            let mut request = request(action);
            request.params.not_before = Some(UnixMs(1));
            assert!(request.validate().is_err(), "{action:?}");
            request.params.not_before = None;
            request.params.grace_duration_ms = Some(0);
            assert!(request.validate().is_err(), "{action:?}");
        }
    }

    #[test]
    fn bearer_values_are_redacted_everywhere() {
        let shown = format!("{:?}", request(Action::Rotation));
        assert!(
            !shown.contains("eyJ") && !shown.contains("287082"),
            "{shown}"
        );

        // A code sent as a number, a bool, a float, negative: the error must not repeat it.
        for value in [
            "287082",
            "-287082",
            "287082.5",
            "[\"287082\"]",
            "{\"287082\":1}",
        ] {
            let error = serde_json::from_str::<Bearer>(value).unwrap_err();
            assert!(!error.to_string().contains("287082"), "{error}");
        }
    }

    #[test]
    fn bearer_values_travel_as_plain_strings() {
        let json = serde_json::to_string(&request(Action::Rotation)).unwrap();
        assert_eq!(
            serde_json::from_str::<ServiceRequest>(&json).unwrap(),
            request(Action::Rotation)
        );
        assert!(json.contains("\"totp\":\"287082\""));
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let mut value = serde_json::to_value(request(Action::Rotation)).unwrap();
        value["later"] = serde_json::json!({ "a": [1] });
        value["params"]["later"] = serde_json::json!(true);
        assert_eq!(
            serde_json::from_value::<ServiceRequest>(value).unwrap(),
            request(Action::Rotation)
        );
    }
}
