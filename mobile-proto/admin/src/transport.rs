//! One relay, as the admin app needs it: publish and know that it is stored, fetch without holes, listen.
//!
//! What must hold: nothing here waits without a deadline, and a fetch that was cut short (timeout, lost connection, a full buffer) is an
//! error, never a shorter list: an MLS member that misses a commit in silence is lost. A NOTICE in place of an OK (rnostr answers oversize
//! events so) ends the wait as well.

mod fetch;
mod relays;
mod subscription;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use nostr::{Event, Filter, Keys, RelayUrl, SubscriptionId};
use nostr_sdk::pool::{RelayLimits, RelayNotification, RelayOptions};
use nostr_sdk::{Client, ClientOptions, Relay, RelayMessage, SubscribeOptions};
use tokio::time::{Instant, sleep, timeout_at};

use self::subscription::Live;
use self::wire::{Counted, Tally};
use crate::clock::Clock;

pub use self::fetch::{Fetched, PAGE};
pub use self::relays::Relays;
pub use self::subscription::Heard;

/// Notifications of the library that wait for us: at least those of a page, each event being told twice.
const NOTIFICATIONS: usize = 4 * PAGE;
/// After a NOTICE, how much longer an OK may still come.
const NOTICE_PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks whether an event is stored; the host relay commits every 100 ms.
const READ_BACK_EVERY: Duration = Duration::from_millis(40);
/// How long a relay may take to show an event that nobody has deleted.
const TAKEN_WITHIN: Duration = Duration::from_secs(1);
/// How soon a lost connection is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Why the relay did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// No connection within the deadline.
    #[error("cannot connect to {url}: {reason}")]
    Connect {
        /// Where to.
        url: String,
        /// What the network said.
        reason: String,
    },
    /// `OK false`: the relay's own words, without control characters.
    #[error("the relay refused the event: {0}")]
    Refused(String),
    /// Neither OK nor a stored event; with the NOTICE that came instead.
    #[error("the relay did not accept the event: {0}")]
    Notice(String),
    /// The deadline passed.
    #[error("the relay did not answer in time ({0})")]
    Timeout(&'static str),
    /// The connection went away while an answer was awaited.
    #[error("the connection to the relay was lost")]
    Lost,
    /// The relay closed the subscription.
    #[error("the relay closed the subscription: {0}")]
    Closed(String),
    /// More arrived at once than could be buffered.
    #[error("more arrived than could be buffered")]
    Lagged,
    /// More than a fetch can page through: too many events in all, or in one second.
    #[error("the relay holds more events than can be fetched without a hole")]
    TooMany,
    /// Anything else the client library reports.
    #[error("relay client: {0}")]
    Client(String),
}

/// How much a connection may hold in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest event; larger ones are left out.
    pub message_bytes: usize,
    /// All events of one fetch.
    pub fetch_bytes: usize,
    /// Live events that wait for somebody who is busy; with more, [`Heard::Resync`] takes their place.
    pub waiting: usize,
    /// What these may weigh.
    pub waiting_bytes: usize,
}

impl Default for Limits {
    /// For somebody who talks to his own relay: the library's limits would drop a Welcome of a large group in silence.
    fn default() -> Self {
        Self {
            message_bytes: usize::MAX,
            fetch_bytes: usize::MAX,
            waiting: 16_384,
            waiting_bytes: usize::MAX,
        }
    }
}

/// About what an event takes in memory.
fn weight(event: &Event) -> usize {
    let tags = event.tags.iter().flat_map(|tag| tag.as_slice());
    event.content.len() + tags.map(|value| value.len() + 32).sum::<usize>() + 256
}

/// A connection to one relay. Reconnects by itself, and says so with [`Heard::Resync`].
pub struct Connection {
    client: Client,
    relay: Relay,
    clock: Arc<dyn Clock>,
    live: Option<Live>,
    tally: Tally,
    limits: Limits,
}

