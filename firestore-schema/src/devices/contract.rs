//! The contract of the device store: every backend must pass every case (feature `contract`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test suite: a panic is how it reports"
)]

use std::sync::Arc;
use std::time::Duration;

use keyturn_proto::device::{DeviceId, DeviceNonce, proof};
use keyturn_proto::{UnixMs, VersionId};

use super::documents::{DeviceOptions, Stage};
use super::store::{Answer, Change, DeviceStore, Limits, Mint, Minted};
use crate::approle::{AppRoleStore, SecretIdDoc};
use crate::documents::{Actor, AuditRecord};
use crate::store::AuditTrail;

/// What a backend is for devices.
pub trait Backend: DeviceStore + AppRoleStore + AuditTrail + 'static {}
impl<T: DeviceStore + AppRoleStore + AuditTrail + 'static> Backend for T {}

const NOW: UnixMs = UnixMs(1_739_750_000_000);
const MINUTE: Duration = Duration::from_secs(60);

fn device(n: u32) -> DeviceId {
    format!("river-{n:05}").parse().unwrap()
}

fn nonce(n: u32) -> DeviceNonce {
    format!("nonce-number-{n:06}").parse().unwrap()
}

fn ask(n: u32, owner: &str) -> Change {
    Change::Ask {
        nonce: nonce(n),
        reason: "invalid_secret".to_owned(),
        identity: None,
        owner: owner.to_owned(),
        issuer: "embedded".to_owned(),
        limits: Limits {
            per_hour: 30,
            step: MINUTE,
            ttl: MINUTE * 720,
            replay: MINUTE * 5,
        },
    }
}

async fn allow(store: &dyn Backend, n: u32) {
    let change = Change::Allow {
        role: "river-iot".to_owned(),
        options: DeviceOptions::default(),
    };
    let answer = store.change_device(&device(n), change, NOW).await.unwrap();
    assert!(matches!(answer, Answer::Done(_)));
}

async fn records(store: &dyn Backend) -> Vec<AuditRecord> {
    store.read(None, usize::MAX).await.unwrap()
}

/// Runs every case, each on an empty store.
///
/// # Panics
/// When a case fails.
pub async fn run<F, Fut>(empty_store: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<dyn Backend>>,
{
    change_and_records_are_one(empty_store().await).await;
    of_many_equal_requests_one_is_taken(empty_store().await).await;
    many_devices_at_once_lose_nothing(empty_store().await).await;
    lists_are_ordered_and_bounded(empty_store().await).await;
    due_work_comes_oldest_first_and_only_when_due(empty_store().await).await;
    a_refusal_changes_nothing(empty_store().await).await;
    what_is_issued_at_once_is_stored_whole(empty_store().await).await;
    what_is_not_issued_at_once_changes_nothing(empty_store().await).await;
    of_many_who_are_issued_to_at_once_none_shares(empty_store().await).await;
}

async fn change_and_records_are_one(store: Arc<dyn Backend>) {
    allow(&*store, 1).await;
    let id = device(1);
    store.change_device(&id, ask(1, "a"), NOW).await.unwrap();
    let doc = store.device(&id).await.unwrap().unwrap();
    let issue = doc.outstanding.clone().unwrap();
    assert_eq!((issue.stage, issue.owner.as_str()), (Stage::Asked, "a"));
    let start = Change::Start {
        attempt: issue.attempt,
        step: MINUTE,
    };
    for _repeat in 0..2 {
        let answer = store.change_device(&id, start.clone(), NOW).await.unwrap();
        let Answer::Done(doc) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(store.device(&id).await.unwrap().unwrap(), *doc);
        assert_eq!(doc.outstanding.unwrap().stage, Stage::Issuing);
    }
    let issued = Change::Issued {
        attempt: issue.attempt,
        role: "river-iot".to_owned(),
        accessor: "acc".to_owned(),
        expected_proof: proof::expected("secret", &nonce(1)),
        expires_at: NOW.plus(MINUTE * 720),
        confirm: MINUTE,
    };
    store.change_device(&id, issued.clone(), NOW).await.unwrap();
    assert_eq!(
        store.change_device(&id, issued, NOW).await.unwrap(),
        Answer::Repeat
    );
    let result = Change::Result {
        nonce: nonce(1),
        ok: true,
        proof: Some(proof::proof("secret", &nonce(1))),
        reason: String::new(),
        identity: None,
        next_ping: NOW,
    };
    let answer = store.change_device(&id, result, NOW).await.unwrap();
    let Answer::Confirmed { proven: true, doc } = answer else {
        panic!("{answer:?}");
    };
    assert_eq!(store.device(&id).await.unwrap().unwrap(), *doc);
    let trail = records(&*store).await;
    let events: Vec<&str> = trail.iter().map(|record| record.event.as_str()).collect();
    assert_eq!(
        events,
        [
            "device.allowed",
            "device.asked",
            "device.issued",
            "device.confirmed"
        ]
    );
    let confirmed = trail.last().unwrap();
    assert_eq!(confirmed.actor, Actor::Device { device_id: id });
    let named = confirmed.device.clone().unwrap();
    assert_eq!(named.accessor.as_deref(), Some("acc"));
    assert_eq!(named.nonce.as_deref(), Some(nonce(1).as_str()));
}

async fn of_many_equal_requests_one_is_taken(store: Arc<dyn Backend>) {
    allow(&*store, 1).await;
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let store = Arc::clone(&store);
            let owner = format!("relay {n}");
            tokio::spawn(async move { store.change_device(&device(1), ask(1, &owner), NOW).await })
        })
        .collect();
    let mut taken = 0;
    for task in tasks {
        match task.await.unwrap().unwrap() {
            Answer::Done(_) => taken += 1,
            Answer::Repeat => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(taken, 1);
    assert_eq!(records(&*store).await.len(), 2);
}

async fn many_devices_at_once_lose_nothing(store: Arc<dyn Backend>) {
    let tasks: Vec<_> = (0..200)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                allow(&*store, n).await;
                store.change_device(&device(n), ask(n, "a"), NOW).await
            })
        })
        .collect();
    for task in tasks {
        assert!(matches!(task.await.unwrap().unwrap(), Answer::Done(_)));
    }
    assert_eq!(store.devices_of("a", 1000).await.unwrap().len(), 200);
    assert_eq!(store.devices_of("a", 7).await.unwrap().len(), 7);
    assert!(store.devices_of("b", 1000).await.unwrap().is_empty());
    assert_eq!(records(&*store).await.len(), 400);
}

