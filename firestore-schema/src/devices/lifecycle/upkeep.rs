//! What is done by the clock: destruction and deadlines.

use keyturn_proto::UnixMs;

use super::{Decision, Draft};
use crate::devices::documents::{Outstanding, Stage};
use crate::devices::store::Answer;

impl Draft {
    pub(super) fn destroyed(mut self, accessor: &str, now_gone: bool) -> Decision {
        let before = self.doc.doomed.len();
        let why = self
            .doc
            .doomed
            .iter()
            .find(|doomed| doomed.accessor == accessor)
            .map(|doomed| doomed.why.clone());
        self.doc.doomed.retain(|doomed| doomed.accessor != accessor);
        if self.doc.doomed.len() == before {
            return Decision::unchanged(Answer::Repeat);
        }
        let event = if now_gone {
            "device.destroyed"
        } else {
            "device.already_gone"
        };
        self.by_relay(event, &why.unwrap_or_default(), None, Some(accessor));
        self.done_with_doc()
    }

    pub(super) fn destroy_failed(
        mut self,
        accessor: &str,
        why: &str,
        retry_at: UnixMs,
    ) -> Decision {
        let now = self.now;
        let Some(at) = self
            .doc
            .doomed
            .iter()
            .position(|doomed| doomed.accessor == accessor)
        else {
            return Decision::unchanged(Answer::Stale);
        };
        if self.doc.doomed[at].expires_at <= now {
            self.doc.doomed.remove(at);
            self.by_relay("device.destroy_overtaken", "expired", None, Some(accessor));
            return self.done_with_doc();
        }
        let doomed = &mut self.doc.doomed[at];
        doomed.failures = doomed.failures.saturating_add(1);
        doomed.retry_at = retry_at.min(doomed.expires_at);
        // The first failure is worth a record; a day of them is not.
        if doomed.failures == 1 {
            self.by_relay("device.destroy_failed", why, None, Some(accessor));
        }
        self.done_with_doc()
    }

    /// The deadline of the outstanding issue has passed.
    pub(super) fn expire(mut self, attempt: u64, at_once: bool) -> Decision {
        let Some(issue) = self
            .doc
            .outstanding
            .clone()
            .filter(|issue| issue.attempt == attempt)
        else {
            return Decision::unchanged(Answer::Stale);
        };
        if !at_once && self.now < issue.deadline_at {
            return Decision::unchanged(Answer::Stale);
        }
        let accessor = issue.held.as_ref().map(|held| held.accessor.as_str());
        match issue.stage {
            Stage::Asked | Stage::Issuing => {
                self.by_relay("device.interrupted", "deadline", Some(&issue.nonce), None);
                let nonce = issue.nonce.clone();
                self.doc.outstanding = None;
                // Its relay is given up: the search need not wait for it.
                if issue.stage == Stage::Issuing {
                    let given_up_at = self.now.min(issue.deadline_at);
                    self.in_doubt(issue, given_up_at);
                }
                self.done(|_| Answer::Interrupted(nonce))
            }
            // A restart of its relay says nothing about the device.
            Stage::Issued if self.now < issue.deadline_at => Decision::unchanged(Answer::Stale),
            Stage::Issued => {
                self.by_relay(
                    "device.unconfirmed",
                    "no_result",
                    Some(&issue.nonce),
                    accessor,
                );
                let expires_at = issue.held.as_ref().map_or(self.now, |held| held.expires_at);
                self.doc.outstanding = Some(Outstanding {
                    stage: Stage::Unconfirmed,
                    deadline_at: expires_at,
                    ..issue.clone()
                });
                self.done(|_| Answer::Interrupted(issue.nonce))
            }
            Stage::Unconfirmed if self.now < issue.deadline_at => {
                Decision::unchanged(Answer::Stale)
            }
            Stage::Unconfirmed => {
                self.by_relay("device.lapsed", "expired", Some(&issue.nonce), accessor);
                self.doc.outstanding = None;
                self.done_with_doc()
            }
        }
    }
}
