//! The service request: an admin asks the relay for an action (protocol.md §5).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::action::{Action, Params};
use crate::error::Invalid;
use crate::ids::{ClientId, RotationId};

/// The profile we speak.
pub const PROFILE: &str = "nip-kr/0.1.0";

/// A bearer value inside a message (`jwt_proof`, `totp`): wiped on drop, redacted in `Debug`. It is serialised because a request has to be
/// composed, but never stored or logged by the relay.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Zeroize, ZeroizeOnDrop)]
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

    /// The checks that need no state: profile, reason, TOTP shape, target.
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
        if jwt_proof.expose().len() > 8192 {
            return Err(Invalid::new("jwt_proof", "at most 8192 bytes"));
        }
        let reason = &params.rotation_reason;
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
