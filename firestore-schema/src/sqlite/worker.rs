//! One connection on one thread of its own: SQLite blocks, and the runtime's threads must not.
//!
//! Jobs arrive over a bounded channel (a full one makes callers wait, it never grows). A job whose caller went away still runs to its end: the
//! transaction is committed or rolled back, never left open.

use std::ops::Deref;
use std::time::Instant;

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::error;
use crate::audit::Instance;
use crate::metrics::STORE_SECONDS;
use crate::store::{Result, StoreError};

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

const QUEUE: usize = 1024;

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
    pub(super) fn start(
        name: &str,
        mut db: Connection,
        instance: Instance,
    ) -> std::io::Result<Self> {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                while let Some(job) = queue.blocking_recv() {
                    job(&mut db);
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
        let stopped = || StoreError::Unavailable {
            cause: "the store has been closed",
        };
        let started = Instant::now();
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |db| {
            // The caller may have gone; the work is done all the same.
            drop(reply.send(work(db)));
        });
        self.jobs.send(job).await.map_err(|_| stopped())?;
        let answered = answer.await.map_err(|_| StoreError::Unknown {
            cause: "the store stopped while working",
        })?;
        metrics::histogram!(STORE_SECONDS, "op" => op).record(started.elapsed().as_secs_f64());
        answered
    }
}
