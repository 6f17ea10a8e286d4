//! The two ends of admission: a permit, which the next step demands as an argument, or a refusal.

use keyturn_proto::{Action, ClientId, ErrorClass, Npub, Params, RotationId, UnixMs};
use keyturn_store::documents::ClientDoc;

use super::opened::GroupContext;

/// Proof that one request passed every check. Only [`super`] can make one.
pub struct Permit {
    pub(super) action: Action,
    pub(super) action_id: RotationId,
    pub(super) params: Params,
    pub(super) requester: Npub,
    pub(super) client: ClientDoc,
    pub(super) group: GroupContext,
    pub(super) event_id: String,
    pub(super) request_digest: String,
    pub(super) totp_step: Option<u64>,
    pub(super) proof_expires_at: UnixMs,
    pub(super) grace_ms: u64,
    pub(super) not_before: UnixMs,
    pub(super) min_interval_ms: u64,
}

impl Permit {
    /// What may be done.
    #[must_use]
    pub const fn action(&self) -> Action {
        self.action
    }
    /// Its idempotency key.
    #[must_use]
    pub const fn action_id(&self) -> &RotationId {
        &self.action_id
    }
    /// The parameters as requested; the judged values are [`Permit::grace_ms`] and [`Permit::not_before`].
    #[must_use]
    pub const fn params(&self) -> &Params {
        &self.params
    }
    /// Who asked.
    #[must_use]
    pub const fn requester(&self) -> Npub {
        self.requester
    }
    /// The client as it was read at admission; the store judges it again inside its transaction.
    #[must_use]
    pub const fn client(&self) -> &ClientDoc {
        &self.client
    }
    /// Whose secret.
    #[must_use]
    pub const fn client_id(&self) -> &ClientId {
        &self.client.client_id
    }
    /// Where the request came from.
    #[must_use]
    pub const fn group(&self) -> &GroupContext {
        &self.group
    }
    /// The 445 event, hex.
    #[must_use]
    pub fn event_id(&self) -> &str {
        &self.event_id
    }
    /// Third part of the idempotency key, hex.
    #[must_use]
    pub fn request_digest(&self) -> &str {
        &self.request_digest
    }
    /// TOTP step to be accepted once.
    #[must_use]
    pub const fn totp_step(&self) -> Option<u64> {
        self.totp_step
    }
    /// An unprepared reservation dies with the proof.
    #[must_use]
    pub const fn proof_expires_at(&self) -> UnixMs {
        self.proof_expires_at
    }
    /// Grace window, milliseconds, within policy.
    #[must_use]
    pub const fn grace_ms(&self) -> u64 {
        self.grace_ms
    }
    /// Earliest promotion, within policy.
    #[must_use]
    pub const fn not_before(&self) -> UnixMs {
        self.not_before
    }
    /// Minimum interval for this client, judged again by the store.
    #[must_use]
    pub const fn min_interval_ms(&self) -> u64 {
        self.min_interval_ms
    }
}

/// A request that did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The only thing the requester learns.
    pub class: ErrorClass,
    /// A stable machine word for the audit trail, e.g. `jwt.expired`.
    pub reason: &'static str,
    /// When trying again is worth it.
    pub retry_after_ms: Option<u64>,
}

/// Why a request got no permit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotAdmitted {
    /// It was refused, and that is recorded.
    Refused(Refusal),
    /// It was refused, and has no record of its own by now: nothing makes other instances refuse it, so nobody is told.
    Counted(Refusal),
    /// It would be refused, but that could not be recorded: nobody is told, and it is judged again.
    Unrecorded,
}

#[cfg(test)]
impl Permit {
    /// A permit without any proof, for tests of what comes after admission.
    pub(crate) fn unproven(
        opened: &super::Opened,
        request: keyturn_proto::ServiceRequest,
        client: ClientDoc,
        terms: (UnixMs, u64),
        proof_expires_at: UnixMs,
    ) -> Self {
        let digest = keyturn_proto::canonical::request_digest(
            request.action_type,
            &request.client_id,
            &request.action_id,
            &request.params,
            &opened.group.mls_group_id,
        );
        Self {
            action: request.action_type,
            action_id: request.action_id,
            params: request.params,
            requester: opened.sender,
            client,
            group: opened.group.clone(),
            event_id: opened.event_id.clone(),
            request_digest: hex::encode(digest),
            totp_step: None,
            proof_expires_at,
            grace_ms: terms.1,
            not_before: terms.0,
            min_interval_ms: 0,
        }
    }
}
