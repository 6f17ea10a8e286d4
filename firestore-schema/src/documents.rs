//! The documents, field for field as protocol.md §4 names them. Times are [`UnixMs`] here; a backend stores them in its native timestamp type.
//!
//! No document that an auditor may read (rotations, actions, audit) bears a hash.

mod audit;

pub use audit::{AuditChainDoc, AuditEntry};

use keyturn_proto::canonical::length_prefixed;
use keyturn_proto::device::DeviceId;
use keyturn_proto::notify::Outcome;
use keyturn_proto::{
    Action, ClientId, ErrorClass, MlsGroupId, Npub, RotationId, UnixMs, VersionId,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// State of one version (protocol.md §3).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum VersionState {
    /// Written and distributed, not yet valid.
    Pending,
    /// The one to use.
    Current,
    /// Still valid until `not_after`.
    Grace,
    /// Dead for good.
    Retired,
    /// Never became valid.
    Cancelled,
}

/// State of a client.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ClientStatus {
    /// Its secrets are judged by their states.
    Active,
    /// Nothing verifies until a rotation gives it a living version (after a revoke).
    Suspended,
    /// Gone; never rotates again.
    Revoked,
}

/// Where a version's secret came from: only generated ones have a prefilter and ack proofs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// 32 bytes from our generator.
    Generated,
    /// Brought in from elsewhere.
    Imported,
}

/// `oauth2_clients/{clientId}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClientDoc {
    /// Document id.
    pub client_id: ClientId,
    /// The version to use.
    pub current_version: Option<VersionId>,
    /// The version in grace.
    pub previous_version: Option<VersionId>,
    /// See [`ClientStatus`].
    pub status: ClientStatus,
    /// Aliases from the operator's registry ([`AdminGroupDoc`]).
    pub admin_groups: Vec<String>,
    /// Last change.
    pub updated_at: UnixMs,
    /// When a rotation of this client was last promoted; the minimum interval counts from here.
    pub last_rotation_at: Option<UnixMs>,
    /// What deviates from the relay's policy for this client.
    pub policy: PolicyOverrides,
    /// The one rotation that may be under way.
    pub active_rotation: Option<ActiveRotation>,
    /// The highest fencing number under which this client was changed: a relay that has lost its lease to another one since changes it no
    /// more ([`crate::lifecycle`]).
    #[serde(default)]
    pub fence: u64,
    /// Everything a verifier needs, in this same document, so that a read never tears.
    pub snapshot: Vec<SnapshotEntry>,
}

/// Per-client deviations from the relay's policy; `None` means the relay's value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyOverrides {
    /// Default grace, milliseconds.
    pub grace_default_ms: Option<u64>,
    /// Maximum grace, milliseconds.
    pub grace_max_ms: Option<u64>,
    /// Minimum time between promotions, milliseconds.
    pub min_interval_ms: Option<u64>,
    /// Acks needed.
    pub quorum: Option<u32>,
    /// The operator suspended the client: until the operator lifts it, no rotation begins and none makes the client active again. Kept by
    /// the lifecycle; an update of the policy does not change it.
    #[serde(default)]
    pub held: bool,
}

/// Who works on the client's rotation: every commit of the flow is conditional on all three.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ActiveRotation {
    /// The operation.
    pub rotation_id: RotationId,
    /// Counts re-preparations, so that a write in doubt cannot land after recovery.
    pub attempt: u32,
    /// Fencing number of the lease under which it was reserved or taken over.
    pub fence: u64,
}

/// One living version as the verifier sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotEntry {
    /// Which.
    pub version_id: VersionId,
    /// `pending`, `current` or `grace`; dead versions leave the snapshot.
    pub state: VersionState,
    /// Valid from.
    pub not_before: UnixMs,
    /// Valid until; `None` for ever.
    pub not_after: Option<UnixMs>,
    /// base64url, canonical.
    pub secret_hash: String,
    /// The MAC key version it was made with.
    pub mac_key_ref: String,
    /// 8 hex digits; only for generated secrets.
    pub prefilter: Option<String>,
    /// See [`VersionDoc::prehash`].
    pub prehash: Option<String>,
}

