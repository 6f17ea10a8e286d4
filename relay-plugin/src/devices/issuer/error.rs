//! Why an issuer did not do what it was asked. Stable words and durations only: nothing a server said is repeated.

use std::time::Duration;

/// How long to wait after a failure that only an operator can mend.
const PERMANENT_RETRY: Duration = Duration::from_secs(300);

/// Why a call to the issuer failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssuerError {
    /// Nothing was done; the same call may work later.
    #[error("{why}; try again in {} s", after.as_secs())]
    Retryable {
        /// What is in the way.
        why: Reason,
        /// How long to wait.
        after: Duration,
    },
    /// The call may have taken effect: the connection broke, or the answer could not be read.
    #[error("{why}; the outcome is unknown")]
    InDoubt {
        /// What happened.
        why: Reason,
        /// How long to wait.
        after: Duration,
    },
    /// Nothing was done, and nothing will be until somebody mends it.
    #[error("{why}")]
    Permanent {
        /// What is wrong.
        why: Reason,
    },
}

/// What is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Reason {
    /// No connection.
    #[error("the issuer cannot be reached")]
    Unreachable,
    /// No answer in time.
    #[error("the issuer was too slow")]
    Timeout,
    /// Sealed, or not initialised.
    #[error("the issuer is sealed")]
    Sealed,
    /// A standby that does not forward requests.
    #[error("the issuer is a standby")]
    Standby,
    /// It asks for fewer requests.
    #[error("the issuer limits our requests")]
    RateLimited,
    /// Our own limit of calls under way was not free in time.
    #[error("too many calls to the issuer are waiting")]
    Busy,
    /// It failed too often in a row; calls are held back for a while.
    #[error("the issuer failed too often and is left alone for a while")]
    CircuitOpen,
    /// It failed by itself.
    #[error("the issuer reports an internal error")]
    ServerError,
    /// The answer is not what the interface promises.
    #[error("the issuer's answer cannot be understood")]
    Garbled,
    /// Our own credential was refused, or cannot be read.
    #[error("the issuer does not accept our own credential")]
    Unauthenticated,
    /// Our credential is good and does not allow this.
    #[error("the issuer's policy does not allow this")]
    Denied,
    /// There is no such role.
    #[error("the issuer does not know the role")]
    UnknownRole,
    /// It refused the request's content.
    #[error("the issuer refused the request")]
    Rejected,
    /// Asked for something this issuer cannot do.
    #[error("this issuer cannot do that")]
    Unsupported,
    /// The accessor is another issuer's, from before the configuration named this one.
    #[error("another issuer made it")]
    AnotherIssuer,
    /// The store behind an embedded issuer failed.
    #[error("the issuer's store is not available")]
    Store,
    /// The key behind an embedded issuer failed.
    #[error("the issuer's MAC key is not available")]
    MacKey,
    /// The random generator failed.
    #[error("the random generator failed")]
    Random,
}

impl IssuerError {
    /// What is in the way.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Retryable { why, .. } | Self::InDoubt { why, .. } | Self::Permanent { why } => {
                *why
            }
        }
    }

    /// What a device is told to wait: also after a permanent failure it asks again, for somebody may have mended it.
    #[must_use]
    pub const fn retry_after(&self) -> Duration {
        match self {
            Self::Retryable { after, .. } | Self::InDoubt { after, .. } => *after,
            Self::Permanent { .. } => PERMANENT_RETRY,
        }
    }

    /// For a call whose repeat does no harm: doubt about it is only a reason to repeat it.
    #[must_use]
    pub const fn harmless(self) -> Self {
        match self {
            Self::InDoubt { why, after } => Self::Retryable { why, after },
            other => other,
        }
    }

    /// Whether a secret_id may exist that nobody knows of.
    #[must_use]
    pub const fn in_doubt(&self) -> bool {
        matches!(self, Self::InDoubt { .. })
    }
}

impl Reason {
    /// A stable machine word, for the audit trail and as a metric's label.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Sealed => "sealed",
            Self::Standby => "standby",
            Self::RateLimited => "rate_limited",
            Self::Busy => "busy",
            Self::CircuitOpen => "circuit_open",
            Self::ServerError => "server_error",
            Self::Garbled => "garbled",
            Self::Unauthenticated => "unauthenticated",
            Self::Denied => "denied",
            Self::UnknownRole => "unknown_role",
            Self::Rejected => "rejected",
            Self::Unsupported => "unsupported",
            Self::AnotherIssuer => "another_issuer",
            Self::Store => "store",
            Self::MacKey => "mac_key",
            Self::Random => "random",
        }
    }
}
