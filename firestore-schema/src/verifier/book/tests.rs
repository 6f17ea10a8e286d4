//! Reads and changes that meet, and how much is remembered.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use async_trait::async_trait;
use futures::FutureExt as _;
use tokio::sync::{Semaphore, broadcast};

use super::*;
use crate::documents::{ClientStatus, SnapshotEntry, VersionState};

const NOW: UnixMs = UnixMs(1_760_000_000_000);

/// Called while a read is under way.
type Meanwhile = Box<dyn Fn(&ClientId, u32) + Send + Sync>;

/// Documents, and what happens while one is read: what is read is what was there before that.
#[derive(Default)]
struct Source {
    documents: Mutex<HashMap<ClientId, ClientSnapshot>>,
    reads: AtomicU32,
    meanwhile: Mutex<Option<Meanwhile>>,
    fails: AtomicBool,
    /// A read waits for a permit where there is one.
    gate: Option<Semaphore>,
}

#[async_trait]
impl SnapshotSource for Source {
    async fn snapshot(&self, client: &ClientId) -> Result<Option<ClientSnapshot>, SourceError> {
        let read = self.reads.fetch_add(1, Ordering::SeqCst);
        if self.fails.load(Ordering::SeqCst) {
            return Err(SourceError { cause: "down" });
        }
        let found = self.documents.lock().unwrap().get(client).cloned();
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
            // An answer never comes at once.
            tokio::task::yield_now().await;
        }
        if let Some(meanwhile) = &*self.meanwhile.lock().unwrap() {
            meanwhile(client, read);
        }
        Ok(found)
    }
}

impl Source {
    fn set(&self, client: &ClientId, snapshot: ClientSnapshot) {
        self.documents
            .lock()
            .unwrap()
            .insert(client.clone(), snapshot);
    }

    fn meanwhile(&self, what: impl Fn(&ClientId, u32) + Send + Sync + 'static) {
        *self.meanwhile.lock().unwrap() = Some(Box::new(what));
    }

    fn reads(&self) -> u32 {
        self.reads.swap(0, Ordering::SeqCst)
    }
}

fn book(settings: &Settings) -> Arc<Book> {
    let memo = Memo::new(10, Duration::from_secs(60)).unwrap();
    Arc::new(Book::new(settings, Arc::new(memo)))
}

fn client(n: u32) -> ClientId {
    format!("client-{n}").parse().unwrap()
}

fn version(n: u32) -> VersionId {
    format!("{n:026}").parse().unwrap()
}

fn snapshot(n: u32, revision: u64) -> ClientSnapshot {
    let entry = SnapshotEntry {
        version_id: version(n),
        state: VersionState::Current,
        not_before: UnixMs(0),
        not_after: None,
        secret_hash: crate::mac::SecretHash::from_mac(&[7; 32])
            .as_str()
            .to_owned(),
        mac_key_ref: "key".to_owned(),
        prefilter: None,
        prehash: None,
    };
    ClientSnapshot {
        status: ClientStatus::Active,
        entries: vec![entry],
        revision,
        coverage: None,
    }
}

async fn read(book: &Book, source: &Source, n: u32) -> Result<Vec<VersionId>, VerifyError> {
    let id = client(n);
    let cached = book.read(source, id.as_str(), Clock::set(NOW), || {}).await;
    cached.map(|cached| cached.living().collect())
}

fn news(told: &mut broadcast::Receiver<Living>) -> Vec<Living> {
    std::iter::from_fn(|| told.try_recv().ok()).collect()
}

#[tokio::test]
async fn a_read_is_kept_while_other_clients_change() {
    let (book, source) = (book(&Settings::default()), Source::default());
    for n in 0..10 {
        source.set(&client(n), snapshot(n, 1));
    }
    // In a busy system every read meets changes, of all kinds and of everybody else.
    let told = Arc::clone(&book);
    source.meanwhile(move |reading, _| {
        for n in 100..200 {
            assert!(*reading != client(n));
            told.tell(&client(n), snapshot(n, 1));
            told.gone(&client(n + 100));
            told.invalidate(&client(n + 200));
        }
    });
    for n in 0..10 {
        assert_eq!(read(&book, &source, n).await, Ok(vec![version(n)]));
    }
    assert_eq!(source.reads(), 10);
    for n in 0..10 {
        let kept = book.fresh(client(n).as_str(), NOW);
        assert_eq!(kept.unwrap().living().collect::<Vec<_>>(), [version(n)]);
    }
}

