//! The port: one document, one change, one transaction, with its audit records.

use std::time::Duration;

use async_trait::async_trait;
use keyturn_proto::UnixMs;
use keyturn_proto::device::{DeviceId, DeviceNonce, IdentityKey};

use super::documents::{DeviceDoc, DeviceOptions};
use crate::approle::SecretIdDoc;
use crate::store::{Early, Result};

/// What a request is held to inside the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What one device may spend within an hour ([`super::documents::Spent`]); at most [`super::documents::SPENT`].
    pub per_hour: u32,
    /// How long a step may take until somebody else looks after it.
    pub step: Duration,
    /// How long what is issued is asked to live: so long one of unknown outcome is looked for.
    pub ttl: Duration,
    /// How long after its use a signed nonce could be played again; so long it is remembered.
    pub replay: Duration,
}

/// A change of one device's document.
#[derive(Clone, Debug)]
pub enum Change {
    /// The operator puts it on the list, or changes its role and options. With another role or other keys, the issue under way is set aside.
    Allow {
        /// AppRole role.
        role: String,
        /// See [`DeviceOptions`].
        options: DeviceOptions,
    },
    /// The operator takes it off the list; everything it holds is doomed.
    Deny,
    /// The operator has everything that it holds destroyed; it stays on the list, and asks again.
    Invalidate,
    /// It asks. The signature was verified under `identity`.
    Ask {
        /// Fresh.
        nonce: DeviceNonce,
        /// The device's word for why.
        reason: String,
        /// The key that the request was verified under.
        identity: Option<IdentityKey>,
        /// Who works on it.
        owner: String,
        /// Which issuer will be asked ([`super::documents::Held::issuer`]).
        issuer: String,
        /// See [`Limits`].
        limits: Limits,
    },
    /// Its turn has come: the issuer is called next, unless its time is over.
    Start {
        /// Number of the issue.
        attempt: u64,
        /// How long that may take.
        step: Duration,
    },
    /// The issuer has answered.
    Issued {
        /// Number of the issue.
        attempt: u64,
        /// Role it was issued under.
        role: String,
        /// Names the new `secret_id`.
        accessor: String,
        /// Hash of the proof that its holder can make.
        expected_proof: String,
        /// End of its lifetime.
        expires_at: UnixMs,
        /// How long the device's result is awaited.
        confirm: Duration,
    },
    /// The issuer has failed.
    IssueFailed {
        /// Number of the issue.
        attempt: u64,
        /// A stable word.
        why: String,
        /// Whether a `secret_id` could live that nobody knows of.
        in_doubt: bool,
    },
    /// What was issued could not be handed to the broker's connection: the device does not have it.
    NotSent {
        /// Number of the issue.
        attempt: u64,
    },
    /// The device says how it went. The signature was verified under `identity`.
    Result {
        /// The request's.
        nonce: DeviceNonce,
        /// Whether it works.
        ok: bool,
        /// The proof, if one came.
        proof: Option<String>,
        /// The device's word for why.
        reason: String,
        /// The key that the message was verified under.
        identity: Option<IdentityKey>,
        /// When to ping next, for a device on the scheduled policy.
        next_ping: UnixMs,
    },
    /// A doomed `secret_id` is gone.
    Destroyed {
        /// Which.
        accessor: String,
        /// Whether it was this call that ended it.
        now_gone: bool,
    },
    /// A doomed `secret_id` could not be destroyed.
    DestroyFailed {
        /// Which.
        accessor: String,
        /// A stable word.
        why: String,
        /// When to try next.
        retry_at: UnixMs,
    },
    /// What an unresolved issue may have made was looked for.
    Searched {
        /// Number of the issue.
        attempt: u64,
        /// What was found.
        accessors: Vec<String>,
        /// When the search began.
        began: UnixMs,
        /// How long what the issuer was asked for may take to show, after nobody asks any more. Until then an empty search says nothing.
        quiet: Duration,
    },
    /// It could not be looked for.
    SearchFailed {
        /// Number of the issue.
        attempt: u64,
        /// A stable word.
        why: String,
        /// When to try next.
        retry_at: UnixMs,
    },
    /// The deadline of the outstanding issue has passed (or its relay has been restarted: then `at_once`).
    Expire {
        /// Number of the issue.
        attempt: u64,
        /// Whatever the deadline says.
        at_once: bool,
    },
    /// The device is invited to ask, under this nonce.
    Ping {
        /// For the request that answers.
        nonce: DeviceNonce,
        /// When to invite again, if it does not.
        next_ping: UnixMs,
    },
}

/// What came of it. Only the first group changes anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done; the document afterwards.
    Done(Box<DeviceDoc>),
    /// An issue was overtaken by another one: what it made is doomed; the document afterwards.
    Superseded(Box<DeviceDoc>),
    /// The outstanding issue was interrupted: the device is to ask again.
    Interrupted(DeviceNonce),
    /// The device has confirmed; whether it proved it.
    Confirmed {
        /// Whether it proved possession.
        proven: bool,
        /// The document afterwards.
        doc: Box<DeviceDoc>,
    },
    /// A repeat of what is known already.
    Repeat,
    /// There is nothing it could apply to: over, taken over, or never begun.
    Stale,
    /// Not on the list.
    NotAllowed,
    /// The device's identity key is another than the one the message was verified under.
    KeyChanged,
    /// That nonce was used before.
    NonceUsed,
    /// It got too much within the hour, or too much of it has to be kept in mind; when a request is possible again.
    TooMany(UnixMs),
    /// [`Mint`] made nothing: it has to be asked and issued in steps.
    NotAtOnce,
}

/// A `secret_id` that was made, and is stored nowhere yet.
pub struct Minted {
    /// What is stored of it.
    pub secret_id: SecretIdDoc,
    /// Hash of the proof that its holder can make.
    pub expected_proof: String,
}

/// Makes a `secret_id` for the device as the transaction sees it, and waits for nothing. A transaction that is judged again asks again, and the last one counts.
pub type Mint = Box<dyn FnMut(&DeviceDoc) -> Option<Minted> + Send>;

/// Where devices are kept.
#[async_trait]
pub trait DeviceStore: Send + Sync {
    /// Applies one change, in one transaction with the audit records that [`super::lifecycle::apply`] makes. Safe to repeat.
    async fn change_device(&self, id: &DeviceId, change: Change, now: UnixMs) -> Result<Answer>;
    /// Applies `ask`, a [`Change::Ask`], and stores the `secret_id` that `mint` makes, all in one transaction (see [`super::lifecycle::at_once`]); the device's result is
    /// awaited for `confirm`. A `secret_id` that a power cut undoes has never been one, so the device may be told before the commit is durable.
    async fn issue_at_once(
        &self,
        id: &DeviceId,
        ask: Change,
        confirm: Duration,
        mint: Mint,
        now: UnixMs,
    ) -> Result<Early<Answer>>;
    /// One device.
    async fn device(&self, id: &DeviceId) -> Result<Option<DeviceDoc>>;
    /// Devices in id order, after `after`, at most `limit`.
    async fn devices(&self, after: Option<&DeviceId>, limit: usize) -> Result<Vec<DeviceDoc>>;
    /// Devices whose `due_at` has come, the one waiting longest first, at most `limit`.
    async fn devices_due(&self, now: UnixMs, limit: usize) -> Result<Vec<DeviceDoc>>;
    /// Devices that this relay works on ([`DeviceDoc::worked_on_by`]), at most `limit`; for its restart.
    async fn devices_of(&self, owner: &str, limit: usize) -> Result<Vec<DeviceDoc>>;
}
