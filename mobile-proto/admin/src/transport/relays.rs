//! Several relays as one: whoever is connected to all of them outlives the loss of any.
//!
//! What must hold: what one relay has said or taken counts, as long as the relays mirror each other; an event is heard once, whichever relays tell
//! it; a relay that hangs holds nobody up for longer than [`GRACE`] once another has answered; one that comes back is heard again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::{join_all, select_all};
use futures::stream::FuturesUnordered;
use nostr::{Event, EventId, Filter, Keys, RelayUrl};
use tokio::time::{Instant, timeout_at};

use super::{Connection, Fetched, Heard, Limits, RelayError};
use crate::clock::Clock;

/// How much longer the others may take when one relay has answered.
const GRACE: Duration = Duration::from_secs(2);
/// Events remembered, so that they are heard once.
const SEEN: usize = 8_192;

/// See the module.
pub struct Relays {
    each: Vec<Link>,
    seen: Seen,
}

struct Link {
    connection: Connection,
    /// It has ended our subscription: there is nothing to hear until the next one.
    silent: bool,
}

impl Relays {
    /// Connects to all of them. Those that cannot be reached are tried again in the background.
    ///
    /// # Errors
    /// [`RelayError::Connect`] if none can be reached.
    pub async fn open(
        urls: &[RelayUrl],
        keys: &Keys,
        patience: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, RelayError> {
        let begun = urls
            .iter()
            .map(|url| Connection::begin(url, keys, clock.clone(), Limits::default()));
        let connections = join_all(begun).await;
        let connections: Vec<Connection> = connections.into_iter().collect::<Result<_, _>>()?;
        all(connections.iter().map(|one| one.connect(patience))).await?;
        for connection in &connections {
            connection.keep_trying();
        }
        let link = |connection| Link {
            connection,
            silent: false,
        };
        Ok(Self {
            each: connections.into_iter().map(link).collect(),
            seen: Seen::default(),
        })
    }

    /// Those that are connected, or all while none is.
    fn up(&self) -> impl Iterator<Item = &Connection> {
        let none = !self.each.iter().any(|link| link.connection.is_up());
        let links = self.each.iter();
        links.filter_map(move |Link { connection, .. }| {
            (none || connection.is_up()).then_some(connection)
        })
    }

    /// As [`Connection::publish`], at every relay; one that takes it is enough.
    ///
    /// # Errors
    /// Those of [`Connection::publish`].
    pub async fn publish(&self, event: &Event, deadline: Instant) -> Result<(), RelayError> {
        let published = self.up().map(|one| one.publish(event, deadline));
        all(published).await.map(drop)
    }

    /// As [`Connection::publish_stored`], at every relay; one that has stored it is enough.
    ///
    /// # Errors
    /// Those of [`Connection::publish_stored`].
    pub async fn publish_stored(&self, event: &Event, deadline: Instant) -> Result<(), RelayError> {
        let published = self.up().map(|one| one.publish_stored(event, deadline));
        all(published).await.map(drop)
    }

    /// As [`Connection::publish_to_recipient`], at every relay; one is enough.
    ///
    /// # Errors
    /// Those of [`Connection::publish_to_recipient`].
    pub async fn publish_to_recipient(
        &self,
        event: &Event,
        deadline: Instant,
    ) -> Result<(), RelayError> {
        let published = self
            .up()
            .map(|one| one.publish_to_recipient(event, deadline));
        all(published).await.map(drop)
    }

    /// As [`Connection::fetch_all`]: what any of the relays holds.
    ///
    /// # Errors
    /// Those of [`Connection::fetch_all`], if no relay has given all that it holds.
    pub async fn fetch_all(
        &self,
        filter: &Filter,
        deadline: Instant,
    ) -> Result<Vec<Event>, RelayError> {
        let fetched = self.up().map(|one| one.fetch_all(filter, deadline));
        Ok(once(all(fetched).await?.into_iter().flatten()))
    }

    /// As [`Connection::fetch_past_crowds`]: what any of the relays shows.
    ///
    /// # Errors
    /// Those of [`Connection::fetch_past_crowds`], if no relay has answered.
    pub async fn fetch_past_crowds(
        &self,
        filter: &Filter,
        deadline: Instant,
    ) -> Result<Fetched, RelayError> {
        let fetched = self.up().map(|one| one.fetch_past_crowds(filter, deadline));
        let mut together = Fetched::default();
        for one in all(fetched).await? {
            together.events.extend(one.events);
            together.crowded.extend(one.crowded);
        }
        together.events = once(together.events.into_iter());
        Ok(together)
    }

    /// As [`Connection::listen`]. A relay that is away is listened to when it comes back, which is a [`Heard::Resync`].
    ///
    /// # Errors
    /// Those of [`Connection::listen`], if no relay can be listened to.
    pub async fn listen(&mut self, filters: Vec<Filter>) -> Result<(), RelayError> {
        let listening = self.each.iter_mut().map(|link| {
            link.silent = false;
            link.connection.listen(filters.clone())
        });
        all(listening).await.map(drop)
    }

    /// As [`Connection::next`], from whichever relay it comes first.
    ///
    /// # Errors
    /// Those of [`Connection::next`], when there is no relay left to hear.
    pub async fn next(&mut self, deadline: Instant) -> Result<Option<Heard>, RelayError> {
        loop {
            let heard = {
                let audible = self.each.iter_mut().filter(|link| !link.silent);
                let listening: Vec<_> = audible
                    .map(|link| {
                        Box::pin(async move {
                            let heard = link.connection.next(deadline).await;
                            link.silent = heard.is_err();
                            heard
                        })
                    })
                    .collect();
                if listening.is_empty() {
                    return Err(RelayError::Lost);
                }
                select_all(listening).await.0
            };
            match heard {
                Ok(Some(heard)) if self.is_news(&heard) => return Ok(Some(heard)),
                Ok(Some(_)) => {}
                Ok(None) => return Ok(None),
                Err(error) if self.each.iter().all(|link| link.silent) => return Err(error),
                Err(error) => tracing::warn!(%error, "one of the relays is not heard"),
            }
        }
    }

    /// As [`Connection::arrived`].
    ///
    /// # Errors
    /// Those of [`Connection::arrived`], when there is no relay left to hear.
    pub fn arrived(&mut self) -> Result<Option<Heard>, RelayError> {
        for n in 0..self.each.len() {
            while !self.each[n].silent {
                match self.each[n].connection.arrived() {
                    Ok(Some(heard)) if self.is_news(&heard) => return Ok(Some(heard)),
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => {
                        self.each[n].silent = true;
                        if self.each.iter().all(|link| link.silent) {
                            return Err(error);
                        }
                    }
                }
            }
        }
        Ok(None)
    }

    fn is_news(&mut self, heard: &Heard) -> bool {
        match heard {
            Heard::Live { event, .. } if self.each.len() > 1 => self.seen.add(event.id),
            _ => true,
        }
    }

    /// Closes every connection.
    pub async fn close(self) {
        join_all(self.each.into_iter().map(|link| link.connection.close())).await;
    }
}

/// Each event once, oldest first.
fn once(events: impl Iterator<Item = Event>) -> Vec<Event> {
    let once: HashMap<EventId, Event> = events.map(|event| (event.id, event)).collect();
    let mut events: Vec<Event> = once.into_values().collect();
    events.sort_by_key(|event| (event.created_at, event.id));
    events
}

/// What succeeds, with [`GRACE`] for the others once something has. If nothing does, the error that says most: a refusal.
async fn all<T, F>(work: impl IntoIterator<Item = F>) -> Result<Vec<T>, RelayError>
where
    F: Future<Output = Result<T, RelayError>>,
{
    let mut running: FuturesUnordered<F> = work.into_iter().collect();
    let mut done = Vec::new();
    let mut failed = None::<RelayError>;
    let mut patience = None::<Instant>;
    loop {
        let next = match patience {
            None => running.next().await,
            Some(until) => timeout_at(until, running.next()).await.unwrap_or(None),
        };
        match next {
            None => break,
            Some(Ok(value)) => {
                done.push(value);
                patience.get_or_insert_with(|| Instant::now() + GRACE);
            }
            Some(Err(error)) => {
                if !matches!(failed, Some(RelayError::Refused(_))) {
                    failed = Some(error);
                }
            }
        }
    }
    if done.is_empty() {
        return Err(failed.unwrap_or(RelayError::Lost));
    }
    if let Some(error) = failed {
        tracing::debug!(%error, "one of the relays did not do it");
    }
    Ok(done)
}

#[derive(Default)]
struct Seen {
    ids: HashSet<EventId>,
    order: VecDeque<EventId>,
}

impl Seen {
    /// `false` if it was there.
    fn add(&mut self, id: EventId) -> bool {
        if !self.ids.insert(id) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > SEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_new_once_and_memory_is_bounded() {
        let id = |n: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            EventId::from_byte_array(bytes)
        };
        let mut seen = Seen::default();
        assert!((0..SEEN).all(|n| seen.add(id(n))));
        assert!(!seen.add(id(0)) && !seen.add(id(SEEN - 1)));
        assert!(seen.add(id(SEEN)) && seen.add(id(0)), "the oldest gave way");
        assert_eq!(seen.ids.len(), SEEN);
    }

    #[tokio::test]
    async fn one_answer_is_enough_and_one_that_hangs_holds_nobody_up() {
        type Answer = std::pin::Pin<Box<dyn Future<Output = Result<u8, RelayError>>>>;
        let now = |answer: Result<u8, RelayError>| -> Answer { Box::pin(async { answer }) };
        let hangs = || -> Answer { Box::pin(std::future::pending()) };
        let answers = [now(Err(RelayError::Lost)), hangs(), now(Ok(1)), now(Ok(2))];
        let mut done = all(answers).await.unwrap();
        done.sort_unstable();
        assert_eq!(done, [1, 2]);
        let refused = || now(Err(RelayError::Refused("busy".to_owned())));
        for refusals in [
            [refused(), now(Err(RelayError::Lost))],
            [now(Err(RelayError::Lost)), refused()],
        ] {
            assert!(matches!(all(refusals).await, Err(RelayError::Refused(_))));
        }
    }
}
