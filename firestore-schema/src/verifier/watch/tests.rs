//! The listener's machine under a virtual clock, with the book and a whole verifier behind it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use async_trait::async_trait;
use keyturn_proto::{PresentedSecret, Secret, VersionId};

use super::*;
use crate::documents::{ClientStatus, SnapshotEntry, VersionState};
use crate::mac::{LocalMacKey, MacKey as _};
use crate::verifier::book::Living;
use crate::verifier::{
    Book, HEARTBEAT_EVERY, Settings, SnapshotSource, SourceError, Verified, Verifier, VerifyError,
};

const START: UnixMs = UnixMs(1_760_000_000_000);
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SECOND: u64 = 1_000;

fn client(n: u32) -> ClientId {
    format!("client-{n}").parse().unwrap()
}

/// Its number, and its targets.
type Stream = (u64, Vec<(TargetId, ClientId)>);

/// A server with one document per client, and a stream that tells of them unless the test says otherwise.
#[derive(Default)]
struct World {
    now: Mutex<u64>,
    watch: Mutex<Option<Watch>>,
    book: Mutex<Option<Arc<Book>>>,
    documents: Mutex<Vec<(ClientId, ClientSnapshot)>>,
    /// Open stream and its targets.
    stream: Mutex<Option<Stream>>,
    reads: AtomicU32,
    reads_fail: AtomicBool,
    /// Nothing comes through any more.
    frozen: AtomicBool,
    /// Streams cannot be opened.
    closed: AtomicBool,
    /// No relay renews the lease.
    no_heartbeat: AtomicBool,
    probes: AtomicU32,
    lost: Mutex<Vec<Lost>>,
}

#[derive(Clone)]
struct Source(Arc<World>);

#[async_trait]
impl SnapshotSource for Source {
    async fn snapshot(&self, client: &ClientId) -> Result<Option<ClientSnapshot>, SourceError> {
        let world = &self.0;
        world.reads.fetch_add(1, Ordering::SeqCst);
        if world.reads_fail.load(Ordering::SeqCst) {
            return Err(SourceError { cause: "down" });
        }
        let coverage = world.with(|watch, _| watch.coverage(client));
        let found = world.document(client);
        if found.is_some() {
            let todo = world.with(|watch, now| watch.wanted(client, now));
            world.carry_out(todo);
        }
        Ok(found.map(|snapshot| ClientSnapshot {
            coverage,
            ..snapshot
        }))
    }

    fn attach(&self, book: &Arc<Book>) {
        *self.0.book.lock().unwrap() = Some(Arc::clone(book));
    }
}

impl World {
    fn with<T>(&self, f: impl FnOnce(&mut Watch, UnixMs) -> T) -> T {
        let now = self.now();
        f(self.watch.lock().unwrap().as_mut().unwrap(), now)
    }

    fn now(&self) -> UnixMs {
        UnixMs(START.0 + *self.now.lock().unwrap())
    }

    fn document(&self, client: &ClientId) -> Option<ClientSnapshot> {
        let documents = self.documents.lock().unwrap();
        let found = documents.iter().find(|(id, _)| id == client);
        found.map(|(_, snapshot)| snapshot.clone())
    }