async fn lists_are_ordered_and_bounded(store: Arc<dyn Backend>) {
    for n in [3, 1, 2] {
        allow(&*store, n).await;
    }
    let ids = |docs: Vec<super::DeviceDoc>| -> Vec<DeviceId> {
        docs.into_iter().map(|doc| doc.device_id).collect()
    };
    let first = ids(store.devices(None, 2).await.unwrap());
    assert_eq!(first, [device(1), device(2)]);
    let rest = ids(store.devices(first.last(), 2).await.unwrap());
    assert_eq!(rest, [device(3)]);
}

async fn due_work_comes_oldest_first_and_only_when_due(store: Arc<dyn Backend>) {
    for n in [1, 2] {
        allow(&*store, n).await;
    }
    let later = NOW.plus(MINUTE);
    store
        .change_device(&device(2), ask(2, "a"), NOW)
        .await
        .unwrap();
    store
        .change_device(&device(1), ask(1, "a"), later)
        .await
        .unwrap();
    let due = |now| {
        let store = Arc::clone(&store);
        async move {
            let docs = store.devices_due(now, 10).await.unwrap();
            docs.into_iter()
                .map(|doc| doc.device_id)
                .collect::<Vec<_>>()
        }
    };
    assert!(due(NOW).await.is_empty());
    assert_eq!(due(later).await, [device(2)]);
    assert_eq!(due(later.plus(MINUTE)).await, [device(2), device(1)]);
    assert_eq!(
        store
            .devices_due(later.plus(MINUTE), 1)
            .await
            .unwrap()
            .len(),
        1
    );
}

async fn a_refusal_changes_nothing(store: Arc<dyn Backend>) {
    let unknown = store
        .change_device(&device(9), ask(1, "a"), NOW)
        .await
        .unwrap();
    assert_eq!(unknown, Answer::NotAllowed);
    assert!(store.device(&device(9)).await.unwrap().is_none());
    allow(&*store, 1).await;
    let before = store.device(&device(1)).await.unwrap();
    let stale = Change::Start {
        attempt: 7,
        step: MINUTE,
    };
    let answer = store.change_device(&device(1), stale, NOW).await.unwrap();
    assert_eq!(answer, Answer::Stale);
    assert_eq!(store.device(&device(1)).await.unwrap(), before);
    assert_eq!(records(&*store).await.len(), 1);
}

fn secret_id(device: &DeviceId) -> SecretIdDoc {
    SecretIdDoc {
        accessor: VersionId::generate(NOW).unwrap(),
        role: "river-iot".to_owned(),
        device: device.to_string(),
        nonce_hash: "n".to_owned(),
        secret_hash: "LSDynK4JQHtB-kC5lcSb7pfuuFdYN5g2qn63-HGD764".to_owned(),
        mac_key_ref: "k".to_owned(),
        prefilter: "00000000".to_owned(),
        created_at: NOW,
        expires_at: NOW.plus(MINUTE * 720),
        uses_left: None,
        cidrs: Vec::new(),
    }
}

fn gives(doc: SecretIdDoc, nonce: DeviceNonce) -> Mint {
    Box::new(move |_| {
        Some(Minted {
            secret_id: doc.clone(),
            expected_proof: proof::expected("secret", &nonce),
        })
    })
}

async fn at_once(store: &dyn Backend, n: u32, mint: Mint) -> Answer {
    let ask = ask(n, "a");
    let early = store
        .issue_at_once(&device(1), ask, MINUTE, mint, NOW)
        .await
        .unwrap();
    let answer = early.answer.clone();
    early.durable().await.unwrap();
    answer
}

