//! The device says how it went.

use keyturn_proto::UnixMs;
use keyturn_proto::device::{DeviceNonce, IdentityKey, proof};

use super::{Decision, Draft};
use crate::devices::documents::{DevicePolicy, Held, Stage};
use crate::devices::store::Answer;

pub(super) struct Report {
    pub(super) nonce: DeviceNonce,
    pub(super) ok: bool,
    pub(super) proof: Option<String>,
    pub(super) reason: String,
    pub(super) identity: Option<IdentityKey>,
    pub(super) next_ping: UnixMs,
}

impl Report {
    fn proves(&self, held: &Held) -> bool {
        self.ok
            && self
                .proof
                .as_deref()
                .is_some_and(|text| proof::is_proven(text, &held.expected_proof))
    }
}

impl Draft {
    pub(super) fn result(mut self, report: &Report) -> Decision {
        if !self.key_is(report.identity.as_ref()) {
            return Decision::unchanged(Answer::KeyChanged);
        }
        let waiting = self.doc.outstanding.as_ref().is_some_and(|issue| {
            issue.nonce == report.nonce
                && matches!(issue.stage, Stage::Issued | Stage::Unconfirmed)
                && issue.held.is_some()
        });
        if waiting && let Some(held) = self.doc.outstanding.take().and_then(|issue| issue.held) {
            return if report.ok {
                self.confirmed(report, held)
            } else {
                self.refused(report, held)
            };
        }
        let superseded = self.doc.superseded.take_if(|held| {
            // Without a proof its word for what it gave up counts for nothing; that it does not work hurts nobody.
            held.nonce == report.nonce && (!report.ok || report.proves(held))
        });
        match superseded {
            Some(held) if report.ok => self.confirmed(report, held),
            Some(held) => self.refused(report, held),
            None => self.late(report),
        }
    }

    /// The new `secret_id` is in use, or one that was superseded and is all the device has so far. Its predecessors are doomed if that is proven, and left to their lifetime otherwise.
    fn confirmed(mut self, report: &Report, mut held: Held) -> Decision {
        let proven = report.proves(&held);
        held.proven = proven;
        let event = if proven {
            "device.confirmed"
        } else {
            "device.confirmed_unproven"
        };
        self.by_device(event, &report.reason, &report.nonce, Some(&held.accessor));
        let old = self.doc.current.replace(held);
        // What it had superseded, if anything, is older as well.
        let older = [old, self.doc.superseded.take()];
        self.doc.earlier.extend(older.into_iter().flatten());
        if self.doc.options.policy == DevicePolicy::Scheduled {
            self.doc.ping_at = Some(report.next_ping);
        }
        if proven {
            self.doom_earlier();
        } else {
            self.forget_dead();
        }
        self.done(|doc| Answer::Confirmed {
            proven,
            doc: Box::new(doc.clone()),
        })
    }

    /// The new `secret_id` does not work: it goes, the one before stays.
    fn refused(mut self, report: &Report, held: Held) -> Decision {
        self.by_device(
            "device.failed",
            &report.reason,
            &report.nonce,
            Some(&held.accessor),
        );
        self.doom(held, "failed");
        self.done_with_doc()
    }

    /// For an issue that is over: only the proof of one that was confirmed without is still worth something.
    fn late(mut self, report: &Report) -> Decision {
        let Some(current) = &mut self.doc.current else {
            return Decision::unchanged(Answer::Stale);
        };
        if current.nonce != report.nonce {
            return Decision::unchanged(Answer::Stale);
        }
        if current.proven || !report.proves(current) {
            return Decision::unchanged(Answer::Repeat);
        }
        current.proven = true;
        let accessor = current.accessor.clone();
        self.by_device(
            "device.confirmed",
            &report.reason,
            &report.nonce,
            Some(&accessor),
        );
        self.doom_earlier();
        self.done(|doc| Answer::Confirmed {
            proven: true,
            doc: Box::new(doc.clone()),
        })
    }

    fn doom_earlier(&mut self) {
        for held in std::mem::take(&mut self.doc.earlier) {
            self.doom(held, "replaced");
        }
    }
}
