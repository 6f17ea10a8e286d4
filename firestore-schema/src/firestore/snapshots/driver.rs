//! Carries out what the machine says, and tells it what happens.

use std::sync::Arc;
use std::time::Duration;

use keyturn_proto::{ClientId, UnixMs};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::link::HEARTBEAT_LEASE;
use super::stream::{self, Ask, Word};
use super::{LOOK, Shared};
use crate::firestore::paths::Path;
use crate::verifier::Book;
use crate::verifier::gauges::{Gauges, Mode};
use crate::verifier::watch::{Do, HEARTBEAT};

/// Aborts the task with the handle.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Stream {
    asks: mpsc::UnboundedSender<Ask>,
    _task: Task,
}

struct Driver {
    shared: Arc<Shared>,
    book: Arc<Book>,
    words: mpsc::Sender<Word>,
    probed: mpsc::Sender<Option<UnixMs>>,
    stream: Option<Stream>,
    probe: Option<Task>,
    gauges: Gauges,
}

/// Until aborted.
pub(super) async fn run(
    shared: Arc<Shared>,
    book: Arc<Book>,
    mut wanted: mpsc::Receiver<ClientId>,
) {
    let (words, mut heard) = mpsc::channel(stream::WORDS);
    let (probed, mut probes) = mpsc::channel(1);
    let mut driver = Driver {
        shared,
        book,
        words,
        probed,
        stream: None,
        probe: None,
        gauges: Gauges::bind(),
    };
    loop {
        driver.show();
        let todo = tokio::select! {
            // What was heard comes first: it can be a revocation.
            biased;
            Some(word) = heard.recv() => driver.word(word),
            Some(written) = probes.recv() => driver.with(|watch, now| watch.probed(written, now)),
            Some(client) = wanted.recv() => driver.with(|watch, now| watch.wanted(&client, now)),
            () = tokio::time::sleep(driver.pause()) => driver.with(|watch, now| watch.tick(now)),
        };
        for what in todo {
            driver.carry_out(what);
        }
    }
}

impl Driver {
    fn with<T>(&self, f: impl FnOnce(&mut crate::verifier::watch::Watch, UnixMs) -> T) -> T {
        let now = self.shared.now();
        f(&mut self.shared.watch(), now)
    }

    fn word(&self, word: Word) -> Vec<Do> {
        self.with(|watch, now| match word {
            Word::Heard(number, heard) => watch.heard(number, heard, now),
            Word::Ended(number) => watch.ended(number, now),
        })
    }

    fn pause(&self) -> Duration {
        let wait = self.with(|watch, now| watch.wake_at().since(now)).min(LOOK);
        if self.stream.is_some() {
            return wait;
        }
        let mut byte = [0u8; 1];
        // Without randomness everybody comes back together, which is bad for the server and not for us.
        let _same = getrandom::fill(&mut byte);
        wait + stream::SPREAD.mul_f32(f32::from(byte[0]) / 255.0).min(wait)
    }

    fn carry_out(&mut self, what: Do) {
        match what {
            Do::Open(number) => self.open(number),
            Do::Close(why) => {
                tracing::warn!(?why, "the listener's stream is given up");
                self.gauges.lost(why);
                self.stream = None;
            }
            Do::Listen(id, client) => {
                // An id that can name no document has no document either.
                if let Ok(path) = Path::client(&client) {
                    self.ask(Ask::Add(id, path));
                }
            }
            Do::Unlisten(id) => self.ask(Ask::Remove(id)),
            Do::Tell(client, snapshot) => {
                self.gauges.change();
                self.book.tell(&client, snapshot);
            }
            Do::Gone(client) => {
                self.gauges.change();
                self.book.gone(&client);
            }
            Do::Forget(client) => {
                tracing::error!("a client document is damaged");
                self.book.invalidate(&client);
            }
            Do::Probe => {
                let (shared, probed) = (Arc::clone(&self.shared), self.probed.clone());
                self.probe = Some(Task(tokio::spawn(async move {
                    let written = shared.reads.heartbeat().await.ok().flatten();
                    // Without a driver nobody needs to know.
                    let _nobody = probed.send(written).await;
                })));
            }
        }
    }

    fn open(&mut self, number: u64) {
        let (asks, asked) = mpsc::unbounded_channel();
        let settings = self.shared.settings.clone();
        let task = stream::listen(settings, number, asked, self.words.clone());
        self.stream = Some(Stream {
            asks,
            _task: Task(tokio::spawn(task)),
        });
        if let Ok(path) = Path::lease(HEARTBEAT_LEASE) {
            self.ask(Ask::Add(HEARTBEAT, path));
        }
    }

    fn ask(&self, ask: Ask) {
        if let Some(stream) = &self.stream {
            // A stream that has ended says so itself.
            let _ended = stream.asks.send(ask);
        }
    }

    fn show(&self) {
        let standing = self.with(|watch, now| watch.standing(now));
        let away = self.shared.reads.away();
        let mode = match (standing.live, away) {
            (true, _) => Mode::Live,
            (false, false) => Mode::ReadThrough,
            (false, true) => Mode::Stale,
        };
        self.gauges.show(&standing, mode);
    }
}
