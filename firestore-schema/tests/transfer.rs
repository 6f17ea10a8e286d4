//! Copying a store: SQLite to Firestore and back, cut off and resumed, refused, and served afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use keyturn_proto::device::{DeviceId, DeviceNonce};
use keyturn_proto::notify::Outcome;
use keyturn_proto::{UnixMs, VersionId};
use keyturn_store::approle::{AppRoleDoc, AppRoleStore, SecretIdDoc};
use keyturn_store::collections::{
    ADMINS, AUDIT, CHAINS, CLIENTS, DEVICES, LEASES, OUTBOX, VERSIONS,
};
use keyturn_store::contract::World;
use keyturn_store::contract::fixture::{
    DELAY, FENCE, NOW, REQUESTER, SECOND, THIRD, ack, admin, at, audit, cancel, client, client_id,
    group, operation, prepare, reserve, version, version_id,
};
use keyturn_store::devices::documents::DeviceOptions;
use keyturn_store::devices::store::{Answer as DeviceAnswer, Change, Limits};
use keyturn_store::documents::{ActiveRotation, ClientStatus, Origin, VersionDoc, VersionState};
use keyturn_store::emulator::Emulator;
use keyturn_store::firestore::{FirestoreSettings, FirestoreStore};
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::{
    AuditTrail as _, BurnNonce, Registry as _, Reserved, SecretStore as _, Store,
};
use keyturn_store::transfer::{COLLECTIONS, CopyError, Item, Options, Report, Transfer, copy};

/// Long after every lease of the history.
const LATER: UnixMs = UnixMs(NOW.0 + 365 * 24 * 3_600_000);

fn sqlite() -> (tempfile::TempDir, Arc<SqliteStore>) {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("keyturn.db")).unwrap();
    (dir, Arc::new(store))
}

async fn firestore() -> Arc<FirestoreStore> {
    let emulator = Emulator::shared().await;
    let settings = FirestoreSettings {
        project: emulator.fresh_project(),
        database: "keyturn".to_owned(),
        endpoint: Some(emulator.endpoint().parse().unwrap()),
        timeout: Duration::from_secs(30),
    };
    Arc::new(FirestoreStore::open(settings).await.unwrap())
}

async fn reserved(store: &dyn Store, n: u32, now: UnixMs) -> ActiveRotation {
    match store.reserve(reserve(&operation(n), now)).await.unwrap() {
        Reserved::New(active) => active,
        other => panic!("not reserved: {other:?}"),
    }
}

async fn promoted(store: &dyn Store, n: u32, now: UnixMs) -> UnixMs {
    let active = reserved(store, n, now).await;
    let then = UnixMs(now.0 + DELAY);
    store.prepare(prepare(&active, n, then, now)).await.unwrap();
    for by in [REQUESTER, SECOND] {
        store
            .record_ack(ack(&operation(n), n, by, true, then))
            .await
            .unwrap();
    }
    then
}

/// One whose issue is under way, one that has confirmed a second `secret_id` (so its first one is doomed), one that was taken off the list.
async fn devices(store: &dyn Store) {
    const HOUR: Duration = Duration::from_secs(3600);
    let device = |n: u32| -> DeviceId { format!("pump-{n}").parse().unwrap() };
    let nonce = |n: u32| -> DeviceNonce { format!("nonce-number-{n:06}").parse().unwrap() };
    let ask = |n: u32| Change::Ask {
        nonce: nonce(n),
        reason: "invalid_secret".to_owned(),
        identity: None,
        owner: "relay-a".to_owned(),
        issuer: "embedded".to_owned(),
        limits: Limits {
            per_hour: 30,
            step: HOUR,
            ttl: HOUR,
            replay: HOUR,
        },
    };
    let change = async |n: u32, change: Change| {
        let answer = store.change_device(&device(n), change, NOW).await;
        answer.unwrap()
    };
    for n in 1..=3 {
        let allow = Change::Allow {
            role: "river-iot".to_owned(),
            options: DeviceOptions::default(),
        };
        assert!(matches!(change(n, allow).await, DeviceAnswer::Done(_)));
    }
    assert!(matches!(change(1, ask(1)).await, DeviceAnswer::Done(_)));
    for attempt in 1..=2u32 {
        let asked = change(2, ask(10 + attempt)).await;
        assert!(matches!(asked, DeviceAnswer::Done(_)), "{asked:?}");
        let start = Change::Start {
            attempt: u64::from(attempt),
            step: HOUR,
        };
        assert!(matches!(change(2, start).await, DeviceAnswer::Done(_)));
        let issued = Change::Issued {
            attempt: u64::from(attempt),
            role: "river-iot".to_owned(),
            accessor: format!("accessor-{attempt}"),
            expected_proof: format!("proof-{attempt}"),
            expires_at: NOW.plus(HOUR * 6),
            confirm: HOUR,
        };
        let issued = change(2, issued).await;
        assert!(matches!(issued, DeviceAnswer::Done(_)), "{issued:?}");
    }
    assert!(matches!(
        change(3, Change::Deny).await,
        DeviceAnswer::Done(_)
    ));
}

