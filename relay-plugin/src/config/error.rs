//! Why a configuration is refused.
//!
//! Every message names the key in full and says what was expected. The value found is shown for ordinary keys only;
//! for secrets the error never holds it.

use std::{io, path::PathBuf};

/// Why a configuration is refused. All of these stop the start.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not TOML. The offending line itself is not repeated, since it may hold a secret.
    #[error("{path}, line {line}: not valid TOML: {message}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The parser's words.
        message: String,
    },
    /// A value of the wrong type or outside its range.
    #[error("{key}: expected {expected}, found {found} (from {origin})")]
    Invalid {
        /// Full name, such as `policy.max_grace`.
        key: String,
        /// What would have been right.
        expected: String,
        /// What is there; "a value that is not shown" for secrets.
        found: String,
        /// "the configuration file" or the variable's name.
        origin: String,
    },
    /// A value without default is missing.
    #[error("{key}: missing; expected {expected}")]
    Missing {
        /// Full name.
        key: String,
        /// What would have been right.
        expected: String,
    },
    /// Two values that do not go together.
    #[error("{key}: {reason}")]
    Conflict {
        /// Full name of the value to change first.
        key: String,
        /// What is wrong with the combination.
        reason: String,
    },
    /// A key that nobody reads: most likely misspelt.
    #[error("{key}: unknown key")]
    UnknownKey {
        /// Full name.
        key: String,
    },
    /// A `KEYTURN_…` variable that nobody reads: most likely misspelt.
    #[error("environment variable {name}: unknown; variables are named KEYTURN_SECTION__FIELD")]
    UnknownVariable {
        /// Its name.
        name: String,
    },
    /// A secret cannot be had from where the configuration says it is.
    #[error("{key}: {reason}")]
    Secret {
        /// Full name.
        key: String,
        /// What to mend; never the secret.
        reason: String,
    },
}
