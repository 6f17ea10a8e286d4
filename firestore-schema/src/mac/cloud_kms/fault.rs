//! What went wrong with one attempt, without a word of what the service or the library said.
//!
//! What must always hold: nothing that is kept of an error holds text from outside. The library's errors carry whole response bodies, headers and
//! serde's excerpts of values; they are judged here and dropped.

use std::time::Duration;

use google_cloud_gax::error::rpc::{Code, StatusDetails};
use google_cloud_gax::error::{CredentialsError, Error};

use crate::mac::MacError;

/// What is asked of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Sign,
    Verify,
    Get,
    List,
}

impl Op {
    /// For metrics and the log.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Sign => "sign",
            Self::Verify => "verify",
            Self::Get => "get",
            Self::List => "list",
        }
    }

    /// What IAM calls the right to ask for it.
    pub(super) const fn permission(self) -> &'static str {
        match self {
            Self::Sign => "cloudkms.cryptoKeyVersions.useToSign",
            Self::Verify => "cloudkms.cryptoKeyVersions.useToVerify",
            Self::Get => "cloudkms.cryptoKeys.get",
            Self::List => "cloudkms.cryptoKeyVersions.list",
        }
    }
}

/// The kinds of failure that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// No answer in time.
    Timeout,
    /// No connection, or it broke.
    Unreachable,
    /// The service says that it cannot now.
    Unavailable,
    /// Quota.
    Throttled,
    /// No credentials, or the service does not take them.
    Credentials,
    /// The credentials may not do this. `Code::PermissionDenied`, also for what does not exist.
    Denied,
    /// No such key or version.
    NotFound,
    /// The version is disabled, destroyed, or of another purpose.
    NotUsable,
    /// The request is wrong.
    Invalid,
    /// A checksum or the name does not fit: the answer is thrown away.
    Integrity,
    /// The answer is not what the method returns.
    Garbled,
    /// Nobody was asked.
    BreakerOpen,
}

impl Class {
    /// For metrics and the log.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Unavailable => "unavailable",
            Self::Throttled => "throttled",
            Self::Credentials => "credentials",
            Self::Denied => "denied",
            Self::NotFound => "not_found",
            Self::NotUsable => "not_usable",
            Self::Invalid => "invalid",
            Self::Integrity => "integrity",
            Self::Garbled => "garbled",
            Self::BreakerOpen => "breaker_open",
        }
    }
}

/// One failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) class: Class,
    /// Whether the same request may succeed later. Every method asked for changes nothing, so asking twice is always allowed.
    pub(super) retryable: bool,
    /// The service's own wish.
    pub(super) retry_after: Option<Duration>,
    /// A fixed text: which check failed.
    pub(super) detail: &'static str,
}

impl Fault {
    pub(super) const fn new(class: Class) -> Self {
        let retryable = match class {
            Class::Timeout
            | Class::Unreachable
            | Class::Unavailable
            | Class::Throttled
            | Class::Integrity
            | Class::Garbled
            | Class::BreakerOpen => true,
            Class::Credentials
            | Class::Denied
            | Class::NotFound
            | Class::NotUsable
            | Class::Invalid => false,
        };
        Self {
            class,
            retryable,
            retry_after: None,
            detail: "",
        }
    }

    /// A check of an answer that failed.
    pub(super) const fn integrity(detail: &'static str) -> Self {
        let mut fault = Self::new(Class::Integrity);
        fault.detail = detail;
        fault
    }

    /// Judges an error of the library, and lets go of it.
    pub(super) fn of(error: &Error) -> Self {
        let mut fault = Self::new(class_of(error));
        if fault.class == Class::Credentials {
            // The metadata server or the token service may be away for a moment.
            fault.retryable = credentials_pass(error);
        }
        fault.retry_after = retry_after(error);
        fault
    }

    /// Whether it says something about the service rather than about this request.
    pub(super) const fn counts_against_the_service(&self) -> bool {
        self.retryable
    }

    /// For those who know nothing of Google.
    pub(super) const fn to_mac_error(self, op: Op) -> MacError {
        let cause = match self.class {
            Class::Integrity => return MacError::Integrity(self.detail),
            Class::Timeout => "it did not answer in time",
            Class::Unreachable => "no connection",
            Class::Unavailable => "it cannot answer now",
            Class::Throttled => "its quota is used up",
            Class::Credentials => {
                "the application-default credentials are missing, or not accepted"
            }
            Class::Denied => {
                return MacError::Denied {
                    permission: op.permission(),
                };
            }
            Class::NotFound => "the key version does not exist",
            Class::NotUsable => "the key version is not enabled, or not one for HMAC_SHA256",
            Class::Invalid => "it does not accept the request",
            Class::Garbled => "its answer could not be read",
            Class::BreakerOpen => "it failed repeatedly and is left alone for a moment",
        };
        MacError::Unavailable {
            cause,
            retryable: self.retryable,
        }
    }
}

