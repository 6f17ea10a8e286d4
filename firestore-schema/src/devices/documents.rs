//! `devices/{deviceId}`. Never a `secret_id`: accessors name one without revealing it, and of the proof only a hash is kept.

use keyturn_proto::UnixMs;
use keyturn_proto::device::{DeviceId, DeviceNonce, IdentityKey, SealingKey, Suite};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Nonces remembered of one device, however old they are.
pub const NONCES: usize = 64;
/// Nonces remembered of one device while a signature made with the oldest of them could still be good: with so many it has to wait, for none of them may be forgotten.
pub const YOUNG_NONCES: usize = 256;
/// `secret_id`s left to their lifetime (one more where a device confirms without proof what had superseded another); with so many, a device gets no further one until the first of them has ended: none of them may be forgotten.
pub const EARLIER: usize = 8;
/// What counts for one device's hour is remembered so often; no configuration allows more.
pub const SPENT: usize = NONCES / 2;

/// `secret_id`s of the issuer in use that wait for their destruction or are looked for; with so many, a device gets no further one.
pub const PENDING: usize = 32;
/// The same of all other issuers, which nobody can ask as the configuration is: the wider bound keeps the document small, and a move to another issuer from costing
/// a device anything.
pub const PENDING_ELSEWHERE: usize = 4 * PENDING;

/// Whether a device is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// On the allow-list.
    Allowed,
    /// Taken off it; its document stays, so that what it still holds is destroyed.
    Denied,
}

/// When a device gets a new `secret_id`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DevicePolicy {
    /// When it asks.
    #[default]
    OnDemand,
    /// When it asks, and it is invited to ask every few hours.
    Scheduled,
}

/// Commands to the device are sealed to this key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sealing {
    /// X25519 public key.
    pub key: SealingKey,
    /// Cipher.
    pub suite: Suite,
    /// Whether the sealed command is published as a retained message, for a device that sleeps.
    pub retain: bool,
}

/// What an operator chose for one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceOptions {
    /// When given, commands are sealed.
    pub sealing: Option<Sealing>,
    /// When given, every message must be signed.
    pub identity_key: Option<IdentityKey>,
    /// See [`DevicePolicy`].
    pub policy: DevicePolicy,
}

/// How far an issue has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Recorded; the issuer has not been called.
    Asked,
    /// The issuer may have been called.
    Issuing,
    /// Issued; the device's result is awaited until the deadline.
    Issued,
    /// The deadline has passed without a result; the `secret_id` lives on until `expires_at`.
    Unconfirmed,
}

/// The one issue that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Outstanding {
    /// Its number among the device's issues: a write in doubt cannot land on another one.
    pub attempt: u64,
    /// The request's.
    pub nonce: DeviceNonce,
    /// Role that it is issued under.
    pub role: String,
    /// See [`Stage`].
    pub stage: Stage,
    /// The relay that works on it.
    pub owner: String,
    /// Which issuer is asked ([`Held::issuer`]).
    #[serde(default)]
    pub issuer: Option<String>,
    /// When the device asked.
    pub asked_at: UnixMs,
    /// The lifetime that it was asked to be issued with: the configuration may name another by the time somebody has to know. `None` in documents from before this
    /// was written down.
    #[serde(default)]
    pub ttl_ms: Option<u64>,
    /// When somebody must look at it again.
    pub deadline_at: UnixMs,
    /// From [`Stage::Issued`] on.
    pub held: Option<Held>,
}

/// A `secret_id` that lives, as far as we know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Held {
    /// Names it.
    pub accessor: String,
    /// Its role.
    pub role: String,
    /// Which issuer made it, and alone can destroy it: `embedded`, or `vault:` and the path of the auth method. `None` in documents from before this was written down.
    #[serde(default)]
    pub issuer: Option<String>,
    /// The nonce it was asked for with.
    pub nonce: DeviceNonce,
    /// SHA-256 of the proof that its holder can make, hex.
    pub expected_proof: String,
    /// Whether the device has proven that it holds it.
    pub proven: bool,
    /// When it was issued.
    pub issued_at: UnixMs,
    /// End of its lifetime.
    pub expires_at: UnixMs,
}

