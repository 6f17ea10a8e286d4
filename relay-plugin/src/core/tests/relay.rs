//! A relay in memory. It outlives the core, as the relay's database outlives the process.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use keyturn_mls::Backlog;
use keyturn_proto::UnixMs;
use nostr::{Event, EventId};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::delivery::port::{
    By, Deleted, Page, PublishError, Published, ReadError, RelayPort, Scan,
};
use crate::service::{Inbound, SessionInfo};

/// What the relay does with what the core publishes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Stores it.
    #[default]
    Well,
    /// Answers nothing, stores nothing.
    Silent,
    /// Stores it and answers nothing.
    StoresInSilence,
    /// Says it was stored, and has lost it.
    Forgetful,
    /// Takes nothing: everything is too long for it.
    Narrow,
    /// Takes everything and deletes nothing.
    Keeping,
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    deleted: Vec<EventId>,
    mood: Mood,
    /// Events sent by admins, and not handed over yet, while the relay writes in reverse order.
    batch: Option<Vec<Event>>,
    core: Option<mpsc::Sender<Inbound>>,
    backlog: Backlog,
}

#[derive(Clone, Default)]
pub(crate) struct FakeRelay(Arc<Mutex<State>>);

impl FakeRelay {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock().unwrap())
    }

    pub(crate) fn set_mood(&self, mood: Mood) {
        self.with(|state| state.mood = mood);
    }

    /// Everything stored, in the order it was stored.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.with(|state| state.events.clone())
    }

    pub(crate) fn deleted(&self) -> Vec<EventId> {
        self.with(|state| state.deleted.clone())
    }

    /// The next core gets what admins send from now on.
    pub(crate) fn attach(&self) -> mpsc::Receiver<Inbound> {
        let (sender, receiver) = mpsc::channel(64);
        self.with(|state| state.core = Some(sender));
        receiver
    }

    /// What the core was handed and has not taken in.
    pub(crate) fn backlog(&self) -> Backlog {
        self.with(|state| state.backlog.clone())
    }

    pub(crate) fn detach(&self) {
        self.with(|state| state.core = None);
    }

    /// From now on events are kept back, until [`Self::flush_reversed`].
    pub(crate) fn gather(&self) {
        self.with(|state| state.batch = Some(Vec::new()));
    }

    /// Stores and hands over what was gathered, last first, as rnostr's writer does.
    pub(crate) fn flush_reversed(&self, received_at_ms: u64) {
        let batch = self.with(|state| state.batch.take().unwrap_or_default());
        for event in batch.into_iter().rev() {
            self.admin_sends(event, received_at_ms);
        }
    }

    /// Stores what an admin's client publishes while nobody here knows whom it concerns.
    pub(crate) fn stores_unheard(&self, event: Event) {
        self.with(|state| state.events.push(event));
    }

    /// An admin's client publishes.
    pub(crate) fn admin_sends(&self, event: Event, received_at_ms: u64) {
        self.with(|state| {
            if let Some(batch) = &mut state.batch {
                batch.push(event);
                return;
            }
            if !state.events.iter().any(|known| known.id == event.id) {
                state.events.push(event.clone());
            }
            if let Some(core) = &state.core {
                let inbound = Inbound {
                    event,
                    received_at_ms,
                    session: SessionInfo::default(),
                    stored: false,
                    arrival: state.backlog.arrived(|| UnixMs(received_at_ms)),
                };
                // A core that was killed does not listen any more.
                let _sent = core.try_send(inbound);
            }
        });
    }
}

#[async_trait]
impl RelayPort for FakeRelay {
    async fn attached(&self) {}

    async fn publish(&self, event: Event) -> Result<Published, PublishError> {
        tokio::task::yield_now().await;
        self.with(|state| {
            if state.events.iter().any(|known| known.id == event.id) {
                return Ok(Published::Already);
            }
            match state.mood {
                Mood::Well | Mood::Keeping => {
                    state.events.push(event);
                    Ok(Published::New)
                }
                Mood::Silent => Err(PublishError::NoAnswer(Duration::from_secs(5))),
                Mood::StoresInSilence => {
                    state.events.push(event);
                    Err(PublishError::NoAnswer(Duration::from_secs(5)))
                }
                Mood::Narrow => Err(PublishError::Invalid {
                    reason: "longer than 1 byte".to_owned(),
                }),
                Mood::Forgetful => Err(PublishError::NotStored(Duration::from_secs(5))),
            }
        })
    }

    async fn stored(&self, id: EventId) -> Result<bool, ReadError> {
        Ok(self.with(|state| state.events.iter().any(|event| event.id == id)))
    }

    async fn wait_stored(&self, id: EventId, deadline: Instant) -> Result<bool, ReadError> {
        while !self.stored(id).await? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(true)
    }

    async fn scan(&self, scan: Scan) -> Result<Page, ReadError> {
        let Scan {
            kinds,
            by,
            since,
            page: _,
            after: _,
        } = scan;
        let tagged = |event: &Event, name: &str, value: &str| {
            event.tags.iter().any(|tag| {
                let tag = tag.as_slice();
                tag.first().is_some_and(|t| t == name) && tag.get(1).is_some_and(|v| v == value)
            })
        };
        let wanted = |event: &&Event| {
            kinds.contains(&event.kind.as_u16())
                && since.is_none_or(|since| event.created_at.as_secs() >= since)
                && match &by {
                    By::Groups(groups) => {
                        groups.iter().any(|g| tagged(event, "h", &hex::encode(g)))
                    }
                    By::Recipients(keys) => keys.iter().any(|k| tagged(event, "p", &k.to_hex())),
                    By::Authors(keys) => keys.contains(&event.pubkey),
                }
        };
        let mut events: Vec<Event> =
            self.with(|state| state.events.iter().filter(wanted).cloned().collect());
        events.sort_by_key(|event| event.created_at);
        Ok(Page {
            events,
            ..Page::default()
        })
    }

    async fn delete(&self, ids: Vec<EventId>) -> Result<Deleted, ReadError> {
        self.with(|state| {
            if state.mood == Mood::Keeping {
                return Err(ReadError::Database("it is full".to_owned()));
            }
            let (removed, absent): (Vec<EventId>, Vec<EventId>) = ids
                .into_iter()
                .partition(|id| state.events.iter().any(|event| event.id == *id));
            state.events.retain(|event| !removed.contains(&event.id));
            state.deleted.extend(&removed);
            Ok(Deleted { removed, absent })
        })
    }
}