/// Two clients with secrets from elsewhere: one in plain, one of which only the bcrypt setting is known.
async fn imported(store: &dyn Store) {
    let setting = "$2b$10$N9qo8uLOickgx2ZMRZoMye".to_owned();
    for (n, prehash) in [(70, None), (71, Some(setting))] {
        let id: keyturn_proto::ClientId = format!("imported-{n}").parse().unwrap();
        let secret = VersionDoc {
            client_id: id.clone(),
            origin: Origin::Imported,
            prefilter: None,
            prehash,
            ..version(n, None, VersionState::Current, NOW)
        };
        let mut record = audit("client.imported", NOW);
        record.client_id = Some(id.clone());
        let created = store.create_client(client(id), Some(secret), record);
        created.await.unwrap();
    }
}

/// Two promotions (so one version is in grace), one rotation that ended, one that is prepared and has an ack; a group, refusals, a nonce, a lease,
/// devices in several states, imported secrets, and more clients than fit on a page of the tests. The rotation under way.
async fn history<S: Store + AppRoleStore + 'static>(store: Arc<S>) -> ActiveRotation {
    World::new(store.clone()).settle().await;
    store
        .put_group(group("ops", Some(1)), audit("group.bound", NOW))
        .await
        .unwrap();
    store
        .lease("rotation", "relay-a", 15_000, NOW)
        .await
        .unwrap();
    for n in 0..5 {
        let id: keyturn_proto::ClientId = format!("other-{n}").parse().unwrap();
        let mut record = audit("client.created", NOW);
        record.client_id = Some(id.clone());
        store.create_client(client(id), None, record).await.unwrap();
    }
    let role = AppRoleDoc {
        role: "river-iot".to_owned(),
        role_id: "00".repeat(16),
        created_at: NOW,
    };
    store
        .ensure_role(role, audit("approle.role_created", NOW))
        .await
        .unwrap();
    devices(store.as_ref()).await;
    imported(store.as_ref()).await;
    for uses_left in [None, Some(3)] {
        let secret_id = SecretIdDoc {
            accessor: VersionId::generate(NOW).unwrap(),
            role: "river-iot".to_owned(),
            device: "pump-7".to_owned(),
            nonce_hash: "ab".repeat(32),
            secret_hash: "LSDynK4JQHtB-kC5lcSb7pfuuFdYN5g2qn63-HGD764".to_owned(),
            mac_key_ref: "k".to_owned(),
            prefilter: "00000000".to_owned(),
            created_at: NOW,
            expires_at: LATER,
            uses_left,
            cidrs: Vec::new(),
        };
        store.add_secret_id(secret_id).await.unwrap();
    }
    let burnt = BurnNonce {
        nonce_hash: "ab".repeat(32),
        owner_event: "one".to_owned(),
        expires_at: at(1000),
        now: NOW,
        audit: audit("nonce.burnt", NOW),
    };
    store.burn_nonce(burnt).await.unwrap();
    let mut nameless = audit("request.refused", NOW);
    nameless.client_id = None;
    store.append(nameless).await.unwrap();
    let then = promoted(store.as_ref(), 2, NOW).await;
    let then = promoted(store.as_ref(), 3, UnixMs(then.0 + 1)).await;
    let ended = UnixMs(then.0 + 1);
    reserved(store.as_ref(), 4, ended).await;
    store
        .cancel(cancel(&operation(4), Outcome::Canceled, ended))
        .await
        .unwrap();
    let under_way = UnixMs(then.0 + 2);
    let active = reserved(store.as_ref(), 5, under_way).await;
    let promotes = UnixMs(under_way.0 + DELAY);
    store
        .prepare(prepare(&active, 5, promotes, under_way))
        .await
        .unwrap();
    store
        .record_ack(ack(&operation(5), 5, THIRD, true, under_way))
        .await
        .unwrap();
    active
}

