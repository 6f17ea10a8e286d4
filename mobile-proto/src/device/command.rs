//! What the service publishes on a device's command topic.
//!
//! The command that bears a credential is composed in one zeroising buffer and nowhere else; it has no `Debug` and no `Serialize`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::id::DeviceNonce;
use super::status::Asked;
use crate::error::Invalid;

/// The credential in a command.
pub enum Secret<'a> {
    /// The `secret_id` itself.
    SecretId(&'a str),
    /// A single-use token that unwraps to it, and for how many seconds.
    WrappingToken(&'a str, u64),
}

/// The answer to a request: role and credential.
pub struct Command<'a> {
    /// The request's.
    pub nonce: &'a DeviceNonce,
    /// Static id of the device's role.
    pub role_id: &'a str,
    /// What is new.
    pub secret: Secret<'a>,
    /// How long the `secret_id` lives, seconds.
    pub ttl_sec: u64,
}

impl Command<'_> {
    /// The JSON, in a buffer that never grows: a growing one would leave copies of the secret behind.
    ///
    /// # Errors
    /// [`Invalid`] for a credential or role id that would need escaping; issuers make none.
    pub fn compose(&self) -> Result<Zeroizing<String>, Invalid> {
        let (field, credential, wrapped) = match self.secret {
            Secret::SecretId(text) => ("secret_id", text, None),
            Secret::WrappingToken(text, ttl) => ("wrapping_token", text, Some(ttl)),
        };
        let plain = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\'))
        };
        if !plain(credential) || !plain(self.role_id) {
            return Err(Invalid::new(
                "secret_id",
                "visible ASCII without \" and \\, as the role id",
            ));
        }
        let head = format!(
            r#"{{"nonce":"{}","role_id":"{}","{field}":""#,
            self.nonce, self.role_id
        );
        let tail = match wrapped {
            None => format!(r#"","ttl_sec":{}}}"#, self.ttl_sec),
            Some(ttl) => format!(r#"","ttl_sec":{},"wrapping_ttl_sec":{ttl}}}"#, self.ttl_sec),
        };
        let mut out = Zeroizing::new(String::with_capacity(
            head.len() + credential.len() + tail.len(),
        ));
        out.push_str(&head);
        out.push_str(credential);
        out.push_str(&tail);
        Ok(out)
    }
}

/// Why a device is asked to try again. Finer words go to the audit trail, not to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceError {
    /// The message breaks a rule of the protocol.
    InvalidRequest,
    /// Not on the allow-list, or not signed as it must be.
    Unauthorized,
    /// The device's clock is too far off for its signature to count.
    ClockSkew,
    /// That nonce was used before: ask with a fresh one.
    NonceUsed,
    /// Too many requests.
    RateLimited,
    /// The service or the issuer cannot answer now.
    Unavailable,
    /// The request was taken and has come to nothing: ask again with a fresh nonce.
    Interrupted,
}

impl DeviceError {
    /// The wire spelling.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::Unauthorized => "unauthorized",
            Self::ClockSkew => "clock_skew",
            Self::NonceUsed => "nonce_used",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Nothing was issued: when to ask again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Retry {
    /// The request's.
    pub nonce: DeviceNonce,
    /// Why.
    pub error: DeviceError,
    /// Not before so many seconds have passed.
    pub retry_after_sec: u64,
}

/// Invites a device to ask now, under this nonce: the handshake of the scheduled pattern.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Ping {
    /// To be used as the nonce of the request that answers.
    pub nonce: DeviceNonce,
    /// What can be asked for.
    pub ping: Asked,
}

/// JSON Schema of the command with a credential, which has no `Serialize` of its own.
pub(crate) fn command_schema() -> schemars::Schema {
    schemars::json_schema!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "DeviceCommand",
        "description": "The answer to an auth_request, in clear: published as it is, or as the plaintext of a sealed command.",
        "type": "object",
        "properties": {
            "nonce": DeviceNonce::json_schema(&mut schemars::SchemaGenerator::default()),
            "role_id": { "type": "string", "description": "Static id of the device's AppRole role" },
            "secret_id": { "type": "string", "description": "The new secret_id" },
            "wrapping_token": { "type": "string", "description": "Instead of secret_id: a single-use token that unwraps to it" },
            "ttl_sec": { "type": "integer", "minimum": 0, "description": "How long the secret_id lives, seconds" },
            "wrapping_ttl_sec": { "type": "integer", "minimum": 0, "description": "With wrapping_token: how long it can be unwrapped, seconds" }
        },
        "required": ["nonce", "role_id", "ttl_sec"],
        "oneOf": [{ "required": ["secret_id"] }, { "required": ["wrapping_token", "wrapping_ttl_sec"] }]
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn command<'a>(nonce: &'a DeviceNonce, secret: Secret<'a>) -> Command<'a> {
        Command {
            nonce,
            role_id: "r-1",
            secret,
            ttl_sec: 43_200,
        }
    }

    #[test]
    fn the_command_is_the_seeds() {
        let nonce = "0123456789abcdef".parse().unwrap();
        let json = command(&nonce, Secret::SecretId("s-1")).compose().unwrap();
        assert_eq!(
            json.as_str(),
            r#"{"nonce":"0123456789abcdef","role_id":"r-1","secret_id":"s-1","ttl_sec":43200}"#
        );
        assert_eq!(json.len(), json.capacity(), "the buffer grew");
        let json = command(&nonce, Secret::WrappingToken("w-1", 60))
            .compose()
            .unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["wrapping_token"], "w-1");
        assert_eq!(value["wrapping_ttl_sec"], 60);
    }

    #[test]
    fn a_credential_that_would_break_the_json_is_refused() {
        let nonce = "0123456789abcdef".parse().unwrap();
        for bad in ["", "a\"", "a\\", "a\n", "\u{e4}"] {
            assert!(command(&nonce, Secret::SecretId(bad)).compose().is_err());
        }
    }

    #[test]
    fn every_error_is_spelled_as_it_is_serialised() {
        for error in [
            DeviceError::InvalidRequest,
            DeviceError::Unauthorized,
            DeviceError::ClockSkew,
            DeviceError::NonceUsed,
            DeviceError::RateLimited,
            DeviceError::Unavailable,
            DeviceError::Interrupted,
        ] {
            assert_eq!(serde_json::to_value(error).unwrap(), error.as_str());
        }
    }
}
