//! Which database, reached how.

use std::time::Duration;

use crate::mac::cloud_kms::Endpoint;

/// The service itself; any other endpoint is a private one or the emulator.
pub const PRODUCTION: &str = "https://firestore.googleapis.com";

/// Which database, reached how, and for how long to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirestoreSettings {
    /// Google Cloud project.
    pub project: String,
    /// Named database; one that holds nothing else.
    pub database: String,
    /// `None` is [`PRODUCTION`]. A plain one is the emulator: no credentials are looked up and none are sent over it.
    pub endpoint: Option<Endpoint>,
    /// The longest that one method of the store may take, everything included.
    pub timeout: Duration,
}

impl FirestoreSettings {
    /// Where the calls go.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        self.endpoint.as_ref().map_or(PRODUCTION, Endpoint::as_str)
    }

    /// Whether this is the emulator. Plain HTTP carries no credential, so nothing else can be behind it.
    #[must_use]
    pub fn is_emulator(&self) -> bool {
        self.endpoint.as_ref().is_some_and(Endpoint::is_plain)
    }

    /// The longest that one call may take: a server that accepts and never answers must leave time to try again, or to find out what became of a commit.
    pub(super) fn attempt(&self) -> Duration {
        self.timeout / 4
    }
}