    fn carry_out(&self, todo: Vec<Do>) {
        let batch = todo
            .iter()
            .any(|what| matches!(what, Do::Open(_) | Do::Listen(..)));
        for what in todo {
            match what {
                Do::Open(number) if self.closed.load(Ordering::SeqCst) => {
                    let todo = self.with(|watch, now| watch.ended(number, now));
                    self.carry_out(todo);
                }
                Do::Open(number) => {
                    *self.stream.lock().unwrap() = Some((number, Vec::new()));
                    self.hear(Heard::Current(vec![HEARTBEAT]));
                }
                Do::Close(why) => {
                    self.lost.lock().unwrap().push(why);
                    *self.stream.lock().unwrap() = None;
                }
                Do::Listen(id, client) => {
                    if let Some((_, targets)) = &mut *self.stream.lock().unwrap() {
                        targets.push((id, client.clone()));
                    }
                    self.tell(id, &client);
                    self.hear(Heard::Current(vec![id]));
                }
                Do::Unlisten(id) => {
                    if let Some((_, targets)) = &mut *self.stream.lock().unwrap() {
                        targets.retain(|(known, _)| *known != id);
                    }
                    self.hear(Heard::Removed(vec![id]));
                }
                Do::Tell(client, snapshot) => self.book().tell(&client, snapshot),
                Do::Gone(client) => self.book().gone(&client),
                Do::Forget(client) => self.book().invalidate(&client),
                Do::Probe => {
                    self.probes.fetch_add(1, Ordering::SeqCst);
                    let read = !self.reads_fail.load(Ordering::SeqCst)
                        && !self.no_heartbeat.load(Ordering::SeqCst);
                    let todo = self.with(|watch, now| watch.probed(read.then_some(now), now));
                    self.carry_out(todo);
                }
            }
        }
        // The server's closing word, once per batch.
        if batch {
            self.consistent();
        }
    }

    fn book(&self) -> Arc<Book> {
        Arc::clone(self.book.lock().unwrap().as_ref().unwrap())
    }

    fn tell(&self, id: TargetId, client: &ClientId) {
        let targets = vec![id];
        self.hear(match self.document(client) {
            Some(snapshot) => Heard::Changed {
                targets,
                snapshot: Some(snapshot),
            },
            None => Heard::Gone { targets },
        });
    }

    fn hear(&self, heard: Heard) {
        let number = self.stream.lock().unwrap().as_ref().map(|(n, _)| *n);
        if let (Some(number), false) = (number, self.frozen.load(Ordering::SeqCst)) {
            let todo = self.with(|watch, now| watch.heard(number, heard, now));
            for what in todo {
                match what {
                    Do::Tell(client, snapshot) => self.book().tell(&client, snapshot),
                    Do::Gone(client) => self.book().gone(&client),
                    other => self.carry_out(vec![other]),
                }
            }
        }
    }

    fn consistent(&self) {
        self.hear(Heard::Consistent(self.now()));
    }
}

struct Stand {
    world: Arc<World>,
    verifier: Verifier<Source, LocalMacKey>,
    secret: Secret,
    news: tokio::sync::broadcast::Receiver<Living>,
}

impl Stand {
    async fn new(clients: u32, settings: WatchSettings) -> Self {
        let world = Arc::new(World::default());
        *world.watch.lock().unwrap() = Some(Watch::new(settings));
        let mac = LocalMacKey::from_keys(&[7; 32], &[]);
        let source = Source(Arc::clone(&world));
        let verifier = Verifier::new(source, mac, Settings::default()).unwrap();
        let stand = Self {
            news: verifier.book().subscribe(),
            verifier,
            world,
            secret: Secret::generate().unwrap(),
        };
        for n in 0..clients {
            stand.set(n, 1, ClientStatus::Active).await;
        }
        stand.pass(0).await;
        stand
    }

    /// Writes the document, and tells the stream.
    async fn set(&self, n: u32, revision: u64, status: ClientStatus) {
        let id = client(n);
        let version_id: VersionId = format!("{n:026}").parse().unwrap();
        let mac = LocalMacKey::from_keys(&[7; 32], &[]);
        let made = mac.sign(&id, &version_id, self.secret.expose()).await;
        let made = made.unwrap_or_else(|_| unreachable!("a local key signs"));
        let entry = SnapshotEntry {
            version_id,
            state: VersionState::Current,
            not_before: UnixMs(0),
            not_after: None,
            secret_hash: made.hash.as_str().to_owned(),
            mac_key_ref: made.key_ref,
            prefilter: None,
            prehash: None,
        };
        let snapshot = ClientSnapshot {
            status,
            entries: vec![entry],
            revision,
            coverage: None,
        };
        let mut documents = self.world.documents.lock().unwrap();
        documents.retain(|(known, _)| *known != id);
        documents.push((id.clone(), snapshot));
        drop(documents);
        let target = self
            .world
            .stream
            .lock()
            .unwrap()
            .as_ref()
            .and_then(|(_, targets)| {
                let found = targets.iter().find(|(_, known)| *known == id);
                found.map(|(target, _)| *target)
            });
        if let Some(target) = target {
            self.world.tell(target, &id);
            self.world.consistent();
        }
    }

