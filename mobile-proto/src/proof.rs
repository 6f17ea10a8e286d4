//! The `jwt_proof`: what an issuer is asked for, and the claims it signs (protocol.md §6.2).
//!
//! The admin's side makes a [`ProofRequest`] and gets a compact JWS back; the relay checks that the [`ProofClaims`] in it say the same.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{Action, Params};
use crate::ids::{ClientId, MlsGroupId, Npub, RotationId};

/// The audience that a relay expects unless it is configured otherwise.
pub const DEFAULT_AUDIENCE: &str = "rust-nostr-relay";

/// Longest `exp - iat`, seconds.
pub const MAX_LIFETIME_SECS: u64 = 300;

/// Authentication methods that a proof must name (RFC 8176 `amr`).
pub const REQUIRED_AMR: [&str; 2] = ["app_attest", "totp"];

/// What an issuer needs to know to sign a proof. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProofRequest {
    /// Claim `nonce`, to be copied as it stands.
    pub nonce: String,
    /// Claim `npub`.
    pub npub: Npub,
    /// Claim `mls_group`.
    pub mls_group: MlsGroupId,
    /// Claim `aud`.
    pub aud: String,
    /// For display: what is being authorised.
    pub action: Action,
    /// For display: the client.
    pub client_id: ClientId,
    /// For display: the operation.
    pub action_id: RotationId,
    /// For display: the parameters.
    #[serde(default)]
    pub params: Params,
}

/// The claims of a proof. Further claims are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProofClaims {
    /// Who signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
    /// For whom.
    pub aud: Audience,
    /// Issued at, unix seconds.
    pub iat: u64,
    /// Not valid before, unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    /// Expires, unix seconds.
    pub exp: u64,
    /// How the person was authenticated.
    pub amr: Vec<String>,
    /// Whose proof; must be the sender.
    pub npub: Npub,
    /// The group that the request travels in.
    pub mls_group: MlsGroupId,
    /// See [`crate::nonce`].
    pub nonce: String,
}

/// RFC 7519 §4.1.3: one audience or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Audience {
    /// The usual case.
    One(String),
    /// Any of them may be meant.
    Many(Vec<String>),
}

impl Audience {
    /// Whether `name` is among them.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::One(one) => one == name,
            Self::Many(many) => many.iter().any(|each| each == name),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn an_audience_is_one_or_many() {
        let one: Audience = serde_json::from_str("\"a\"").unwrap();
        let many: Audience = serde_json::from_str("[\"b\",\"a\"]").unwrap();
        assert!(one.contains("a") && many.contains("a"));
        assert!(!one.contains("b") && !many.contains("c"));
    }
}
