//! What comes out of a group event once MLS has verified it, and what the encrypted inbox row holds until it is dealt with.

use keyturn_proto::{MlsGroupId, Npub, UnixMs};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Where an application message came from, as MLS proved it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupContext {
    /// The operator's alias, looked up by the two ids below.
    pub alias: String,
    /// MLS group id.
    pub mls_group_id: MlsGroupId,
    /// Epoch it was sent in.
    pub epoch: u64,
    /// Hash over (npub, leaf signature key) of every leaf, hex.
    pub roster_hash: String,
}

/// A request or ack that MLS opened: authenticated, not yet authorised. Never made from a message that bears a secret.
#[derive(Serialize, Deserialize)]
pub struct Opened {
    /// The 445 event, hex.
    pub event_id: String,
    /// When the relay received it; proofs are judged at this time, also after a restart.
    pub received_at: UnixMs,
    /// Where it came from.
    pub group: GroupContext,
    /// The leaf's credential.
    pub sender: Npub,
    /// The leaf's MLS signature key.
    pub leaf_signature_key: Vec<u8>,
    /// The message itself.
    pub json: Zeroizing<String>,
}
