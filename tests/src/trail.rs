//! What the relay leaves behind: its audit trail, its documents byte for byte, its counters.

use keyturn_proto::Npub;
use keyturn_store::documents::{Actor, AdminDoc, AuditRecord, RotationDoc};
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::{AuditTrail as _, Registry as _, SecretStore as _, StoreError};
use nostr::EventId;
use rusqlite::{Connection, OpenFlags};

use crate::relay::Relay;
use crate::rogue::Rogue;
use crate::world::{World, eventually};

/// More records than any test makes.
const ALL: usize = 100_000;

/// The operator's eyes on one world.
pub struct Trail {
    pub store: SqliteStore,
    raw: Connection,
}

/// Rows of the tables that decide what a secret is worth and where it went: `(table, key, document)`.
pub type Documents = Vec<(String, String, String)>;

impl Trail {
    pub fn of(world: &World) -> Self {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let raw = Connection::open_with_flags(world.layout.store(), flags).unwrap();
        raw.busy_timeout(crate::PATIENCE).unwrap();
        Self {
            store: world.store(),
            raw,
        }
    }

    /// Clients, versions, rotations, actions, ciphertexts and group bindings, as they are stored. What a refusal may change (nonces, counters of
    /// wrong codes, the audit trail) is not among them.
    pub fn documents(&self) -> Documents {
        let sql = "SELECT 'client', client_id, doc FROM clients \
             UNION ALL SELECT 'version', client_id || '/' || version_id, doc FROM versions \
             UNION ALL SELECT 'rotation', rotation_id, doc FROM rotations \
             UNION ALL SELECT 'action', action_id, doc FROM actions \
             UNION ALL SELECT 'outbox', event_id, doc FROM outbox \
             UNION ALL SELECT 'group', alias, doc FROM admin_groups ORDER BY 1, 2";
        let mut statement = self.raw.prepare_cached(sql).unwrap();
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        statement
            .query_map([], row)
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap()
    }

    /// Changes an enrolment as an operator would, whatever the relay writes into the same document meanwhile.
    pub async fn change_admin(&self, npub: &Npub, change: impl Fn(&mut AdminDoc)) {
        eventually("a change that nobody came before", async || {
            let mut admin = self.store.admin(npub).await.unwrap().unwrap();
            change(&mut admin);
            let audit = self.records().await.pop().unwrap();
            match self.store.put_admin(admin, audit).await {
                Err(StoreError::Conflict {
                    why: "admin.changed",
                }) => None,
                stored => {
                    stored.unwrap();
                    Some(())
                }
            }
        })
        .await;
    }

    pub async fn records(&self) -> Vec<AuditRecord> {
        self.store.read(None, ALL).await.unwrap()
    }

    /// Waits for a record with this event and reason; the newest.
    pub async fn wait(&self, event: &str, reason: &str) -> AuditRecord {
        self.wait_for(&format!("audit {event} {reason}"), |record| {
            record.event == event && record.reason == reason
        })
        .await
    }

    /// Waits for a record; the newest that fits.
    pub async fn wait_for(&self, what: &str, fits: impl Fn(&AuditRecord) -> bool) -> AuditRecord {
        eventually(what, async || self.records().await.into_iter().rfind(&fits)).await
    }

    /// The one record with which `event` of `sender` was refused: exactly one, naming who and why.
    pub async fn refused(&self, word: &str, event: EventId, sender: &Rogue, reason: &str) {
        let id = event.to_hex();
        let what = format!("the record that refuses {id} for {reason}");
        let about =
            |record: &AuditRecord| record.event == word && record.nostr_event.as_ref() == Some(&id);
        self.wait_for(&what, about).await;
        let records: Vec<AuditRecord> = self.records().await.into_iter().filter(about).collect();
        let [record] = &records[..] else {
            panic!("one refusal, one record: {records:?}")
        };
        let actor = Actor::Admin {
            npub: sender.npub(),
        };
        assert_eq!((record.reason.as_str(), &record.actor), (reason, &actor));
    }

    /// How many records have this event and reason.
    pub async fn count(&self, event: &str, reason: &str) -> usize {
        self.records()
            .await
            .iter()
            .filter(|record| record.event == event && record.reason == reason)
            .count()
    }

    /// Waits until nothing is under way and every end was announced: from here on, only requests change documents.
    pub async fn quiet(&self) {
        let sql = "SELECT count(*) FROM rotations WHERE done = 0 \
             OR json_extract(doc, '$.announced_at') IS NULL";
        eventually("every rotation is over and announced", async || {
            let mut statement = self.raw.prepare_cached(sql).unwrap();
            let open: i64 = statement.query_row([], |row| row.get(0)).unwrap();
            (open == 0).then_some(())
        })
        .await;
    }

    pub async fn rotation(&self, id: &keyturn_proto::RotationId) -> RotationDoc {
        self.store.rotation(id).await.unwrap().unwrap()
    }
}

/// The sum of a counter over all its labels, or over those that contain `label`.
pub async fn counter(relay: &Relay, name: &str, label: &str) -> u64 {
    let text = reqwest::get(format!("{}/metrics", relay.web))
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    text.lines()
        .filter(|line| line.starts_with(name) && line.contains(label))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
        .sum()
}

/// Resident memory of a process, in bytes.
pub fn resident(relay: &Relay) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.pid())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kilobytes * 1024
}
