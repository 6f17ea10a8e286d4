//! Follows one peer: listens, fetches what was stored before, and begins again when something was missed.
//!
//! What must always hold: the listening begins before the fetching (`catch_up`), so that nothing falls in between; the place that is
//! written down ([`super::cursor`]) moves only when everything before it was taken in (`lanes`).

use std::sync::Arc;
use std::time::Duration;

use keyturn_admin::clock::SystemClock;
use keyturn_admin::transport::{Connection, Heard, Limits, RelayError, printable};
use keyturn_proto::UnixMs;
use nostr::{Filter, Keys, Kind, RelayUrl};
use tokio::time::Instant;

use super::catch_up::{CatchUp, Reached, Series};
use super::cursor::Cursors;
use super::lanes::Lanes;
use super::{HORIZON, KINDS, PATIENCE, Site, lags};
use crate::metrics as names;

/// Live events taken together, and waiting for us at most.
const BATCH: usize = 256;
/// What the events of one fetch, and those that wait, may weigh, if single ones are not larger.
const BYTES: usize = 32 * 1024 * 1024;
/// How often the place is written down while all is well.
const NOTE_EVERY: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Follows `url` for ever.
pub(super) async fn follow(site: &Site, url: String, keys: &Keys, cursors: &Cursors) {
    let mut peer = Peer {
        site,
        cursors,
        pause: FIRST_PAUSE,
        lanes: Lanes::new(site, &url),
        reached: Reached::default(),
        url: &url,
    };
    loop {
        let ended = peer.once(keys).await;
        metrics::gauge!(names::MIRROR_PEER_UP, "peer" => url.clone()).set(0.0);
        tracing::warn!(peer = url, error = %ended, "a peer is not followed; trying again");
        peer.rest().await;
    }
}

struct Peer<'a> {
    site: &'a Site,
    cursors: &'a Cursors,
    pause: Duration,
    url: &'a str,
    lanes: Lanes<'a>,
    reached: Reached,
}

impl Peer<'_> {
    fn now(&self) -> UnixMs {
        self.site.clock.now()
    }

    /// Until the connection ends.
    async fn once(&mut self, keys: &Keys) -> RelayError {
        let url = match RelayUrl::parse(self.url) {
            Ok(url) => url,
            Err(error) => return RelayError::Client(printable(&error.to_string())),
        };
        let limits = limits(self.site.message_bytes);
        let clock = Arc::new(SystemClock);
        let opened = Connection::open_within(&url, keys, PATIENCE, clock, limits).await;
        let mut connection = match opened {
            Ok(connection) => connection,
            Err(error) => return error,
        };
        let ended = self.listen(&mut connection).await;
        connection.close().await;
        ended
    }

    async fn listen(&mut self, connection: &mut Connection) -> RelayError {
        loop {
            let began = self.now();
            // Without a time: a gift wrap that arrives now may be dated days back. What is stored is fetched in pages of its own.
            let live = Filter::new()
                .kinds(KINDS.into_iter().map(Kind::from_u16))
                .limit(1);
            if let Err(error) = connection.listen(vec![live]).await {
                return error;
            }
            let whole = match self.catch_up(connection, began).await {
                Ok(whole) => whole,
                Err(error) => return error,
            };
            metrics::gauge!(names::MIRROR_PEER_UP, "peer" => self.url.to_owned()).set(1.0);
            self.pause = FIRST_PAUSE;
            if whole {
                self.cursors.set(self.url, began);
                self.reached.forget();
                self.lanes.settled();
            }
            match self.live(connection, whole).await {
                Ok(()) => {
                    tracing::info!(peer = self.url, "something may have been missed; fetching")
                }
                Err(error) => return error,
            }
        }
    }

    /// Fetches what the peer stored while we did not listen. `false` if our own relay failed on some of it.
    async fn catch_up(
        &mut self,
        connection: &Connection,
        began: UnixMs,
    ) -> Result<bool, RelayError> {
        let horizon = began.minus(HORIZON);
        let heard = self.cursors.get(self.url).unwrap_or(horizon);
        let work = CatchUp {
            site: self.site,
            peer: self.url,
            lanes: &self.lanes,
            connection,
            began,
            patience: PATIENCE,
        };
        let mut whole = true;
        for series in Series::ALL {
            let since = self.reached.from(series, heard, horizon);
            whole &= work.fetch(series, since, &mut self.reached).await?;
        }
        Ok(whole)
    }

    /// Until something may have been missed. `whole` says whether nothing is owed from before.
    async fn live(
        &mut self,
        connection: &mut Connection,
        mut whole: bool,
    ) -> Result<(), RelayError> {
        let mut noted = self.now();
        loop {
            let heard = connection.next(Instant::now() + NOTE_EVERY).await?;
            let at = self.now();
            let Some(heard) = heard else {
                lags(self.url, Duration::ZERO);
                if !whole {
                    return Ok(());
                }
                self.cursors.set(self.url, at);
                continue;
            };
            let mut batch = Vec::new();
            let mut next = Some(heard);
            while let Some(heard) = next.take() {
                match heard {
                    Heard::Live { event, at } => batch.push((*event, at)),
                    Heard::Resync | Heard::Closed(_) => {
                        self.lanes.take_all(batch, false).await;
                        return Ok(());
                    }
                }
                if batch.len() < BATCH {
                    next = connection.arrived()?;
                }
            }
            // What waits came later.
            let last = batch.last().map_or(at, |(_, at)| *at);
            whole &= self.lanes.take_all(batch, false).await;
            lags(self.url, self.now().since(at));
            if whole && last.since(noted) >= NOTE_EVERY {
                self.cursors.set(self.url, last);
                noted = last;
            }
        }
    }

    /// Waits before the next attempt: longer each time, and not in step with others.
    async fn rest(&mut self) {
        let mut random = [0u8; 2];
        // Without randomness the pause is merely in step.
        let _filled = getrandom::fill(&mut random);
        let jitter = self
            .pause
            .mul_f64(f64::from(u16::from_be_bytes(random)) / 131_072.0);
        let until = self.now().plus(self.pause / 2 + jitter);
        self.site.clock.sleep_until(until).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        let heard = self.cursors.get(self.url);
        lags(
            self.url,
            heard.map_or(HORIZON, |heard| self.now().since(heard)),
        );
    }
}

/// Nothing is worth reading that our own relay would not take.
fn limits(message_bytes: usize) -> Limits {
    Limits {
        message_bytes,
        fetch_bytes: BYTES.max(4 * message_bytes),
        waiting: BATCH,
        waiting_bytes: BYTES.max(4 * message_bytes),
    }
}
