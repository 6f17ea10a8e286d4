//! `approle_roles/{role}` and `approle_secret_ids/{accessor}`. Nobody but the relay reads them: the second bears hashes.

use keyturn_proto::{UnixMs, VersionId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A role. Its id never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AppRoleDoc {
    /// Document id, in lower case.
    pub role: String,
    /// What a device logs in with, besides its secret_id.
    pub role_id: String,
    /// When it was made.
    pub created_at: UnixMs,
}

/// A secret_id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretIdDoc {
    /// Document id: names the secret_id without revealing it, and is its version in the MAC.
    pub accessor: VersionId,
    /// Its role.
    pub role: String,
    /// The device it was issued to.
    pub device: String,
    /// SHA-256 of the nonce it was asked for with, hex.
    pub nonce_hash: String,
    /// MAC of (role, accessor, secret), as for clients (protocol.md §2).
    pub secret_hash: String,
    /// The key version the MAC was made with.
    pub mac_key_ref: String,
    /// Lets a guess be refused without a MAC operation, hex (protocol.md §7).
    pub prefilter: String,
    /// When it was issued.
    pub created_at: UnixMs,
    /// When it ends.
    pub expires_at: UnixMs,
    /// Logins left; `None` for any number.
    pub uses_left: Option<u32>,
    /// Address blocks it may be used from; empty for any.
    pub cidrs: Vec<String>,
}

impl SecretIdDoc {
    /// Whether it still counts.
    #[must_use]
    pub fn alive(&self, now: UnixMs) -> bool {
        now < self.expires_at && self.uses_left != Some(0)
    }
}
