//! Every way a command can fail, and the exit code of each.

use keyturn_proto::Outcome;

use super::exit::Exit;
use crate::challenge::ChallengeError;
use crate::home::HomeError;
use crate::session::{GroupError, OpenSessionError, RequestError, SecretError, SyncError};
use crate::transport::RelayError;

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Something is missing on the command line.
    #[error("{0}")]
    Usage(String),
    /// The home directory.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The session does not open.
    #[error(transparent)]
    Open(#[from] OpenSessionError),
    /// Groups.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// Requests.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Delivered secrets.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Following.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// The rotation is over, and not as asked.
    #[error("the rotation ended: {}", .0.as_str())]
    Outcome(Outcome),
    /// Nobody answered a question.
    #[error("no answer on the terminal: {0}")]
    Prompt(std::io::Error),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl CliError {
    /// The exit code.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) | Self::Prompt(_) => Exit::Usage,
            Self::Home(_) => Exit::Local,
            Self::Open(error) => match error {
                OpenSessionError::Relay(error) => relay(error),
                OpenSessionError::Sync(error) => sync(error),
                OpenSessionError::Challenge(error) => challenge(error),
                OpenSessionError::Home(_)
                | OpenSessionError::StorageKey(_)
                | OpenSessionError::Member(_) => Exit::Local,
            },
            Self::Group(error) => group(error),
            Self::Request(error) => request(error),
            Self::Secret(error) => secret(error),
            Self::Sync(error) => sync(error),
            Self::Outcome(_) => Exit::Outcome,
            Self::Interrupted => Exit::Interrupted,
        }
    }
}

fn relay(error: &RelayError) -> Exit {
    match error {
        RelayError::Timeout(_) => Exit::Timeout,
        _ => Exit::Network,
    }
}

fn sync(error: &SyncError) -> Exit {
    match error {
        SyncError::Relay(error) => relay(error),
        SyncError::Group(error) => group(error),
        _ => Exit::Local,
    }
}

fn group(error: &GroupError) -> Exit {
    match error {
        GroupError::Relay(error) => relay(error),
        GroupError::Sync(error) => sync(error),
        GroupError::Contended => Exit::Timeout,
        _ => Exit::Local,
    }
}

fn challenge(error: &ChallengeError) -> Exit {
    match error {
        ChallengeError::Unreachable { .. } => Exit::Network,
        _ => Exit::Proof,
    }
}

fn request(error: &RequestError) -> Exit {
    match error {
        RequestError::Refused { class, .. } => (*class).into(),
        RequestError::NoAnswer(_) | RequestError::NotOver(_) | RequestError::Unsettled => {
            Exit::Timeout
        }
        RequestError::Invalid(_) => Exit::Usage,
        RequestError::Challenge(error) => challenge(error),
        RequestError::Proof(_) => Exit::Proof,
        RequestError::Group(error) => group(error),
        RequestError::Relay(error) => relay(error),
        RequestError::Sync(error) => sync(error),
        RequestError::NoService(_) | RequestError::Seal(_) | RequestError::Store(_) => Exit::Local,
    }
}

fn secret(error: &SecretError) -> Exit {
    match error {
        SecretError::Timeout => Exit::Timeout,
        SecretError::Group(error) => group(error),
        SecretError::Relay(error) => relay(error),
        SecretError::Sync(error) => sync(error),
        _ => Exit::Local,
    }
}

#[cfg(test)]
mod tests {
    use keyturn_proto::ErrorClass;

    use super::*;

    #[test]
    fn each_refusal_has_its_own_code() {
        for (class, code) in [
            (ErrorClass::UnauthorizedRequest, 3),
            (ErrorClass::PolicyViolation, 4),
            (ErrorClass::Conflict, 5),
            (ErrorClass::NotFound, 6),
            (ErrorClass::InternalError, 7),
        ] {
            let error = CliError::Request(RequestError::Refused {
                class,
                retry_after: None,
            });
            assert_eq!(error.exit() as u8, code);
        }
    }

    #[test]
    fn a_nested_network_failure_is_still_one() {
        let lost = || RelayError::Lost;
        for error in [
            CliError::Sync(SyncError::from(GroupError::from(lost()))),
            CliError::Request(RequestError::Sync(lost().into())),
            CliError::Secret(SecretError::Group(lost().into())),
            CliError::Open(OpenSessionError::Relay(lost())),
        ] {
            assert_eq!(error.exit(), Exit::Network, "{error}");
        }
    }
}
