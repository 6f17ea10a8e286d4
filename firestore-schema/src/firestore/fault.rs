//! What a failed call means. Only the status code is looked at: its message can repeat paths and values.

use firestore::gcloud_sdk::tonic::{Code, Status};

/// Why it may go better next time; also the label of the retry counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Two commits touched the same document at once.
    Contention,
    /// A document that the judgement rests on was changed meanwhile.
    Changed,
    /// It could not be reached, or broke off.
    Unreachable,
    /// It did not answer in time.
    Slow,
    /// A quota is used up, or it is overloaded.
    Exhausted,
    /// It failed by itself.
    Internal,
}

impl Cause {
    /// The label of the retry counter.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Contention => "contention",
            Self::Changed => "changed",
            Self::Unreachable => "unreachable",
            Self::Slow => "slow",
            Self::Exhausted => "exhausted",
            Self::Internal => "internal",
        }
    }

    /// For people.
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Contention | Self::Changed => "others kept changing the same documents",
            Self::Unreachable => "Firestore cannot be reached",
            Self::Slow => "Firestore did not answer in time",
            Self::Exhausted => "Firestore's quota is used up",
            Self::Internal => "Firestore failed",
        }
    }
}

/// What a failed call means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A precondition did not hold; nothing was written.
    Changed,
    /// Nothing was written, and it may go better next time.
    Again(Cause),
    /// Nobody can say whether it was done.
    Doubt(Cause),
    /// It will not go better; nothing was written. The cause is for people.
    Refused(&'static str),
}

/// A read changes nothing, so there is no doubt about it.
pub(super) fn of_read(status: &Status) -> Fault {
    match of_commit(status) {
        Fault::Doubt(cause) => Fault::Again(cause),
        Fault::Changed => match status.code() {
            Code::NotFound => Fault::Refused("the database does not exist"),
            _ => Fault::Refused("an index that a query needs is missing"),
        },
        other => other,
    }
}

/// Preconditions fail as FAILED_PRECONDITION (another update time), ALREADY_EXISTS and NOT_FOUND. What the client's side makes up by itself
/// (a broken connection, a cancelled call, an answer it cannot read) says nothing about the server.
pub(super) fn of_commit(status: &Status) -> Fault {
    match status.code() {
        Code::FailedPrecondition | Code::AlreadyExists | Code::NotFound => Fault::Changed,
        Code::Aborted => Fault::Again(Cause::Contention),
        // Also said by what stands between, of an answer too large for it or of a call that it had sent on.
        Code::ResourceExhausted => Fault::Doubt(Cause::Exhausted),
        Code::Unavailable => Fault::Doubt(Cause::Unreachable),
        Code::DeadlineExceeded | Code::Cancelled => Fault::Doubt(Cause::Slow),
        Code::Internal | Code::Unknown | Code::DataLoss | Code::Ok | Code::OutOfRange => {
            Fault::Doubt(Cause::Internal)
        }
        Code::PermissionDenied => Fault::Refused("this account may not do that (IAM)"),
        Code::Unauthenticated => Fault::Refused("the credentials were not accepted"),
        Code::InvalidArgument => Fault::Refused("Firestore found the request invalid"),
        Code::Unimplemented => Fault::Refused("the endpoint does not offer Firestore"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_server_said_is_certain() {
        let commit = |code| of_commit(&Status::new(code, "values"));
        for code in [
            Code::FailedPrecondition,
            Code::AlreadyExists,
            Code::NotFound,
        ] {
            assert_eq!(commit(code), Fault::Changed);
        }
        for code in [
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::Cancelled,
            Code::Internal,
            Code::Unknown,
            Code::DataLoss,
            Code::OutOfRange,
            Code::ResourceExhausted,
        ] {
            assert!(matches!(commit(code), Fault::Doubt(_)), "{code:?}");
            let read = of_read(&Status::new(code, "values"));
            assert!(matches!(read, Fault::Again(_)), "{code:?}");
        }
        assert_eq!(commit(Code::Aborted), Fault::Again(Cause::Contention));
        for code in [
            Code::PermissionDenied,
            Code::Unauthenticated,
            Code::InvalidArgument,
        ] {
            assert!(matches!(commit(code), Fault::Refused(_)), "{code:?}");
            assert_eq!(commit(code), of_read(&Status::new(code, "values")));
        }
        let read = |code| of_read(&Status::new(code, "values"));
        assert_ne!(read(Code::NotFound), read(Code::FailedPrecondition));
    }
}
