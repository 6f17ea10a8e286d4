//! Brings a peer's events into this instance's relay.
//!
//! What must always hold:
//! - an event is judged as if a client had sent it: id, signature, size, time, NIP-40, the author's own deletions (NIP-09);
//! - what was withdrawn does not come back ([`super::gone`]); nor can it once its id is forgotten, because nothing older than [`HORIZON`] is taken;
//! - events of one group go into the relay one after the other, because it writes each batch in reverse order;
//! - what our relay may have stored in silence is remembered, boundedly, until the core has had it.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::{StreamExt as _, stream};
use keyturn_proto::{UnixMs, kinds};
use nostr::{Event, EventId, Timestamp};

use super::{AHEAD, HORIZON, KINDS, Site};
use crate::delivery::port::{By, PublishError, ReadError, Scan};
use crate::extension::concerns_core;
use crate::metrics as names;
use crate::service::{Inbound, SessionInfo};

/// NIP-09.
const DELETION: u16 = 5;
/// Groups whose events go into the relay at once.
const LANES: usize = 16;
/// Events that our relay may owe us an answer about. With so many it is not asked for more until it has answered.
const MOST_OWED: usize = 4_096;

/// What one peer's events walk through.
pub(super) struct Lanes<'a> {
    site: &'a Site,
    /// The peer, for log and metrics.
    peer: &'a str,
    /// Events that our relay may have stored without saying so. The core has not had them, so "known" is not enough.
    owed: Mutex<HashSet<EventId>>,
}

/// What became of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// Not there before.
    New,
    /// There already, or something newer in its place.
    Known,
    /// Never to be stored.
    Refused(&'static str),
    /// Our relay failed; it is asked for again.
    Failed,
}

impl<'a> Lanes<'a> {
    pub(super) fn new(site: &'a Site, peer: &'a str) -> Self {
        Self {
            site,
            peer,
            owed: Mutex::default(),
        }
    }

    /// Everything that the peer holds was taken in: whatever is still owed is nowhere any more.
    pub(super) fn settled(&self) {
        self.owed().clear();
    }

    /// Takes in events, oldest first; those of different groups at once. `false` if our own relay failed on one.
    pub(super) async fn take_all(&self, mut events: Vec<(Event, UnixMs)>, stored: bool) -> bool {
        if stored {
            events.sort_by_key(|(event, _)| (event.created_at, event.id));
        }
        let mut lanes: BTreeMap<String, Vec<(Event, UnixMs)>> = BTreeMap::new();
        for (event, at) in events {
            lanes.entry(lane(&event)).or_default().push((event, at));
        }
        let worked = stream::iter(lanes.into_values()).map(|lane| async move {
            let mut well = true;
            for (event, at) in lane {
                let taken = self.take(event, at, stored).await;
                let result = match taken {
                    Taken::New => "new",
                    Taken::Known => "known",
                    Taken::Refused(reason) => {
                        tracing::debug!(peer = self.peer, reason, "not mirrored");
                        "refused"
                    }
                    Taken::Failed => "failed",
                };
                metrics::counter!(names::MIRRORED, "peer" => self.peer.to_owned(), "result" => result)
                    .increment(1);
                well &= taken != Taken::Failed;
            }
            well
        });
        // To the end, also after a failure: what is dropped half-way is in the relay and not in the core.
        worked
            .buffer_unordered(LANES)
            .fold(true, |all, well| async move { all & well })
            .await
    }

    async fn take(&self, event: Event, at: UnixMs, stored: bool) -> Taken {
        let id = event.id;
        let taken = self.take_once(event, at, stored).await;
        if taken != Taken::Failed {
            self.owed().remove(&id);
        }
        taken
    }

    async fn take_once(&self, event: Event, at: UnixMs, stored: bool) -> Taken {
        let (site, id) = (self.site, event.id);
        if let Some(reason) = self.never(&event) {
            return Taken::Refused(reason);
        }
        let (owes, full) = {
            let owed = self.owed();
            (owed.contains(&id), owed.len() >= MOST_OWED)
        };
        match site.relay.stored(id).await {
            Ok(true) if !owes => return Taken::Known,
            Ok(_) if owes || !full => {}
            Ok(_) | Err(_) => return Taken::Failed,
        }
        if event.verify().is_err() {
            return Taken::Refused("signature");
        }
        match self.deleted_by_its_author(&event).await {
            Ok(false) => {}
            Ok(true) => return Taken::Refused("deleted"),
            Err(_) => return Taken::Failed,
        }
        // Before it is stored, so that no epoch settles past it (see the backlog).
        let arrival = site.backlog.arrived(|| site.clock.now());
        match site.relay.publish(event.clone()).await {
            Ok(_) => {}
            // "replaced: have newer event" is what becomes of an old key package.
            Err(PublishError::Refused { .. }) => return Taken::Known,
            Err(PublishError::Invalid { .. }) => return Taken::Refused("invalid"),
            Err(_) => {
                self.owed().insert(id);
                return Taken::Failed;
            }
        }
        if site.gone.has(&id) {
            // Withdrawn while it was on its way.
            return match site.relay.delete(vec![id]).await {
                Ok(_) => Taken::Refused("withdrawn"),
                Err(_) => Taken::Failed,
            };
        }
        if concerns_core(&event, site.served.snapshot().as_deref()) {
            let inbound = Inbound {
                event,
                received_at_ms: at.0,
                session: SessionInfo::default(),
                stored,
                arrival,
            };
            // Waits while the core is busy. A core that has ended finds the event in its relay.
            let _handed_over = site.inbound.send(inbound).await;
        }
        Taken::New
    }

