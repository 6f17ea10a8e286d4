//! Pulls from one peer what this instance's relay does not have.
//!
//! What must always hold:
//! - an event is judged as if a client had sent it: id, signature, size, time, NIP-40, the author's own deletions (NIP-09);
//! - what was withdrawn does not come back ([`super::gone`]);
//! - events of one group go into the relay one after the other, because it writes each batch in reverse order;
//! - what is fetched and what waits is bounded; a fetch that was cut short is repeated, never taken for complete.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use keyturn_admin::clock::SystemClock;
use keyturn_admin::transport::{Connection, Heard, RelayError, printable};
use keyturn_proto::{UnixMs, kinds};
use nostr::{Event, EventId, Filter, Keys, Kind, RelayUrl, Timestamp};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

use super::cursor::Cursors;
use super::{HORIZON, Site};
use crate::delivery::port::{By, PublishError, ReadError, Scan};
use crate::extension::concerns_core;
use crate::metrics as names;
use crate::service::{Inbound, SessionInfo};

/// What is mirrored (architecture.md, "Many relays").
const KINDS: [u16; 5] = [
    kinds::KEY_PACKAGE_LEGACY,
    kinds::KEY_PACKAGE,
    kinds::WELCOME,
    kinds::GROUP_EVENT,
    kinds::GIFT_WRAP,
];
/// NIP-09.
const DELETION: u16 = 5;
/// How much of what was heard before is asked for again: clocks differ, and events travel.
const OVERLAP: Duration = Duration::from_secs(600);
/// NIP-59 dates a gift wrap back by up to two days.
const WRAP_OVERLAP: Duration = Duration::from_secs(2 * 86_400 + 600);
/// What is fetched at once spans at most this.
const WINDOW: Duration = Duration::from_secs(6 * 3600);
/// How long a connection, or a fetch of one window, may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Groups whose events go into the relay at once.
const LANES: usize = 16;
/// Live events taken together.
const BATCH: usize = 256;
/// How often the place is written down while all is well.
const NOTE_EVERY: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Follows `url` for ever.
pub(super) async fn follow(site: &Site, url: String, keys: &Keys, cursors: &Cursors) {
    let mut peer = Peer {
        site,
        cursors,
        pause: FIRST_PAUSE,
        url,
        owed: Mutex::default(),
    };
    loop {
        let ended = peer.once(keys).await;
        metrics::gauge!(names::MIRROR_PEER_UP, "peer" => peer.url.clone()).set(0.0);
        tracing::warn!(peer = peer.url, error = %ended, "a peer is not followed; trying again");
        peer.rest().await;
    }
}

struct Peer<'a> {
    site: &'a Site,
    cursors: &'a Cursors,
    pause: Duration,
    url: String,
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

