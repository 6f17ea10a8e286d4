//! Fetches what a peer stored while nobody listened to it.
//!
//! What must always hold:
//! - oldest first, a stretch at a time, so that memory is bounded by one stretch ([`Limits`](keyturn_admin::transport::Limits)) and the events of a
//!   group come in the order of their making;
//! - a stretch that was cut short is asked for again, narrower; it is never taken for complete;
//! - whatever strangers store at the peer, this ends: a single second that holds too much, or more than the line brings in time, is asked for kind by kind and
//!   by what is ours, in ever smaller portions, and what cannot be had even so is given up with an alarm;
//! - a line on which frames arrive is slow, not dead, and is not given up.

use std::time::Duration;

use keyturn_admin::transport::{Connection, Fetched, PAGE, RelayError};
use keyturn_proto::{UnixMs, kinds};
use nostr::{Alphabet, Event, Filter, Kind, PublicKey, SingleLetterTag, Timestamp};
use tokio::time::Instant;

use super::lanes::Lanes;
use super::window::{WIDEST, Windows};
use super::{AHEAD, KINDS, OVERLAP, Site};
use crate::metrics as names;

/// NIP-59 dates a gift wrap back by up to two days.
const WRAP_OVERLAP: Duration = Duration::from_secs(2 * 86_400 + OVERLAP.as_secs());
/// Events fetched at once.
const MOST: usize = 1_000;
/// Stretches in a row of which nothing may come in time before the connection is given up.
const SLOW: u32 = 3;
/// How many events of a crowded second are asked for at once: fewer, after an answer that took too long.
const PORTIONS: [usize; 4] = [PAGE, 50, 10, 1];
/// How many times its patience a portion may take while frames come in: what was asked for before is still on its way.
const DRAINING: u32 = 2;

/// What is fetched by itself, because of how it is dated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Series {
    Wraps,
    Others,
}

impl Series {
    pub(super) const ALL: [Self; 2] = [Self::Wraps, Self::Others];

    fn kinds(self) -> Vec<u16> {
        let wraps = |kind: &u16| (*kind == kinds::GIFT_WRAP) == (self == Self::Wraps);
        KINDS.into_iter().filter(wraps).collect()
    }

    /// How much of what was heard before is asked for again.
    pub(super) const fn overlap(self) -> Duration {
        match self {
            Self::Wraps => WRAP_OVERLAP,
            Self::Others => OVERLAP,
        }
    }
}

/// How far each series was fetched, also when a connection ended in the middle: nothing is fetched twice for that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reached {
    until: [Option<UnixMs>; 2],
    /// How wide a stretch the peer could answer last, in seconds: one that is slow is asked for less from the beginning.
    width: u64,
}

impl Default for Reached {
    fn default() -> Self {
        Self {
            until: [None; 2],
            width: WIDEST,
        }
    }
}

impl Reached {
    /// From where a series is to be fetched, when `heard` says until when the peer was heard completely.
    pub(super) fn from(&self, series: Series, heard: UnixMs, horizon: UnixMs) -> UnixMs {
        let heard = heard.minus(series.overlap());
        let reached = self.until[series as usize].unwrap_or(heard);
        heard.max(reached).max(horizon)
    }

    /// A fetch that began at `began` has come to `second`: what was stored since it began may be dated before that.
    fn note(&mut self, series: Series, second: u64, began: UnixMs) {
        let known = UnixMs::from_secs(second).min(began.minus(series.overlap()));
        let reached = &mut self.until[series as usize];
        *reached = Some(reached.unwrap_or_default().max(known));
    }

    /// The peer was heard completely: from here on that is what counts.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// One catching up.
pub(super) struct CatchUp<'a> {
    pub(super) site: &'a Site,
    pub(super) peer: &'a str,
    pub(super) lanes: &'a Lanes<'a>,
    pub(super) connection: &'a Connection,
    /// When it began, which is after we listened.
    pub(super) began: UnixMs,
    /// How long an answer may take.
    pub(super) patience: Duration,
}

