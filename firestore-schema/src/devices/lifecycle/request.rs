//! A device asks.

use std::time::Duration;

use keyturn_proto::UnixMs;
use keyturn_proto::device::{DeviceNonce, IdentityKey};

use super::{Decision, Draft};
use crate::devices::documents::{
    DeviceState, EARLIER, NONCES, Outstanding, PENDING, PENDING_ELSEWHERE, SPENT, Spent, Stage,
    UsedNonce, YOUNG_NONCES,
};
use crate::devices::store::{Answer, Limits};

const HOUR: Duration = Duration::from_secs(3600);

pub(super) struct Ask {
    pub(super) nonce: DeviceNonce,
    pub(super) reason: String,
    pub(super) identity: Option<IdentityKey>,
    pub(super) owner: String,
    pub(super) issuer: String,
    pub(super) limits: Limits,
}

/// Whether it counts for the hour.
pub(super) fn is_recent(spent: &Spent, now: UnixMs) -> bool {
    now < spent.at.plus(HOUR)
}

/// What is remembered of a nonce: 128 bits of its hash.
fn remembered(nonce: &DeviceNonce) -> String {
    let mut hash = nonce.hash();
    hash.truncate(32);
    hash
}

impl Draft {
    /// Records the intent to issue. A repeat of the nonce under way is a duplicate delivery; any other used nonce is a replay.
    pub(super) fn ask(mut self, ask: Ask) -> Decision {
        let Ask {
            nonce,
            reason,
            identity,
            owner,
            issuer,
            limits,
        } = ask;
        if self.doc.state != DeviceState::Allowed {
            return Decision::unchanged(Answer::NotAllowed);
        }
        if !self.key_is(identity.as_ref()) {
            return Decision::unchanged(Answer::KeyChanged);
        }
        if let Some(issue) = &self.doc.outstanding
            && issue.nonce == nonce
        {
            return Decision::unchanged(Answer::Repeat);
        }
        let hash = remembered(&nonce);
        if self.doc.nonces.iter().any(|used| used.hash == hash) {
            return Decision::unchanged(Answer::NonceUsed);
        }
        self.forget_dead();
        if let Some(until) = self.full_until(&issuer, &limits) {
            return Decision::unchanged(Answer::TooMany(until));
        }
        self.doc.nonces.push(UsedNonce { hash, at: self.now });
        if let Some(old) = &self.doc.outstanding {
            let accessor = old.held.as_ref().map(|held| held.accessor.clone());
            let old = old.nonce.clone();
            self.by_device(
                "device.superseded",
                "newer_nonce",
                &old,
                accessor.as_deref(),
            );
        }
        self.supersede();
        self.ping_answered();
        self.by_device("device.asked", &reason, &nonce, None);
        self.doc.attempts += 1;
        self.doc.outstanding = Some(Outstanding {
            attempt: self.doc.attempts,
            nonce,
            role: self.doc.role.clone(),
            stage: Stage::Asked,
            owner,
            issuer: Some(issuer),
            asked_at: self.now,
            ttl_ms: u64::try_from(limits.ttl.as_millis()).ok(),
            deadline_at: self.now.plus(limits.step),
            held: None,
        });
        self.done_with_doc()
    }

    /// The outstanding issue makes way. What it made stays until a newer one is confirmed, or has to make way too: the device may have nothing else.
    fn supersede(&mut self) {
        let Some(issue) = &mut self.doc.outstanding else {
            return;
        };
        let stage = issue.stage;
        let Some(held) = issue.held.take() else {
            // It did not wait for its answer.
            if stage == Stage::Asked {
                self.spend();
            }
            self.set_aside("superseded");
            return;
        };
        self.doc.outstanding = None;
        // A third is not kept.
        if let Some(older) = self.doc.superseded.replace(held) {
            self.doom(older, "superseded");
        }
    }

    /// When another request is possible, if there is no room for one now. Nothing that still counts is forgotten to make room.
    fn full_until(&mut self, issuer: &str, limits: &Limits) -> Option<UnixMs> {
        let doc = &self.doc;
        let doomed = doc.doomed.iter().map(|doomed| &doomed.issuer);
        let pending = doomed.chain(doc.unresolved.iter().map(|issue| &issue.issuer));
        let (ours, others): (Vec<_>, Vec<_>) =
            pending.partition(|made_by| made_by.as_deref().is_none_or(|it| it == issuer));
        // While the issuer destroys nothing, nothing more is made for this device. What another one made waits for its end, and is only kept in mind.
        let pending = ours.len() >= PENDING || others.len() >= PENDING_ELSEWHERE;
        let pending = pending.then(|| self.now.plus(limits.step));
        let kept = (doc.earlier.len() >= EARLIER)
            .then(|| doc.earlier.iter().map(|held| held.expires_at).min())
            .flatten();
        [
            pending,
            kept,
            self.spent_until(limits),
            self.nonces_until(limits.replay),
        ]
        .into_iter()
        .flatten()
        .max()
    }

    /// A request whose issuer failed counts for nothing: a device that obediently asks through an outage must not pay for it afterwards. One that is under way
    /// counts, or asking faster than the issuer works would be free.
    fn spent_until(&self, limits: &Limits) -> Option<UnixMs> {
        let (doc, now) = (&self.doc, self.now);
        let issues = doc.outstanding.iter();
        let under_way = issues
            .filter(|issue| matches!(issue.stage, Stage::Asked | Stage::Issuing))
            .count()
            + (doc.unresolved.iter())
                .filter(|issue| now < issue.given_up_at)
                .count();
        let per_hour = usize::try_from(limits.per_hour).map_or(SPENT, |n| n.clamp(1, SPENT));
        let mut recent = doc.spent.iter().filter(|spent| is_recent(spent, now));
        let excess = (recent.clone().count() + under_way).checked_sub(per_hour)?;
        let first = recent.nth(excess).map(|spent| spent.at.plus(HOUR));
        Some(first.unwrap_or_else(|| now.plus(limits.step)))
    }

    /// Makes room for a nonce by forgetting such as no signature can bring back.
    fn nonces_until(&mut self, replay: Duration) -> Option<UnixMs> {
        let (now, nonces) = (self.now, &mut self.doc.nonces);
        while nonces.len() >= NONCES {
            let young = nonces.first()?.at.plus(replay);
            if now < young {
                return (nonces.len() >= YOUNG_NONCES).then_some(young);
            }
            nonces.remove(0);
        }
        None
    }
}
