//! One connection on one thread of its own: SQLite blocks, and the runtime's threads must not.
//!
//! Jobs arrive over a bounded channel (a full one makes callers wait, it never grows). A job whose caller went away still runs to its end: the
//! transaction is committed or rolled back, never left open.
//!
//! Nobody is told of a commit before it is durable, but those who have asked for that ([`Worker::write_early`]).

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Deref;
use std::time::Instant;

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::durable::Log;
use super::error;
use crate::audit::Instance;
use crate::metrics::STORE_SECONDS;
use crate::store::{Early, Result, StoreError};

/// Work for the thread.
enum Job {
    /// Has the connection to itself.
    Alone(Alone),
    /// Shares its transaction with others that wait at the same moment.
    Grouped(Grouped),
}

/// Is given the connection, if anything may still be written.
type Alone = Box<dyn FnOnce(Result<&mut Connection>) + Send>;

/// A change that shares its transaction.
struct Grouped {
    /// Whether it wants to be told before the commit is durable.
    early: bool,
    /// Runs inside the transaction (or is told why there is none) and says how to reply once the commit's fate is known.
    work: Work,
}

type Work = Box<dyn FnOnce(Result<&Shared<'_>>) -> Reply + Send>;
type Tell = Box<dyn FnOnce(Result<()>) + Send>;

struct Reply {
    /// Told of the commit before it is durable.
    early: Option<Tell>,
    /// Told when it is.
    durable: Tell,
}

/// A transaction that several changes share.
struct Shared<'a> {
    tx: Transaction<'a>,
    /// A change has failed after it had written something: nothing of this transaction may be committed.
    spoilt: Cell<bool>,
}

const QUEUE: usize = 1024;
/// Most changes that share a commit.
const GROUP: usize = 256;

/// A transaction that writes, and who writes: audit records that name no client go to that instance's chain.
pub(super) struct Tx<'a> {
    db: Transaction<'a>,
    pub(super) instance: &'a Instance,
}

impl<'a> Deref for Tx<'a> {
    type Target = Transaction<'a>;
    fn deref(&self) -> &Self::Target {
        &self.db
    }
}

/// A handle to the thread; the thread ends when the last handle is dropped.
#[derive(Clone)]
pub(super) struct Worker {
    jobs: mpsc::Sender<Job>,
    instance: Instance,
}

impl Worker {
    /// `log` is that of a connection that writes.
    pub(super) fn start(
        name: &str,
        mut db: Connection,
        mut log: Option<Log>,
        instance: Instance,
    ) -> std::io::Result<Self> {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let mut waiting = Waiting::default();
                while waiting.look(&mut queue) {
                    let whole = log.as_ref().is_none_or(Log::is_whole);
                    if !waiting.grouped.is_empty() {
                        let log = log.as_mut();
                        match whole {
                            true => group(&mut db, log, &mut waiting.grouped),
                            false => waiting.grouped.drain(..).for_each(|it| it.cannot(LOST)),
                        }
                    } else if let Some(work) = waiting.alone.take() {
                        work(if whole { Ok(&mut db) } else { Err(LOST) });
                    }
                }
            })?;
        Ok(Self { jobs, instance })
    }

    /// Runs `work` in one `BEGIN IMMEDIATE` transaction; it is committed only if `work` succeeds.
    pub(super) async fn write<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<T> + Send + 'static,
    {
        let instance = self.instance.clone();
        self.run("write", move |db| {
            let tx = Tx {
                db: db
                    .transaction_with_behavior(TransactionBehavior::Immediate)
                    .map_err(error::sql)?,
                instance: &instance,
            };
            // An early return drops the transaction, which rolls it back.
            let answer = work(&tx)?;
            tx.db.commit().map_err(error::commit)?;
            Ok(answer)
        })
        .await
    }

    /// As [`Worker::write`], but shares the commit with whatever else waits: for changes that come in thousands and do not depend on each other. If the
    /// commit fails, all of them have failed. A `work` that fails before it has written anything, as all do that refuse, harms nobody else.
    pub(super) async fn write_grouped<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>, &Instance) -> Result<T> + Send + 'static,
    {
        let instance = self.instance.clone();
        self.send("write_grouped", move |reply| {
            let work = move |tx: Result<&Shared<'_>>| {
                let answer = tx.and_then(|shared| shared.run(|tx| work(tx, &instance)));
                Reply {
                    early: None,
                    durable: Box::new(move |durable| {
                        // The caller may have gone; the work is done all the same.
                        drop(reply.send(answer.and_then(|answer| durable.map(|()| answer))));
                    }),
                }
            };
            Job::Grouped(Grouped {
                early: false,
                work: Box::new(work),
            })
        })
        .await
    }

    /// As [`Worker::write_grouped`], and tells of the commit before it is durable: for what may be acted upon because everything that says otherwise would be
    /// lost with it.
    pub(super) async fn write_early<T, F>(&self, work: F) -> Result<Early<T>>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>, &Instance) -> Result<T> + Send + 'static,
    {
        let instance = self.instance.clone();
        let (tell, durable) = oneshot::channel();
        let answer = self
            .send("write_early", move |reply| {
                let work = move |tx: Result<&Shared<'_>>| {
                    let answer = tx.and_then(|shared| shared.run(|tx| work(tx, &instance)));
                    Reply {
                        early: Some(Box::new(move |committed| {
                            drop(reply.send(answer.and_then(|answer| committed.map(|()| answer))));
                        })),
                        durable: Box::new(move |durable| drop(tell.send(durable))),
                    }
                };
                Job::Grouped(Grouped {
                    early: true,
                    work: Box::new(work),
                })
            })
            .await?;
        let durable = async move { durable.await.map_err(|_| STOPPED)? };
        Ok(Early::new(answer, durable))
    }

    /// Runs `work` on one consistent view of the database.
    pub(super) async fn read<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    {
        self.run("read", move |db| {
            let tx = db.transaction().map_err(error::sql)?;
            work(&tx)
        })
        .await
    }

    async fn run<T, F>(&self, op: &'static str, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> Result<T> + Send + 'static,
    {
        self.send(op, move |reply| {
            Job::Alone(Box::new(move |db| {
                // The caller may have gone; the work is done all the same.
                drop(reply.send(db.and_then(work)));
            }))
        })
        .await
    }

    async fn send<T: Send + 'static>(
        &self,
        op: &'static str,
        job: impl FnOnce(oneshot::Sender<Result<T>>) -> Job,
    ) -> Result<T> {
        let stopped = || StoreError::Unavailable {
            cause: "the store has been closed",
        };
        let started = Instant::now();
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).await.map_err(|_| stopped())?;
        let answered = answer.await.map_err(|_| STOPPED)?;
        metrics::histogram!(STORE_SECONDS, "op" => op).record(started.elapsed().as_secs_f64());
        answered
    }
}

