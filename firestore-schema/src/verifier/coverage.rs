//! What a listener vouches for, without a read.
//!
//! A [`Session`] is one connection of a listener. It knows up to which moment everything was heard (its progress), and is closed for good when the
//! connection ends. A [`Coverage`] is one document on it. A cached snapshot that carries one was true as late as the session's progress, because a
//! change before that would have replaced it. Both are a few atomics: this is on the path of every verification.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use keyturn_proto::UnixMs;

/// One connection.
#[derive(Debug, Default)]
pub struct Session {
    /// Milliseconds; 0 before anything is known.
    progress: AtomicU64,
    closed: AtomicBool,
}

/// One document that a connection listens to.
#[derive(Clone, Debug)]
pub struct Coverage(Arc<Target>);

#[derive(Debug)]
struct Target {
    session: Arc<Session>,
    /// The session's progress when the document stopped being listened to; `u64::MAX` before.
    ended: AtomicU64,
    /// Whether anybody has asked for the document since this was last looked at.
    used: AtomicBool,
}

impl Session {
    /// Everything that changed until `to` has been heard and passed on. Never goes back.
    pub fn advance(&self, to: UnixMs) {
        self.progress.fetch_max(to.0, Ordering::AcqRel);
    }

    /// The connection is over.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Until when everything was heard.
    #[must_use]
    pub fn progress(&self) -> UnixMs {
        UnixMs(self.progress.load(Ordering::Acquire))
    }
}

impl Coverage {
    /// Of a document whose state the session has just heard in full.
    #[must_use]
    pub fn begin(session: &Arc<Session>) -> Self {
        Self(Arc::new(Target {
            session: Arc::clone(session),
            ended: AtomicU64::new(u64::MAX),
            used: AtomicBool::new(true),
        }))
    }

    /// The session no longer listens to it. What was heard before stays true for then.
    pub fn end(&self) {
        let progress = self.0.session.progress.load(Ordering::Acquire);
        self.0.ended.fetch_min(progress, Ordering::AcqRel);
    }

    /// Whether anybody has asked since the last call.
    #[must_use]
    pub fn take_used(&self) -> bool {
        self.0.used.swap(false, Ordering::Relaxed)
    }

    /// Somebody asks. Mostly a load: the line stays shared between cores.
    pub(super) fn touch(&self) {
        if !self.0.used.load(Ordering::Relaxed) {
            self.0.used.store(true, Ordering::Relaxed);
        }
    }

    /// As late as when the document is known to have been as it was heard.
    pub(super) fn true_at(&self) -> UnixMs {
        let ended = UnixMs(self.0.ended.load(Ordering::Acquire));
        self.0.session.progress().min(ended)
    }

    /// Whether changes are still being heard.
    pub(super) fn is_open(&self) -> bool {
        self.0.ended.load(Ordering::Acquire) == u64::MAX
            && !self.0.session.closed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_stays_true_for_then_and_no_longer() {
        let session = Arc::new(Session::default());
        session.advance(UnixMs(10));
        let (kept, dropped) = (Coverage::begin(&session), Coverage::begin(&session));
        session.advance(UnixMs(5));
        assert_eq!(kept.true_at(), UnixMs(10));
        dropped.end();
        session.advance(UnixMs(20));
        assert_eq!((kept.true_at(), kept.is_open()), (UnixMs(20), true));
        assert_eq!((dropped.true_at(), dropped.is_open()), (UnixMs(10), false));
        // Ending twice does not move the end.
        dropped.end();
        assert_eq!(dropped.true_at(), UnixMs(10));
        session.close();
        assert_eq!((kept.true_at(), kept.is_open()), (UnixMs(20), false));
    }

    #[test]
    fn use_is_noticed_once() {
        let coverage = Coverage::begin(&Arc::default());
        assert!(coverage.take_used());
        assert!(!coverage.take_used());
        coverage.touch();
        assert!(coverage.take_used());
    }
}
