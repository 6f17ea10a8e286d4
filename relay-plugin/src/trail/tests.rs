//! Nothing that was refused is in neither form.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::atomic::{AtomicU64, Ordering};

use keyturn_proto::ErrorClass;
use keyturn_store::audit::chain_id;
use keyturn_store::contract::counting::Counting;
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::{Asked, AuditTrail as _, Refuse, SecretStore as _};

use super::*;

const NOW: UnixMs = UnixMs(1_760_000_000_000);
const ALICE: Npub = Npub::from_bytes([1; 32]);

struct World {
    trail: Arc<Trail>,
    store: Counting,
    events: AtomicU64,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("store.db")).unwrap();
        let store = Counting::new(Arc::new(store));
        Self {
            trail: Arc::new(Trail::new(Arc::new(store.clone()))),
            store,
            events: AtomicU64::default(),
            dir,
        }
    }

    fn event(&self) -> String {
        format!("{:064x}", self.events.fetch_add(1, Ordering::SeqCst))
    }

    async fn note(&self, sender: Npub, reason: &'static str, now: UnixMs) -> bool {
        let event = self.event();
        let decision = refusal(&event, reason, now);
        self.trail.note(sender, reason, &event, decision, now).await
    }

    /// Changes the head of a client's chain behind the store's back.
    fn change_head(&self, client: &str, change: &str) {
        self.change_head_of(&format!("client:{client}"), change);
    }

    fn change_head_of(&self, chain: &str, change: &str) {
        let db = rusqlite::Connection::open(self.dir.path().join("store.db")).unwrap();
        let sql = format!("UPDATE audit_chains SET doc = {change} WHERE id = ?1");
        let changed = db.execute(&sql, [chain_id(chain)]).unwrap();
        assert_eq!(changed, 1, "{chain} is there");
    }

    async fn is_marked(&self, event: &str) -> bool {
        let asked = Asked {
            event_id: event.to_owned(),
            operation: None,
        };
        let found = self.store.decided(&[asked]).await.unwrap();
        found[0].refused.is_some()
    }

    async fn records(&self) -> Vec<AuditRecord> {
        self.store.read(None, 100_000).await.unwrap()
    }

    async fn summaries(&self) -> Vec<String> {
        let mut records = self.records().await;
        records.retain(|record| record.event == REPEATED);
        records.into_iter().map(|record| record.reason).collect()
    }
}

fn refusal(event: &str, reason: &str, now: UnixMs) -> Decision {
    Decision {
        audit: AuditRecord {
            at: now,
            actor: Actor::Admin { npub: ALICE },
            event: REFUSED.to_owned(),
            reason: reason.to_owned(),
            client_id: None,
            rotation_id: None,
            version_id: None,
            group: None,
            nostr_event: Some(event.to_owned()),
            device: None,
        },
        refuses: Some(Refuse {
            event_id: event.to_owned(),
            class: ErrorClass::PolicyViolation,
            reason: reason.to_owned(),
            expires_at: now.plus(WINDOW),
        }),
    }
}

fn field(summary: &str, name: &str) -> String {
    let mut parts = summary.split(' ').skip(1);
    let value = parts.find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    value.unwrap().to_owned()
}

fn count(summary: &str) -> u64 {
    field(summary, "count").parse().unwrap()
}

fn later(seconds: u64) -> UnixMs {
    NOW.plus(Duration::from_secs(seconds))
}

