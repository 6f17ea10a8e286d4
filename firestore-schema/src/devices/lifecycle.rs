//! The changes a device's document may go through. Pure: a backend reads the document, asks here, and writes document and records in one transaction.

mod at_once;
mod issue;
mod operator;
mod ping;
mod request;
mod result;
mod search;
mod upkeep;

pub use at_once::at_once;

use std::time::Duration;

use keyturn_proto::UnixMs;
use keyturn_proto::device::{DeviceId, DeviceNonce, IdentityKey};

use super::documents::{DeviceDoc, Doomed, Held, Outstanding, SPENT, Spent, Stage, Unresolved};
use super::store::{Answer, Change};
use crate::documents::{Actor, AuditDevice, AuditRecord};

/// How long a `secret_id` of unknown lifetime may live: no configuration gives one longer.
const LONGEST: Duration = Duration::from_secs(30 * 86_400);

/// What to write, all of it or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// For the caller; nothing may be answered before the rest is committed.
    pub answer: Answer,
    /// The document afterwards; `None` when nothing changes.
    pub doc: Option<DeviceDoc>,
    /// Records to append.
    pub audit: Vec<AuditRecord>,
}

impl Decision {
    fn unchanged(answer: Answer) -> Self {
        Self {
            answer,
            doc: None,
            audit: Vec::new(),
        }
    }
}

/// Decides.
#[must_use]
pub fn apply(id: &DeviceId, known: Option<DeviceDoc>, change: Change, now: UnixMs) -> Decision {
    match (change, known) {
        (Change::Allow { role, options }, known) => operator::allow(id, known, role, options, now),
        (_, None) => Decision::unchanged(Answer::NotAllowed),
        (change, Some(doc)) => Draft::new(doc, now).apply(change),
    }
}

/// When somebody must look at the document.
#[must_use]
pub fn due_at(doc: &DeviceDoc) -> Option<UnixMs> {
    let outstanding = doc.outstanding.as_ref().map(|issue| issue.deadline_at);
    let doomed = doc.doomed.iter().map(|doomed| doomed.retry_at);
    let unresolved = doc.unresolved.iter().map(|issue| issue.retry_at);
    outstanding
        .into_iter()
        .chain(doomed)
        .chain(unresolved)
        .chain(doc.ping_at)
        .min()
}

/// A document under change, with the records of what happened to it.
struct Draft {
    doc: DeviceDoc,
    audit: Vec<AuditRecord>,
    now: UnixMs,
}

impl Draft {
    fn new(doc: DeviceDoc, now: UnixMs) -> Self {
        Self {
            doc,
            audit: Vec::new(),
            now,
        }
    }

    fn apply(self, change: Change) -> Decision {
        match change {
            // Handled before: it is the one change of a device that is not known.
            Change::Allow { role, options } => {
                let id = self.doc.device_id.clone();
                operator::allow(&id, Some(self.doc), role, options, self.now)
            }
            Change::Deny => self.deny(),
            Change::Invalidate => self.invalidate(),
            Change::Ask {
                nonce,
                reason,
                identity,
                owner,
                issuer,
                limits,
            } => self.ask(request::Ask {
                nonce,
                reason,
                identity,
                owner,
                issuer,
                limits,
            }),
            Change::Start { attempt, step } => self.start(attempt, step),
            Change::NotSent { attempt } => self.not_sent(attempt),
            Change::Issued {
                attempt,
                role,
                accessor,
                expected_proof,
                expires_at,
                confirm,
            } => self.issued(issue::Fresh {
                attempt,
                role,
                accessor,
                expected_proof,
                expires_at,
                confirm,
            }),
            Change::IssueFailed {
                attempt,
                why,
                in_doubt,
            } => self.issue_failed(attempt, &why, in_doubt),
            Change::Result {
                nonce,
                ok,
                proof,
                reason,
                identity,
                next_ping,
            } => self.result(&result::Report {
                nonce,
                ok,
                proof,
                reason,
                identity,
                next_ping,
            }),
            Change::Destroyed { accessor, now_gone } => self.destroyed(&accessor, now_gone),
            Change::DestroyFailed {
                accessor,
                why,
                retry_at,
            } => self.destroy_failed(&accessor, &why, retry_at),
            Change::Searched {
                attempt,
                accessors,
                began,
                quiet,
            } => self.searched(attempt, accessors, began, quiet),
            Change::SearchFailed {
                attempt,
                why,
                retry_at,
            } => self.search_failed(attempt, &why, retry_at),
            Change::Expire { attempt, at_once } => self.expire(attempt, at_once),
            Change::Ping { nonce, next_ping } => self.ping(nonce, next_ping),
        }
    }

    /// Ends the change with the answer that `answer` makes of the finished document.
    fn done(mut self, answer: impl FnOnce(&DeviceDoc) -> Answer) -> Decision {
        self.doc.updated_at = self.now;
        self.doc.due_at = due_at(&self.doc);
        Decision {
            answer: answer(&self.doc),
            doc: Some(self.doc),
            audit: self.audit,
        }
    }

