//! The places at which a test kills or stops the process (architecture.md, "Crash safety"). Without the feature `crash-points` nothing of this is
//! compiled: passing a point does nothing, and no environment is read.

/// One numbered step, or a gap between two effects that must not be lost or doubled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Step 0: opened, and kept in the member's inbox.
    AfterInbox,
    /// Step 1: admitted; the nonce is burnt.
    AfterAdmit,
    /// Step 2.
    AfterReserve,
    /// Step 3: the ratchet has advanced, nothing is recorded.
    AfterSeal,
    /// Step 4: recorded, nothing is published.
    AfterPrepare,
    /// Within step 5: the relay has the event of one group; those of the other groups may not be there yet.
    AfterOnePublish,
    /// Step 5.
    AfterPublish,
    /// Step 6: an ack is recorded; the inbox row is still there.
    AfterAck,
    /// Step 7: promoted, nobody was told.
    AfterPromote,
    /// Step 8: the old version is retired.
    AfterRetire,
    /// Another action has taken effect; nobody was told, and its inbox row is still there.
    AfterAction,
    /// A Welcome was followed; the registry does not know yet.
    AfterWelcome,
    /// The registry names the new group; the Welcome can still be read.
    AfterBind,
    /// The self-update after joining is staged; the relay does not have it.
    AfterLeafStaged,
    /// The relay has the self-update; we have not merged it.
    AfterLeafPublished,
    /// A device's request is recorded; it is not in the queue, and the broker has no acknowledgement.
    AfterAsk,
    /// It is recorded that a device's secret_id is about to be issued; the issuer was not asked.
    BeforeIssue,
    /// The issuer has made a secret_id; nothing of it is recorded.
    AfterIssue,
    /// The secret_id's accessor is recorded; the device was not told.
    AfterIssueRecorded,
    /// A device's result is recorded; what it dooms lives, and the broker has no acknowledgement.
    AfterResult,
    /// It is recorded that a secret_id has to be destroyed; the issuer was not asked.
    BeforeDestroy,
    /// The issuer has destroyed it; that is not recorded.
    AfterDestroy,
}

impl Point {
    /// All of them, in the order of a rotation; then the others, those of devices last.
    pub const ALL: [Self; 22] = [
        Self::AfterInbox,
        Self::AfterAdmit,
        Self::AfterReserve,
        Self::AfterSeal,
        Self::AfterPrepare,
        Self::AfterOnePublish,
        Self::AfterPublish,
        Self::AfterAck,
        Self::AfterPromote,
        Self::AfterRetire,
        Self::AfterAction,
        Self::AfterWelcome,
        Self::AfterBind,
        Self::AfterLeafStaged,
        Self::AfterLeafPublished,
        Self::AfterAsk,
        Self::BeforeIssue,
        Self::AfterIssue,
        Self::AfterIssueRecorded,
        Self::AfterResult,
        Self::BeforeDestroy,
        Self::AfterDestroy,
    ];

    /// Those of a device's exchange, in its order.
    pub const DEVICES: [Self; 7] = [
        Self::AfterAsk,
        Self::BeforeIssue,
        Self::AfterIssue,
        Self::AfterIssueRecorded,
        Self::AfterResult,
        Self::BeforeDestroy,
        Self::AfterDestroy,
    ];

    /// Its name, as a test arms it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AfterInbox => "after_inbox",
            Self::AfterAdmit => "after_admit",
            Self::AfterReserve => "after_reserve",
            Self::AfterSeal => "after_seal",
            Self::AfterPrepare => "after_prepare",
            Self::AfterOnePublish => "after_one_publish",
            Self::AfterPublish => "after_publish",
            Self::AfterAck => "after_ack",
            Self::AfterPromote => "after_promote",
            Self::AfterRetire => "after_retire",
            Self::AfterAction => "after_action",
            Self::AfterWelcome => "after_welcome",
            Self::AfterBind => "after_bind",
            Self::AfterLeafStaged => "after_leaf_staged",
            Self::AfterLeafPublished => "after_leaf_published",
            Self::AfterAsk => "after_ask",
            Self::BeforeIssue => "before_issue",
            Self::AfterIssue => "after_issue",
            Self::AfterIssueRecorded => "after_issue_recorded",
            Self::AfterResult => "after_result",
            Self::BeforeDestroy => "before_destroy",
            Self::AfterDestroy => "after_destroy",
        }
    }

    /// By its name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|point| point.name() == name)
    }
}

/// Passing a point costs nothing in a product build.
#[cfg(not(any(test, feature = "crash-points")))]
#[expect(clippy::unused_async, reason = "a test waits here for ever")]
pub(crate) async fn point(_: Point) {}

#[cfg(feature = "crash-points")]
pub use armed::arm;
#[cfg(all(feature = "crash-points", not(test)))]
pub(crate) use armed::point;
#[cfg(test)]
pub(crate) use halt::point;

/// What happens to a process at its armed point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// SIGKILL: no handler, no unwinding, no flushing.
    Kill,
    /// SIGSTOP: every thread stands still, and goes on from here when somebody sends SIGCONT.
    Stop,
}

#[cfg(feature = "crash-points")]
mod armed {
    use std::sync::Mutex;

    use super::{Fate, Point};

    // Global because a crash is: one point per process, armed by `main` or at a test's order.
    static ARMED: Mutex<Option<(Point, Fate)>> = Mutex::new(None);

    /// Lets `fate` meet the process when it next passes `point`, once. A later call takes the place of an earlier one.
    pub fn arm(point: Point, fate: Fate) {
        if let Ok(mut armed) = ARMED.lock() {
            *armed = Some((point, fate));
        }
    }

    #[cfg(not(test))]
    pub(crate) async fn point(point: Point) {
        use rustix::process::{Signal, getpid, kill_process};

        let met = ARMED
            .lock()
            .ok()
            .and_then(|mut armed| armed.take_if(|(at, _)| *at == point));
        match met {
            None => {}
            Some((_, Fate::Stop)) => {
                let _ = kill_process(getpid(), Signal::STOP);
            }
            Some((_, Fate::Kill)) => {
                let _ = kill_process(getpid(), Signal::KILL);
                // Nothing may happen between the signal and the end.
                std::process::abort();
            }
        }
    }
}

/// In a unit test the task that passes the armed point never goes on; the test then drops everything it has started, as a kill would. One test
/// runs on one thread, so its point is thread-local.
#[cfg(test)]
pub(crate) mod halt {
    use std::cell::RefCell;

    use tokio::sync::oneshot;

    use super::Point;

    thread_local! {
        static ARMED: RefCell<Option<(Point, oneshot::Sender<()>)>> = const { RefCell::new(None) };
    }

    /// Arms one point, once; the receiver resolves when a task has reached it.
    pub(crate) fn at(point: Point) -> oneshot::Receiver<()> {
        let (reached, receiver) = oneshot::channel();
        ARMED.with_borrow_mut(|armed| *armed = Some((point, reached)));
        receiver
    }

    pub(crate) async fn point(point: Point) {
        let reached = ARMED.with_borrow_mut(|armed| match armed.take() {
            Some((at, reached)) if at == point => Some(reached),
            other => {
                *armed = other;
                None
            }
        });
        if let Some(reached) = reached {
            // The test may have given up on it.
            let _reached = reached.send(());
            std::future::pending().await
        }
    }
}