#[tokio::test]
async fn a_read_that_a_change_has_overtaken_is_neither_kept_nor_answered() {
    for kind in ["told", "gone", "invalidated", "all"] {
        let (book, source) = (book(&Settings::default()), Arc::new(Source::default()));
        source.set(&client(1), snapshot(1, 1));
        let (told, documents) = (Arc::clone(&book), Arc::downgrade(&source));
        source.meanwhile(move |reading, read| {
            if read > 0 {
                return;
            }
            // The document changes after it was read, and before the answer is there.
            let documents = documents.upgrade().unwrap();
            documents.set(reading, snapshot(2, 2));
            match kind {
                "told" => told.tell(reading, covered(snapshot(2, 2))),
                "gone" => told.gone(reading),
                "invalidated" => told.invalidate(reading),
                _ => told.invalidate_all(),
            }
        });
        assert_eq!(
            read(&book, &source, 1).await,
            Ok(vec![version(2)]),
            "{kind}"
        );
        // What was told needs no read; what is only known to have changed is read again.
        let reads = if kind == "told" { 1 } else { 2 };
        assert_eq!(source.reads(), reads, "{kind}");
        let kept = book.fresh(client(1).as_str(), NOW).unwrap();
        assert_eq!(kept.living().collect::<Vec<_>>(), [version(2)], "{kind}");
    }
}

/// Vouched for by a session that has heard everything until now.
fn covered(snapshot: ClientSnapshot) -> ClientSnapshot {
    let session = Arc::new(crate::verifier::Session::default());
    session.advance(NOW);
    ClientSnapshot {
        coverage: Some(crate::verifier::Coverage::begin(&session)),
        ..snapshot
    }
}

#[tokio::test]
async fn a_client_that_never_stands_still_is_neither_known_nor_asked_for_without_end() {
    let (book, source) = (book(&Settings::default()), Source::default());
    source.set(&client(1), snapshot(1, 1));
    let told = Arc::clone(&book);
    source.meanwhile(move |reading, _| told.invalidate(reading));
    let unavailable = read(&book, &source, 1).await;
    assert!(matches!(unavailable, Err(VerifyError::Unavailable { .. })));
    assert_eq!(source.reads(), READS);
    assert!(book.fresh(client(1).as_str(), NOW).is_none());
}

#[tokio::test]
async fn who_waited_for_a_read_that_was_overtaken_is_not_answered_by_it_either() {
    let source = Source {
        gate: Some(Semaphore::new(0)),
        ..Source::default()
    };
    let book = book(&Settings::default());
    source.set(&client(1), snapshot(1, 1));
    let mut callers: Vec<_> = (0..3).map(|_| Box::pin(read(&book, &source, 1))).collect();
    for caller in &mut callers {
        assert!(caller.as_mut().now_or_never().is_none());
    }
    assert_eq!(source.reads(), 1, "they share one read");
    source.set(&client(1), snapshot(2, 2));
    book.invalidate(&client(1));
    source.gate.as_ref().unwrap().add_permits(10);
    for caller in callers {
        assert_eq!(caller.await, Ok(vec![version(2)]));
    }
}

#[tokio::test]
async fn a_shared_read_that_began_a_lifetime_ago_does_not_serve_who_comes_now() {
    let source = Source {
        gate: Some(Semaphore::new(0)),
        ..Source::default()
    };
    // Every read is a lifetime old as soon as it has begun.
    let book = book(&Settings {
        snapshot_ttl: Duration::ZERO,
        ..Settings::default()
    });
    source.set(&client(1), snapshot(1, 1));
    let mut first = Box::pin(read(&book, &source, 1));
    assert!(first.as_mut().now_or_never().is_none());
    // It changes, and nobody says so.
    source.set(&client(1), snapshot(2, 2));
    let mut later: Vec<_> = (0..8).map(|_| Box::pin(read(&book, &source, 1))).collect();
    for caller in &mut later {
        assert!(caller.as_mut().now_or_never().is_none());
    }
    source.gate.as_ref().unwrap().add_permits(100);
    assert_eq!(first.await, Ok(vec![version(1)]));
    for caller in futures::future::join_all(later).await {
        assert_eq!(caller, Ok(vec![version(2)]));
    }
    // They shared one again, since that began after all of them had asked.
    assert_eq!(source.reads(), 2);
}