    async fn at(&self, n: u32) -> Result<Verified, VerifyError> {
        let secret = PresentedSecret::new(self.secret.expose());
        let id = client(n);
        let now = self.world.now();
        self.verifier.verify(id.as_str(), &secret, HERE, now).await
    }

    /// Lets time pass in steps of a second, with a heartbeat every five.
    async fn pass(&self, ms: u64) {
        for step in 0..=(ms / SECOND) {
            if step > 0 {
                *self.world.now.lock().unwrap() += SECOND;
            }
            let todo = self.world.with(Watch::tick);
            self.world.carry_out(todo);
            let beat = self.world.now().0.is_multiple_of(5 * SECOND);
            if beat && !self.world.no_heartbeat.load(Ordering::SeqCst) {
                self.world.consistent();
            }
        }
    }

    fn reads(&self) -> u32 {
        self.world.reads.swap(0, Ordering::SeqCst)
    }

    fn standing(&self) -> Standing {
        self.world.with(|watch, now| watch.standing(now))
    }

    fn news(&mut self) -> Vec<Living> {
        std::iter::from_fn(|| self.news.try_recv().ok()).collect()
    }
}

const REFUSED: Result<Verified, VerifyError> = Err(VerifyError::Refused);

fn unavailable(result: Result<Verified, VerifyError>) -> bool {
    matches!(result, Err(VerifyError::Unavailable { .. }))
}

#[tokio::test]
async fn in_steady_state_an_hour_of_verifications_reads_nothing() {
    let stand = Stand::new(3, WatchSettings::default()).await;
    for n in 0..3 {
        stand.at(n).await.unwrap();
    }
    assert_eq!(stand.reads(), 3);
    for _ in 0..3_600 {
        stand.pass(SECOND).await;
        for n in 0..3 {
            stand.at(n).await.unwrap();
        }
    }
    assert_eq!(stand.reads(), 0);
    assert_eq!(stand.world.probes.load(Ordering::SeqCst), 0);
    let standing = stand.standing();
    assert!(standing.live && standing.targets == 3, "{standing:?}");
}

#[tokio::test]
async fn a_change_is_seen_at_once_without_a_read_and_announced() {
    let mut stand = Stand::new(1, WatchSettings::default()).await;
    let version = stand.at(0).await.unwrap().version_id;
    stand.pass(10 * SECOND).await;
    stand.news();
    stand.reads();
    stand.set(0, 2, ClientStatus::Suspended).await;
    assert_eq!(stand.at(0).await, REFUSED);
    stand.set(0, 3, ClientStatus::Active).await;
    assert!(stand.at(0).await.is_ok());
    assert_eq!(stand.reads(), 0);
    let told = |versions: &[VersionId]| Living {
        client_id: client(0),
        versions: versions.to_vec(),
    };
    assert_eq!(stand.news(), [told(&[]), told(&[version])]);
}

#[tokio::test]
async fn a_frozen_stream_is_believed_for_the_limit_then_read_through_and_replaced() {
    let stand = Stand::new(1, WatchSettings::default()).await;
    stand.at(0).await.unwrap();
    stand.pass(10 * SECOND).await;
    stand.reads();
    stand.world.frozen.store(true, Ordering::SeqCst);
    stand.set(0, 2, ClientStatus::Suspended).await;
    stand.pass(14 * SECOND).await;
    assert!(stand.at(0).await.is_ok(), "nobody can know yet");
    assert_eq!(stand.reads(), 0);
    stand.pass(SECOND).await;
    assert_eq!(stand.at(0).await, REFUSED, "read through");
    assert_eq!(stand.reads(), 1);
    // The heartbeat goes on, the stream does not tell: it is deaf.
    assert_eq!(*stand.world.lost.lock().unwrap(), [Lost::Deaf]);
    stand.world.frozen.store(false, Ordering::SeqCst);
    stand.pass(15 * SECOND).await;
    assert!(stand.standing().live);
    stand.at(0).await.unwrap_err();
    stand.reads();
    stand.pass(60 * SECOND).await;
    assert_eq!(stand.at(0).await, REFUSED);
    assert_eq!(stand.reads(), 0, "covered again");
}

