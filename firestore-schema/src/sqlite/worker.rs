//! One connection on one thread of its own: SQLite blocks, and the runtime's threads must not.
//!
//! Jobs arrive over a bounded channel (a full one makes callers wait, it never grows). A job whose caller went away still runs to its end: the
//! transaction is committed or rolled back, never left open.
//!
//! Nobody is told of a commit before it is durable, but those who have asked for that ([`Worker::write_early`]).

use std::cell::Cell;
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

/// Runs on the connection, outside any transaction that is not its own.
type Alone = Box<dyn FnOnce(&mut Connection, Option<&Log>) + Send>;

/// Runs inside the shared transaction (or is told why there is none) and says how to reply once the commit's fate is known.
type Grouped = Box<dyn FnOnce(Result<&Shared<'_>>) -> Reply + Send>;
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
        log: Option<Log>,
        instance: Instance,
    ) -> std::io::Result<Self> {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let mut next = None;
                while let Some(job) = next.take().or_else(|| queue.blocking_recv()) {
                    match job {
                        Job::Alone(work) => work(&mut db, log.as_ref()),
                        Job::Grouped(first) => {
                            next = group(&mut db, log.as_ref(), first, &mut queue);
                        }
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
        self.run("write", move |db, log| {
            let tx = Tx {
                db: db
                    .transaction_with_behavior(TransactionBehavior::Immediate)
                    .map_err(error::sql)?,
                instance: &instance,
            };
            let before = tx.db.total_changes();
            // An early return drops the transaction, which rolls it back.
            let answer = work(&tx)?;
            let wrote = tx.db.total_changes() != before;
            tx.db.commit().map_err(error::commit)?;
            sync(log, wrote)?;
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
            Job::Grouped(Box::new(move |tx| {
                let answer = tx.and_then(|shared| shared.run(|tx| work(tx, &instance)));
                Reply {
                    early: None,
                    durable: Box::new(move |durable| {
                        // The caller may have gone; the work is done all the same.
                        drop(reply.send(answer.and_then(|answer| durable.map(|()| answer))));
                    }),
                }
            }))
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
                Job::Grouped(Box::new(move |tx| {
                    let answer = tx.and_then(|shared| shared.run(|tx| work(tx, &instance)));
                    Reply {
                        early: Some(Box::new(move |committed| {
                            drop(reply.send(answer.and_then(|answer| committed.map(|()| answer))));
                        })),
                        durable: Box::new(move |durable| drop(tell.send(durable))),
                    }
                }))
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
        self.run("read", move |db, _| {
            let tx = db.transaction().map_err(error::sql)?;
            work(&tx)
        })
        .await
    }

    async fn run<T, F>(&self, op: &'static str, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection, Option<&Log>) -> Result<T> + Send + 'static,
    {
        self.send(op, move |reply| {
            Job::Alone(Box::new(move |db, log| {
                // The caller may have gone; the work is done all the same.
                drop(reply.send(work(db, log)));
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

/// Waits until what was written is on the disk. A commit that changed nothing has nothing to wait for.
fn sync(log: Option<&Log>, wrote: bool) -> Result<()> {
    log.filter(|_| wrote).map_or(Ok(()), Log::sync)
}

impl Reply {
    fn tell_early(&mut self, committed: &Result<()>) {
        if let Some(early) = self.early.take() {
            early(committed.clone());
        }
    }
}

/// Runs `first` and whatever grouped work waits behind it in one transaction. Returns the job that ended the group.
fn group(
    db: &mut Connection,
    log: Option<&Log>,
    first: Grouped,
    queue: &mut mpsc::Receiver<Job>,
) -> Option<Job> {
    let tx = match db.transaction_with_behavior(TransactionBehavior::Immediate) {
        Ok(tx) => tx,
        Err(error) => {
            let mut reply = first(Err(error::sql(error)));
            reply.tell_early(&Ok(()));
            (reply.durable)(Ok(()));
            return None;
        }
    };
    let before = tx.total_changes();
    let shared = Shared {
        tx,
        spoilt: Cell::new(false),
    };
    let mut replies = vec![first(Ok(&shared))];
    let mut next = None;
    while replies.len() < GROUP && shared.is_whole() {
        match queue.try_recv() {
            Ok(Job::Grouped(work)) => replies.push(work(Ok(&shared))),
            Ok(alone @ Job::Alone(_)) => {
                next = Some(alone);
                break;
            }
            Err(_) => break,
        }
    }
    let wrote = shared.tx.total_changes() != before;
    let committed = if shared.is_whole() {
        shared.tx.commit().map_err(error::commit)
    } else {
        // Dropped, it is rolled back.
        drop(shared);
        Err(StoreError::Unavailable {
            cause: "the transaction was given up",
        })
    };
    for reply in &mut replies {
        reply.tell_early(&committed);
    }
    let durable = committed.and_then(|()| sync(log, wrote));
    for reply in replies {
        (reply.durable)(durable.clone());
    }
    next
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const REFUSED: StoreError = StoreError::Conflict { why: "refused" };

    /// Three changes that share a transaction; the one in the middle fails, after it has written `written` rows. What each came to, and the rows that are there.
    async fn three(written: usize) -> (Vec<bool>, i64) {
        let db = Connection::open_in_memory().unwrap();
        db.execute("CREATE TABLE t (n INTEGER)", []).unwrap();
        let worker = Worker::start("test", db, None, Instance::operator()).unwrap();
        // Holds the thread until all three wait.
        let (go, held) = std::sync::mpsc::channel::<()>();
        let holding = worker.read(move |_| {
            held.recv().unwrap();
            Ok(())
        });
        let insert = |rows: usize, fails: bool| {
            worker.write_grouped(move |tx, _| {
                for n in 0..rows {
                    let n = i64::try_from(n).unwrap();
                    tx.execute("INSERT INTO t VALUES (?1)", [n]).unwrap();
                }
                if fails { Err(REFUSED) } else { Ok(()) }
            })
        };
        let release = async {
            while worker.jobs.capacity() > QUEUE - 3 {
                tokio::task::yield_now().await;
            }
            go.send(()).unwrap();
        };
        let (held, one, two, three, ()) = tokio::join!(
            holding,
            insert(1, false),
            insert(written, true),
            insert(1, false),
            release
        );
        held.unwrap();
        assert_eq!(two, Err(REFUSED));
        let rows = worker
            .read(|tx| {
                let count = tx.query_row("SELECT count(*) FROM t", [], |row| row.get(0));
                count.map_err(error::sql)
            })
            .await
            .unwrap();
        (vec![one.is_ok(), three.is_ok()], rows)
    }

    #[tokio::test]
    async fn a_change_that_refuses_harms_nobody_who_shares_its_commit() {
        assert_eq!(three(0).await, (vec![true, true], 2));
    }

    #[tokio::test]
    async fn nothing_is_committed_with_a_change_that_failed_half_way() {
        let (answers, rows) = three(1).await;
        // Whoever came after the failure may have been given a transaction of its own.
        assert!(!answers[0]);
        assert_eq!(rows, i64::from(answers[1]));
    }

    #[tokio::test]
    async fn only_who_asked_for_it_is_told_before_the_disk_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let db = Connection::open(dir.path().join("t.db")).unwrap();
        db.execute("CREATE TABLE t (n INTEGER)", []).unwrap();
        // A log that is not there cannot be waited for.
        let lost = Log::at(dir.path().join("lost"));
        let worker = Worker::start("test", db, Some(lost), Instance::operator()).unwrap();
        let insert = |tx: &Transaction<'_>| {
            tx.execute("INSERT INTO t VALUES (1)", []).unwrap();
            Ok(7)
        };
        let early = worker.write_early(move |tx, _| insert(tx)).await.unwrap();
        assert_eq!(early.answer, 7);
        let unknown = |result| matches!(result, Err(StoreError::Unknown { .. }));
        assert!(unknown(early.durable().await));
        assert!(unknown(
            worker
                .write_grouped(move |tx, _| insert(tx))
                .await
                .map(drop)
        ));
        assert!(unknown(worker.write(move |tx| insert(tx)).await.map(drop)));
        // What writes nothing waits for nothing.
        worker.write_grouped(|_, _| Ok(())).await.unwrap();
        worker.write(|_| Ok(())).await.unwrap();
    }
}
