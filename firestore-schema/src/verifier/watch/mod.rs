//! What a listener on client documents knows and does next. Pure: what happened and `now` go in, what to do comes out; the driver is in
//! `firestore/snapshots`.
//!
//! One stream at a time carries a target for each client that is asked about, and one for the heartbeat: the lease that a relay renews every few
//! seconds. Firestore closes each batch of changes with the moment up to which *all* targets of the stream have been told everything. That moment is
//! the session's progress, and the only thing that trust rests on: a stream that is up, silent, slow or frozen makes no progress, and is believed for
//! no longer than what it last proved.
//!
//! What must always hold:
//! - nothing is covered by a stream before its own state has been heard in full, nor after the stream, or the target, has ended;
//! - progress is the server's word, and never later than our own clock;
//! - when progress stops, a read of the heartbeat tells why: if the heartbeat goes on, the stream is deaf and is replaced; if not, no relay is at
//!   work, and clients are read through until one is;
//! - targets are bounded; a client beyond them is read through.

mod targets;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use keyturn_proto::{ClientId, UnixMs};

use self::targets::Targets;
use super::coverage::{Coverage, Session};
use super::settings::HEARTBEAT_LIMIT;
use super::source::ClientSnapshot;

/// Bounds of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchSettings {
    /// Clients listened to at once, at least 1.
    pub max_targets: usize,
    /// Silence after which the stream is doubted; the same as the verifier's `heartbeat_limit`.
    pub heartbeat_limit: Duration,
    /// How long a new stream may take until it has proved itself.
    pub open_within: Duration,
    /// Between two looks at the heartbeat while it is late.
    pub probe_every: Duration,
    /// First pause before a stream is opened again; doubles up to `retry_max`.
    pub retry_first: Duration,
    /// Longest pause.
    pub retry_max: Duration,
    /// A client that nobody has asked about for this long makes room for another.
    pub idle_after: Duration,
}

impl Default for WatchSettings {
    fn default() -> Self {
        Self {
            max_targets: 1_000,
            heartbeat_limit: HEARTBEAT_LIMIT,
            open_within: Duration::from_secs(10),
            probe_every: Duration::from_secs(5),
            retry_first: Duration::from_millis(100),
            retry_max: Duration::from_secs(10),
            idle_after: Duration::from_secs(30),
        }
    }
}

/// A target's number on its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId(pub i32);

/// The heartbeat's.
pub const HEARTBEAT: TargetId = TargetId(1);

/// What a stream said.
#[derive(Clone, Debug)]
pub enum Heard {
    /// The full state of these targets has been told; none means all.
    Current(Vec<TargetId>),
    /// What was told of these targets is void and will be told again; none means all.
    Reset(Vec<TargetId>),
    /// The server has ended these targets; none means all.
    Removed(Vec<TargetId>),
    /// A document as it is now.
    Changed {
        /// Whose it is.
        targets: Vec<TargetId>,
        /// `None` if it cannot be read.
        snapshot: Option<ClientSnapshot>,
    },
    /// The document does not exist.
    Gone {
        /// Whose it was.
        targets: Vec<TargetId>,
    },
    /// Every target has been told everything up to this moment.
    Consistent(UnixMs),
}

/// Why a stream was given up; the label of the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lost {
    /// It ended, or never opened.
    Ended,
    /// It did not prove itself in time.
    Slow,
    /// It was silent while the heartbeat went on.
    Deaf,
    /// The server ended the heartbeat's target.
    Refused,
}

/// What the driver is to do.
#[derive(Clone, Debug)]
pub enum Do {
    /// Open stream number n, with a target for the heartbeat.
    Open(u64),
    /// Give up the stream that is open.
    Close(Lost),
    /// Add a target.
    Listen(TargetId, ClientId),
    /// Take a target away.
    Unlisten(TargetId),
    /// Tell the book how a client is.
    Tell(ClientId, ClientSnapshot),
    /// Tell the book that a client's document does not exist.
    Gone(ClientId),
    /// Tell the book that what it has is not so any more, and unknown.
    Forget(ClientId),
    /// Read the heartbeat's document and report when it was last written.
    Probe,
}

/// How things stand, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether clients that are listened to need no read.
    pub live: bool,
    /// Since the last proof; `None` before the first.
    pub silence: Option<Duration>,
    /// Clients listened to.
    pub targets: usize,
}

enum Stream {
    Closed {
        retry_at: UnixMs,
    },
    /// Asked for; nothing proved yet.
    Opening {
        since: UnixMs,
    },
    /// Has proved itself.
    Open {
        probe_at: UnixMs,
    },
}

/// See the module.
pub struct Watch {
    settings: WatchSettings,
    stream: Stream,
    /// Of the stream that is open or opening.
    number: u64,
    session: Arc<Session>,
    heartbeat_heard: bool,
    opened_at: UnixMs,
    failures: u32,
    targets: Targets,
    /// The last proof of any stream.
    proved_at: Option<UnixMs>,
}

