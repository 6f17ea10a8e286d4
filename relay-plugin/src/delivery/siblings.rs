//! The service members of other instances, in the groups that this one serves.
//!
//! What must always hold: a sibling is who the configuration names, under a key that this npub has signed; it is no admin, no acker and no reader,
//! and what it seals for the admins is opened here only because the ratchet has to advance, and is thrown away.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keyturn_mls::{MlsGroupId, verify_binding, verify_key_package};
use keyturn_proto::{Npub, UnixMs, kinds};
use nostr::{EventId, PublicKey};

use super::inbox::Answer;
use super::port::{By, Scan};
use super::service_member::{ServiceError, ServiceMember, failed, npub};
use crate::admission::{Leaf, Opened};

/// Answered requests and acks remembered.
const ANSWERED: usize = 10_000;
/// How many signed events of a sibling are searched for a key.
const SEARCH: usize = 200;

/// What is known of siblings, in memory.
#[derive(Default)]
pub(super) struct Family {
    proven: Mutex<HashSet<(Npub, Vec<u8>)>>,
    answered: Mutex<Answered>,
    pruned: Mutex<UnixMs>,
}

/// The newest of the requests and acks that siblings have answered.
#[derive(Default)]
struct Answered {
    known: HashSet<Of>,
    order: VecDeque<Of>,
}

/// A group and an event of it: what is said in one group settles nothing in another.
type Of = (MlsGroupId, String);

impl Answered {
    fn add(&mut self, events: Vec<Of>) {
        for event in events {
            if self.known.insert(event.clone()) {
                self.order.push_back(event);
            }
        }
        let excess = self.order.len().saturating_sub(ANSWERED);
        for event in self.order.drain(..excess) {
            self.known.remove(&event);
        }
    }
}

impl Family {
    fn answered(&self) -> MutexGuard<'_, Answered> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServiceMember {
    /// Whether there are other instances.
    pub(crate) fn has_siblings(&self) -> bool {
        !self.siblings().is_empty()
    }

    /// Whether `who` is the service member of another instance.
    pub(crate) fn is_sibling(&self, who: &Npub) -> bool {
        self.siblings().contains(who)
    }

    /// Whether the sibling behind a leaf has signed its key. A forged leaf under its npub has no such event.
    pub(crate) async fn is_proven_sibling(&self, leaf: &Leaf) -> bool {
        let pair = (leaf.npub, leaf.signature_key.clone());
        let known = |family: &Family| {
            let proven = family.proven.lock().unwrap_or_else(PoisonError::into_inner);
            proven.contains(&pair)
        };
        if known(self.family()) {
            return true;
        }
        match self.signed_keys(leaf.npub).await {
            Ok(keys) => {
                let found = keys.into_iter().map(|key| (leaf.npub, key));
                let family = self.family();
                let mut proven = family.proven.lock().unwrap_or_else(PoisonError::into_inner);
                proven.extend(found);
                proven.contains(&pair)
            }
            Err(error) => {
                tracing::warn!(sibling = %leaf.npub, %error, "its signed key packages could not be searched");
                false
            }
        }
    }

    async fn signed_keys(&self, who: Npub) -> Result<Vec<Vec<u8>>, ServiceError> {
        let author = PublicKey::from_slice(who.as_bytes()).map_err(failed)?;
        let scan = Scan {
            kinds: vec![
                kinds::KEY_PACKAGE,
                kinds::KEY_PACKAGE_LEGACY,
                keyturn_mls::binding::KIND_BINDING.as_u16(),
            ],
            by: By::Authors(vec![author]),
            since: None,
            page: SEARCH,
            after: None,
        };
        let page = self.relay().scan(scan).await.map_err(failed)?;
        let now = self.now();
        let keys = page.events.iter().filter(|event| event.pubkey == author);
        let keys = keys.filter_map(|event| match event.kind.as_u16() {
            kinds::KEY_PACKAGE | kinds::KEY_PACKAGE_LEGACY => verify_key_package(event, now)
                .ok()
                .map(|package| package.signature_key()),
            _ => verify_binding(event).ok().map(|bound| bound.signature_key),
        });
        Ok(keys.map(|key| key.as_bytes().to_vec()).collect())
    }

    /// Siblings have answered these requests or acks: they need no second answer. Only the word of a leaf that is proven to be a sibling's counts, and in
    /// its own group.
    pub(super) async fn note_answered(&self, answers: Vec<Answer>) {
        let mut proven = Vec::with_capacity(answers.len());
        for Answer { by, group, event } in answers {
            if self.is_proven_sibling(&by).await {
                proven.push((group, event));
            } else {
                let sender = by.npub;
                self.dropped(sender, &event, "sibling.key_not_proven").await;
            }
        }
        if proven.is_empty() {
            return;
        }
        // What is no event id has no row.
        let ids: Vec<(MlsGroupId, EventId)> = proven
            .iter()
            .filter_map(|(group, event)| Some((group.clone(), EventId::from_hex(event).ok()?)))
            .collect();
        let done = self
            .member()
            .call(move |member| member.inbox_answered(&ids));
        match done.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "an answered row could not be deleted"),
            Err(error) => tracing::warn!(%error, "an answered row could not be deleted"),
        }
        // The answer may have overtaken what it answers.
        self.family().answered().add(proven);
    }

    /// Whether a sibling has answered this message.
    pub(crate) fn was_answered(&self, opened: &Opened) -> bool {
        let of = (opened.group.mls_group_id.clone(), opened.event_id.clone());
        self.family().answered().known.contains(&of)
    }

    /// Deletes the oldest waiting messages of every leaf that has more than `keep`: nobody can make an instance that stands by keep, or later look
    /// at, more than that. The instance that acts has them too.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub(crate) async fn trim_inbox(&self, keep: u32) -> Result<(), ServiceError> {
        let trimmed = self.member().call(move |member| member.trim_inbox(keep));
        let trimmed = trimmed.await?.map_err(failed)?;
        for (sender, event) in trimmed {
            metrics::counter!(crate::metrics::INBOX_TRIMMED).increment(1);
            self.sum_up(npub(&sender), "inbox.full", &event.to_hex());
        }
        Ok(())
    }

    /// Whether `every` has passed since this last said so.
    pub(crate) fn prune_is_due(&self, every: Duration) -> bool {
        let now = self.now();
        let family = self.family();
        let mut pruned = family.pruned.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock set back starts anew.
        let due = now < *pruned || now.since(*pruned) >= every;
        if due {
            *pruned = now;
        }
        due
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn as_many_answers_are_remembered_as_there_is_room_for_and_the_oldest_go_first() {
        let mut answered = Answered::default();
        let id = |n: usize| (MlsGroupId::from_bytes(&[1]).unwrap(), format!("{n:064x}"));
        answered.add((0..ANSWERED).map(id).collect());
        // Told twice, by two siblings: takes no second place.
        answered.add(vec![id(0), id(1)]);
        assert_eq!(answered.order.len(), ANSWERED);
        answered.add(vec![id(ANSWERED), id(ANSWERED + 1)]);
        assert_eq!(answered.known.len(), ANSWERED);
        assert_eq!(answered.order.len(), ANSWERED);
        assert!(!answered.known.contains(&id(0)) && !answered.known.contains(&id(1)));
        assert!(answered.known.contains(&id(2)) && answered.known.contains(&id(ANSWERED + 1)));
    }
}