#[tokio::test]
async fn without_a_heartbeat_clients_are_read_through_and_the_stream_is_left_alone() {
    let stand = Stand::new(1, WatchSettings::default()).await;
    stand.at(0).await.unwrap();
    stand.world.no_heartbeat.store(true, Ordering::SeqCst);
    stand.pass(20 * SECOND).await;
    stand.reads();
    for _ in 0..60 {
        stand.at(0).await.unwrap();
        stand.pass(SECOND).await;
    }
    // Once in `snapshot_ttl`, which is 5 s.
    assert!((10..=13).contains(&stand.reads()));
    assert!(stand.world.lost.lock().unwrap().is_empty());
    assert!(!stand.standing().live);
    assert!(stand.world.probes.load(Ordering::SeqCst) >= 10);
    stand.world.no_heartbeat.store(false, Ordering::SeqCst);
    stand.pass(10 * SECOND).await;
    stand.reads();
    stand.at(0).await.unwrap();
    assert_eq!(stand.reads(), 0);
}

#[tokio::test]
async fn with_everything_away_answers_last_as_long_as_stated_and_then_are_refused() {
    let stand = Stand::new(2, WatchSettings::default()).await;
    stand.at(0).await.unwrap();
    // An hour after the read: what counts is the last proof, not the read.
    stand.pass(3_600 * SECOND).await;
    stand.reads();
    let cut = |away| {
        stand.world.closed.store(away, Ordering::SeqCst);
        stand.world.frozen.store(away, Ordering::SeqCst);
        stand.world.reads_fail.store(away, Ordering::SeqCst);
    };
    cut(true);
    let number = stand.world.stream.lock().unwrap().as_ref().unwrap().0;
    let todo = stand.world.with(|watch, now| watch.ended(number, now));
    stand.world.carry_out(todo);
    stand.pass(55 * SECOND).await;
    assert!(stand.at(0).await.is_ok());
    assert!(unavailable(stand.at(1).await), "never seen");
    stand.pass(5 * SECOND).await;
    assert!(unavailable(stand.at(0).await));
    assert!(stand.world.lost.lock().unwrap().len() > 5, "tried again");
    assert!(!stand.standing().live);

    cut(false);
    stand.pass(15 * SECOND).await;
    stand.at(0).await.unwrap();
    stand.pass(SECOND).await;
    stand.reads();
    stand.pass(60 * SECOND).await;
    stand.at(0).await.unwrap();
    assert_eq!(stand.reads(), 0);
}

#[tokio::test]
async fn a_slow_line_is_believed_no_longer_than_what_it_proves() {
    let stand = Stand::new(1, WatchSettings::default()).await;
    stand.at(0).await.unwrap();
    // Words come regularly, each twenty seconds old.
    stand.world.no_heartbeat.store(true, Ordering::SeqCst);
    for _ in 0..60 {
        stand.pass(SECOND).await;
        let old = UnixMs(stand.world.now().0 - 20 * SECOND);
        stand.world.hear(Heard::Consistent(old));
    }
    stand.reads();
    stand.at(0).await.unwrap();
    assert_eq!(stand.reads(), 1);
    // And what it tells late does not undo what was read.
    let late = stand.world.document(&client(0));
    stand.world.frozen.store(true, Ordering::SeqCst);
    stand.set(0, 2, ClientStatus::Revoked).await;
    stand.pass(6 * SECOND).await;
    assert_eq!(stand.at(0).await, REFUSED);
    stand.world.frozen.store(false, Ordering::SeqCst);
    let target = stand.world.stream.lock().unwrap().as_ref().unwrap().1[0].0;
    stand.world.hear(Heard::Changed {
        targets: vec![target],
        snapshot: late,
    });
    assert_eq!(stand.at(0).await, REFUSED);
}