/// `oauth2_clients/{clientId}/secrets/{versionId}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VersionDoc {
    /// Parent document.
    pub client_id: ClientId,
    /// Document id.
    pub version_id: VersionId,
    /// base64url, canonical.
    pub secret_hash: String,
    /// Always "HMAC-SHA-256".
    pub algo: String,
    /// The MAC key version it was made with.
    pub mac_key_ref: String,
    /// When it was recorded.
    pub created_at: UnixMs,
    /// Valid from.
    pub not_before: UnixMs,
    /// Valid until; `None` for ever.
    pub not_after: Option<UnixMs>,
    /// See [`VersionState`].
    pub state: VersionState,
    /// Who asked for it; `None` for a first secret made by the operator.
    pub rotated_by: Option<Npub>,
    /// Why.
    pub rotation_reason: String,
    /// The operation that made it.
    pub rotation_id: Option<RotationId>,
    /// Where the secret came from.
    pub origin: Origin,
    /// 8 hex digits; only for generated secrets.
    pub prefilter: Option<String>,
    /// bcrypt's identifier, cost and salt (`$2b$10$` and 22 characters), only for a secret that was imported as a bcrypt hash: a presented
    /// secret goes through bcrypt under it, and the MAC is over the whole bcrypt text ([`crate::mac::prehash`]).
    pub prehash: Option<String>,
    /// Ed25519 key that ack proofs must verify under, base64url; only for generated secrets.
    pub ack_public_key: Option<String>,
}

/// How far a rotation has come.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum RotationState {
    /// Admitted; nothing generated is recorded yet.
    Reserved,
    /// The pending version and its sealed events are recorded; acks are awaited.
    Prepared,
    /// Enough acks, `not_before` not yet reached.
    QuorumMet,
    /// Over; see the outcome.
    Done,
}

/// The ack quorum of one rotation, fixed when it is reserved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Quorum {
    /// How many different admins must ack.
    pub required: u32,
    /// Whether at least one counted ack must be proven and unproven ones never suffice alone.
    pub require_proven: bool,
    /// Whether the requester's own ack counts.
    pub requester_counts: bool,
    /// Who acked so far; one entry per npub, a proven one replaces an unproven one.
    pub acks: Vec<AckEntry>,
}

/// One admin's ack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AckEntry {
    /// Who.
    pub npub: Npub,
    /// Whether the proof verified.
    pub proven: bool,
    /// Alias of the group it came through; it counts only while that group is the client's and served.
    #[serde(default)]
    pub group: Option<String>,
    /// When we recorded it.
    pub at: UnixMs,
}

/// `oauth2_rotations/{rotationId}`. Bears no hash: auditors read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RotationDoc {
    /// Document id.
    pub rotation_id: RotationId,
    /// Whose secret.
    pub client_id: ClientId,
    /// `rotation` or `emergency`.
    pub action: Action,
    /// Who asked.
    pub requested_by: Npub,
    /// Why.
    pub reason: String,
    /// Alias of the admin group the request came through.
    pub mls_group: String,
    /// SHA-256 of the request, hex: the same id with another content is a conflict.
    pub request_digest: String,
    /// The version made; `None` while reserved.
    pub new_version: Option<VersionId>,
    /// The version that was current when it was reserved.
    pub old_version: Option<VersionId>,
    /// Earliest promotion.
    pub not_before: UnixMs,
    /// Length of the grace window, milliseconds.
    pub grace_duration_ms: u64,
    /// Final after promotion; until then `not_before` + grace, or `None` without an old version.
    pub grace_until: Option<UnixMs>,
    /// Correlates with the notify's `relay_msg_id`.
    pub distribution_message_id: Option<String>,
    /// Npubs that the secret was sealed for.
    pub readers: Vec<Npub>,
    /// See [`Quorum`].
    pub quorum: Quorum,
    /// See [`RotationState`].
    pub state: RotationState,
    /// `None` until over.
    pub outcome: Option<Outcome>,
    /// Attempt counter, see [`ActiveRotation`].
    pub attempt: u32,
    /// Fence, see [`ActiveRotation`].
    pub fence: u64,
    /// When it was reserved.
    pub created_at: UnixMs,
    /// The proof's expiry: an unprepared reservation is cancelled after it.
    pub proof_expires_at: UnixMs,
    /// When it expires without a quorum.
    pub ack_deadline: UnixMs,
    /// When it ended.
    pub completed_at: Option<UnixMs>,
    /// When the admins were told how it ended; until then the end is announced again after a crash.
    pub announced_at: Option<UnixMs>,
}

