//! Exit codes: part of the interface, documented in `--help`.

use keyturn_proto::ErrorClass;

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// The command line is wrong.
    Usage = 2,
    /// `unauthorized_request`.
    Unauthorized = 3,
    /// `policy_violation`.
    Policy = 4,
    /// `conflict`.
    Conflict = 5,
    /// `not_found`.
    NotFound = 6,
    /// `internal_error`.
    Internal = 7,
    /// The deadline passed.
    Timeout = 8,
    /// Relay or service not reachable.
    Network = 9,
    /// Home directory, keys, member database, group.
    Local = 10,
    /// No proof, or no challenge.
    Proof = 11,
    /// The rotation ended otherwise than asked.
    Outcome = 12,
    /// Ctrl-C.
    Interrupted = 130,
}

impl From<ErrorClass> for Exit {
    fn from(class: ErrorClass) -> Self {
        match class {
            ErrorClass::UnauthorizedRequest => Self::Unauthorized,
            ErrorClass::PolicyViolation => Self::Policy,
            ErrorClass::Conflict => Self::Conflict,
            ErrorClass::NotFound => Self::NotFound,
            ErrorClass::InternalError => Self::Internal,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_in_the_help_text() {
        for exit in [
            Exit::Ok,
            Exit::Usage,
            Exit::Unauthorized,
            Exit::Policy,
            Exit::Conflict,
            Exit::NotFound,
            Exit::Internal,
            Exit::Timeout,
            Exit::Network,
            Exit::Local,
            Exit::Proof,
            Exit::Outcome,
            Exit::Interrupted,
        ] {
            let line = format!("{:>4}  ", exit as u8);
            assert!(
                super::super::args::EXIT_CODES.contains(&line),
                "{exit:?} is not documented"
            );
        }
    }
}