fn options() -> Options {
    Options {
        page: 3,
        ..Options::at(LATER)
    }
}

async fn run(from: &dyn Transfer, to: &dyn Transfer) -> Result<Report, CopyError> {
    copy(from, to, options(), |_| ControlFlow::Continue(())).await
}

/// Everything, page by page, in an order that does not depend on the backend.
async fn everything(store: &dyn Transfer) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    for collection in COLLECTIONS {
        let mut after = None;
        loop {
            let page = store.export(collection, after.as_deref(), 2).await.unwrap();
            all.extend(page.items.iter().map(|it| (collection, format!("{it:?}"))));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
    }
    all.sort();
    all
}

/// Without what a finished copy leaves in the operator's chain.
async fn without_record(store: &dyn Transfer) -> Vec<(&'static str, String)> {
    let mut all = everything(store).await;
    all.retain(|(_, text)| !text.contains("store.copied"));
    all.retain(|(collection, text)| *collection != CHAINS || !text.contains("instance:operator"));
    all
}

fn copied(report: &Report, collection: &str) -> (u64, u64, u64) {
    let it = report
        .collections
        .iter()
        .find(|it| it.collection == collection);
    let it = it.unwrap();
    (it.copied, it.already_there, it.verified)
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_arrives_and_the_rotation_under_way_ends_there() {
    let (_dir, from) = sqlite();
    let active = history(from.clone()).await;
    let to = firestore().await;

    let looked = Options {
        dry_run: true,
        ..options()
    };
    let report = copy(from.as_ref(), to.as_ref(), looked, |_| {
        ControlFlow::Continue(())
    })
    .await
    .unwrap();
    assert_eq!(copied(&report, CLIENTS), (8, 0, 0));
    assert_eq!(everything(to.as_ref()).await, []);

    let before = everything(from.as_ref()).await;
    let report = run(from.as_ref(), to.as_ref()).await.unwrap();
    assert_eq!(everything(from.as_ref()).await, before);
    assert_eq!(copied(&report, CLIENTS), (8, 0, 8));
    assert_eq!(copied(&report, VERSIONS), (6, 0, 6));
    assert_eq!(copied(&report, DEVICES), (3, 0, 3));
    assert_eq!(copied(&report, ADMINS), (3, 0, 3));
    assert_eq!(copied(&report, OUTBOX), (3, 0, 3));
    assert!(report.chains_verified >= 7);
    assert_eq!(
        without_record(to.as_ref()).await,
        without_record(from.as_ref()).await
    );
    let told = to.read(None, usize::MAX).await.unwrap();
    let records = told.iter().filter(|it| it.event == "store.copied");
    assert_eq!(records.count(), 1);

    // Once more: nothing to do, and no second record.
    let there = everything(to.as_ref()).await;
    let report = run(from.as_ref(), to.as_ref()).await.unwrap();
    assert_eq!(copied(&report, CLIENTS), (0, 8, 8));
    assert_eq!(everything(to.as_ref()).await, there);

    // Back again, into an empty file.
    let (_other, back) = sqlite();
    run(to.as_ref(), back.as_ref()).await.unwrap();
    assert_eq!(
        without_record(back.as_ref()).await,
        without_record(from.as_ref()).await
    );

    // A relay begins at the destination: its fence is higher than any before.
    let lease = to
        .lease("rotation", "relay-b", 15_000, LATER)
        .await
        .unwrap();
    let fence = lease.fence.max(FENCE);
    let now = UnixMs(LATER.0 + 1);
    let taken = to
        .take_over(&active, fence, now, audit("rotation.taken_over", now))
        .await
        .unwrap();
    to.prepare(prepare(&taken, 6, UnixMs(now.0 + DELAY), now))
        .await
        .unwrap();
    let there = to.client(&client_id()).await.unwrap().unwrap();
    assert_eq!(there.current_version, Some(version_id(3)));
    assert_eq!(there.active_rotation, Some(taken));
    assert!(matches!(
        run(from.as_ref(), to.as_ref()).await,
        Err(CopyError::Served)
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_cut_off_after_any_page_goes_on() {
    let (_dir, from) = sqlite();
    history(from.clone()).await;
    let to = firestore().await;
    // Each run gets one page further than the one before, so every page is the last one of some run.
    let mut stops = 0;
    let report = loop {
        let mut pages = 0;
        let result = copy(from.as_ref(), to.as_ref(), options(), |_| {
            pages += 1;
            if pages > stops {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        match result.await {
            Err(CopyError::Stopped) => stops += 1,
            other => break other.unwrap(),
        }
        assert!(stops < 100, "it never ends");
    };
    assert!(stops > 3, "cut off only {stops} times");
    assert_eq!(copied(&report, CLIENTS).2, 8);
    assert_eq!(
        without_record(to.as_ref()).await,
        without_record(from.as_ref()).await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_contradicts_the_source_is_refused_and_nothing_is_written() {
    let (_dir, from) = sqlite();
    history(from.clone()).await;

    let to = firestore().await;
    let mut known = from.client(&client_id()).await.unwrap().unwrap();
    known.status = ClientStatus::Suspended;
    to.import(&[Item::Client(known)]).await.unwrap();
    let there = everything(to.as_ref()).await;
    let refused = run(from.as_ref(), to.as_ref()).await.unwrap_err();
    assert!(refused.is_contradiction());
    let text = refused.to_string();
    assert!(!text.contains("ext-totp-svc"), "{text}");
    assert!(
        matches!(
            refused,
            CopyError::Differs {
                collection: CLIENTS,
                count: 1
            }
        ),
        "{text}"
    );
    assert_eq!(everything(to.as_ref()).await, there);

    let to = firestore().await;
    to.import(&[Item::Admin(admin(77, false))]).await.unwrap();
    let refused = run(from.as_ref(), to.as_ref()).await;
    assert!(
        matches!(
            refused,
            Err(CopyError::Foreign {
                collection: ADMINS,
                count: 1
            })
        ),
        "{refused:?}"
    );

    // Somebody who is not the copy wrote into the operator's chain.
    let to = firestore().await;
    run(from.as_ref(), to.as_ref()).await.unwrap();
    let mut other = audit("group.bound", LATER);
    other.client_id = None;
    to.append(other).await.unwrap();
    let refused = run(from.as_ref(), to.as_ref()).await;
    assert!(
        matches!(
            refused,
            Err(CopyError::Foreign {
                collection: AUDIT,
                ..
            })
        ),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_served_is_left_alone() {
    let (_dir, from) = sqlite();
    history(from.clone()).await;
    let to = firestore().await;
    let served = Options::at(at(100));
    let refused = copy(from.as_ref(), to.as_ref(), served, |_| {
        ControlFlow::Continue(())
    });
    assert!(matches!(refused.await, Err(CopyError::InUse)));
    assert_eq!(everything(to.as_ref()).await, []);
    let looked = Options {
        dry_run: true,
        ..served
    };
    let looked = copy(from.as_ref(), to.as_ref(), looked, |_| {
        ControlFlow::Continue(())
    });
    assert_eq!(copied(&looked.await.unwrap(), LEASES), (1, 0, 0));
    assert_eq!(everything(to.as_ref()).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_replaces_nothing() {
    let (_dir, embedded) = sqlite();
    let cloud = firestore().await;
    let stores: [Arc<dyn Transfer>; 2] = [embedded, cloud];
    for store in stores {
        use keyturn_store::transfer::Import::{Created, Different, Same};
        let first = Item::Client(client(client_id()));
        let living = Item::Version(version(1, None, VersionState::Current, NOW));
        let both = [first.clone(), living];
        assert_eq!(store.import(&both).await.unwrap(), [Created, Created]);
        assert_eq!(store.import(&both).await.unwrap(), [Same, Same]);
        let mut other = client(client_id());
        other.updated_at = LATER;
        let other = [Item::Client(other)];
        assert_eq!(store.import(&other).await.unwrap(), [Different]);
        assert_eq!(store.look_up(&other).await.unwrap(), [Some(first)]);
    }
}

/// Somebody cut the last entry of a chain off: it is not taken over as if it were whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_trail_that_was_touched_is_not_copied() {
    let (dir, from) = sqlite();
    history(from.clone()).await;
    let file = rusqlite::Connection::open(dir.path().join("keyturn.db")).unwrap();
    let cut = file.execute_batch(
        "DROP TRIGGER audit_is_append_only_delete;
         DELETE FROM audit WHERE position = (SELECT MAX(position) FROM audit);",
    );
    cut.unwrap();
    let to = firestore().await;
    let refused = run(from.as_ref(), to.as_ref()).await;
    assert!(
        matches!(
            refused,
            Err(CopyError::Touched {
                side: "source",
                count: 1
            })
        ),
        "{refused:?}"
    );
    assert_eq!(everything(to.as_ref()).await, []);
}
