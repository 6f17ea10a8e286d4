//! The MLS member on a thread of its own: `keyturn-mls` is synchronous, and its database belongs to one caller.
//!
//! What must always hold: jobs run one after another, in the order they were sent; a job that panics is undone by its transaction and answers
//! [`MemberGone`], and the next one runs. The queue is bounded, so that a slow member slows its callers down instead of filling memory.

use std::panic::{AssertUnwindSafe, catch_unwind};

use keyturn_mls::Member;
use tokio::sync::{mpsc, oneshot};

/// OpenMLS's tree and curve code needs more than the default in unoptimised builds (marmot.md).
const STACK: usize = 8 * 1024 * 1024;
const QUEUE: usize = 256;

type Job = Box<dyn FnOnce(&mut Member) + Send>;

/// The member did not answer: its thread is over, or this very job panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the service member did not answer")]
pub struct MemberGone;

/// Reaches the member. Cheap to clone; the thread ends, and the database is closed, with the last clone.
#[derive(Clone)]
pub struct MemberThread {
    jobs: mpsc::Sender<Job>,
}

impl MemberThread {
    /// Moves `member` to its thread.
    ///
    /// # Errors
    /// What the system says if no thread can be made.
    pub fn spawn(mut member: Member) -> std::io::Result<Self> {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        std::thread::Builder::new()
            .name("keyturn-mls".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                while let Some(job) = queue.blocking_recv() {
                    // Every method of the member is a transaction that unwinding rolls back, and the next one reads its state anew.
                    if catch_unwind(AssertUnwindSafe(|| job(&mut member))).is_err() {
                        metrics::counter!(crate::metrics::PANICS, "part" => "member").increment(1);
                        tracing::error!("a job of the service member panicked; it was undone");
                    }
                }
            })?;
        Ok(Self { jobs })
    }

    /// Runs `job` on the member.
    ///
    /// # Errors
    /// [`MemberGone`].
    pub async fn call<T, F>(&self, job: F) -> Result<T, MemberGone>
    where
        T: Send + 'static,
        F: FnOnce(&mut Member) -> T + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |member| {
            // Nobody listens when the caller was dropped; the job is done all the same.
            drop(answer.send(job(member)));
        });
        self.jobs.send(job).await.map_err(|_| MemberGone)?;
        answered.await.map_err(|_| MemberGone)
    }
}
