//! The product's core with a clock at both of its ports: where the relay hands an event in, and where a finished event is handed out.
//!
//! Nothing else differs from what ships: the same host, the same core, the same adapters. A mark is one line in a file beside the store.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use keyturn::assembly::Assembly;
use keyturn::config::Store;
use keyturn::delivery::port::{Deleted, Page, PublishError, Published, ReadError, RelayPort, Scan};
use keyturn::service::{Ports, Service, ServiceFactory, StartError};
use keyturn_admin::async_trait;
use nostr::{Event, EventId};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::monotonic;

const FILE: &str = "marks";

/// [`Assembly`], stamped.
pub struct Stamped;

#[async_trait]
impl ServiceFactory for Stamped {
    async fn start(self: Box<Self>, ports: Ports) -> Result<Arc<dyn Service>, StartError> {
        let Store::Sqlite { path } = &ports.config.store else {
            unreachable!("measured on the embedded store")
        };
        let pen = Pen::open(&path.with_file_name(FILE));
        let (stamped, inbound) = mpsc::channel(ports.config.queue.capacity);
        let mut arriving = ports.inbound;
        let first = pen.clone();
        tokio::spawn(async move {
            while let Some(next) = arriving.recv().await {
                first.mark("in", next.event.id);
                if stamped.send(next).await.is_err() {
                    return;
                }
            }
        });
        let relay = Arc::new(StampedRelay {
            relay: ports.relay,
            pen,
        });
        let ports = Ports {
            inbound,
            relay,
            ..ports
        };
        Box::new(Assembly).start(ports).await
    }
}

#[derive(Clone)]
struct Pen(Arc<Mutex<File>>);

impl Pen {
    fn open(path: &Path) -> Self {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        Self(Arc::new(Mutex::new(file)))
    }

    fn mark(&self, what: &str, event: EventId) {
        let line = format!("{what} {event} {}\n", monotonic());
        self.0.lock().unwrap().write_all(line.as_bytes()).unwrap();
    }
}

struct StampedRelay {
    relay: Arc<dyn RelayPort>,
    pen: Pen,
}

#[async_trait]
impl RelayPort for StampedRelay {
    async fn attached(&self) {
        self.relay.attached().await;
    }

    async fn publish(&self, event: Event) -> Result<Published, PublishError> {
        let id = event.id;
        self.pen.mark("handed", id);
        let published = self.relay.publish(event).await;
        self.pen.mark("stored", id);
        published
    }

    async fn stored(&self, id: EventId) -> Result<bool, ReadError> {
        self.relay.stored(id).await
    }

    async fn wait_stored(&self, id: EventId, deadline: Instant) -> Result<bool, ReadError> {
        self.relay.wait_stored(id, deadline).await
    }

    async fn scan(&self, scan: Scan) -> Result<Page, ReadError> {
        self.relay.scan(scan).await
    }

    async fn delete(&self, ids: Vec<EventId>) -> Result<Deleted, ReadError> {
        self.relay.delete(ids).await
    }
}

/// The marks that a [`Stamped`] relay has left, by event id (hex); nanoseconds of [`monotonic`].
pub struct Marks {
    times: HashMap<(String, String), u64>,
}

impl Marks {
    /// The marks beside `store`.
    pub fn beside(store: &Path) -> Self {
        let text = std::fs::read_to_string(store.with_file_name(FILE)).unwrap();
        let times = text.lines().map(|line| {
            let mut words = line.split(' ');
            let mut word = || words.next().unwrap().to_owned();
            ((word(), word()), word().parse().unwrap())
        });
        Self {
            times: times.collect(),
        }
    }

    /// The request reached the core: it is not opened yet.
    pub fn reached(&self, event: &str) -> u64 {
        self.at("in", event)
    }

    /// The event was given to the relay.
    pub fn handed(&self, event: &str) -> u64 {
        self.at("handed", event)
    }

    /// The core could read it back from the relay's database.
    pub fn stored(&self, event: &str) -> u64 {
        self.at("stored", event)
    }

    fn at(&self, what: &str, event: &str) -> u64 {
        let key = (what.to_owned(), event.to_owned());
        *self
            .times
            .get(&key)
            .unwrap_or_else(|| panic!("event {event} has no mark {what:?}"))
    }
}
