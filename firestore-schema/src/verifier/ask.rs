//! What neither memory nor prefilter answered: the MAC key is asked, within the limits and once for all who ask the same, and then what is known is looked at again.
//!
//! What must always hold: the MAC key says only that a secret was right for a version. Whether that version verifies is decided after it has answered, by what is
//! known, and at what time it is, then; each caller that shared an answer decides for itself.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use keyturn_proto::{ClientId, PresentedSecret, UnixMs};

use super::cached::{Cached, Entry};
use super::clock::Clock;
use super::memo::MemoKey;
use super::{SnapshotSource, Verified, Verifier, VerifyError, check};
use crate::mac::{MacError, MacKey};

/// How often a caller tries again when the one whose check it shared was over its limits.
const SHARED_TRIES: u32 = 3;

impl<S: SnapshotSource, M: MacKey> Verifier<S, M> {
    /// Asks the MAC key about the slots that are left, current first.
    pub(super) async fn ask(
        &self,
        cached: &Cached,
        slots: [Option<MemoKey>; 2],
        secret: &PresentedSecret,
        source: IpAddr,
        now: UnixMs,
    ) -> Result<Verified, VerifyError> {
        let Some(client) = &cached.client_id else {
            return Err(VerifyError::Refused);
        };
        let clock = Clock::set(now);
        let mut missing = None;
        for (slot, key) in cached.slots.iter().zip(slots) {
            let (Some(key), Some(entry)) = (key, &slot.entry) else {
                continue;
            };
            match self.check(entry, client, key, secret, source).await {
                Ok(None) => {
                    self.counters.limited.increment(1);
                    break;
                }
                Ok(Some(true)) => {
                    self.memo.remember(key, now);
                    let verified = self.stands(client, key, secret, clock.now()).await?;
                    self.limits.verified(client, source);
                    return Ok(verified);
                }
                Ok(Some(false)) => {}
                Err(MacError::Unavailable { cause, .. }) => missing = Some(cause),
                Err(MacError::Integrity(_)) => {
                    missing = Some("the key service's answers cannot be believed");
                }
                Err(error) => {
                    // Names the key version or nothing; never input or output.
                    tracing::error!(%error, version = %entry.version_id, "stored version cannot be verified");
                    missing = Some("the MAC key version of a stored secret is not usable here");
                }
            }
        }
        match missing {
            Some(cause) => Err(VerifyError::Unavailable { cause }),
            None => Err(VerifyError::Refused),
        }
    }

    /// The secret is right for the version that `key` was made from, and finding that out took time: whether that version verifies now, by what is known now.
    async fn stands(
        &self,
        client: &ClientId,
        key: MemoKey,
        secret: &PresentedSecret,
        now: UnixMs,
    ) -> Result<Verified, VerifyError> {
        let (cached, now) = self.known(client.as_str(), now).await?;
        let mut slots = cached.slots.iter();
        slots
            .find(|slot| slot.memo_key(secret) == key)
            .and_then(|slot| slot.verified(now))
            .ok_or(VerifyError::Refused)
    }

    /// One check, shared by everybody who asks the same at the same time; whoever works on it pays for it. `None` if that is over the limits.
    async fn check(
        &self,
        entry: &Entry,
        client: &ClientId,
        key: MemoKey,
        secret: &PresentedSecret,
        source: IpAddr,
    ) -> Result<Option<bool>, MacError> {
        let ours = AtomicBool::new(false);
        let work = async |_| {
            ours.store(true, Ordering::Relaxed);
            if !self.limits.allow(client, source, entry.weight()) {
                return Ok(None);
            }
            let Self { mac, bcrypt, .. } = self;
            let checked = check::check(mac, bcrypt, &self.counters, client, entry, secret);
            checked.await.map(Some)
        };
        for _ in 0..SHARED_TRIES {
            let checked = self.checks.join(key, &work).await.answer;
            // That another source is over its limit is no answer for this one.
            if checked != Ok(None) || ours.load(Ordering::Relaxed) {
                return checked;
            }
        }
        Ok(None)
    }
}
