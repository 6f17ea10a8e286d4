//! Reading and deleting in the relay's own database.
//!
//! LMDB gives each thread that reads a slot for as long as the thread lives, and there are 100 of them for the whole
//! relay. So all database work of ours runs on a few threads of its own, and a read transaction never outlives one job.

use std::{
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

use nostr::{Event, EventId, JsonUtil};
use nostr_db::{Db, Filter};
use tokio::sync::oneshot;

use super::port::{By, Cursor, Page, ReadError, Scan};

/// One thread may be held up by the writer's lock while it deletes; the other goes on reading.
const THREADS: usize = 2;

type Job = Box<dyn FnOnce(&Db) + Send>;

/// The threads that work in the relay's database. They end when this is dropped.
pub(super) struct DbThreads {
    jobs: mpsc::Sender<Job>,
}

impl DbThreads {
    pub(super) fn start(db: &Arc<Db>) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..THREADS {
            let (db, queue) = (Arc::clone(db), Arc::clone(&queue));
            thread::Builder::new()
                .name(format!("keyturn-db-{number}"))
                .spawn(move || {
                    loop {
                        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok(job) = job else { return };
                        // A panic inside the database crate costs its caller an error, not the relay a thread.
                        if catch_unwind(AssertUnwindSafe(|| job(&db))).is_err() {
                            tracing::error!("a job in the relay's database panicked");
                        }
                    }
                })?;
        }
        Ok(Self { jobs })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Db) -> Result<T, nostr_db::Error> + Send + 'static,
    ) -> Result<T, ReadError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |db| {
            // The caller may have given up; then nobody wants the answer.
            let _ = answer.send(work(db));
        });
        self.jobs.send(job).map_err(|_| ReadError::Detached)?;
        let result = answered
            .await
            .map_err(|_| ReadError::Database("the job failed".to_owned()))?;
        result.map_err(|error| ReadError::Database(error.to_string()))
    }

    /// Whether the event is committed.
    pub(super) async fn stored(&self, id: EventId) -> Result<bool, ReadError> {
        self.run(move |db| {
            let reader = db.reader()?;
            Ok(db.get::<Vec<u8>, _, _>(&reader, id.as_bytes())?.is_some())
        })
        .await
    }

    /// Removes what is there, in one transaction; returns the ids that were found.
    pub(super) async fn delete(&self, ids: Vec<EventId>) -> Result<Vec<EventId>, ReadError> {
        self.run(move |db| {
            let mut removed = Vec::new();
            let mut writer = db.writer()?;
            for id in ids {
                if db.del(&mut writer, id.as_bytes())? {
                    removed.push(id);
                }
            }
            db.commit(writer)?;
            Ok(removed)
        })
        .await
    }

    /// One page of a scan, oldest first.
    pub(super) async fn scan(&self, scan: Scan) -> Result<Page, ReadError> {
        self.run(move |db| page(db, scan)).await
    }
}

fn page(db: &Db, scan: Scan) -> Result<Page, nostr_db::Error> {
    let Some(filter) = filter(&scan) else {
        return Ok(Page::default());
    };
    let limit = scan.page.max(1);
    let mut cursor = scan.after.unwrap_or(Cursor {
        created_at: 0,
        seen: HashSet::new(),
    });
    let mut page = Page::default();
    let reader = db.reader()?;
    for json in db.iter::<String, _>(&reader, &filter)? {
        let Ok(event) = Event::from_json(json?) else {
            page.unreadable += 1;
            continue;
        };
        let created_at = event.created_at.as_secs();
        if created_at == cursor.created_at && cursor.seen.contains(&event.id) {
            continue;
        }
        if page.events.len() == limit {
            page.next = Some(cursor);
            return Ok(page);
        }
        if created_at != cursor.created_at {
            cursor = Cursor {
                created_at,
                seen: HashSet::new(),
            };
        }
        cursor.seen.insert(event.id);
        page.events.push(event);
    }
    Ok(page)
}

/// `None` when the scan can find nothing: to rnostr an empty list means "any".
fn filter(scan: &Scan) -> Option<Filter> {
    let mut filter = Filter {
        kinds: scan.kinds.clone().into(),
        ..Filter::default()
    };
    filter.since = scan
        .since
        .max(scan.after.as_ref().map(|cursor| cursor.created_at));
    let found = match &scan.by {
        By::Groups(groups) => {
            // rnostr indexes `h` as text, and `p` as the bytes it stands for.
            let values: Vec<Vec<u8>> = groups
                .iter()
                .map(|id| hex::encode(id).into_bytes())
                .collect();
            tag(&mut filter, b'h', values)
        }
        By::Recipients(keys) => tag(
            &mut filter,
            b'p',
            keys.iter().map(|key| key.as_bytes().to_vec()).collect(),
        ),
        By::Authors(keys) => {
            filter.authors = keys
                .iter()
                .map(|key| key.to_bytes())
                .collect::<Vec<_>>()
                .into();
            !keys.is_empty()
        }
    };
    (found && !scan.kinds.is_empty()).then_some(filter)
}

fn tag(filter: &mut Filter, name: u8, values: Vec<Vec<u8>>) -> bool {
    let any = !values.is_empty();
    filter.tags = HashMap::from([(vec![name], values.into())]);
    any
}