impl Connection {
    /// Connects and, if the relay asks (NIP-42), authenticates as `keys`.
    ///
    /// # Errors
    /// [`RelayError::Connect`].
    pub async fn open(
        url: &RelayUrl,
        keys: &Keys,
        patience: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, RelayError> {
        Self::open_within(url, keys, patience, clock, Limits::default()).await
    }

    /// As [`Self::open`], for a relay where strangers write.
    ///
    /// # Errors
    /// [`RelayError::Connect`].
    pub async fn open_within(
        url: &RelayUrl,
        keys: &Keys,
        patience: Duration,
        clock: Arc<dyn Clock>,
        limits: Limits,
    ) -> Result<Self, RelayError> {
        let connection = Self::begin(url, keys, clock, limits).await?;
        connection.connect(patience).await?;
        Ok(connection)
    }

    /// A connection that nobody has made yet.
    async fn begin(
        url: &RelayUrl,
        keys: &Keys,
        clock: Arc<dyn Clock>,
        limits: Limits,
    ) -> Result<Self, RelayError> {
        install_tls_provider();
        let failed = |error: nostr_sdk::pool::pool::Error| connect_error(url, &error);
        let tally = Tally::new(limits);
        let client = Client::builder()
            .signer(keys.clone())
            .websocket_transport(Counted(tally.clone()))
            .opts(ClientOptions::new().automatic_authentication(true))
            .build();
        // Limits are kept where frames are counted: what the library drops, it drops in silence.
        let options = RelayOptions::new()
            .limits(RelayLimits::disable())
            .retry_interval(RETRY)
            .adjust_retry_interval(false)
            .notification_channel_size(limits.waiting.max(NOTIFICATIONS));
        client
            .pool()
            .add_relay(url.clone(), options)
            .await
            .map_err(failed)?;
        let relay = client.pool().relay(url.clone()).await.map_err(failed)?;
        Ok(Self {
            client,
            relay,
            clock,
            live: None,
            tally,
            limits,
        })
    }

    async fn connect(&self, patience: Duration) -> Result<(), RelayError> {
        let connected = self.relay.try_connect(patience).await;
        connected.map_err(|error| connect_error(self.relay.url(), &error))
    }

    /// Goes on trying in the background, if it is not connected yet. One that was connected is renewed in any case.
    fn keep_trying(&self) {
        self.relay.connect();
    }

    fn is_up(&self) -> bool {
        self.relay.is_connected()
    }

    /// Sends `event` and waits for its OK.
    ///
    /// # Errors
    /// [`RelayError::Refused`], [`RelayError::Notice`], [`RelayError::Timeout`], [`RelayError::Lost`].
    pub async fn publish(&self, event: &Event, deadline: Instant) -> Result<(), RelayError> {
        let mut notices = self.relay.notifications();
        let mut sending = std::pin::pin!(self.relay.send_event(event));
        let mut notice = None::<String>;
        let mut until = deadline;
        loop {
            tokio::select! {
                sent = &mut sending => {
                    return match sent {
                        Ok(_) => Ok(()),
                        Err(error) => Err(publish_error(error, notice)),
                    };
                }
                heard = notices.recv() => {
                    if let Ok(RelayNotification::Message { message: RelayMessage::Notice(text) }) = heard {
                        notice = Some(printable(&text));
                        until = until.min(Instant::now() + NOTICE_PATIENCE);
                    }
                }
                () = tokio::time::sleep_until(until) => {
                    return Err(notice.map_or(RelayError::Timeout("OK"), RelayError::Notice));
                }
            }
        }
    }

    /// As [`Self::publish`], and then reads the event back by its id. The host relay says OK before it commits and writes each batch in
    /// reverse order, so that only this makes the order of two events of one group certain.
    ///
    /// # Errors
    /// Those of [`Self::publish`]; [`RelayError::Timeout`] if it is never stored.
    pub async fn publish_stored(&self, event: &Event, deadline: Instant) -> Result<(), RelayError> {
        self.publish(event, deadline).await?;
        loop {
            let filter = Filter::new().id(event.id).limit(1);
            if self.finds(&filter, deadline).await? {
                return Ok(());
            }
            if Instant::now() + READ_BACK_EVERY >= deadline {
                return Err(RelayError::Timeout("read back"));
            }
            sleep(READ_BACK_EVERY).await;
        }
    }

    /// As [`Self::publish_stored`], for an event that its recipient deletes after reading it, as the service does with a Welcome: it may be gone
    /// before it could be read back. So an event that is never seen is published once more, and its OK is enough.
    ///
    /// # Errors
    /// Those of [`Self::publish`].
    pub async fn publish_to_recipient(
        &self,
        event: &Event,
        deadline: Instant,
    ) -> Result<(), RelayError> {
        let looked = deadline.min(Instant::now() + TAKEN_WITHIN);
        match self.publish_stored(event, looked).await {
            Err(RelayError::Timeout(_)) => {}
            other => return other,
        }
        match self.publish(event, deadline).await {
            // A relay that remembers what was deleted.
            Err(RelayError::Refused(_)) => Ok(()),
            other => other,
        }
    }

    /// Replaces the live subscription: from its EOSE on, [`Self::next`] hears what is published. A fetch that starts after this call meets
    /// it without a gap.
    ///
    /// # Errors
    /// [`RelayError::Client`], [`RelayError::Lost`].
    pub async fn listen(&mut self, filters: Vec<Filter>) -> Result<(), RelayError> {
        if let Some(old) = self.live.take() {
            // A relay that is away needs no CLOSE, and what still comes under the old id is nobody's.
            let _ = self.relay.unsubscribe(&old.id).await;
        }
        let id = SubscriptionId::generate();
        self.live = Some(Live::begin(
            self.relay.notifications(),
            id.clone(),
            self.clock.clone(),
            self.limits,
        ));
        self.relay
            .subscribe_with_id(id, filters, SubscribeOptions::default())
            .await
            .map_err(client_error)
    }

    /// The next event of the live subscription; `None` when the deadline passes first. Cancel-safe. A lost connection is no error: it is
    /// tried again until the deadline.
    ///
    /// # Errors
    /// [`RelayError::Closed`], [`RelayError::Lost`].
    pub async fn next(&mut self, deadline: Instant) -> Result<Option<Heard>, RelayError> {
        let live = self.live.as_mut().ok_or(RelayError::Lost)?;
        match timeout_at(deadline, live.recv()).await {
            Err(_elapsed) => Ok(None),
            Ok(None) => Err(RelayError::Lost),
            Ok(Some(Heard::Closed(reason))) => Err(RelayError::Closed(reason)),
            Ok(Some(heard)) => Ok(Some(heard)),
        }
    }

    /// What has arrived already; `None` when nothing waits.
    ///
    /// # Errors
    /// [`RelayError::Closed`].
    pub fn arrived(&mut self) -> Result<Option<Heard>, RelayError> {
        match self.live.as_mut().and_then(Live::try_recv) {
            Some(Heard::Closed(reason)) => Err(RelayError::Closed(reason)),
            heard => Ok(heard),
        }
    }

    /// Closes the connection.
    pub async fn close(self) {
        self.client.shutdown().await;
    }
}

fn connect_error(url: &RelayUrl, reason: &dyn std::fmt::Display) -> RelayError {
    RelayError::Connect {
        url: url.to_string(),
        reason: reason.to_string(),
    }
}

fn client_error(error: nostr_sdk::pool::relay::Error) -> RelayError {
    use nostr_sdk::pool::relay::Error;
    match error {
        Error::NotConnected | Error::NotReady | Error::ReceivedShutdown => RelayError::Lost,
        Error::Timeout => RelayError::Timeout("relay"),
        other => RelayError::Client(printable(&other.to_string())),
    }
}

fn publish_error(error: nostr_sdk::pool::relay::Error, notice: Option<String>) -> RelayError {
    use nostr_sdk::pool::relay::Error;
    match (error, notice) {
        (Error::RelayMessage(reason), _) => RelayError::Refused(printable(&reason)),
        (Error::Timeout, Some(notice)) => RelayError::Notice(notice),
        (other, _) => client_error(other),
    }
}

/// What a stranger wrote, fit for a terminal: no control characters, at most 300 characters.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(300)
        .collect()
}

/// One rustls provider for wss and https. A second one is in the dependency graph (`ring`, through the websocket library), so that the
/// choice has to be made; a choice that the program made earlier stands.
pub fn install_tls_provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relays_words_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\r\nc\u{9b}d"), "a [2Jb  c d");
        assert_eq!(printable(&"x".repeat(1000)).len(), 300);
    }
}
