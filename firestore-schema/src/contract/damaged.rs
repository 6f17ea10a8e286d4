//! One document that cannot be read stops nothing but itself. How a document is spoiled is the backend's business, so that its own tests call this.

use keyturn_proto::UnixMs;
use keyturn_proto::device::{DeviceId, DeviceNonce};
use std::time::Duration;

use super::World;
use super::fixture::{
    DELAY, GRACE, NOW, PROOF_TIME, REQUESTER, RETENTION, SECOND, THIRD, ack, at, audit, client,
    client_id, event_id, group, npub, operation, outbox, prepare, reserve, version_id,
};
use crate::collections::{ADMINS, CLIENTS, DEVICES, GROUPS, OUTBOX, ROTATIONS, VERSIONS};
use crate::devices::documents::DeviceOptions;
use crate::devices::store::{Change, Limits};
use crate::store::{Due, Reserved, StoreError, WithdrawnAfter};

/// A document to make unreadable, and a field whose value may not be a text that is no such value.
#[derive(Clone, Debug)]
pub struct Spoil {
    /// Where it lies.
    pub collection: &'static str,
    /// The document id.
    pub id: String,
    /// Its path in Firestore.
    pub path: String,
    /// A field that no query of the product looks at.
    pub field: &'static str,
}

fn spoiled(collection: &'static str, id: &str, field: &'static str) -> Spoil {
    let path = match collection {
        VERSIONS => format!("{CLIENTS}/{}/{VERSIONS}/{id}", client_id()),
        _ => format!("{collection}/{id}"),
    };
    Spoil {
        collection,
        id: id.to_owned(),
        path,
        field,
    }
}

/// Runs through every listing by which a relay finds its work. Needs an empty store.
///
/// # Panics
/// When one bad document stops others.
pub async fn one_bad_document_stops_nobody<F, Fut>(w: World, spoil: F)
where
    F: Fn(Spoil) -> Fut,
    Fut: Future<Output = ()>,
{
    w.settle().await;
    let end = timed(&w, &spoil).await;
    withdrawn(&w, &spoil, end).await;
    people(&w, &spoil).await;
    devices(&w, &spoil).await;
}

/// A reservation of a client of its own.
async fn reserved_by_another(w: &World, n: u32) {
    let id: keyturn_proto::ClientId = format!("other-{n}").parse().unwrap();
    let record = crate::documents::AuditRecord {
        client_id: Some(id.clone()),
        ..audit("client.created", NOW)
    };
    let created = w
        .store
        .create_client(client(id.clone()), None, record.clone());
    created.await.unwrap();
    let mut wanted = reserve(&operation(n), NOW);
    wanted.rotation.client_id = id;
    wanted.audit = record;
    let reserved = w.store.reserve(wanted).await.unwrap();
    assert!(matches!(reserved, Reserved::New(_)));
}

/// What is due, in words.
fn words(due: &[Due]) -> Vec<String> {
    due.iter()
        .map(|due| match due {
            Due::StaleReservation(it) | Due::Expire(it) | Due::Promote(it) | Due::Announce(it) => {
                it.rotation_id.to_string()
            }
            Due::Retire { .. } => "retire".to_owned(),
            Due::Purge(events) => {
                let ids: Vec<&str> = events.iter().map(|event| &*event.event_id).collect();
                ids.join(" ")
            }
        })
        .collect()
}

async fn timed<F, Fut>(w: &World, spoil: &F) -> UnixMs
where
    F: Fn(Spoil) -> Fut,
    Fut: Future<Output = ()>,
{
    // A rotation to announce, a version to retire, three events to delete; two reservations of others to end.
    let active = w.reserved(reserve(&operation(2), NOW)).await;
    let mut sealed = prepare(&active, 2, at(DELAY), NOW);
    sealed.outbox.push(outbox(12, &active, NOW));
    sealed.outbox.push(outbox(22, &active, NOW));
    w.store.prepare(sealed).await.unwrap();
    for by in [REQUESTER, SECOND] {
        let ack = ack(&operation(2), 2, by, true, at(DELAY));
        w.store.record_ack(ack).await.unwrap();
    }
    reserved_by_another(w, 3).await;
    reserved_by_another(w, 4).await;
    let end = at(DELAY + RETENTION.max(GRACE));
    let all = w.store.due(end, 100).await.unwrap();
    assert_eq!(all.len(), 5, "{all:?}");
    let (first, second) = (operation(3).to_string(), operation(4).to_string());

    spoil(spoiled(ROTATIONS, &first, "attempt")).await;
    let due = w.store.due(end, 100).await.unwrap();
    assert_eq!(due.len(), 4, "{due:?}");
    assert!(!words(&due).contains(&first), "{due:?}");
    let active = w.store.active_rotations().await.unwrap();
    let active: Vec<_> = active.iter().map(|it| &it.rotation_id).collect();
    assert_eq!(active, [&operation(4)]);
    // It does not take the place of another one, however few are asked for.
    let due = w.store.due(end, 1).await.unwrap();
    assert_eq!(words(&due), [second]);
    assert_eq!(w.store.next_due().await.unwrap(), Some(at(PROOF_TIME)));
    spoil(spoiled(ROTATIONS, &operation(4).to_string(), "attempt")).await;
    assert_eq!(w.store.next_due().await.unwrap(), Some(at(DELAY)));
    assert_eq!(w.store.active_rotations().await, Ok(Vec::new()));

    spoil(spoiled(VERSIONS, &version_id(1).to_string(), "algo")).await;
    spoil(spoiled(OUTBOX, &event_id(2), "epoch")).await;
    let left = [
        operation(2).to_string(),
        [event_id(12), event_id(22)].join(" "),
    ];
    assert_eq!(words(&w.store.due(end, 100).await.unwrap()), left);
    w.store.mark_announced(&operation(2), end).await.unwrap();
    let next = w.store.next_due().await.unwrap();
    assert_eq!(next, Some(at(DELAY + RETENTION)));
    let page = w.store.outbox_page(None, 1).await.unwrap();
    assert_eq!(
        page[0].event_id,
        event_id(12),
        "the first one is passed over"
    );

    // Who asks for one of them is told.
    let damaged = |what| StoreError::Damaged { what };
    let asked = w.store.rotation(&operation(3)).await;
    assert_eq!(asked, Err(damaged("rotation")));
    let asked = w.store.outbox(&operation(2)).await;
    assert_eq!(asked, Err(damaged("outbox")));
    end
}