    fn done_with_doc(self) -> Decision {
        self.done(|doc| Answer::Done(Box::new(doc.clone())))
    }

    /// Writes a record of what the device itself caused.
    fn by_device(
        &mut self,
        event: &str,
        reason: &str,
        nonce: &DeviceNonce,
        accessor: Option<&str>,
    ) {
        let device_id = self.doc.device_id.clone();
        self.record(
            Actor::Device { device_id },
            event,
            reason,
            Some(nonce),
            accessor,
        );
    }

    /// Writes a record of what the relay did by itself.
    fn by_relay(
        &mut self,
        event: &str,
        reason: &str,
        nonce: Option<&DeviceNonce>,
        accessor: Option<&str>,
    ) {
        self.record(Actor::Relay, event, reason, nonce, accessor);
    }

    fn record(
        &mut self,
        actor: Actor,
        event: &str,
        reason: &str,
        nonce: Option<&DeviceNonce>,
        accessor: Option<&str>,
    ) {
        self.audit.push(record(
            &self.doc.device_id,
            self.now,
            actor,
            event,
            reason,
            nonce,
            accessor,
        ));
    }

    /// Marks a `secret_id` for destruction, once.
    fn doom(&mut self, held: Held, why: &str) {
        let Held {
            accessor,
            role,
            issuer,
            expires_at,
            ..
        } = held;
        self.doom_accessor(accessor, role, issuer, expires_at, why);
    }

    fn doom_accessor(
        &mut self,
        accessor: String,
        role: String,
        issuer: Option<String>,
        expires_at: UnixMs,
        why: &str,
    ) {
        let known = self
            .doc
            .doomed
            .iter()
            .any(|known| known.accessor == accessor);
        // What has lived its time needs no destruction.
        if known || expires_at <= self.now {
            return;
        }
        self.doc.doomed.push(Doomed {
            accessor,
            role,
            issuer,
            why: why.to_owned(),
            failures: 0,
            retry_at: self.now,
            expires_at,
        });
    }

    /// Takes the outstanding issue out. What it made or may have made stays known.
    fn set_aside(&mut self, why: &str) {
        let Some(mut issue) = self.doc.outstanding.take() else {
            return;
        };
        if let Some(held) = issue.held.take() {
            self.doom(held, why);
        } else if issue.stage == Stage::Issuing {
            // Its relay may still be at it; until then a search could come too early.
            let given_up_at = issue.deadline_at;
            self.in_doubt(issue, given_up_at);
        }
    }

    /// What the issue made, if anything, is looked for from `given_up_at` on, for as long as it can live: it may have been made just now.
    fn in_doubt(&mut self, issue: Outstanding, given_up_at: UnixMs) {
        let made_at = self.now.max(given_up_at);
        let expires_at = issue.ttl_ms.map_or_else(
            || made_at.plus(LONGEST),
            |ttl| made_at.plus(Duration::from_millis(ttl)),
        );
        self.doc.unresolved.push(Unresolved {
            attempt: issue.attempt,
            nonce: issue.nonce,
            role: issue.role,
            issuer: issue.issuer,
            failures: 0,
            retry_at: given_up_at,
            expires_at,
            given_up_at,
            empty: 0,
        });
    }

    /// Counts for the device's hour. What is older, or beyond what anybody may spend, does not matter any more.
    fn spend(&mut self) {
        let now = self.now;
        self.doc
            .spent
            .retain(|spent| request::is_recent(spent, now));
        let excess = (self.doc.spent.len() + 1).saturating_sub(SPENT);
        self.doc.spent.drain(..excess);
        self.doc.spent.push(Spent { at: now });
    }

    /// Forgets what has lived its time.
    fn forget_dead(&mut self) {
        let now = self.now;
        self.doc.earlier.retain(|held| held.expires_at > now);
        for held in [&mut self.doc.current, &mut self.doc.superseded] {
            held.take_if(|held| held.expires_at <= now);
        }
    }

    fn key_is(&self, identity: Option<&IdentityKey>) -> bool {
        self.doc.options.identity_key.as_ref() == identity
    }
}

fn record(
    device: &DeviceId,
    at: UnixMs,
    actor: Actor,
    event: &str,
    reason: &str,
    nonce: Option<&DeviceNonce>,
    accessor: Option<&str>,
) -> AuditRecord {
    AuditRecord {
        at,
        actor,
        event: event.to_owned(),
        reason: reason.to_owned(),
        client_id: None,
        rotation_id: None,
        version_id: None,
        group: None,
        nostr_event: None,
        device: Some(AuditDevice {
            device_id: device.clone(),
            nonce: nonce.map(|nonce| nonce.as_str().to_owned()),
            accessor: accessor.map(str::to_owned),
            claimed: false,
        }),
    }
}

#[cfg(test)]
mod tests;
