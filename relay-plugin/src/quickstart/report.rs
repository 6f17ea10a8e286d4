//! What a quickstart prints: one line a step for people, or one JSON line for scripts.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::time::Duration;

use keyturn_proto::notify::Outcome;
use keyturn_proto::{ClientId, RotationId, VersionId};
use serde::Serialize;

/// How the three presented secrets were judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The new secret was accepted, as the current version.
    pub current: bool,
    /// The old secret was accepted, as the previous version in grace.
    pub previous: bool,
    /// A wrong secret was accepted. Must be false.
    pub wrong: bool,
}

/// The summary that `--json` prints, as one line.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The rotation shown.
    pub rotation_id: RotationId,
    /// Whose secret.
    pub client_id: ClientId,
    /// The version before.
    pub old_version: VersionId,
    /// The version after.
    pub new_version: VersionId,
    /// How it ended.
    pub outcome: Outcome,
    /// See [`Verified`].
    pub verified: Verified,
    /// Milliseconds by step; `total` is the request to the promotion.
    pub elapsed_ms: BTreeMap<&'static str, u64>,
    /// Places outside MLS in which plaintext was found. Must be 0.
    pub plaintext_leaks: usize,
}

impl Summary {
    /// Whether all that the quickstart promises held.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.outcome == Outcome::Promoted
            && self.verified
                == Verified {
                    current: true,
                    previous: true,
                    wrong: false,
                }
            && self.plaintext_leaks == 0
            && self.old_version != self.new_version
    }
}

/// Where the story goes: to the terminal, or nowhere.
pub struct Narrator {
    quiet: bool,
}

impl Narrator {
    /// Tells the story unless `quiet`.
    #[must_use]
    pub const fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// One step and how long it took.
    pub fn step(&self, took: Duration, what: &str) {
        self.line(&format!("{:>7} ms  {what}", took.as_millis()));
    }

    /// A line of its own. A closed pipe is not an error of the rotation.
    pub fn line(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(io::stdout(), "{text}");
        }
    }
}