    /// Why an event is not to be stored, whatever else it is.
    fn never(&self, event: &Event) -> Option<&'static str> {
        let now = self.site.clock.now();
        let made = UnixMs::from_secs(event.created_at.as_secs());
        if !KINDS.contains(&event.kind.as_u16()) {
            return Some("kind");
        }
        if self.site.gone.has(&event.id) {
            return Some("withdrawn");
        }
        if made.plus(HORIZON) < now {
            return Some("old");
        }
        if made > now.plus(AHEAD) {
            return Some("future");
        }
        let expired = event.is_expired_at(&Timestamp::from_secs(now.as_secs()));
        expired.then_some("expired")
    }

    fn owed(&self) -> MutexGuard<'_, HashSet<EventId>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An author may delete what he signed; our relay forgets such an event and would take it again.
    async fn deleted_by_its_author(&self, event: &Event) -> Result<bool, ReadError> {
        let kind = event.kind.as_u16();
        if kind == kinds::GROUP_EVENT || kind == kinds::GIFT_WRAP {
            // Signed by keys that nobody keeps.
            return Ok(false);
        }
        let deletions = self
            .site
            .relay
            .scan(Scan {
                kinds: vec![DELETION],
                by: By::Authors(vec![event.pubkey]),
                since: Some(event.created_at.as_secs()),
                page: 500,
                after: None,
            })
            .await?;
        let names = |deletion: &Event| deletion.tags.event_ids().any(|id| *id == event.id);
        Ok(deletions.events.iter().any(names))
    }
}

