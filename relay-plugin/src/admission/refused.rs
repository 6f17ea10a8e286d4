//! A refusal on its way out of the steps, before it is counted and audited.

use keyturn_proto::ErrorClass;
use keyturn_store::store::StoreError;

use super::permit::Refusal;

/// A [`Refusal`] and whether its audit record is already written (a wrong TOTP code is recorded in the transaction that counts it).
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) refusal: Refusal,
    pub(super) audited: bool,
}

impl Refused {
    pub(super) const fn new(class: ErrorClass, reason: &'static str) -> Self {
        let refusal = Refusal {
            class,
            reason,
            retry_after_ms: None,
        };
        Self {
            refusal,
            audited: false,
        }
    }

    /// The one class for everybody who is not entitled, whatever the reason.
    pub(super) const fn unauthorized(reason: &'static str) -> Self {
        Self::new(ErrorClass::UnauthorizedRequest, reason)
    }

    pub(super) const fn policy(reason: &'static str) -> Self {
        Self::new(ErrorClass::PolicyViolation, reason)
    }

    /// Something of ours failed: not the requester's fault, and worth another try.
    pub(super) const fn internal(reason: &'static str, retry_after_ms: u64) -> Self {
        Self::new(ErrorClass::InternalError, reason).retry_after(retry_after_ms)
    }

    pub(super) const fn retry_after(mut self, ms: u64) -> Self {
        self.refusal.retry_after_ms = Some(ms);
        self
    }

    pub(super) const fn audited(mut self) -> Self {
        self.audited = true;
        self
    }
}

/// When a failing store is worth asking again.
const STORE_RETRY_MS: u64 = 5_000;

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        let reason = match error {
            StoreError::Unavailable { .. } => "store.unavailable",
            StoreError::Unknown { .. } => "store.outcome_unknown",
            StoreError::Damaged { .. } => "store.damaged",
            StoreError::Unrepresentable { .. } => "store.unrepresentable",
            StoreError::InvalidId { .. } => "store.invalid_id",
            StoreError::NotFound { .. } => "store.not_found",
            StoreError::Conflict { .. } => "store.conflict",
            StoreError::Fenced => "store.fenced",
        };
        Self::internal(reason, STORE_RETRY_MS)
    }
}