#[tokio::test]
async fn a_decision_is_recorded_with_the_mark_that_refuses_its_event() {
    let world = World::new();
    let event = world.event();
    let decision = refusal(&event, "jwt.expired", NOW);
    world.trail.decide(decision.clone()).await.unwrap();
    // In doubt, and made again.
    world.trail.decide(decision).await.unwrap();
    assert_eq!(world.records().await.len(), 1);
    let asked = Asked {
        event_id: event,
        operation: None,
    };
    let found = world.store.decided(&[asked]).await.unwrap();
    assert_eq!(found[0].refused.as_ref().unwrap().reason, "jwt.expired");
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_decided() {
    let world = World::new();
    world.store.fail("record");
    let event = world.event();
    let decision = refusal(&event, "jwt.expired", NOW);
    assert!(world.trail.decide(decision.clone()).await.is_err());
    assert_eq!(world.records().await.len(), 0);
    world.store.mend();
    world.trail.decide(decision).await.unwrap();
    assert_eq!(world.records().await.len(), 1);
}

#[tokio::test]
async fn decisions_made_at_the_same_time_share_commits() {
    const MANY: usize = 250;
    let world = World::new();
    // The first one is being written while the others come.
    let held = world.store.hold("record");
    let tasks: Vec<_> = (0..MANY)
        .map(|_| {
            let (trail, event) = (Arc::clone(&world.trail), world.event());
            tokio::spawn(async move { trail.decide(refusal(&event, "jwt.expired", NOW)).await })
        })
        .collect();
    waiting(&world, MANY - 1).await;
    drop(held);
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(world.records().await.len(), MANY);
    // One, then as many as fit.
    assert_eq!(world.store.calls("record"), 1 + 3);
}

/// Waits until the first decision is being written and `queued` others wait.
async fn waiting(world: &World, queued: usize) {
    tokio::time::timeout(Duration::from_secs(20), async {
        while world.store.calls("record") == 0 || world.trail.queue().len() < queued {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("all wait");
}

#[tokio::test]
async fn a_chain_that_cannot_be_written_keeps_nothing_out_of_the_trail_and_holds_up_nobody() {
    let world = World::new();
    let about = |client: &str| {
        let event = world.event();
        let mut decision = refusal(&event, "jwt.expired", NOW);
        decision.audit.client_id = Some(client.parse().unwrap());
        (event, decision)
    };
    for client in ["whole", "full", "damaged"] {
        world.trail.decide(about(client).1).await.unwrap();
    }
    world.change_head("full", "json_set(doc, '$.seq', 9999999999)");
    world.change_head("damaged", "'{}'");
    let before = world.store.calls("record");
    let held = world.store.hold("record");
    // The first one is being written while the others come, and share commits as far as they share chains.
    let mut tasks = Vec::new();
    let mut events = Vec::new();
    for client in ["whole", "full", "damaged", "whole", "full", "damaged"] {
        let (event, decision) = about(client);
        let trail = Arc::clone(&world.trail);
        tasks.push(tokio::spawn(async move { trail.decide(decision).await }));
        events.push(event);
        if tasks.len() == 1 {
            tokio::time::timeout(Duration::from_secs(20), async {
                while world.store.calls("record") == before {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .expect("it writes");
        }
    }
    waiting(&world, 5).await;
    drop(held);
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    for event in &events {
        assert!(world.is_marked(event).await, "{event}");
    }
    let records = world.records().await.split_off(3);
    let told = |client: Option<&str>, reason: &str| {
        let client = client.map(|client| client.parse().unwrap());
        let alike = records
            .iter()
            .filter(|record| record.client_id == client && record.reason == reason);
        alike.count()
    };
    assert_eq!(told(Some("whole"), "jwt.expired"), 2);
    let full = "jwt.expired chain=client:full unwritable=audit.chain_full";
    assert_eq!(told(None, full), 2, "{records:?}");
    let damaged = "jwt.expired chain=client:damaged unwritable=damaged";
    assert_eq!(told(None, damaged), 2, "{records:?}");
    // Made again after a doubt, it is recorded no second time.
    let (event, decision) = about("full");
    world.trail.decide(decision.clone()).await.unwrap();
    world.trail.decide(decision).await.unwrap();
    let all = world.records().await;
    let of_event = all
        .iter()
        .filter(|record| record.nostr_event.as_ref() == Some(&event));
    assert_eq!(of_event.count(), 1);
}

#[tokio::test]
async fn what_belongs_in_a_devices_chain_that_cannot_be_written_keeps_its_nonce_and_accessor() {
    let world = World::new();
    let about = || {
        let mut decision = refusal(&world.event(), "nonce.used", NOW);
        decision.audit.device = Some(AuditDevice {
            device_id: "river-1".parse().unwrap(),
            nonce: Some("0123456789abcdef".to_owned()),
            accessor: Some("acc-0".to_owned()),
            claimed: false,
        });
        decision
    };
    world.trail.decide(about()).await.unwrap();
    world.change_head_of("device:river-1", "'{}'");
    world.trail.decide(about()).await.unwrap();
    let record = world.records().await.pop().unwrap();
    let reason = "nonce.used chain=device:river-1 unwritable=damaged";
    assert_eq!(record.reason, reason);
    let own = about().audit.device.unwrap();
    assert_eq!(
        record.device,
        Some(AuditDevice {
            claimed: true,
            ..own
        })
    );
}

#[tokio::test]
async fn a_writer_that_is_dropped_leaves_the_others_in_doubt_and_the_trail_at_work() {
    let world = World::new();
    let held = world.store.hold("record");
    let decide = || {
        let (trail, event) = (Arc::clone(&world.trail), world.event());
        tokio::spawn(async move { trail.decide(refusal(&event, "jwt.expired", NOW)).await })
    };
    let writer = decide();
    tokio::time::timeout(Duration::from_secs(20), async {
        while world.store.calls("record") == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it writes");
    writer.abort();
    assert!(writer.await.unwrap_err().is_cancelled());
    drop(held);
    let next = decide();
    let next = tokio::time::timeout(Duration::from_secs(20), next).await;
    next.expect("the trail goes on").unwrap().unwrap();
}

#[tokio::test]
async fn a_flood_becomes_its_first_records_and_a_summary_that_accounts_for_the_rest() {
    let world = World::new();
    let mut own = 0;
    for n in 0..1000 {
        own += u32::from(
            world
                .note(ALICE, "limits.breaker_open", later(n / 10))
                .await,
        );
    }
    assert_eq!(own, FIRST);
    assert_eq!(world.records().await.len(), FIRST as usize);
    assert!(
        world.note(ALICE, "ack.malformed", NOW).await,
        "another reason"
    );
    assert_eq!(world.trail.unwritten(), 940);
    world.trail.flush(later(100), false).await;
    let summaries = world.summaries().await;
    assert_eq!(summaries.len(), 1);
    let summary = &summaries[0];
    assert!(summary.starts_with("limits.breaker_open count=940 "));
    let first = later(u64::from(FIRST) / 10);
    assert_eq!(field(summary, "since"), first.0.to_string());
    assert_eq!(field(summary, "until"), later(99).0.to_string());
    // Which they were: every event, in the order they came.
    let mut digest = [0u8; 32];
    for n in FIRST..1000 {
        let mut hash = Sha256::new();
        hash.update(digest);
        hash.update(format!("{n:064x}"));
        digest = hash.finalize().into();
    }
    assert_eq!(field(summary, "digest"), hex::encode(digest));
    assert_eq!(world.trail.unwritten(), 0);

    // The next window has room again.
    let next = later(WINDOW.as_secs() + 100);
    assert!(world.note(ALICE, "limits.breaker_open", next).await);
}

#[tokio::test]
async fn summaries_come_every_few_seconds_and_at_the_end() {
    let world = World::new();
    for _ in 0..FIRST + 2 {
        world.note(ALICE, "ack.malformed", NOW).await;
    }
    world.trail.flush(NOW, false).await;
    assert_eq!(world.summaries().await.len(), 1);
    world.note(ALICE, "ack.malformed", NOW).await;
    world.trail.flush(later(EVERY.as_secs() - 1), false).await;
    assert_eq!(world.summaries().await.len(), 1, "not so soon");
    world.trail.flush(later(EVERY.as_secs()), false).await;
    assert_eq!(world.summaries().await.len(), 2);
    world.note(ALICE, "ack.malformed", NOW).await;
    world.trail.flush(later(EVERY.as_secs()), true).await;
    let counts: Vec<u64> = world.summaries().await.iter().map(|it| count(it)).collect();
    assert_eq!(counts, [2, 1, 1]);
    world.trail.flush(later(EVERY.as_secs()), true).await;
    assert_eq!(world.summaries().await.len(), 3, "only once");
}

#[tokio::test]
async fn what_cannot_be_written_is_kept_and_written_later() {
    let world = World::new();
    world.store.fail("record");
    for n in 0..100 {
        assert!(!world.note(ALICE, "ack.malformed", later(n)).await);
    }
    for n in 0..5 {
        world
            .trail
            .flush(later(100 + n * EVERY.as_secs()), false)
            .await;
        world.note(ALICE, "ack.malformed", later(100 + n)).await;
    }
    world.trail.flush(later(200), true).await;
    assert_eq!(world.records().await.len(), 0);
    assert_eq!(world.trail.unwritten(), 105);
    world.store.mend();
    world.trail.flush(later(300), true).await;
    let mut records = world.records().await;
    let summary = records.pop().unwrap();
    assert_eq!(
        (summary.event.as_str(), count(&summary.reason)),
        (REPEATED, 45)
    );
    // Each with its own time, in the order they came.
    let times: Vec<UnixMs> = records.iter().map(|record| record.at).collect();
    assert_eq!(times, (0..60).map(later).collect::<Vec<_>>());
    assert!(records.iter().all(|record| record.event == REFUSED));
    assert_eq!(world.trail.unwritten(), 0);
}

#[tokio::test]
async fn what_was_in_doubt_is_in_the_trail_once() {
    let world = World::new();
    world.store.doubt("record");
    for n in 0..100 {
        assert!(!world.note(ALICE, "ack.malformed", later(n)).await);
    }
    for n in 1..4 {
        world.trail.flush(later(100 * n), true).await;
        assert_eq!(world.trail.unwritten(), 100);
    }
    world.store.mend();
    for n in 4..6 {
        world.trail.flush(later(100 * n), true).await;
    }
    assert_eq!(world.trail.unwritten(), 0);
    let records = world.records().await;
    let own = records.iter().filter(|record| record.event == REFUSED);
    assert_eq!(own.count(), FIRST as usize);
    let summaries = world.summaries().await;
    assert_eq!(summaries.iter().map(|it| count(it)).sum::<u64>(), 40);

    // A sum in doubt stays as it is, whatever is counted meanwhile.
    world.store.doubt("record");
    world.note(ALICE, "ack.malformed", later(500)).await;
    world.trail.flush(later(500), true).await;
    world.note(ALICE, "ack.malformed", later(501)).await;
    world.store.mend();
    world.trail.flush(later(501), true).await;
    let counts: Vec<u64> = world.summaries().await.iter().map(|it| count(it)).collect();
    assert_eq!(counts, [40, 1, 1]);
}

#[tokio::test]
async fn memory_is_bounded_and_the_overflow_is_still_accounted_for() {
    let world = World::new();
    world.store.fail("record");
    let senders = 2 * MAX_KEYS as u64;
    for sender in 0..senders {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&sender.to_be_bytes());
        world
            .note(Npub::from_bytes(key), "ack.malformed", NOW)
            .await;
    }
    // One key more, for those who share it.
    assert_eq!(world.trail.state().seen.len(), MAX_KEYS + 1);
    assert_eq!(world.trail.state().kept.len(), KEPT);
    assert_eq!(world.trail.unwritten(), senders);
    world.store.mend();
    world.trail.flush(NOW, true).await;
    let records = world.records().await;
    let own = records.iter().filter(|record| record.event == REFUSED);
    assert_eq!(own.count(), KEPT);
    let sums = || records.iter().filter(|record| record.event == REPEATED);
    let all: u64 = sums().map(|record| count(&record.reason)).sum();
    assert_eq!(all + KEPT as u64, senders);
    let shared = sums().filter(|record| record.actor == Actor::Unknown);
    let shared: Vec<u64> = shared.map(|record| count(&record.reason)).collect();
    assert_eq!(shared, [senders - MAX_KEYS as u64]);
    // Written and over, they make room.
    assert!(world.note(ALICE, "ack.malformed", NOW.plus(WINDOW)).await);
    assert!(world.trail.state().seen.len() <= 2);
}

/// A trail of strangers: anybody can be anybody.
fn of_strangers(world: &World) -> Trail {
    let terms = Terms {
        repeated: REPEATED,
        first: 2,
        in_all: 10,
        every: Duration::from_secs(60),
        summaries: 3,
    };
    Trail::under(terms, Arc::new(world.store.clone()))
}

fn stranger(number: u64) -> Npub {
    let mut key = [9u8; 32];
    key[..8].copy_from_slice(&number.to_be_bytes());
    Npub::from_bytes(key)
}

#[tokio::test]
async fn whoever_can_take_any_name_fills_neither_the_trail_nor_the_memory() {
    let world = World::new();
    let trail = of_strangers(&world);
    let note = async |sender: u64, now: UnixMs| {
        let event = world.event();
        let decision = refusal(&event, "not_allowed", now);
        trail
            .note(stranger(sender), "not_allowed", &event, decision, now)
            .await
    };
    for round in 0..10 {
        for sender in 0..50 {
            note(sender, later(round)).await;
        }
    }
    assert_eq!(world.records().await.len(), 10, "records of their own");
    trail.flush(later(59), false).await;
    let summaries = world.summaries().await;
    assert_eq!(summaries.len(), 3, "two, and one for all others");
    assert_eq!(summaries.iter().map(|it| count(it)).sum::<u64>(), 490);
    trail.flush(later(60), false).await;
    assert_eq!(world.summaries().await.len(), 3, "not before its time");
    // In the next window there is room again.
    assert!(note(77, later(WINDOW.as_secs())).await);
}

#[tokio::test]
async fn one_record_that_no_chain_takes_holds_back_no_other() {
    let world = World::new();
    world.store.fail("record");
    // Past the year 9999 no backend takes a time.
    for at in [NOW, UnixMs(u64::MAX), NOW] {
        let event = world.event();
        let decision = refusal(&event, "ack.malformed", at);
        let reason = "ack.malformed";
        assert!(!world.trail.note(ALICE, reason, &event, decision, NOW).await);
    }
    world.store.mend();
    world.trail.flush(later(10), true).await;
    assert_eq!(world.trail.unwritten(), 0);
    let records = world.records().await;
    let own = records.iter().filter(|record| record.event == REFUSED);
    assert_eq!(own.count(), 2);
    let summaries = world.summaries().await;
    assert_eq!(summaries.len(), 1);
    assert_eq!(count(&summaries[0]), 1);
}
