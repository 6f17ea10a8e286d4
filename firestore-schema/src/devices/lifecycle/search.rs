//! Looking for what an issue of unknown outcome has made.
//!
//! Finding something ends the doubt. Finding nothing does so only twice, some time apart, and after everybody who could still be making it must have finished: the
//! issuer may work on a call that its caller has given up, and a standby may show late what the active node has done.

use std::time::Duration;

use keyturn_proto::UnixMs;

use super::{Decision, Draft, LONGEST};
use crate::devices::store::Answer;

/// Empty searches that end the doubt.
const EMPTY: u32 = 2;
/// The pause between them is this part of the time that an answer may take to show.
const PAUSE: u32 = 3;

impl Draft {
    pub(super) fn searched(
        mut self,
        attempt: u64,
        accessors: Vec<String>,
        began: UnixMs,
        quiet: Duration,
    ) -> Decision {
        let Some(at) = self.unresolved(attempt) else {
            return Decision::unchanged(Answer::Stale);
        };
        if accessors.is_empty() {
            return self.found_nothing(at, began, quiet);
        }
        let issue = self.doc.unresolved.remove(at);
        for accessor in accessors {
            self.by_relay(
                "device.orphan_found",
                &issue.role,
                Some(&issue.nonce),
                Some(&accessor),
            );
            // It lives, whatever was thought of its lifetime; it is not forgotten before the longest possible one.
            let (role, issuer) = (issue.role.clone(), issue.issuer.clone());
            let expires_at = self.now.plus(LONGEST);
            self.doom_accessor(accessor, role, issuer, expires_at, "orphan");
        }
        self.done_with_doc()
    }

    fn found_nothing(mut self, at: usize, began: UnixMs, quiet: Duration) -> Decision {
        let issue = &mut self.doc.unresolved[at];
        // Another relay has searched at the same time: the two are one.
        if began < issue.retry_at {
            return Decision::unchanged(Answer::Stale);
        }
        let settles = issue.given_up_at.plus(quiet);
        if began < settles {
            issue.retry_at = settles;
        } else {
            issue.empty = issue.empty.saturating_add(1);
            issue.retry_at = began.plus(quiet / PAUSE);
        }
        let is_dead = issue.expires_at <= began;
        if issue.empty >= EMPTY || is_dead {
            let issue = self.doc.unresolved.remove(at);
            let why = if is_dead { "expired" } else { "searched" };
            self.by_relay("device.nothing_found", why, Some(&issue.nonce), None);
        }
        self.done_with_doc()
    }

    pub(super) fn search_failed(mut self, attempt: u64, why: &str, retry_at: UnixMs) -> Decision {
        let Some(at) = self.unresolved(attempt) else {
            return Decision::unchanged(Answer::Stale);
        };
        let issue = &mut self.doc.unresolved[at];
        if issue.expires_at <= self.now {
            let issue = self.doc.unresolved.remove(at);
            self.by_relay("device.nothing_found", "expired", Some(&issue.nonce), None);
        } else {
            issue.retry_at = retry_at.min(issue.expires_at);
            issue.failures = issue.failures.saturating_add(1);
            // As with destructions: the first failure is worth a record.
            if issue.failures == 1 {
                let nonce = issue.nonce.clone();
                self.by_relay("device.search_failed", why, Some(&nonce), None);
            }
        }
        self.done_with_doc()
    }

    fn unresolved(&self, attempt: u64) -> Option<usize> {
        let mut issues = self.doc.unresolved.iter();
        issues.position(|issue| issue.attempt == attempt)
    }
}