async fn withdrawn<F, Fut>(w: &World, spoil: &F, end: UnixMs)
where
    F: Fn(Spoil) -> Fut,
    Fut: Future<Output = ()>,
{
    let ids = [event_id(12), event_id(22)];
    let keep = Some(UnixMs(end.0 + 1));
    w.store.purge(&ids, keep, end).await.unwrap();
    let all = WithdrawnAfter::default();
    assert_eq!(w.store.withdrawn(&all, 10).await.unwrap().len(), 2);
    spoil(spoiled(OUTBOX, &event_id(12), "epoch")).await;
    let left = w.store.withdrawn(&all, 1).await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].event_id, event_id(22));
}

async fn people<F, Fut>(w: &World, spoil: &F)
where
    F: Fn(Spoil) -> Fut,
    Fut: Future<Output = ()>,
{
    for (n, alias) in [(1, "ops"), (2, "spare")] {
        let record = audit("group.registered", NOW);
        w.store
            .put_group(group(alias, Some(n)), record)
            .await
            .unwrap();
    }
    spoil(spoiled(GROUPS, "ops", "welcomers")).await;
    let groups = w.store.groups().await.unwrap();
    assert_eq!(groups.len(), 1);
    assert_eq!(groups[0].alias, "spare");
    // A binding is judged against all others: the one that cannot be read may be the very same group.
    let bind = w
        .store
        .put_group(group("third", Some(1)), audit("group.registered", NOW));
    let what = "admin group";
    assert_eq!(bind.await, Err(StoreError::Damaged { what }));

    let key = npub(THIRD);
    spoil(spoiled(ADMINS, &key.to_string(), "active")).await;
    let left = w.store.admins().await.unwrap();
    let left: Vec<_> = left.iter().map(|admin| admin.npub).collect();
    assert_eq!(left, [npub(REQUESTER), npub(SECOND)]);
    let asked = w.store.admin(&key).await;
    assert_eq!(asked, Err(StoreError::Damaged { what: "admin" }));
}

async fn devices<F, Fut>(w: &World, spoil: &F)
where
    F: Fn(Spoil) -> Fut,
    Fut: Future<Output = ()>,
{
    const MINUTE: Duration = Duration::from_secs(60);
    let device = |n: u32| -> DeviceId { format!("river-{n:05}").parse().unwrap() };
    for n in [1, 2] {
        let allow = Change::Allow {
            role: "river-iot".to_owned(),
            options: DeviceOptions::default(),
        };
        let nonce: DeviceNonce = format!("nonce-number-{n:06}").parse().unwrap();
        let ask = Change::Ask {
            nonce,
            reason: "invalid_secret".to_owned(),
            identity: None,
            owner: "relay-a".to_owned(),
            issuer: "embedded".to_owned(),
            limits: Limits {
                per_hour: 30,
                step: MINUTE,
                ttl: MINUTE * 720,
                replay: MINUTE * 5,
            },
        };
        for change in [allow, ask] {
            w.store
                .change_device(&device(n), change, NOW)
                .await
                .unwrap();
        }
    }
    let late = NOW.plus(MINUTE * 60);
    assert_eq!(w.store.devices_due(late, 10).await.unwrap().len(), 2);
    spoil(spoiled(DEVICES, device(1).as_str(), "attempts")).await;
    for left in [
        w.store.devices_due(late, 1).await.unwrap(),
        w.store.devices_of("relay-a", 1).await.unwrap(),
    ] {
        let left: Vec<_> = left.iter().map(|doc| &doc.device_id).collect();
        assert_eq!(left, [&device(2)]);
    }
    let asked = w.store.device(&device(1)).await;
    assert_eq!(asked, Err(StoreError::Damaged { what: "device" }));
}