/// `outbox/{eventId}`: a finished, signed event, ciphertext only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutboxDoc {
    /// Nostr event id, hex.
    pub event_id: String,
    /// The rotation it belongs to.
    pub rotation_id: RotationId,
    /// Attempt it was sealed in; a later attempt makes it void.
    pub attempt: u32,
    /// Alias of the group it is sealed for.
    pub group: String,
    /// MLS epoch it was sealed in.
    pub epoch: u64,
    /// Hash over (npub, leaf signature key) of everybody it was sealed for, hex; compared again before publishing.
    pub roster_hash: String,
    /// The signed event, Nostr JSON.
    pub event_json: String,
    /// When it was written.
    pub created_at: UnixMs,
    /// When to delete it, here and in the relays' databases; set when the rotation ends.
    pub delete_after: Option<UnixMs>,
    /// When it was deleted from the relay of the instance that acts. What is left is the id, without the ciphertext, for as long as another
    /// relay may still hold the event.
    #[serde(default)]
    pub withdrawn_at: Option<UnixMs>,
}

/// Which clients an admin may touch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientScope {
    /// Every client of the groups the admin is in.
    All,
    /// Only these.
    Only(Vec<ClientId>),
}

/// `admins/{npub}`: who is enrolled (architecture.md, "Who is really in the group").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AdminDoc {
    /// Document id.
    pub npub: Npub,
    /// False after `admin revoke`.
    pub active: bool,
    /// Which clients.
    pub scope: ClientScope,
    /// MLS signature keys proven for this npub.
    pub signature_keys: Vec<ProvenKey>,
    /// TOTP enrolment.
    pub totp: Option<TotpState>,
    /// When enrolled.
    pub created_at: UnixMs,
    /// Last change.
    pub updated_at: UnixMs,
}

/// One MLS signature key and the npub-signed event that proves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProvenKey {
    /// Ed25519 public key, hex.
    pub key: String,
    /// Id of the signed key package event or binding, hex.
    pub proof_event: String,
    /// When it was recorded.
    pub at: UnixMs,
}

/// TOTP state of an admin (RFC 6238).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TotpState {
    /// Seed, encrypted with the npub as associated data, base64url (nonce ‖ ciphertext).
    pub seed_ciphertext: String,
    /// Last step accepted; only later ones are.
    pub last_step: Option<u64>,
    /// Wrong codes in a row.
    pub failures: u32,
    /// Locked until, after too many.
    pub locked_until: Option<UnixMs>,
}

/// Whether a group is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum GroupState {
    /// Served.
    Active,
    /// Nothing is admitted or sealed until the operator approves the roster.
    Suspended {
        /// Why.
        reason: String,
    },
}

/// `admin_groups/{alias}`: the operator's registry; nothing inside a group can change it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AdminGroupDoc {
    /// Document id, the operator's name for the group.
    pub alias: String,
    /// `None` until we have joined.
    pub mls_group_id: Option<MlsGroupId>,
    /// 64 hex digits; `None` until we have joined.
    pub nostr_group_id: Option<String>,
    /// Who may welcome us into it.
    pub welcomers: Vec<Npub>,
    /// See [`GroupState`].
    pub status: GroupState,
    /// Last change.
    pub updated_at: UnixMs,
}

/// Who acted, for the audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Actor {
    /// An admin, proven or claimed (a refusal may name an unproven one).
    Admin {
        /// Who.
        npub: Npub,
    },
    /// A device, by its topic; proven only where its identity key is registered.
    Device {
        /// Which.
        device_id: DeviceId,
    },
    /// The operator at the command line.
    Operator,
    /// The relay by itself: timers, recovery, alarms.
    Relay,
    /// Nobody that could be named.
    Unknown,
}

/// What is to be remembered of one decision or change; never a secret, never a hash of one. Stored as an [`AuditEntry`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditRecord {
    /// When.
    pub at: UnixMs,
    /// Who.
    pub actor: Actor,
    /// What: a stable machine word, e.g. `request.refused`, `rotation.promoted`, `group.suspended`.
    pub event: String,
    /// Why: a stable machine word for refusals (`jwt.expired`, `totp.replayed`, `policy.grace_over_max`), the given reason for changes.
    pub reason: String,
    /// Which client, if any was named.
    pub client_id: Option<ClientId>,
    /// Which operation, if any was named.
    pub rotation_id: Option<RotationId>,
    /// Which version.
    pub version_id: Option<VersionId>,
    /// Group alias or hex id.
    pub group: Option<String>,
    /// The Nostr event that caused it, hex.
    pub nostr_event: Option<String>,
    /// Which device, if it is about one.
    pub device: Option<AuditDevice>,
}