impl Watch {
    /// Opens its first stream at the first [`Self::tick`].
    #[must_use]
    pub fn new(settings: WatchSettings) -> Self {
        Self {
            settings,
            stream: Stream::Closed {
                retry_at: UnixMs(0),
            },
            number: 0,
            session: Arc::default(),
            heartbeat_heard: false,
            opened_at: UnixMs(0),
            failures: 0,
            targets: Targets::new(settings.max_targets, settings.idle_after),
            proved_at: None,
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: UnixMs) -> Vec<Do> {
        match self.stream {
            Stream::Closed { retry_at } if now >= retry_at => self.open(now),
            Stream::Opening { since } if now.since(since) >= self.settings.open_within => {
                self.lose(Lost::Slow, now)
            }
            Stream::Open { probe_at }
                if now >= probe_at
                    && now.since(self.session.progress()) >= self.settings.heartbeat_limit =>
            {
                self.stream = Stream::Open {
                    probe_at: now.plus(self.settings.probe_every),
                };
                vec![Do::Probe]
            }
            Stream::Closed { .. } | Stream::Opening { .. } | Stream::Open { .. } => Vec::new(),
        }
    }

    /// When [`Self::tick`] has something to do, at the latest.
    #[must_use]
    pub fn wake_at(&self) -> UnixMs {
        match self.stream {
            Stream::Closed { retry_at } => retry_at,
            Stream::Opening { since } => since.plus(self.settings.open_within),
            Stream::Open { probe_at } => {
                let late = self.session.progress().plus(self.settings.heartbeat_limit);
                late.max(probe_at)
            }
        }
    }

    /// Stream number `stream` has ended, or could not be opened.
    pub fn ended(&mut self, stream: u64, now: UnixMs) -> Vec<Do> {
        if stream != self.number || matches!(self.stream, Stream::Closed { .. }) {
            return Vec::new();
        }
        self.lose(Lost::Ended, now)
    }

    /// Stream number `stream` said something.
    pub fn heard(&mut self, stream: u64, heard: Heard, now: UnixMs) -> Vec<Do> {
        if stream != self.number || matches!(self.stream, Stream::Closed { .. }) {
            return Vec::new();
        }
        match heard {
            Heard::Consistent(at) => self.consistent(at.min(now)),
            Heard::Current(ids) => {
                self.heartbeat_heard |= ids.is_empty() || ids.contains(&HEARTBEAT);
                return self.targets.current(&ids, &self.session);
            }
            Heard::Reset(ids) => {
                self.heartbeat_heard &= !(ids.is_empty() || ids.contains(&HEARTBEAT));
                self.targets.reset(&ids);
            }
            Heard::Removed(ids) if ids.is_empty() || ids.contains(&HEARTBEAT) => {
                return self.lose(Lost::Refused, now);
            }
            Heard::Removed(ids) => self.targets.removed(&ids, now),
            Heard::Changed { targets, snapshot } => {
                return self.targets.changed(&targets, snapshot);
            }
            Heard::Gone { targets } => return self.targets.gone(&targets),
        }
        Vec::new()
    }

    /// Somebody has asked about a client that exists.
    pub fn wanted(&mut self, client: &ClientId, now: UnixMs) -> Vec<Do> {
        let on_stream = !matches!(self.stream, Stream::Closed { .. });
        self.targets.want(client, on_stream, now)
    }

    /// What a read of this client may be believed for.
    #[must_use]
    pub fn coverage(&self, client: &ClientId) -> Option<Coverage> {
        self.targets.coverage(client)
    }

    /// The heartbeat's document was last written then; `None` if it could not be read or does not exist.
    pub fn probed(&mut self, written: Option<UnixMs>, now: UnixMs) -> Vec<Do> {
        let open = matches!(self.stream, Stream::Open { .. });
        let silent = now.since(self.session.progress()) >= self.settings.heartbeat_limit;
        // What was written after the last proof should have been heard; the limit is time enough.
        let missed = written.is_some_and(|at| at > self.session.progress());
        if open && silent && missed {
            return self.lose(Lost::Deaf, now);
        }
        Vec::new()
    }

    /// How things stand.
    #[must_use]
    pub fn standing(&self, now: UnixMs) -> Standing {
        let silence = self.proved_at.map(|at| now.since(at));
        Standing {
            live: matches!(self.stream, Stream::Open { .. })
                && silence.is_some_and(|silence| silence < self.settings.heartbeat_limit),
            silence,
            targets: self.targets.len(),
        }
    }

    fn open(&mut self, now: UnixMs) -> Vec<Do> {
        self.number += 1;
        self.session = Arc::default();
        self.heartbeat_heard = false;
        self.opened_at = now;
        self.stream = Stream::Opening { since: now };
        let mut todo = vec![Do::Open(self.number)];
        todo.extend(self.targets.listen_again());
        todo
    }

    fn lose(&mut self, why: Lost, now: UnixMs) -> Vec<Do> {
        self.session.close();
        self.targets.lost();
        let doublings = self.failures.min(16);
        let pause = self.settings.retry_first.saturating_mul(1 << doublings);
        self.failures = self.failures.saturating_add(1);
        self.stream = Stream::Closed {
            retry_at: now.plus(pause.min(self.settings.retry_max)),
        };
        vec![Do::Close(why)]
    }

    fn consistent(&mut self, at: UnixMs) {
        // Before the heartbeat is listened to, silence would mean nothing.
        if !self.heartbeat_heard {
            return;
        }
        self.session.advance(at);
        self.proved_at = self.proved_at.max(Some(at));
        // One that proves itself and ends again at once is no good either, and every new stream reads every client.
        if at.since(self.opened_at) >= self.settings.retry_max {
            self.failures = 0;
        }
        if matches!(self.stream, Stream::Opening { .. }) {
            self.stream = Stream::Open {
                probe_at: UnixMs(0),
            };
        }
    }
}