fn class_of(error: &Error) -> Class {
    if error.is_timeout() {
        return Class::Timeout;
    }
    if error.is_authentication() {
        return Class::Credentials;
    }
    if error.is_connect() {
        return Class::Unreachable;
    }
    if error.is_deserialization() {
        return Class::Garbled;
    }
    if let Some(status) = error.status() {
        match status.code {
            Code::Unavailable | Code::Internal | Code::Aborted => return Class::Unavailable,
            Code::DeadlineExceeded => return Class::Timeout,
            Code::ResourceExhausted => return Class::Throttled,
            Code::PermissionDenied => return Class::Denied,
            Code::Unauthenticated => return Class::Credentials,
            Code::NotFound => return Class::NotFound,
            Code::FailedPrecondition => return Class::NotUsable,
            Code::DataLoss => return Class::Integrity,
            // "KeyManagementService will report an error if the checksum verification fails" (macSign, data_crc32c): ours are right, so the
            // request was changed on its way.
            Code::InvalidArgument if speaks_of_checksums(&status.message) => {
                return Class::Integrity;
            }
            Code::InvalidArgument => return Class::Invalid,
            _ => {}
        }
    }
    match error.http_status_code() {
        Some(408 | 504) => Class::Timeout,
        Some(429) => Class::Throttled,
        Some(500..=599) => Class::Unavailable,
        Some(401) => Class::Credentials,
        Some(403) => Class::Denied,
        Some(404) => Class::NotFound,
        Some(_) => Class::Invalid,
        None if error.is_io() => Class::Unreachable,
        None => Class::Invalid,
    }
}

fn speaks_of_checksums(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("crc32c") || message.contains("checksum")
}

fn credentials_pass(error: &Error) -> bool {
    let source = std::error::Error::source(error);
    source
        .and_then(|source| source.downcast_ref::<CredentialsError>())
        .is_some_and(CredentialsError::is_transient)
}

/// google.rpc.RetryInfo, or the header that proxies know.
fn retry_after(error: &Error) -> Option<Duration> {
    let info = error.status().and_then(|status| {
        status.details.iter().find_map(|detail| match detail {
            StatusDetails::RetryInfo(info) => info.retry_delay,
            _ => None,
        })
    });
    let header = || {
        let value = error.http_headers()?.get("retry-after")?;
        let seconds = value.to_str().ok()?.parse().ok()?;
        Some(Duration::from_secs(seconds))
    };
    info.and_then(|delay| Duration::try_from(delay).ok())
        .or_else(header)
}

#[cfg(test)]
mod tests {
    use google_cloud_gax::error::rpc::Status;

    use super::*;

    fn service(code: Code, message: &str) -> Error {
        Error::service(Status::default().set_code(code).set_message(message))
    }

    #[test]
    fn what_may_pass_is_tried_again_and_what_cannot_is_not() {
        for (error, class, retryable) in [
            (service(Code::Unavailable, ""), Class::Unavailable, true),
            (service(Code::DeadlineExceeded, ""), Class::Timeout, true),
            (service(Code::ResourceExhausted, ""), Class::Throttled, true),
            (service(Code::Internal, ""), Class::Unavailable, true),
            (service(Code::PermissionDenied, ""), Class::Denied, false),
            (
                service(Code::Unauthenticated, ""),
                Class::Credentials,
                false,
            ),
            (service(Code::NotFound, ""), Class::NotFound, false),
            (
                service(Code::FailedPrecondition, ""),
                Class::NotUsable,
                false,
            ),
            (service(Code::InvalidArgument, ""), Class::Invalid, false),
            (
                service(Code::InvalidArgument, "The data CRC32C does not match"),
                Class::Integrity,
                true,
            ),
            (Error::timeout("slow"), Class::Timeout, true),
            (Error::connect("refused"), Class::Unreachable, true),
            (Error::io("reset"), Class::Unreachable, true),
            (Error::deser("garbage"), Class::Garbled, true),
            (Error::ser("ours"), Class::Invalid, false),
            (
                Error::authentication(CredentialsError::from_msg(true, "away")),
                Class::Credentials,
                true,
            ),
            (
                Error::authentication(CredentialsError::from_msg(false, "none")),
                Class::Credentials,
                false,
            ),
        ] {
            let fault = Fault::of(&error);
            assert_eq!(
                (fault.class, fault.retryable),
                (class, retryable),
                "{error}"
            );
        }
        for (status, class, retryable) in [
            (307, Class::Invalid, false),
            (400, Class::Invalid, false),
            (401, Class::Credentials, false),
            (403, Class::Denied, false),
            (404, Class::NotFound, false),
            (408, Class::Timeout, true),
            (429, Class::Throttled, true),
            (500, Class::Unavailable, true),
            (502, Class::Unavailable, true),
            (503, Class::Unavailable, true),
            (504, Class::Timeout, true),
        ] {
            let error = Error::http(status, Default::default(), Default::default());
            let fault = Fault::of(&error);
            assert_eq!(
                (fault.class, fault.retryable),
                (class, retryable),
                "{status}"
            );
        }
    }

    #[test]
    fn nothing_said_by_others_is_kept() {
        let error = service(Code::Internal, "canary");
        let fault = Fault::of(&error);
        for op in [Op::Sign, Op::Verify, Op::Get, Op::List] {
            let ours = fault.to_mac_error(op);
            let shown = format!("{fault:?} {ours} {ours:?}");
            assert!(!shown.contains("canary"), "{shown}");
        }
    }
}