impl CatchUp<'_> {
    /// Fetches a series from `since` on. `false` if our own relay failed on some of it.
    ///
    /// # Errors
    /// [`RelayError`]; `reached` says how far it came.
    pub(super) async fn fetch(
        &self,
        series: Series,
        since: UnixMs,
        reached: &mut Reached,
    ) -> Result<bool, RelayError> {
        let kinds = series.kinds();
        // Peers' and clients' clocks may be ahead of ours.
        let end = self.began.plus(AHEAD).as_secs();
        let mut windows = Windows::new(since.as_secs(), end, reached.width);
        let (mut whole, mut slow) = (true, 0);
        while let Some((from, to)) = windows.next() {
            let filter = of_kinds(&kinds, from, to);
            let frames = self.connection.frames();
            let portions: &[usize] = match self.ask(&filter).await {
                Ok(fetched) if fetched.is_whole() => {
                    whole &= self.take(fetched.events).await;
                    &[]
                }
                Ok(_) if windows.halve() => continue,
                Ok(_) => &PORTIONS,
                // Too much at once for us, or for the line.
                Err(RelayError::Lagged) if windows.halve() => continue,
                Err(RelayError::Timeout(_)) if self.moves(frames) && windows.halve() => continue,
                Err(RelayError::Lagged) => &PORTIONS[1..],
                Err(RelayError::Timeout(_)) if self.moves(frames) => &PORTIONS[1..],
                // Or for the peer, which may have to search for long.
                Err(RelayError::Timeout(_)) if slow < SLOW && windows.halve() => {
                    slow += 1;
                    continue;
                }
                Err(error) => {
                    reached.width = windows.width();
                    return Err(error);
                }
            };
            if !portions.is_empty() {
                let crowded = self.crowded(&kinds, from, portions).await;
                whole &= crowded.inspect_err(|_| reached.width = windows.width())?;
            }
            slow = 0;
            windows.done();
            if whole {
                reached.note(series, windows.reached(), self.began);
            }
            let lag = self.began.since(UnixMs::from_secs(to));
            super::lags(self.peer, lag);
        }
        Ok(whole)
    }

    /// A second that holds too much.
    async fn crowded(
        &self,
        kinds: &[u16],
        second: u64,
        portions: &[usize],
    ) -> Result<bool, RelayError> {
        let mut whole = true;
        for kind in kinds {
            let filter = of_kinds(&[*kind], second, second);
            let fetched = self.portion(&filter, portions).await?;
            if fetched.is_whole() {
                whole &= self.take(fetched.events).await;
                continue;
            }
            // Whose it is matters now: what is not ours is left to strangers.
            self.skipped("others");
            tracing::warn!(
                peer = self.peer,
                kind,
                second,
                "more events in one second than can be fetched; only what concerns us is"
            );
            for filter in self.ours(*kind, filter) {
                let fetched = self.portion(&filter, portions).await?;
                if !fetched.is_whole() {
                    self.skipped("ours");
                    metrics::counter!(names::ALARMS, "reason" => "mirror.skipped").increment(1);
                    tracing::error!(
                        peer = self.peer,
                        kind,
                        second,
                        "ALARM: somebody floods what concerns us; some of it is not mirrored"
                    );
                }
                whole &= self.take(fetched.events).await;
            }
        }
        Ok(whole)
    }

    /// What concerns us among the events of `kind`, as narrower questions.
    fn ours(&self, kind: u16, filter: Filter) -> Vec<Filter> {
        let served = self.site.served.snapshot().unwrap_or_default();
        let keys = |keys: Vec<[u8; 32]>| -> Vec<PublicKey> {
            let keys = keys.into_iter();
            keys.map(PublicKey::from_byte_array).collect()
        };
        match kind {
            // Signed by keys of the moment: one question for each group, so that a flood of one hides nothing of another.
            kinds::GROUP_EVENT => served
                .groups
                .iter()
                .map(|group| {
                    let h = SingleLetterTag::lowercase(Alphabet::H);
                    filter.clone().custom_tag(h, hex::encode(group))
                })
                .collect(),
            kinds::GIFT_WRAP | kinds::WELCOME => {
                let us = keys(served.recipients.iter().copied().collect());
                us.into_iter().map(|us| filter.clone().pubkey(us)).collect()
            }
            // Signed: nobody else can flood these.
            _ => {
                let mut known = keys(served.key_package_authors.iter().copied().collect());
                known.extend(keys(self.site.siblings.clone()));
                vec![filter.authors(known)]
            }
        }
    }

    async fn ask(&self, filter: &Filter) -> Result<Fetched, RelayError> {
        let deadline = Instant::now() + self.patience;
        self.connection.fetch(filter, MOST, deadline).await
    }

    /// As much as the line brings in time; nothing, and not whole, if it brings not even the smallest portion.
    async fn portion(&self, filter: &Filter, portions: &[usize]) -> Result<Fetched, RelayError> {
        for most in portions {
            let frames = self.connection.frames();
            let deadline = Instant::now() + self.patience * DRAINING;
            let sample = self
                .connection
                .sample(filter, *most, self.patience, deadline);
            match sample.await {
                Err(RelayError::Lagged) => {}
                Err(RelayError::Timeout(_)) if self.moves(frames) => {}
                other => return other,
            }
        }
        Ok(Fetched {
            cut: true,
            ..Fetched::default()
        })
    }

    /// Whether anything has come since there were so many frames.
    fn moves(&self, frames: u64) -> bool {
        self.connection.frames() > frames
    }

    async fn take(&self, events: Vec<Event>) -> bool {
        let now = self.site.clock.now();
        let events = events.into_iter().map(|event| (event, now)).collect();
        self.lanes.take_all(events, true).await
    }

    fn skipped(&self, what: &'static str) {
        metrics::counter!(names::MIRROR_SKIPPED, "peer" => self.peer.to_owned(), "what" => what)
            .increment(1);
    }
}

fn of_kinds(kinds: &[u16], from: u64, to: u64) -> Filter {
    Filter::new()
        .kinds(kinds.iter().copied().map(Kind::from_u16))
        .since(Timestamp::from_secs(from))
        .until(Timestamp::from_secs(to))
}

#[cfg(test)]
mod tests;
