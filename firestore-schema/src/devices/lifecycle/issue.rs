//! From the intent to the issued `secret_id`.

use std::time::Duration;

use keyturn_proto::UnixMs;

use super::{Decision, Draft};
use crate::devices::documents::{Held, Outstanding, Stage};
use crate::devices::store::Answer;

/// What the issuer made.
pub(super) struct Fresh {
    pub(super) attempt: u64,
    pub(super) role: String,
    pub(super) accessor: String,
    pub(super) expected_proof: String,
    pub(super) expires_at: UnixMs,
    pub(super) confirm: Duration,
}

impl Draft {
    fn outstanding(&self, attempt: u64, stages: &[Stage]) -> Option<Outstanding> {
        self.doc
            .outstanding
            .as_ref()
            .filter(|issue| issue.attempt == attempt && stages.contains(&issue.stage))
            .cloned()
    }

    /// The issuer is called next. A request whose time is over is left to those who look after deadlines: they tell the device.
    pub(super) fn start(mut self, attempt: u64, step: Duration) -> Decision {
        let issue = self.outstanding(attempt, &[Stage::Asked, Stage::Issuing]);
        let Some(issue) = issue.filter(|issue| self.now < issue.deadline_at) else {
            return Decision::unchanged(Answer::Stale);
        };
        // One worker has this number. This is its repeat of a write whose outcome it did not learn.
        if issue.stage == Stage::Issuing {
            return Decision::unchanged(Answer::Done(Box::new(self.doc)));
        }
        self.doc.outstanding = Some(Outstanding {
            stage: Stage::Issuing,
            deadline_at: self.now.plus(step),
            ..issue
        });
        self.done_with_doc()
    }

    /// The new `secret_id` is known by its accessor. Nothing goes for it yet: it has not left the relay. One that was overtaken meanwhile is doomed itself.
    pub(super) fn issued(mut self, fresh: Fresh) -> Decision {
        let Fresh {
            attempt,
            role,
            accessor,
            expected_proof,
            expires_at,
            confirm,
        } = fresh;
        if let Some(issue) = self.outstanding(attempt, &[Stage::Issuing]) {
            let held = Held {
                accessor,
                role: issue.role.clone(),
                issuer: issue.issuer.clone(),
                nonce: issue.nonce.clone(),
                expected_proof,
                proven: false,
                issued_at: self.now,
                expires_at,
            };
            self.by_relay(
                "device.issued",
                &issue.role,
                Some(&issue.nonce),
                Some(&held.accessor),
            );
            self.doc.outstanding = Some(Outstanding {
                stage: Stage::Issued,
                deadline_at: self.now.plus(confirm).min(expires_at),
                held: Some(held),
                ..issue
            });
            self.spend();
            return self.done_with_doc();
        }
        // A repeat of this very change after an unknown outcome.
        let known = self.doc.outstanding.as_ref().is_some_and(|issue| {
            issue.attempt == attempt && issue.held.as_ref().is_some_and(|h| h.accessor == accessor)
        });
        if known {
            return Decision::unchanged(Answer::Repeat);
        }
        // The same, after it was overtaken.
        let mut doomed = self.doc.doomed.iter();
        if doomed.any(|doomed| doomed.accessor == accessor) {
            return Decision::unchanged(Answer::Superseded(Box::new(self.doc)));
        }
        // Overtaken by a newer request, by the deadline or by the operator: with this the outcome is known.
        let known = self
            .doc
            .unresolved
            .iter()
            .position(|issue| issue.attempt == attempt);
        let issuer = known.and_then(|at| self.doc.unresolved.remove(at).issuer);
        self.by_relay("device.overtaken", &role, None, Some(&accessor));
        self.spend();
        self.doom_accessor(accessor, role, issuer, expires_at, "overtaken");
        self.done(|doc| Answer::Superseded(Box::new(doc.clone())))
    }

    /// Nothing was issued, or nobody knows.
    pub(super) fn issue_failed(mut self, attempt: u64, why: &str, in_doubt: bool) -> Decision {
        let Some(issue) = self.outstanding(attempt, &[Stage::Asked, Stage::Issuing]) else {
            // Overtaken: what is unresolved of it is settled here when the outcome is clear.
            let Some(at) = self
                .doc
                .unresolved
                .iter()
                .position(|issue| issue.attempt == attempt && !in_doubt)
            else {
                return Decision::unchanged(Answer::Stale);
            };
            self.doc.unresolved.remove(at);
            return self.done_with_doc();
        };
        self.doc.outstanding = None;
        self.by_relay("device.issue_failed", why, Some(&issue.nonce), None);
        if in_doubt {
            self.in_doubt(issue, self.now);
        }
        self.done_with_doc()
    }

    /// The device was never sent what was issued for it. It goes, and the device may ask again at once.
    pub(super) fn not_sent(mut self, attempt: u64) -> Decision {
        let issue = self.outstanding(attempt, &[Stage::Issued, Stage::Unconfirmed]);
        let Some((nonce, held)) = issue.and_then(|issue| Some((issue.nonce, issue.held?))) else {
            return Decision::unchanged(Answer::Stale);
        };
        self.doc.outstanding = None;
        let accessor = Some(held.accessor.as_str());
        self.by_relay("device.not_sent", "no_connection", Some(&nonce), accessor);
        self.doom(held, "not_sent");
        self.done_with_doc()
    }
}