#[tokio::test]
async fn a_server_clock_ahead_of_ours_buys_no_trust() {
    let stand = Stand::new(1, WatchSettings::default()).await;
    stand.at(0).await.unwrap();
    stand.world.no_heartbeat.store(true, Ordering::SeqCst);
    let ahead = UnixMs(stand.world.now().0 + 3_600 * SECOND);
    stand.world.hear(Heard::Consistent(ahead));
    stand.reads();
    stand.pass(16 * SECOND).await;
    stand.at(0).await.unwrap();
    assert_eq!(stand.reads(), 1);
}

#[tokio::test]
async fn a_clock_that_differs_and_a_renewal_that_fails_to_come_cost_no_read() {
    let every = u64::try_from(HEARTBEAT_EVERY.as_millis()).unwrap();
    // How far Firestore's clock is ahead of ours, in seconds. The relay's own is in nothing that is heard.
    for ahead in [-4_i64, -2, 0, 2, 4, 3_600] {
        let stand = Stand::new(1, WatchSettings::default()).await;
        stand.world.no_heartbeat.store(true, Ordering::SeqCst);
        let beat = || {
            let at = stand.world.now().0.saturating_add_signed(ahead * 1_000);
            stand.world.hear(Heard::Consistent(UnixMs(at)));
        };
        stand.at(0).await.unwrap();
        beat();
        stand.reads();
        for n in 0..60 {
            for _ in 0..every / SECOND {
                stand.pass(SECOND).await;
                stand.at(0).await.unwrap();
                assert!(stand.standing().live, "{ahead} s ahead, renewal {n}");
            }
            // Every other one is lost.
            if n % 2 == 1 {
                beat();
            }
        }
        assert_eq!(stand.reads(), 0, "{ahead} s ahead");
        assert!(stand.world.lost.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_makes_nothing_younger() {
    let stand = Stand::new(1, WatchSettings::default()).await;
    stand.pass(3_600 * SECOND).await;
    stand.at(0).await.unwrap();
    stand.pass(10 * SECOND).await;
    *stand.world.now.lock().unwrap() -= 1_800 * SECOND;
    stand.reads();
    stand.at(0).await.unwrap();
    assert_eq!(stand.reads(), 1);
    stand.world.reads_fail.store(true, Ordering::SeqCst);
    *stand.world.now.lock().unwrap() -= 1_000 * SECOND;
    assert!(unavailable(stand.at(0).await));
}

#[tokio::test]
async fn clients_beyond_the_targets_are_read_through_and_idle_ones_make_room() {
    let settings = WatchSettings {
        max_targets: 2,
        ..WatchSettings::default()
    };
    let stand = Stand::new(4, settings).await;
    for n in 0..3 {
        stand.at(n).await.unwrap();
    }
    assert_eq!(stand.standing().targets, 2);
    stand.pass(10 * SECOND).await;
    stand.reads();
    for n in 0..3 {
        stand.at(n).await.unwrap();
    }
    assert_eq!(stand.reads(), 1, "the third is read");
    // Client 1 is not asked about any more; within two sweeps the third has its place.
    for _ in 0..10 {
        stand.pass(10 * SECOND).await;
        stand.at(0).await.unwrap();
        stand.at(2).await.unwrap();
    }
    stand.reads();
    stand.pass(20 * SECOND).await;
    stand.at(0).await.unwrap();
    stand.at(2).await.unwrap();
    assert_eq!(stand.reads(), 0);
    assert_eq!(stand.standing().targets, 2);
    // What the first one lost is not believed on the word of a stream that does not tell of it.
    stand.set(1, 2, ClientStatus::Suspended).await;
    assert_eq!(stand.at(1).await, REFUSED);
}

#[tokio::test]
async fn a_reset_or_removed_target_covers_nothing() {
    let stand = Stand::new(2, WatchSettings::default()).await;
    for (n, heard) in [
        (0, Heard::Reset as fn(Vec<TargetId>) -> Heard),
        (1, Heard::Removed),
    ] {
        stand.at(n).await.unwrap();
        stand.pass(10 * SECOND).await;
        stand.reads();
        stand.at(n).await.unwrap();
        assert_eq!(stand.reads(), 0);
        let target = {
            let stream = stand.world.stream.lock().unwrap();
            let targets = &stream.as_ref().unwrap().1;
            targets.iter().find(|(_, id)| *id == client(n)).unwrap().0
        };
        stand.world.hear(heard(vec![target]));
        stand.pass(6 * SECOND).await;
        stand.at(n).await.unwrap();
        assert_eq!(stand.reads(), 1, "client {n}");
    }
    // The server took one away: it is not asked for more at once.
    let todo = stand.world.with(|watch, now| watch.wanted(&client(1), now));
    assert!(todo.is_empty());
}

#[tokio::test]
async fn a_stream_that_never_proves_itself_is_given_up_with_growing_pauses() {
    let mut watch = Watch::new(WatchSettings::default());
    let mut now = START;
    let mut opened = Vec::new();
    while now.0 < START.0 + 120 * SECOND {
        for what in watch.tick(now) {
            if let Do::Open(number) = what {
                opened.push(now.0 - START.0);
                // Without its heartbeat a stream proves nothing, whatever it says.
                watch.heard(number, Heard::Consistent(now), now);
            }
        }
        assert!(!watch.standing(now).live);
        now = watch.wake_at().max(UnixMs(now.0 + 1));
    }
    let pauses: Vec<u64> = opened.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(pauses.is_sorted() && pauses.len() >= 5, "{pauses:?}");
    assert!(
        pauses.iter().all(|pause| *pause <= 20 * SECOND),
        "{pauses:?}"
    );
    // What an old stream says late counts for nothing.
    watch.heard(1, Heard::Current(vec![HEARTBEAT]), now);
    watch.heard(1, Heard::Consistent(now), now);
    assert!(!watch.standing(now).live);
}

#[tokio::test]
async fn a_stream_that_proves_itself_and_ends_at_once_is_not_opened_in_a_rush() {
    let mut watch = Watch::new(WatchSettings::default());
    let mut now = START;
    let mut opened = 0;
    while now.0 < START.0 + 600 * SECOND {
        for what in watch.tick(now) {
            if let Do::Open(number) = what {
                opened += 1;
                watch.heard(number, Heard::Current(vec![HEARTBEAT]), now);
                watch.heard(number, Heard::Consistent(now), now);
                assert!(watch.standing(now).live);
                watch.ended(number, now);
            }
        }
        now = watch.wake_at().max(UnixMs(now.0 + 1));
    }
    assert!((60..80).contains(&opened), "{opened}");
}

#[tokio::test]
async fn a_document_that_cannot_be_read_or_is_gone_is_not_served_from_memory() {
    let stand = Stand::new(2, WatchSettings::default()).await;
    for n in 0..2 {
        stand.at(n).await.unwrap();
    }
    stand.pass(10 * SECOND).await;
    stand.reads();
    let targets = stand
        .world
        .stream
        .lock()
        .unwrap()
        .as_ref()
        .unwrap()
        .1
        .clone();
    let of = |n| vec![targets.iter().find(|(_, id)| *id == client(n)).unwrap().0];
    stand.world.hear(Heard::Changed {
        targets: of(0),
        snapshot: None,
    });
    stand
        .world
        .documents
        .lock()
        .unwrap()
        .retain(|(id, _)| *id != client(1));
    stand.world.hear(Heard::Gone { targets: of(1) });
    stand.at(0).await.unwrap();
    assert_eq!(stand.at(1).await, REFUSED);
    assert_eq!(stand.reads(), 2);
}
