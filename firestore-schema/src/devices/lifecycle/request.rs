//! A device asks.

use keyturn_proto::UnixMs;
use keyturn_proto::device::{DeviceNonce, IdentityKey};

use super::{Decision, Draft};
use crate::devices::documents::{DeviceState, NONCES, Outstanding, PENDING, Stage, UsedNonce};
use crate::devices::store::{Answer, Limits};

const HOUR_MS: u64 = 3_600_000;

pub(super) struct Ask {
    pub(super) nonce: DeviceNonce,
    pub(super) reason: String,
    pub(super) identity: Option<IdentityKey>,
    pub(super) owner: String,
    pub(super) issuer: String,
    pub(super) limits: Limits,
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
        if let Some(until) = self.too_many(limits.per_hour) {
            return Decision::unchanged(Answer::TooMany(until));
        }
        // While the issuer destroys nothing, nothing more is made for this device: the document stays bounded.
        if self.doc.doomed.len() + self.doc.unresolved.len() >= PENDING {
            return Decision::unchanged(Answer::TooMany(self.now.plus(limits.step)));
        }
        let excess = (self.doc.nonces.len() + 1).saturating_sub(NONCES);
        self.doc.nonces.drain(..excess);
        self.doc.nonces.push(UsedNonce { hash, at: self.now });
        self.forget_dead();
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
        self.set_aside("superseded", self.now.plus(limits.ttl));
        if self.doc.ping.as_ref() == Some(&nonce) {
            self.doc.ping = None;
        }
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
            deadline_at: self.now.plus(limits.step),
            held: None,
        });
        self.done_with_doc()
    }

    /// When another request is possible, if there were too many within the last hour.
    fn too_many(&self, per_hour: u32) -> Option<UnixMs> {
        let per_hour = usize::try_from(per_hour).unwrap_or(usize::MAX).min(NONCES);
        let since = self.now.0.saturating_sub(HOUR_MS);
        let mut recent = self.doc.nonces.iter().filter(|used| used.at.0 > since);
        let count = recent.clone().count();
        if count < per_hour {
            return None;
        }
        recent
            .nth(count - per_hour)
            .map(|used| UnixMs(used.at.0.saturating_add(HOUR_MS)))
    }
}