const STOPPED: StoreError = StoreError::Unknown {
    cause: "the store stopped while working",
};

const LOST: StoreError = StoreError::Unavailable {
    cause: "the disk has failed; nothing is written before a restart",
};

impl Grouped {
    /// There is no transaction to run it in.
    fn cannot(self, error: StoreError) {
        (self.work)(Err(error)).settle(&Ok(()));
    }
}

impl Reply {
    fn settle(mut self, committed: &Result<()>) {
        self.tell_early(committed);
        (self.durable)(committed.clone());
    }

    fn tell_early(&mut self, committed: &Result<()>) {
        if let Some(early) = self.early.take() {
            early(committed.clone());
        }
    }
}

/// Jobs taken out of the channel: those that share a transaction, and behind them at most one that does not.
#[derive(Default)]
struct Waiting {
    grouped: VecDeque<Grouped>,
    alone: Option<Alone>,
}

impl Waiting {
    /// Waits until there is something to do, and takes what is there already; false at the end.
    fn look(&mut self, queue: &mut mpsc::Receiver<Job>) -> bool {
        if self.grouped.is_empty() && self.alone.is_none() {
            match queue.blocking_recv() {
                Some(job) => self.take(job),
                None => return false,
            }
        }
        while self.alone.is_none() && self.grouped.len() < GROUP {
            match queue.try_recv() {
                Ok(job) => self.take(job),
                Err(_) => break,
            }
        }
        true
    }

    fn take(&mut self, job: Job) {
        match job {
            Job::Grouped(work) => self.grouped.push_back(work),
            Job::Alone(work) => self.alone = Some(work),
        }
    }
}

/// Runs what waits in one transaction; what comes behind a change that failed half-way is left.
///
/// Those who want to be told early are so only among themselves: with anybody else in the group, its commit waits for the disk as any other, and nobody sees it
/// before.
fn group(db: &mut Connection, log: Option<&mut Log>, waiting: &mut VecDeque<Grouped>) {
    match log.filter(|_| waiting.iter().all(|one| one.early)) {
        None => {
            let (replies, committed) = commit(db, waiting);
            replies.into_iter().for_each(|one| one.settle(&committed));
        }
        Some(log) => {
            let (mut replies, committed) = match log.wait_within(db, false) {
                Ok(()) => commit(db, waiting),
                Err(error) => return waiting.drain(..).for_each(|it| it.cannot(error.clone())),
            };
            replies
                .iter_mut()
                .for_each(|one| one.tell_early(&committed));
            let durable = committed.and_then(|()| log.sync());
            // Whatever comes of it, the log knows.
            let _ = log.wait_within(db, true);
            replies
                .into_iter()
                .for_each(|one| (one.durable)(durable.clone()));
        }
    }
}

/// The replies of those that were run, and what became of their transaction.
fn commit(db: &mut Connection, waiting: &mut VecDeque<Grouped>) -> (Vec<Reply>, Result<()>) {
    let tx = match db.transaction_with_behavior(TransactionBehavior::Immediate) {
        Ok(tx) => tx,
        Err(error) => {
            let error = error::sql(error);
            let replies = waiting.drain(..).map(|it| (it.work)(Err(error.clone())));
            return (replies.collect(), Ok(()));
        }
    };
    let began = tx.total_changes();
    let shared = Shared {
        tx,
        spoilt: Cell::new(false),
    };
    let mut replies = Vec::with_capacity(waiting.len());
    while shared.is_whole()
        && let Some(one) = waiting.pop_front()
    {
        let reply = (one.work)(Ok(&shared));
        if shared.tx.total_changes() == began && shared.is_whole() {
            // So far nobody has written anything: what this one saw was there before, whatever becomes of the others.
            reply.settle(&Ok(()));
        } else {
            replies.push(reply);
        }
    }
    let committed = if shared.is_whole() {
        shared.tx.commit().map_err(error::commit)
    } else {
        // Dropped, it is rolled back.
        Err(StoreError::Unavailable {
            cause: "the transaction was given up",
        })
    };
    (replies, committed)
}

impl Shared<'_> {
    /// After some failures (a full disk) SQLite ends the transaction by itself; nothing may run outside one.
    fn is_whole(&self) -> bool {
        !self.spoilt.get() && !self.tx.is_autocommit()
    }

    /// Savepoints would do as well, and cost more than most changes: SQLite keeps a copy of every page for each.
    fn run<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let before = self.tx.total_changes();
        let answer = work(&self.tx);
        if answer.is_err() && self.tx.total_changes() != before {
            self.spoilt.set(true);
        }
        answer
    }
}

#[cfg(test)]
mod tests;