#[tokio::test]
async fn news_tell_of_what_lives_once_and_in_order() {
    let (book, source) = (book(&Settings::default()), Source::default());
    let mut told = book.subscribe();
    let living = |versions: &[u32]| Living {
        client_id: client(1),
        versions: versions.iter().copied().map(version).collect(),
    };
    // Nobody has asked: no token can rest on what a first read finds.
    source.set(&client(1), snapshot(1, 1));
    read(&book, &source, 1).await.unwrap();
    assert!(news(&mut told).is_empty());
    book.tell(&client(1), snapshot(1, 2));
    assert!(news(&mut told).is_empty(), "the same versions");
    book.tell(&client(1), snapshot(2, 3));
    book.tell(&client(1), snapshot(1, 2));
    book.tell(&client(1), snapshot(3, 4));
    assert_eq!(news(&mut told), [living(&[2]), living(&[3])], "nothing old");
    source.documents.lock().unwrap().clear();
    assert_eq!(read(&book, &source, 1).await, Ok(vec![]));
    assert_eq!(news(&mut told), [living(&[])]);
    book.tell(&client(1), snapshot(4, 5));
    book.gone(&client(1));
    assert_eq!(news(&mut told), [living(&[4]), living(&[])]);
}

#[tokio::test]
async fn asking_for_what_does_not_exist_drives_nobody_out_and_takes_bounded_room() {
    let (book, source) = (
        book(&Settings {
            max_clients: 100,
            ..Settings::default()
        }),
        Source::default(),
    );
    for n in 0..50 {
        source.set(&client(n), snapshot(n, 1));
        read(&book, &source, n).await.unwrap();
    }
    for n in 1_000..11_000 {
        // More often than any of the clients was.
        for _ in 0..3 {
            assert_eq!(read(&book, &source, n).await, Ok(vec![]));
        }
    }
    book.clients.run_pending_tasks();
    book.nobodies.run_pending_tasks();
    assert!(book.nobodies.entry_count() <= 100);
    for n in 0..50 {
        assert!(book.fresh(client(n).as_str(), NOW).is_some(), "client {n}");
    }
    assert!(book.reads.is_empty(), "reads leave nothing behind");
}

#[tokio::test]
async fn long_ids_that_do_not_exist_take_no_more_room_than_short_ones() {
    let settings = Settings {
        max_clients: 100,
        ..Settings::default()
    };
    let (book, source) = (book(&settings), Source::default());
    for n in 0..1_000 {
        let id = format!("{n:01500}");
        let read = book.read(&source, &id, Clock::set(NOW), || {}).await;
        assert!(read.unwrap().client_id.is_none());
    }
    book.nobodies.run_pending_tasks();
    assert!(book.nobodies.entry_count() <= 100 / 12);
    assert_eq!((weight("a"), weight(&"a".repeat(1_500))), (1, 12));
}

#[tokio::test]
async fn what_fails_is_remembered_of_what_is_known_only() {
    let (book, source) = (book(&Settings::default()), Source::default());
    source.set(&client(1), snapshot(1, 1));
    read(&book, &source, 1).await.unwrap();
    source.fails.store(true, Ordering::SeqCst);
    for n in 0..100 {
        let unavailable = read(&book, &source, n).await.is_err();
        assert_eq!(unavailable, n != 1, "client {n}");
    }
    book.failed.run_pending_tasks();
    assert_eq!(book.failed.entry_count(), 1);
}

#[tokio::test]
async fn an_id_that_was_nobodys_is_somebodys_when_it_was_told_or_after_a_lifetime() {
    let (book, source) = (book(&Settings::default()), Source::default());
    let id = client(1);
    assert_eq!(read(&book, &source, 1).await, Ok(vec![]));
    assert!(book.fresh(id.as_str(), NOW).is_some());
    source.set(&id, snapshot(1, 1));
    // However often it is asked about meanwhile.
    for ms in 0..4_999 {
        let at = NOW.plus(Duration::from_millis(ms));
        assert!(book.fresh(id.as_str(), at).is_some());
    }
    let later = NOW.plus(Duration::from_secs(5));
    assert!(book.fresh(id.as_str(), later).is_none());
    book.tell(&id, covered(snapshot(1, 1)));
    let known = book.fresh(id.as_str(), NOW).unwrap();
    assert_eq!(known.living().collect::<Vec<_>>(), [version(1)]);
}
