//! Judges a presented secret (protocol.md §7): the hot path of the whole system. Read-only.
//!
//! What must always hold:
//! - an unknown client, a client that may not verify and a wrong secret get the same answer by the same local work;
//! - states and windows are judged on every call, whatever is remembered, and once more when the MAC key has answered: an answer rests on what is known
//!   when it is given, however long the asking took;
//! - what is remembered is only that a MAC was right, under a key that dies with the process; never a secret, never a wrong guess;
//! - in steady state a verification costs at most two HMACs in memory and asks neither the store nor the MAC key.
//!
//! One difference cannot be hidden locally: for an imported secret there is no prefilter, so a wrong guess at an existing client costs a MAC
//! verification, and bcrypt's time where the secret came as a bcrypt hash. Those are limited per client and per source ([`Rate`]).
//!
//! A server that holds tokens asks [`Verifier::is_version_live`] when it sees one, and subscribes to [`Book::subscribe`] to drop them the moment a
//! version dies.

mod ask;
mod book;
mod cached;
mod check;
mod clock;
mod coverage;
mod flight;
pub(crate) mod gauges;
mod limits;
mod memo;
mod metrics;
mod settings;
mod source;
pub mod watch;

pub use book::{Book, Living};
pub use coverage::{Coverage, Session};
pub use limits::Rate;
pub use settings::{HEARTBEAT_EVERY, Settings};
pub use source::{ClientSnapshot, SnapshotSource, SourceError};

use std::net::IpAddr;
use std::sync::Arc;

use keyturn_proto::{ClientId, PresentedSecret, UnixMs, VersionId};

use self::cached::Cached;
use self::check::Bcrypt;
use self::clock::Clock;
use self::flight::Flights;
use self::limits::Limits;
use self::memo::{Memo, MemoKey};
use self::metrics::Counters;
use crate::mac::{MacError, MacKey};

/// Longest secret that is looked at; longer ones are nobody's.
const MAX_SECRET: usize = 1024;

/// Which version matched; goes into tokens, so that the switch-over can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The version.
    pub version_id: VersionId,
    /// Its place.
    pub which: Which,
}

/// The place of the version that matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one to use.
    Current,
    /// The one in grace.
    Previous,
}

/// Why a secret was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Unknown client, wrong secret, dead version, suspended client, too many guesses: nobody is told which.
    #[error("refused")]
    Refused,
    /// Neither yes nor no can be said now.
    #[error("cannot verify now: {cause}")]
    Unavailable {
        /// What is missing.
        cause: &'static str,
    },
}

/// Why a verifier could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifierError {
    /// The operating system's random generator failed.
    #[error("the random generator failed")]
    Random,
    /// A setting is out of range.
    #[error("`{setting}` must be {expected}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// What would have been right.
        expected: &'static str,
    },
}

/// The verifier over a source of snapshots and a MAC key. Shared by reference; all state is inside.
pub struct Verifier<S, M> {
    source: S,
    mac: M,
    book: Arc<Book>,
    memo: Arc<Memo>,
    limits: Limits,
    bcrypt: Bcrypt,
    checks: Flights<MemoKey, Result<Option<bool>, MacError>>,
    counters: Counters,
}

/// What the local part of a verification came to.
enum Local {
    Known(Verified),
    Refused,
    /// Refused, as far as is known: it is most likely the secret of a version that waits to be promoted.
    Awaited,
    /// These slots need the MAC key; [`MemoKey`] per slot.
    Ask([Option<MemoKey>; 2]),
}

/// Local work done for one call; equal for an unknown client and a wrong secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Work {
    memo_macs: u32,
    prefilters: u32,
}

impl<S: SnapshotSource, M: MacKey> Verifier<S, M> {
    /// Install a metrics recorder before: counters bind to the one that is there.
    ///
    /// # Errors
    /// [`VerifierError`].
    pub fn new(source: S, mac: M, settings: Settings) -> Result<Self, VerifierError> {
        settings.check()?;
        let memo = Arc::new(Memo::new(settings.max_memos, settings.memo_ttl)?);
        let book = Arc::new(Book::new(&settings, Arc::clone(&memo)));
        source.attach(&book);
        Ok(Self {
            source,
            mac,
            book,
            memo,
            limits: Limits::new(&settings)?,
            bcrypt: Bcrypt::new(&settings),
            checks: Flights::default(),
            counters: Counters::bind(),
        })
    }

