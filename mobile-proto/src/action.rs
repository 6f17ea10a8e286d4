//! What can be asked for, and its parameters (protocol.md §5).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{RotationId, VersionId};
use crate::time::UnixMs;

/// The `action_type` of a service request.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Prepare, distribute and promote a new version; `action_id` is the rotation id.
    Rotation,
    /// Withdraw the active rotation `target_rotation_id`.
    Cancel,
    /// Within grace: make the previous version current again.
    Rollback,
    /// Retire `version_id`, or every living version when absent, at once.
    Revoke,
    /// Revoke everything, then rotate with no delay and no grace.
    Emergency,
    /// Report the client's versions and its active rotation; changes nothing.
    Status,
}

impl Action {
    /// The wire spelling.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rotation => "rotation",
            Self::Cancel => "cancel",
            Self::Rollback => "rollback",
            Self::Revoke => "revoke",
            Self::Emergency => "emergency",
            Self::Status => "status",
        }
    }
}

/// Parameters of an action. Unknown additional fields are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Params {
    /// Why; required and non-empty for everything but `status`, at most 500 bytes. Ends in the audit trail.
    #[serde(default)]
    pub rotation_reason: String,
    /// Earliest promotion, unix milliseconds; the relay's minimum delay applies when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<UnixMs>,
    /// How long the old version stays valid after promotion, milliseconds; the client's default applies when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_duration_ms: Option<u64>,
    /// The rotation that a `cancel` or `rollback` means; absent: the active, or the latest, one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_rotation_id: Option<RotationId>,
    /// The version that a `revoke` means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_id: Option<VersionId>,
}