impl Peer<'_> {
    fn now(&self) -> UnixMs {
        self.site.clock.now()
    }

    /// Until the connection ends.
    async fn once(&mut self, keys: &Keys) -> RelayError {
        let url = match RelayUrl::parse(&self.url) {
            Ok(url) => url,
            Err(error) => return RelayError::Client(printable(&error.to_string())),
        };
        let opened = Connection::open(&url, keys, PATIENCE, Arc::new(SystemClock)).await;
        let mut connection = match opened {
            Ok(connection) => connection,
            Err(error) => return error,
        };
        let ended = self.listen(&mut connection).await;
        connection.close().await;
        ended
    }

    async fn listen(&mut self, connection: &mut Connection) -> RelayError {
        loop {
            let began = self.now();
            // Without a time: a gift wrap that arrives now may be dated days back. What is stored is fetched in pages of its own.
            let live = Filter::new().kinds(all_kinds()).limit(1);
            if let Err(error) = connection.listen(vec![live]).await {
                return error;
            }
            let whole = match self.catch_up(connection, began).await {
                Ok(whole) => whole,
                Err(error) => return error,
            };
            metrics::gauge!(names::MIRROR_PEER_UP, "peer" => self.url.clone()).set(1.0);
            self.pause = FIRST_PAUSE;
            if whole {
                self.cursors.set(&self.url, began);
            }
            match self.live(connection, whole).await {
                Ok(()) => {
                    tracing::info!(peer = self.url, "something may have been missed; fetching")
                }
                Err(error) => return error,
            }
        }
    }

    /// Fetches what the peer stored while we did not listen. `false` if our own relay failed on some of it.
    async fn catch_up(&self, connection: &Connection, until: UnixMs) -> Result<bool, RelayError> {
        let horizon = UnixMs(until.0.saturating_sub(millis(HORIZON)));
        let heard = self.cursors.get(&self.url).unwrap_or(horizon).max(horizon);
        let back = |by: Duration| UnixMs(heard.0.saturating_sub(millis(by))).max(horizon);
        let wraps = self
            .fetch(connection, &[kinds::GIFT_WRAP], back(WRAP_OVERLAP), until)
            .await?;
        let others: Vec<u16> = KINDS
            .into_iter()
            .filter(|kind| *kind != kinds::GIFT_WRAP)
            .collect();
        let others = self
            .fetch(connection, &others, back(OVERLAP), until)
            .await?;
        Ok(wraps && others)
    }

    async fn fetch(
        &self,
        connection: &Connection,
        wanted: &[u16],
        since: UnixMs,
        until: UnixMs,
    ) -> Result<bool, RelayError> {
        let filter = Filter::new().kinds(wanted.iter().copied().map(Kind::from_u16));
        // Peers' clocks may be ahead of ours.
        let end = until.as_secs().saturating_add(OVERLAP.as_secs());
        let (mut from, mut whole) = (since.as_secs(), true);
        while from <= end {
            let to = from.saturating_add(WINDOW.as_secs()).min(end);
            let window = filter
                .clone()
                .since(Timestamp::from_secs(from))
                .until(Timestamp::from_secs(to));
            let found = connection
                .fetch_all(&window, Instant::now() + PATIENCE)
                .await?;
            let found = found.into_iter().map(|event| (event, self.now())).collect();
            whole &= self.take_all(found, true).await;
            let lag = until.0.saturating_sub(to.saturating_mul(1000));
            self.lags(Duration::from_millis(lag));
            from = to.saturating_add(1);
        }
        Ok(whole)
    }

    /// Until something may have been missed. `whole` says whether nothing is owed from before.
    async fn live(
        &mut self,
        connection: &mut Connection,
        mut whole: bool,
    ) -> Result<(), RelayError> {
        loop {
            let heard = connection.next(Instant::now() + NOTE_EVERY).await?;
            let at = self.now();
            let Some(heard) = heard else {
                self.lags(Duration::ZERO);
                if !whole {
                    return Ok(());
                }
                self.cursors.set(&self.url, at);
                continue;
            };
            let mut batch = Vec::new();
            let mut next = Some(heard);
            while let Some(heard) = next.take() {
                match heard {
                    Heard::Live { event, at } => batch.push((*event, at)),
                    Heard::Resync | Heard::Closed(_) => {
                        self.take_all(batch, false).await;
                        return Ok(());
                    }
                }
                if batch.len() < BATCH {
                    next = connection.arrived()?;
                }
            }
            whole &= self.take_all(batch, false).await;
            self.lags(self.now().since(at));
        }
    }

    /// Takes in events, oldest first; those of different groups at once. `false` if our own relay failed on one.
    async fn take_all(&self, mut events: Vec<(Event, UnixMs)>, stored: bool) -> bool {
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
                        tracing::debug!(peer = self.url, reason, "not mirrored");
                        "refused"
                    }
                    Taken::Failed => "failed",
                };
                metrics::counter!(names::MIRRORED, "peer" => self.url.clone(), "result" => result)
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
        let site = self.site;
        if !KINDS.contains(&event.kind.as_u16()) {
            return Taken::Refused("kind");
        }
        if site.gone.has(&event.id) {
            return Taken::Refused("withdrawn");
        }
        match site.relay.stored(event.id).await {
            Ok(true) if !self.owes(&event.id) => return Taken::Known,
            Ok(_) => {}
            Err(_) => return Taken::Failed,
        }
        if event.verify().is_err() {
            return Taken::Refused("signature");
        }
        if event.is_expired_at(&Timestamp::from_secs(self.now().as_secs())) {
            return Taken::Refused("expired");
        }
        match self.deleted_by_its_author(&event).await {
            Ok(false) => {}
            Ok(true) => return Taken::Refused("deleted"),
            Err(_) => return Taken::Failed,
        }
        // Before it is stored, so that no epoch settles past it (see the backlog).
        let arrival = site.backlog.arrived(|| self.now());
        let id = event.id;
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
        self.owed().remove(&id);
        Taken::New
    }

    fn owed(&self) -> MutexGuard<'_, HashSet<EventId>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owes(&self, id: &EventId) -> bool {
        self.owed().contains(id)
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

    fn lags(&self, by: Duration) {
        metrics::gauge!(names::MIRROR_LAG_SECONDS, "peer" => self.url.clone())
            .set(by.as_secs_f64());
    }

    /// Waits before the next attempt: longer each time, and not in step with others.
    async fn rest(&mut self) {
        let mut random = [0u8; 2];
        // Without randomness the pause is merely in step.
        let _filled = getrandom::fill(&mut random);
        let jitter = self
            .pause
            .mul_f64(f64::from(u16::from_be_bytes(random)) / 131_072.0);
        let until = self.now().plus(self.pause / 2 + jitter);
        self.site.clock.sleep_until(until).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        let heard = self.cursors.get(&self.url);
        self.lags(heard.map_or(HORIZON, |heard| self.now().since(heard)));
    }
}

