//! The two ways in which a step does not happen: for good, or for now.

use keyturn_proto::ErrorClass;
use keyturn_store::mac::MacError;
use keyturn_store::store::StoreError;

use super::ports::{AudienceError, DeliveryError};
use crate::admission::Refusal;
use crate::metrics as names;

/// Why a step did not happen.
#[derive(Debug)]
pub enum Failure {
    /// For good: the requester is told the class, the audit trail the reason.
    Refused(Refusal),
    /// For now: nothing is answered, the work stays where it is recorded and is taken up again. The word is for the log.
    Again(&'static str),
}

impl Failure {
    /// A refusal.
    #[must_use]
    pub const fn refused(class: ErrorClass, reason: &'static str) -> Self {
        Self::Refused(Refusal {
            class,
            reason,
            retry_after_ms: None,
        })
    }

    /// Its machine word.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.reason,
            Self::Again(reason) => reason,
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound { what } => match what {
                // Judged again inside the transaction: who asked is not enrolled any more.
                "admin" | "totp enrolment" => {
                    Self::refused(ErrorClass::UnauthorizedRequest, "admin.not_enrolled")
                }
                _ => Self::refused(ErrorClass::NotFound, "store.not_found"),
            },
            StoreError::Conflict { why } => match why {
                "admin.inactive" | "totp.locked" | "totp.replayed" => {
                    Self::refused(ErrorClass::UnauthorizedRequest, why)
                }
                _ => Self::refused(ErrorClass::Conflict, why),
            },
            // Somebody else acts on it now; whoever that is answers. Counted here, because every commit of the rotation comes by.
            StoreError::Fenced => {
                metrics::counter!(names::FENCED).increment(1);
                tracing::warn!("a commit was refused: another instance has acted since");
                Self::Again("store.fenced")
            }
            StoreError::Unavailable { cause: _ } => Self::Again("store.unavailable"),
            // Settled by looking again: every method reports what was done.
            StoreError::Unknown { cause: _ } => Self::Again("store.outcome_unknown"),
            StoreError::Damaged { what: _ } => {
                Self::refused(ErrorClass::InternalError, "store.damaged")
            }
            StoreError::Unrepresentable { what: _ } => {
                Self::refused(ErrorClass::InternalError, "store.unrepresentable")
            }
            StoreError::InvalidId { what: _ } => {
                Self::refused(ErrorClass::InternalError, "store.invalid_id")
            }
        }
    }
}

impl From<MacError> for Failure {
    fn from(error: MacError) -> Self {
        match error {
            // The adapter has tried again already, up to its own deadline: the requester is told now, and asks anew.
            MacError::Unavailable { .. } | MacError::Denied { .. } => {
                Self::refused(ErrorClass::InternalError, "mac.unavailable")
            }
            MacError::Integrity(_) => Self::refused(ErrorClass::InternalError, "mac.integrity"),
            MacError::UnknownKey(_) => Self::refused(ErrorClass::InternalError, "mac.unknown_key"),
            MacError::MalformedHash => {
                Self::refused(ErrorClass::InternalError, "mac.malformed_hash")
            }
        }
    }
}

impl From<AudienceError> for Failure {
    fn from(error: AudienceError) -> Self {
        match error {
            AudienceError::NoGroup => {
                Self::refused(ErrorClass::PolicyViolation, "client.no_admin_group")
            }
            AudienceError::Unfit { alias: _, reason } => {
                Self::refused(ErrorClass::PolicyViolation, reason)
            }
            AudienceError::NotYet {
                alias: _,
                reason,
                retry_at: _,
            } => Self::Again(reason),
            AudienceError::Store(error) => error.into(),
            AudienceError::Member(reason) => Self::Again(reason),
        }
    }
}

impl From<DeliveryError> for Failure {
    fn from(error: DeliveryError) -> Self {
        match error {
            DeliveryError::Refused(reason) => Self::refused(ErrorClass::InternalError, reason),
            DeliveryError::Away(reason) | DeliveryError::Group(reason) => Self::Again(reason),
        }
    }
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::*;

    fn class_of(error: StoreError) -> ErrorClass {
        match Failure::from(error) {
            Failure::Refused(refusal) => refusal.class,
            Failure::Again(reason) => panic!("to be tried again: {reason}"),
        }
    }

    #[test]
    fn who_is_not_entitled_inside_the_transaction_hears_what_everybody_unauthorised_hears() {
        for why in ["admin.inactive", "totp.locked", "totp.replayed"] {
            let class = class_of(StoreError::Conflict { why });
            assert_eq!(class, ErrorClass::UnauthorizedRequest, "{why}");
        }
        for what in ["admin", "totp enrolment"] {
            let class = class_of(StoreError::NotFound { what });
            assert_eq!(class, ErrorClass::UnauthorizedRequest, "{what}");
        }
        let conflict = StoreError::Conflict {
            why: "rotation.over",
        };
        assert_eq!(class_of(conflict), ErrorClass::Conflict);
        let unknown = StoreError::NotFound { what: "version" };
        assert_eq!(class_of(unknown), ErrorClass::NotFound);
    }
}
