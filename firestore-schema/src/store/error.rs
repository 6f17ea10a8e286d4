//! Why a transaction did not happen.

/// Why a transaction did not happen. Nothing was changed, except with [`StoreError::Unknown`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The document asked for does not exist.
    #[error("{what} does not exist")]
    NotFound {
        /// Which kind of document.
        what: &'static str,
    },
    /// It exists already, or the state machine forbids the change.
    #[error("conflict: {why}")]
    Conflict {
        /// A stable machine word.
        why: &'static str,
    },
    /// `attempt` or `fence` are no longer ours: somebody else has taken over.
    #[error("fenced off: another instance has taken over")]
    Fenced,
    /// The store could not be reached, or was too slow.
    #[error("store unavailable: {cause}")]
    Unavailable {
        /// A redacted cause.
        cause: &'static str,
    },
    /// The commit may or may not have happened; settle it by `attempt` and `fence`.
    #[error("outcome unknown: {cause}")]
    Unknown {
        /// A redacted cause.
        cause: &'static str,
    },
    /// A text that cannot be the id of a document: empty, over 1,500 bytes, with `/` or control characters, or one of `.`, `..`, `__…__`.
    #[error(
        "no usable id of a {what}: 1 to 1500 bytes without '/' or control characters, and none of '.', '..', '__…__'"
    )]
    InvalidId {
        /// Which kind of document.
        what: &'static str,
    },
    /// What was to be written has no exact counterpart in every backend: a time past the year 9999, or a number beyond 63 bits.
    #[error("the {what} holds a time past the year 9999, or a number that is too large")]
    Unrepresentable {
        /// Which kind of document.
        what: &'static str,
    },
    /// What was read breaks the schema.
    #[error("stored document is damaged: {what}")]
    Damaged {
        /// Which kind of document, never its content.
        what: &'static str,
    },
}

impl StoreError {
    /// A stable machine word, without values.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::Conflict { why } => why,
            Self::Fenced => "fenced",
            Self::Unavailable { .. } => "unavailable",
            Self::Unknown { .. } => "outcome_unknown",
            Self::InvalidId { .. } => "invalid_id",
            Self::Unrepresentable { .. } => "unrepresentable",
            Self::Damaged { .. } => "damaged",
        }
    }
}