    /// Judges one presented secret. `client_id` is the text as it came: an invalid one answers like an unknown one.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub async fn verify(
        &self,
        client_id: &str,
        secret: &PresentedSecret,
        source: IpAddr,
        now: UnixMs,
    ) -> Result<Verified, VerifyError> {
        let result = self.judge(client_id, secret, source, now).await;
        self.counters.result(&result);
        result
    }

    async fn judge(
        &self,
        client_id: &str,
        secret: &PresentedSecret,
        source: IpAddr,
        now: UnixMs,
    ) -> Result<Verified, VerifyError> {
        if secret.expose().len() > MAX_SECRET {
            return Err(VerifyError::Refused);
        }
        let (cached, now) = match self.book.fresh(client_id, now) {
            Some(cached) => (cached, now),
            None => Box::pin(self.search(client_id, source, now)).await?,
        };
        match self.local(&cached, secret, now, &mut Work::default()) {
            Local::Known(verified) => Ok(verified),
            Local::Awaited if self.book.may_be_overtaken(&cached, now) => {
                Box::pin(self.awaited(client_id, secret, source, now)).await
            }
            local => {
                self.finish(client_id, &cached, local, secret, source, now)
                    .await
            }
        }
    }

    /// A secret that waited to be promoted is presented, so perhaps it was: a second look, at most once in a while for each client. A fresh secret is not refused for as
    /// long as what was known before is good for.
    async fn awaited(
        &self,
        client_id: &str,
        secret: &PresentedSecret,
        source: IpAddr,
        now: UnixMs,
    ) -> Result<Verified, VerifyError> {
        let (cached, now) = self.read(client_id, now).await?;
        let local = self.local(&cached, secret, now, &mut Work::default());
        self.finish(client_id, &cached, local, secret, source, now)
            .await
    }

    async fn finish(
        &self,
        client_id: &str,
        cached: &Cached,
        local: Local,
        secret: &PresentedSecret,
        source: IpAddr,
        now: UnixMs,
    ) -> Result<Verified, VerifyError> {
        match local {
            Local::Known(verified) => Ok(verified),
            Local::Refused | Local::Awaited => {
                if cached.client_id.is_some() {
                    self.book.even_out(client_id);
                }
                Err(VerifyError::Refused)
            }
            Local::Ask(slots) => Box::pin(self.ask(cached, slots, secret, source, now)).await,
        }
    }

    /// Finds a client that is not known well enough, and says what time it is then. A source that keeps asking for clients that do not exist finds nobody that is not
    /// known already.
    async fn search(
        &self,
        client_id: &str,
        source: IpAddr,
        now: UnixMs,
    ) -> Result<(Arc<Cached>, UnixMs), VerifyError> {
        if self.limits.is_searching(source) && !self.book.knows(client_id) {
            self.counters.limited.increment(1);
            return Ok((Arc::clone(self.book.nobody()), now));
        }
        let found = self.known(client_id, now).await?;
        if found.0.client_id.is_none() {
            self.limits.found_nobody(source);
        }
        Ok(found)
    }

    /// The part that needs nobody: what is remembered, and the prefilter. Always two MACs unless something remembered hits, always one
    /// prefilter after that.
    fn local(
        &self,
        cached: &Cached,
        secret: &PresentedSecret,
        now: UnixMs,
        work: &mut Work,
    ) -> Local {
        let mut keys = [None, None];
        for (slot, key) in cached.slots.iter().zip(&mut keys) {
            let memo_key = slot.memo_key(secret);
            work.memo_macs += 1;
            let remembered = self.memo.holds(&memo_key, now);
            if let (true, Some(verified)) = (remembered, slot.verified(now)) {
                return Local::Known(verified);
            }
            *key = Some(memo_key);
        }
        let prefilter = keyturn_proto::derive::prefilter(secret.expose());
        let looks_generated = secret.looks_generated();
        work.prefilters += 1;
        for (slot, key) in cached.slots.iter().zip(&mut keys) {
            if slot.verified(now).is_none() || !slot.passes(&prefilter, looks_generated) {
                *key = None;
            }
        }
        if keys.iter().any(Option::is_some) {
            Local::Ask(keys)
        } else if cached.awaits(&prefilter, looks_generated) {
            Local::Awaited
        } else {
            Local::Refused
        }
    }

    /// What is known about a client now, and what time it is when it is known.
    async fn known(
        &self,
        client_id: &str,
        now: UnixMs,
    ) -> Result<(Arc<Cached>, UnixMs), VerifyError> {
        match self.book.fresh(client_id, now) {
            Some(cached) => Ok((cached, now)),
            None => self.read(client_id, now).await,
        }
    }

    async fn read(
        &self,
        client_id: &str,
        now: UnixMs,
    ) -> Result<(Arc<Cached>, UnixMs), VerifyError> {
        let clock = Clock::set(now);
        let count = || self.counters.reads.increment(1);
        let read = Box::pin(self.book.read(&self.source, client_id, clock, count));
        Ok((read.await?, clock.now()))
    }

    /// Where its snapshots come from.
    pub const fn source(&self) -> &S {
        &self.source
    }

    /// What is known about clients; for listeners and for whoever wants to hear of changes.
    pub const fn book(&self) -> &Arc<Book> {
        &self.book
    }

    /// Forgets a client's snapshot, because it has changed.
    pub fn invalidate(&self, client: &ClientId) {
        self.book.invalidate(client);
    }

    /// Forgets every snapshot, because changes may have been missed.
    pub fn invalidate_all(&self) {
        self.book.invalidate_all();
    }

    /// Whether a version that a token names still verifies; lets a server drop tokens at a revoke.
    ///
    /// # Errors
    /// [`VerifyError::Unavailable`] when that cannot be said now.
    pub async fn is_version_live(
        &self,
        client: &ClientId,
        version: &VersionId,
        now: UnixMs,
    ) -> Result<bool, VerifyError> {
        let (cached, now) = self.known(client.as_str(), now).await?;
        Ok(cached
            .slots
            .iter()
            .filter_map(|slot| slot.verified(now))
            .any(|live| live.version_id == *version))
    }
}

#[cfg(test)]
mod tests;
