//! [`RelayPort`] on a running rnostr relay.
//!
//! The port exists before the relay does: it is attached once the relay's application is known. rnostr answers
//! `OK true` before it has committed, so publishing ends with reading the event back.

use std::{io, sync::Arc, time::Duration};

use async_trait::async_trait;
use nostr::{Event, EventId, JsonUtil};
use nostr_db::{CheckEventResult, Db};
use nostr_relay::{App, setting::SettingWrapper};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};

use super::{
    port::{Deleted, Page, PublishError, Published, ReadError, RelayPort, Scan},
    publish::InnerSession,
    readback::DbThreads,
};

/// rnostr commits every 100 ms; an event that was on its way is there after the batch under way and the next one.
const TWO_BATCHES: Duration = Duration::from_millis(250);
/// From handing the event over until it can be read back. Fifty write batches.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks into the database while waiting for a commit.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_millis(16);

/// Why the port could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Called on a thread without an actix System, where no relay can be running.
    #[error("no actix System runs on this thread")]
    NoSystem,
    /// The threads that read the database could not be started.
    #[error("cannot start the threads that read the relay's database: {0}")]
    Threads(#[from] io::Error),
    /// The relay's database could not be prepared.
    #[error("cannot write to the relay's database: {0}")]
    Database(String),
}

struct Attached {
    session: InnerSession,
    db: DbThreads,
    setting: SettingWrapper,
}

/// The port. Detached until [`RnostrPort::attach`].
pub struct RnostrPort(watch::Sender<Option<Arc<Attached>>>);

impl Default for RnostrPort {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl RnostrPort {
    /// Connects the port with a relay. Must be called on a thread of the relay's actix System. Again: no effect.
    pub fn attach(&self, app: &App) -> Result<(), AttachError> {
        if self.0.borrow().is_some() {
            return Ok(());
        }
        let system = actix::System::try_current().ok_or(AttachError::NoSystem)?;
        step_over_last_event(&app.db)?;
        let attached = Arc::new(Attached {
            session: InnerSession::start(app.server.clone(), system.arbiter()),
            db: DbThreads::start(&app.db)?,
            setting: app.setting.clone(),
        });
        // Two workers may get here at the same moment; the second one's threads end with its drop.
        self.0
            .send_if_modified(|slot| slot.is_none() && slot.replace(attached).is_none());
        Ok(())
    }

    /// Lets go of the relay, so that its database can close.
    pub fn detach(&self) {
        self.0.send_replace(None);
    }

    fn relay(&self) -> Option<Arc<Attached>> {
        self.0.borrow().clone()
    }
}

/// nostr-db (0.4.5 and before) numbers events from the number of the last one it finds when it opens, so that the first event of a run
/// takes the place of the last event of the run before. A write that is never committed uses that number up and leaves nothing behind;
/// where it was used up already, it only leaves a gap.
fn step_over_last_event(db: &Db) -> Result<(), AttachError> {
    let failed = |error: nostr_db::Error| AttachError::Database(error.to_string());
    // No SHA-256 of anything anybody sends.
    let nobody = nostr_db::Event::new([0; 32], [0; 32], 1, 1, Vec::new(), String::new(), [0; 64])
        .map_err(failed)?;
    let mut writer = db.writer().map_err(failed)?;
    match db.put(&mut writer, nobody).map_err(failed)? {
        CheckEventResult::Ok(_) => Ok(()),
        _ => Err(AttachError::Database(
            "it did not take a test event".to_owned(),
        )),
    }
}

impl Attached {
    /// The checks that rnostr makes on a client's EVENT before its actors see it.
    fn checked(&self, event: &Event) -> Result<nostr_db::Event, PublishError> {
        let invalid = |reason: String| PublishError::Invalid { reason };
        let json = event.as_json();
        let limits = self.setting.read().limitation.clone();
        // `["EVENT",…]` around it.
        if json.len() + 10 > limits.max_message_length {
            return Err(invalid(format!(
                "larger than the relay's limit of {} bytes",
                limits.max_message_length
            )));
        }
        if event.tags.len() > limits.max_event_tags {
            return Err(invalid(format!("more than {} tags", limits.max_event_tags)));
        }
        let event: nostr_db::Event = json
            .parse()
            .map_err(|error: nostr_db::Error| invalid(error.to_string()))?;
        event
            .validate(
                nostr_db::now(),
                limits.max_event_time_older_than_now,
                limits.max_event_time_newer_than_now,
            )
            .map_err(|error| invalid(error.to_string()))?;
        Ok(event)
    }

    async fn wait_stored(&self, id: EventId, deadline: Instant) -> Result<bool, ReadError> {
        let mut pause = FIRST_LOOK;
        loop {
            if self.db.stored(id).await? {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(pause).await;
            pause = LONGEST_LOOK.min(pause * 2);
        }
    }
}

#[async_trait]
impl RelayPort for RnostrPort {
    async fn attached(&self) {
        // The sender lives in self, so the channel cannot close while we wait.
        let _ = self.0.subscribe().wait_for(Option::is_some).await;
    }

    async fn publish(&self, event: Event) -> Result<Published, PublishError> {
        let relay = self.relay().ok_or(PublishError::Detached)?;
        let deadline = Instant::now() + PUBLISH_DEADLINE;
        let checked = relay.checked(&event)?;
        if relay.db.stored(event.id).await? {
            return Ok(Published::Already);
        }
        let reply = timeout_at(deadline, relay.session.send(checked))
            .await
            .map_err(|_| PublishError::NoAnswer(PUBLISH_DEADLINE))??;
        if !reply.accepted {
            return Err(PublishError::Refused {
                reason: reply.message,
            });
        }
        if !relay.wait_stored(event.id, deadline).await? {
            return Err(PublishError::NotStored(PUBLISH_DEADLINE));
        }
        Ok(if reply.message.starts_with("duplicate") {
            Published::Already
        } else {
            Published::New
        })
    }

    async fn stored(&self, id: EventId) -> Result<bool, ReadError> {
        self.relay().ok_or(ReadError::Detached)?.db.stored(id).await
    }

    async fn wait_stored(&self, id: EventId, deadline: Instant) -> Result<bool, ReadError> {
        self.relay()
            .ok_or(ReadError::Detached)?
            .wait_stored(id, deadline)
            .await
    }

    async fn scan(&self, scan: Scan) -> Result<Page, ReadError> {
        self.relay().ok_or(ReadError::Detached)?.db.scan(scan).await
    }

    async fn delete(&self, ids: Vec<EventId>) -> Result<Deleted, ReadError> {
        let relay = self.relay().ok_or(ReadError::Detached)?;
        let removed = relay.db.delete(ids.clone()).await?;
        let mut deleted = Deleted {
            absent: ids,
            removed,
        };
        deleted.absent.retain(|id| !deleted.removed.contains(id));
        if deleted.absent.is_empty() {
            return Ok(deleted);
        }
        let deadline = Instant::now() + TWO_BATCHES;
        for id in &deleted.absent {
            relay.wait_stored(*id, deadline).await?;
        }
        deleted
            .removed
            .extend(relay.db.delete(deleted.absent.clone()).await?);
        deleted.absent.retain(|id| !deleted.removed.contains(id));
        Ok(deleted)
    }
}