/// What the trail says of a device: never the `secret_id`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditDevice {
    /// Which.
    pub device_id: DeviceId,
    /// The nonce of the request.
    pub nonce: Option<String>,
    /// Names the `secret_id` without revealing it.
    pub accessor: Option<String>,
    /// Whatever it says, it is not in the device's chain but in that of the instance: nobody has found the device on the list, which anybody can invent; or the device's
    /// chain cannot be written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub claimed: bool,
}

/// How far an action has come, in [`ActionDoc`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActionState {
    /// Admitted; only a rotation stays in this state for a while.
    Admitted,
    /// Over.
    Done,
}

/// `service_actions/{actionId}`: the generic record of any action that was admitted, and the idempotency key of those that are no rotation.
/// Bears no hash of a secret: auditors read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ActionDoc {
    /// Document id; for a rotation its `rotation_id`.
    pub action_id: RotationId,
    /// Whose secret.
    pub client_id: ClientId,
    /// What was asked for.
    pub action_type: Action,
    /// Protocol profile.
    pub profile: String,
    /// Who asked.
    pub requester: Actor,
    /// SHA-256 of the request, hex.
    pub request_digest: String,
    /// See [`ActionState`].
    pub state: ActionState,
    /// How a rotation ended; `canceled` for a cancel that found its rotation.
    pub outcome: Option<Outcome>,
    /// The rotation that a cancel ended, whether the request named it or not. `None` when there was none to end, and for every other action.
    #[serde(default)]
    pub target_rotation_id: Option<RotationId>,
    /// When it was admitted.
    pub created_at: UnixMs,
    /// When it ended.
    pub completed_at: Option<UnixMs>,
}

impl ActionDoc {
    /// The generic record of a rotation.
    #[must_use]
    pub fn of(rotation: &RotationDoc) -> Self {
        Self {
            action_id: rotation.rotation_id.clone(),
            client_id: rotation.client_id.clone(),
            action_type: rotation.action,
            profile: keyturn_proto::request::PROFILE.to_owned(),
            requester: Actor::Admin {
                npub: rotation.requested_by,
            },
            request_digest: rotation.request_digest.clone(),
            state: match rotation.state {
                RotationState::Done => ActionState::Done,
                RotationState::Reserved | RotationState::Prepared | RotationState::QuorumMet => {
                    ActionState::Admitted
                }
            },
            outcome: rotation.outcome,
            target_rotation_id: None,
            created_at: rotation.created_at,
            completed_at: rotation.completed_at,
        }
    }
}

/// How an event was refused. Whoever looks at the event again answers the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefusalDoc {
    /// What its sender is told.
    pub class: ErrorClass,
    /// What the trail says.
    pub reason: String,
}

/// `nonces/{hash}`: what happens once: the use of a proof's nonce or of a TOTP step, the refusal of an event. Created once and never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NonceDoc {
    /// Document id: SHA-256 of what is used once, hex.
    pub nonce_hash: String,
    /// The Nostr event that used it, or that was refused.
    pub owner_event: String,
    /// When the record may be forgotten.
    pub expires_at: UnixMs,
    /// How the event was refused; `None` for a use.
    #[serde(default)]
    pub refused: Option<RefusalDoc>,
}

impl NonceDoc {
    /// The id under which the refusal of an event lies, apart from every use.
    #[must_use]
    pub fn refusal_id(event_id: &str) -> String {
        let fields = length_prefixed(&[b"keyturn/refused/1", event_id.as_bytes()]);
        hex::encode(Sha256::digest(fields.as_slice()))
    }
}

/// `leases/{name}`: who does the timed work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseDoc {
    /// Document id.
    pub name: String,
    /// Who holds it.
    pub owner: String,
    /// Fencing number, one higher with every change of hands.
    pub fence: u64,
    /// Until when it is held.
    pub until: UnixMs,
}
