//! The listener's machine under a virtual clock, with the book and a whole verifier behind it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod streams;
mod trust;

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
