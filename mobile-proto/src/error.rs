//! The error classes a requester may see (protocol.md §6), and the one way input is found invalid.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The only error classes that leave the relay. Anything finer goes to the audit trail, not to the requester.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// Not authenticated or not entitled; also stands in for clients that do not exist.
    UnauthorizedRequest,
    /// Entitled, but a policy forbids it now.
    PolicyViolation,
    /// Another operation stands in the way, or an id was used before with another content.
    Conflict,
    /// The operation the requester may see does not exist.
    NotFound,
    /// The relay failed; nothing was changed.
    InternalError,
}

impl ErrorClass {
    /// The wire spelling.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnauthorizedRequest => "unauthorized_request",
            Self::PolicyViolation => "policy_violation",
            Self::Conflict => "conflict",
            Self::NotFound => "not_found",
            Self::InternalError => "internal_error",
        }
    }
}

impl std::fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A field whose value breaks the protocol. Carries the field and the rule, never the value: the value may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` must be {expected}")]
pub struct Invalid {
    /// Field name as it stands in the message or document.
    pub field: &'static str,
    /// What would have been right.
    pub expected: &'static str,
}

impl Invalid {
    /// A rule that `field` broke.
    #[must_use]
    pub const fn new(field: &'static str, expected: &'static str) -> Self {
        Self { field, expected }
    }
}