/// Events whose order matters among themselves: those of one group.
fn lane(event: &Event) -> String {
    let group = event.tags.iter().find_map(|tag| match tag.as_slice() {
        [name, value, ..] if name == "h" => Some(value.clone()),
        _ => None,
    });
    group.unwrap_or_else(|| event.id.to_hex())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use std::sync::Arc;

    use keyturn_mls::Backlog;
    use keyturn_mls::binding::BINDING;
    use nostr::{EventBuilder, Keys, Kind, PublicKey, Tag};
    use tokio::sync::mpsc;

    use super::super::gone::Gone;
    use super::*;
    use crate::clock::SystemClock as OurClock;
    use crate::core::tests::relay::{FakeRelay, Mood};
    use crate::service::{Served, ServedSet};

    pub(in super::super) struct Place {
        pub(in super::super) relay: FakeRelay,
        pub(in super::super) site: Site,
        core: mpsc::Receiver<Inbound>,
    }

    impl Place {
        pub(in super::super) fn new(us: &PublicKey) -> Self {
            let relay = FakeRelay::default();
            let (inbound, core) = mpsc::channel(64);
            let served = ServedSet::default();
            served.replace(Served {
                recipients: [us.to_bytes()].into(),
                ..Served::default()
            });
            Self {
                site: Site {
                    relay: Arc::new(relay.clone()),
                    served,
                    backlog: Backlog::default(),
                    inbound,
                    gone: Gone::default(),
                    siblings: Vec::new(),
                    message_bytes: 524_288,
                    clock: Arc::new(OurClock),
                },
                relay,
                core,
            }
        }

        pub(in super::super) fn lanes(&self) -> Lanes<'_> {
            Lanes::new(&self.site, "ws://peer")
        }
    }

    fn event(keys: &Keys, kind: u16, tags: Vec<Tag>) -> Event {
        dated(keys, kind, tags, Timestamp::now().as_secs())
    }

    pub(in super::super) fn dated(keys: &Keys, kind: u16, tags: Vec<Tag>, at: u64) -> Event {
        // Each is another one, also within a second.
        let content = Keys::generate().public_key().to_hex();
        let builder = EventBuilder::new(Kind::from_u16(kind), content).tags(tags);
        let builder = builder.custom_created_at(Timestamp::from_secs(at));
        builder.sign_with_keys(keys).unwrap()
    }

    #[tokio::test]
    async fn what_a_client_could_not_send_is_not_mirrored() {
        let (us, author) = (Keys::generate(), Keys::generate());
        let to_us = || vec![Tag::public_key(us.public_key())];
        let expires = |at: u64| {
            let mut tags = to_us();
            tags.push(Tag::expiration(Timestamp::from_secs(at)));
            event(&author, kinds::GIFT_WRAP, tags)
        };
        let now = Timestamp::now().as_secs();
        let good = event(&author, kinds::GIFT_WRAP, to_us());
        let mut forged = event(&author, kinds::GIFT_WRAP, to_us());
        forged.content = "another".to_owned();
        let withdrawn = event(&author, kinds::GIFT_WRAP, to_us());
        let package = |d: &str| event(&author, kinds::KEY_PACKAGE, vec![Tag::identifier(d)]);
        let (deleted, kept) = (package("deleted"), package("kept"));
        let bind = || event(&author, BINDING, Vec::new());
        let (binding, unbound) = (bind(), bind());
        let wrap_at = |at: u64| dated(&author, kinds::GIFT_WRAP, to_us(), at);
        let place = Place::new(&us.public_key());
        place.site.gone.add([withdrawn.id]);
        for (keys, of) in [(&author, &deleted), (&us, &kept), (&author, &unbound)] {
            place
                .relay
                .admin_sends(event(keys, DELETION, vec![Tag::event(of.id)]), now * 1000);
        }
        let lanes = place.lanes();
        for (event, expected) in [
            (&event(&author, 1, to_us()), Taken::Refused("kind")),
            (&forged, Taken::Refused("signature")),
            (&expires(now - 10), Taken::Refused("expired")),
            (&withdrawn, Taken::Refused("withdrawn")),
            (&deleted, Taken::Refused("deleted")),
            // Somebody else's deletion is none.
            (&kept, Taken::New),
            (&expires(now + 1000), Taken::New),
            (&good, Taken::New),
            (&good, Taken::Known),
            // By then the store may have forgotten that it was withdrawn.
            (
                &wrap_at(now - HORIZON.as_secs() - 60),
                Taken::Refused("old"),
            ),
            (&wrap_at(now - HORIZON.as_secs() + 60), Taken::New),
            (
                &wrap_at(now + AHEAD.as_secs() + 60),
                Taken::Refused("future"),
            ),
            (&wrap_at(now + AHEAD.as_secs() - 60), Taken::New),
            (&binding, Taken::New),
            (&unbound, Taken::Refused("deleted")),
        ] {
            let taken = lanes.take(event.clone(), UnixMs(now * 1000), true).await;
            assert_eq!(taken, expected, "{event:?}");
            let there = matches!(expected, Taken::New | Taken::Known);
            assert_eq!(place.site.relay.stored(event.id).await.unwrap(), there);
        }
        place.relay.set_mood(Mood::Narrow);
        let long = event(&author, kinds::GIFT_WRAP, to_us());
        let taken = lanes.take(long, UnixMs(now * 1000), true).await;
        assert_eq!(taken, Taken::Refused("invalid"));
    }

    #[tokio::test]
    async fn what_the_relay_stored_in_silence_reaches_the_core_at_the_next_attempt() {
        let (us, author) = (Keys::generate(), Keys::generate());
        let mut place = Place::new(&us.public_key());
        let events: Vec<(Event, UnixMs)> = (0..2 * LANES)
            .map(|n| {
                let tags = vec![
                    Tag::public_key(us.public_key()),
                    Tag::identifier(n.to_string()),
                ];
                (event(&author, kinds::GIFT_WRAP, tags), UnixMs(1))
            })
            .collect();
        let lanes = place.lanes();
        place.relay.set_mood(Mood::StoresInSilence);
        assert!(!lanes.take_all(events.clone(), true).await);
        assert_eq!(place.relay.events().len(), events.len(), "all were tried");
        place.relay.set_mood(Mood::Well);
        assert!(lanes.take_all(events.clone(), true).await);
        assert!(lanes.take_all(events.clone(), true).await);
        drop(lanes);
        let mut heard = Vec::new();
        while let Ok(inbound) = place.core.try_recv() {
            heard.push(inbound.event.id);
        }
        heard.sort();
        let mut sent: Vec<EventId> = events.iter().map(|(event, _)| event.id).collect();
        sent.sort();
        assert_eq!(heard, sent, "each once");
    }

    #[tokio::test]
    async fn a_relay_that_answers_nothing_is_asked_for_only_so_much_more() {
        let (us, author) = (Keys::generate(), Keys::generate());
        let place = Place::new(&us.public_key());
        let lanes = place.lanes();
        let wrap = || event(&author, kinds::GIFT_WRAP, Vec::new());
        let owed = wrap();
        place.relay.set_mood(Mood::StoresInSilence);
        let silent = lanes.take(owed.clone(), UnixMs(1), true).await;
        assert_eq!(silent, Taken::Failed);
        let others = (1..MOST_OWED as u64).map(|n| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            EventId::from_byte_array(id)
        });
        lanes.owed().extend(others);
        let more = wrap();
        let taken = lanes.take(more.clone(), UnixMs(1), true).await;
        assert_eq!(taken, Taken::Failed);
        assert_eq!(
            place.relay.events(),
            std::slice::from_ref(&owed),
            "it was not asked"
        );
        assert_eq!(lanes.owed().len(), MOST_OWED);
        // What is owed makes room by being answered; what no peer holds any more, when everything else was had.
        place.relay.set_mood(Mood::Well);
        assert_eq!(lanes.take(owed, UnixMs(1), true).await, Taken::New);
        assert_eq!(lanes.take(more, UnixMs(1), true).await, Taken::New);
        lanes.settled();
        assert!(lanes.owed().is_empty());
    }
}