fn all_kinds() -> impl Iterator<Item = Kind> {
    KINDS.into_iter().map(Kind::from_u16)
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
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
mod tests {
    use keyturn_mls::Backlog;
    use nostr::{EventBuilder, PublicKey, Tag};
    use tokio::sync::mpsc;

    use super::super::gone::Gone;
    use super::*;
    use crate::clock::SystemClock as OurClock;
    use crate::core::tests::relay::{FakeRelay, Mood};
    use crate::service::{Served, ServedSet};

    struct Place {
        relay: FakeRelay,
        site: Site,
        cursors: Cursors,
        core: mpsc::Receiver<Inbound>,
        _dir: tempfile::TempDir,
    }

    impl Place {
        fn new(us: &PublicKey) -> Self {
            let (relay, dir) = (FakeRelay::default(), tempfile::tempdir().unwrap());
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
                    clock: Arc::new(OurClock),
                },
                relay,
                cursors: Cursors::open(dir.path().join("mirror.json")),
                core,
                _dir: dir,
            }
        }

        fn peer(&self) -> Peer<'_> {
            Peer {
                site: &self.site,
                cursors: &self.cursors,
                pause: FIRST_PAUSE,
                url: "ws://peer".to_owned(),
                owed: Mutex::default(),
            }
        }
    }

    fn event(keys: &Keys, kind: u16, tags: Vec<Tag>) -> Event {
        // Each is another one, also within a second.
        let builder =
            EventBuilder::new(Kind::from_u16(kind), Keys::generate().public_key().to_hex());
        let builder = builder.tags(tags);
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
        let place = Place::new(&us.public_key());
        place.site.gone.add([withdrawn.id]);
        for (keys, of) in [(&author, &deleted), (&us, &kept)] {
            place
                .relay
                .admin_sends(event(keys, DELETION, vec![Tag::event(of.id)]), now * 1000);
        }
        let peer = place.peer();
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
        ] {
            let taken = peer.take(event.clone(), UnixMs(now * 1000), true).await;
            assert_eq!(taken, expected, "{event:?}");
            let there = matches!(expected, Taken::New | Taken::Known);
            assert_eq!(place.site.relay.stored(event.id).await.unwrap(), there);
        }
        place.relay.set_mood(Mood::Narrow);
        let long = event(&author, kinds::GIFT_WRAP, to_us());
        let taken = peer.take(long, UnixMs(now * 1000), true).await;
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
        let peer = place.peer();
        place.relay.set_mood(Mood::StoresInSilence);
        assert!(!peer.take_all(events.clone(), true).await);
        assert_eq!(place.relay.events().len(), events.len(), "all were tried");
        place.relay.set_mood(Mood::Well);
        assert!(peer.take_all(events.clone(), true).await);
        assert!(peer.take_all(events.clone(), true).await);
        drop(peer);
        let mut heard = Vec::new();
        while let Ok(inbound) = place.core.try_recv() {
            heard.push(inbound.event.id);
        }
        heard.sort();
        let mut sent: Vec<EventId> = events.iter().map(|(event, _)| event.id).collect();
        sent.sort();
        assert_eq!(heard, sent, "each once");
    }
}