async fn what_is_issued_at_once_is_stored_whole(store: Arc<dyn Backend>) {
    allow(&*store, 1).await;
    let (first, second) = (secret_id(&device(1)), secret_id(&device(1)));
    let answer = at_once(&*store, 1, gives(first.clone(), nonce(1))).await;
    let Answer::Done(doc) = answer else {
        panic!("{answer:?}");
    };
    assert_eq!(store.device(&device(1)).await.unwrap().unwrap(), *doc);
    let issue = doc.outstanding.unwrap();
    assert_eq!((issue.stage, issue.attempt), (Stage::Issued, 1));
    assert_eq!(issue.deadline_at, NOW.plus(MINUTE));
    let held = issue.held.unwrap();
    assert_eq!(held.accessor, first.accessor.to_string());
    assert_eq!(held.expires_at, first.expires_at);
    assert_eq!(
        store.secret_id(&first.accessor).await.unwrap(),
        Some(first.clone())
    );

    // A newer nonce supersedes it, and what it made is named until a newer one is confirmed.
    let answer = at_once(&*store, 2, gives(second.clone(), nonce(2))).await;
    let Answer::Done(doc) = answer else {
        panic!("{answer:?}");
    };
    let superseded = doc.superseded.map(|held| held.accessor);
    assert_eq!(superseded, Some(first.accessor.to_string()));
    let events: Vec<String> = records(&*store)
        .await
        .into_iter()
        .map(|record| record.event)
        .collect();
    assert_eq!(
        events,
        [
            "device.allowed",
            "device.asked",
            "device.issued",
            "device.superseded",
            "device.asked",
            "device.issued",
        ]
    );
}

async fn what_is_not_issued_at_once_changes_nothing(store: Arc<dyn Backend>) {
    let unasked = || -> Mint { Box::new(|_| panic!("nobody is given anything")) };
    assert_eq!(at_once(&*store, 1, unasked()).await, Answer::NotAllowed);
    allow(&*store, 1).await;
    let before = store.device(&device(1)).await.unwrap();
    let nothing: Mint = Box::new(|_| None);
    assert_eq!(at_once(&*store, 1, nothing).await, Answer::NotAtOnce);
    assert_eq!(store.device(&device(1)).await.unwrap(), before);

    // An accessor that exists takes nobody's place: it fails, or another one is made.
    let taken = secret_id(&device(7));
    store.add_secret_id(taken.clone()).await.unwrap();
    let same = SecretIdDoc {
        device: device(1).to_string(),
        ..taken.clone()
    };
    let mut next = Some(same);
    let mint: Mint = Box::new(move |doc| {
        Some(Minted {
            secret_id: next.take().unwrap_or_else(|| secret_id(&doc.device_id)),
            expected_proof: proof::expected("secret", &nonce(1)),
        })
    });
    let issued = store
        .issue_at_once(&device(1), ask(1, "a"), MINUTE, mint, NOW)
        .await;
    assert_eq!(
        store.secret_id(&taken.accessor).await.unwrap(),
        Some(taken.clone())
    );
    let after = store.device(&device(1)).await.unwrap().unwrap();
    match issued {
        Err(error) => {
            assert!(
                matches!(error, crate::store::StoreError::Conflict { .. }),
                "{error:?}"
            );
            assert_eq!(Some(after), before);
        }
        Ok(_) => {
            let held = after.outstanding.unwrap().held.unwrap();
            assert_ne!(held.accessor, taken.accessor.to_string());
        }
    }

    // A duplicate delivery finds what was issued; a replay finds its nonce used.
    let events = records(&*store).await.len();
    let answer = at_once(&*store, 2, gives(secret_id(&device(1)), nonce(2))).await;
    assert!(matches!(answer, Answer::Done(_)));
    assert!(records(&*store).await.len() > events);
    assert_eq!(at_once(&*store, 2, unasked()).await, Answer::Repeat);
}

async fn of_many_who_are_issued_to_at_once_none_shares(store: Arc<dyn Backend>) {
    for n in 0..50 {
        allow(&*store, n).await;
    }
    let tasks: Vec<_> = (0..100)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                // Each twice, under one nonce.
                let (id, n) = (device(n / 2), n / 2);
                let mint = gives(secret_id(&id), nonce(n));
                let early = store
                    .issue_at_once(&id, ask(n, "a"), MINUTE, mint, NOW)
                    .await
                    .unwrap();
                matches!(early.answer, Answer::Done(_))
            })
        })
        .collect();
    let mut issued = 0;
    for task in tasks {
        issued += usize::from(task.await.unwrap());
    }
    assert_eq!(issued, 50);
    for n in 0..50 {
        let doc = store.device(&device(n)).await.unwrap().unwrap();
        let held = doc.outstanding.unwrap().held.unwrap();
        let stored = store
            .secret_id(&held.accessor.parse().unwrap())
            .await
            .unwrap();
        assert_eq!(stored.unwrap().device, device(n).to_string());
    }
    let all = store
        .secret_ids_for("river-iot", &["n".to_owned()], NOW)
        .await
        .unwrap();
    assert_eq!(all.len(), 50, "one that nobody names");
    assert_eq!(records(&*store).await.len(), 50 * 3);
}