/// A `secret_id` that must be destroyed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Doomed {
    /// Names it.
    pub accessor: String,
    /// Its role.
    pub role: String,
    /// Which issuer made it ([`Held::issuer`]).
    #[serde(default)]
    pub issuer: Option<String>,
    /// Why, a stable word.
    pub why: String,
    /// How often it was tried in vain.
    pub failures: u32,
    /// When to try next.
    pub retry_at: UnixMs,
    /// After this it is dead by itself.
    pub expires_at: UnixMs,
}

/// An issue whose outcome is not known: a `secret_id` with this nonce in its metadata may live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unresolved {
    /// Number of the issue.
    pub attempt: u64,
    /// The nonce it was asked for with.
    pub nonce: DeviceNonce,
    /// Its role.
    pub role: String,
    /// Which issuer was asked ([`Held::issuer`]).
    #[serde(default)]
    pub issuer: Option<String>,
    /// How often it could not be looked for.
    #[serde(default)]
    pub failures: u32,
    /// When to look for it.
    pub retry_at: UnixMs,
    /// After this it is dead by itself.
    pub expires_at: UnixMs,
    /// From when on nobody calls the issuer for it any more. What was called before may take effect a little later.
    #[serde(default)]
    pub given_up_at: UnixMs,
    /// Searches that found nothing, and came late enough to say something.
    #[serde(default)]
    pub empty: u32,
}

/// What counts for a device's hour: a `secret_id` that was made, or a request that the device itself gave up before it was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Spent {
    /// When.
    pub at: UnixMs,
}

/// One nonce that was used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UsedNonce {
    /// The first 32 hex digits of its SHA-256.
    pub hash: String,
    /// When.
    pub at: UnixMs,
}

/// `devices/{deviceId}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceDoc {
    /// Document id.
    pub device_id: DeviceId,
    /// See [`DeviceState`].
    pub state: DeviceState,
    /// AppRole role.
    pub role: String,
    /// See [`DeviceOptions`].
    pub options: DeviceOptions,
    /// Number of the last issue.
    pub attempts: u64,
    /// See [`Outstanding`].
    pub outstanding: Option<Outstanding>,
    /// What the last issue made that may have reached the device without being confirmed, and that a newer request has overtaken: it may be all that the device has,
    /// so it goes only when a newer one is confirmed with proof, or takes its place here.
    #[serde(default)]
    pub superseded: Option<Held>,
    /// The `secret_id` that the device confirmed last.
    pub current: Option<Held>,
    /// Predecessors that are left to their lifetime, because their successor's `ok` was not proven.
    pub earlier: Vec<Held>,
    /// See [`Doomed`].
    pub doomed: Vec<Doomed>,
    /// See [`Unresolved`].
    pub unresolved: Vec<Unresolved>,
    /// The last nonces, oldest first.
    pub nonces: Vec<UsedNonce>,
    /// What counts for its hour, oldest first.
    #[serde(default)]
    pub spent: Vec<Spent>,
    /// The nonce of a ping that has not been answered.
    pub ping: Option<DeviceNonce>,
    /// When to ping next; only for [`DevicePolicy::Scheduled`].
    pub ping_at: Option<UnixMs>,
    /// Pings without an answer since it asked last.
    #[serde(default)]
    pub pings_missed: u32,
    /// When somebody must look at the document, derived from all of the above.
    pub due_at: Option<UnixMs>,
    /// When it was put on the list.
    pub created_at: UnixMs,
    /// Last change.
    pub updated_at: UnixMs,
}

impl DeviceDoc {
    /// Every `secret_id` that the device may use.
    pub fn held(&self) -> impl Iterator<Item = &Held> {
        let outstanding = self.outstanding.as_ref();
        outstanding
            .and_then(|issue| issue.held.as_ref())
            .into_iter()
            .chain(&self.superseded)
            .chain(&self.current)
            .chain(&self.earlier)
    }

    /// The relay that works on the outstanding issue, while one does: what its restart has to look after.
    #[must_use]
    pub fn worked_on_by(&self) -> Option<&str> {
        self.outstanding
            .as_ref()
            .filter(|issue| matches!(issue.stage, Stage::Asked | Stage::Issuing))
            .map(|issue| issue.owner.as_str())
    }
}
