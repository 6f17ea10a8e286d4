//! What is damaged is reported to whoever asks for it, and set aside by whoever looks through many; what cannot be an id is refused by name; what is much comes in pages.

use std::sync::Arc;

use keyturn_proto::ClientId;
use keyturn_store::audit::chain_id;
use keyturn_store::contract::World;
use keyturn_store::contract::damaged::{self, Spoil};
use keyturn_store::contract::fixture::{
    DELAY, NOW, PROOF_TIME, at, audit, client, client_id, event_id, operation, outbox, prepare,
    refusal, reserve,
};
use keyturn_store::documents::{AdminGroupDoc, GroupState, OutboxDoc};
use keyturn_store::store::{
    Asked, AuditTrail as _, BurnNonce, Registry as _, Reserved, SecretStore as _, StoreError,
};
use serde_json::json;

use super::Place;
use super::rest::path;

fn is_damaged<T: std::fmt::Debug>(result: Result<T, StoreError>, expected: &'static str) {
    match result {
        Err(StoreError::Damaged { what }) => assert_eq!(what, expected),
        other => panic!("not damaged: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_document_stops_nobody() {
    let place = Place::fresh().await;
    let world = World::new(Arc::new(place.relay("first").await));
    damaged::one_bad_document_stops_nobody(world, |spoil: Spoil| {
        let place = &place;
        async move {
            let junk = json!({ "stringValue": "CANARY" });
            let junk = match spoil.field {
                "algo" => json!({ "integerValue": "1" }),
                _ => junk,
            };
            place.set(&spoil.path, spoil.field, junk).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_cannot_be_written_keeps_no_other_from_its_records() {
    let place = Place::fresh().await;
    let store = place.settled().await;
    let full = format!(
        "audit_chains/{}",
        chain_id(&format!("client:{}", client_id()))
    );
    let end = json!({ "integerValue": "9999999999" });
    place.set(&full, "seq", end).await;
    let of_nobody = |n| {
        let mut decision = refusal(n, NOW);
        decision.audit.client_id = None;
        decision
    };
    let mixed = vec![of_nobody(1), refusal(2, NOW), of_nobody(3)];
    let why = "audit.chain_full";
    assert_eq!(store.record(mixed).await, Err(StoreError::Conflict { why }));
    let asked: Vec<Asked> = (1..=3)
        .map(|n| Asked {
            event_id: event_id(n),
            operation: None,
        })
        .collect();
    let found = store.decided(&asked).await.unwrap();
    let refused: Vec<bool> = found.iter().map(|it| it.refused.is_some()).collect();
    assert_eq!(refused, [true, false, true]);
}

/// A time by which a document is found that is not its own would make it due for ever, or hide it.
#[tokio::test(flavor = "multi_thread")]
async fn a_document_kept_under_a_time_that_is_not_its_own_is_set_aside() {
    let place = Place::fresh().await;
    let store = place.settled().await;
    store.reserve(reserve(&operation(2), NOW)).await.unwrap();
    let rotation = format!("oauth2_rotations/{}", operation(2));
    let due = at(PROOF_TIME);
    assert_eq!(store.due(due, 10).await.unwrap().len(), 1);
    let early = json!({ "timestampValue": "2001-01-01T00:00:00Z" });
    place.set(&rotation, "due_at", early).await;
    assert_eq!(store.due(due, 10).await, Ok(Vec::new()));
    assert_eq!(store.next_due().await, Ok(None));
    // Recovery goes by the state, and finds it.
    assert_eq!(store.active_rotations().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_document_is_reported_by_every_query_that_is_about_it() {
    let place = Place::fresh().await;
    let store = place.settled().await;
    let Reserved::New(active) = store.reserve(reserve(&operation(2), NOW)).await.unwrap() else {
        panic!("not reserved")
    };
    let sealed = prepare(&active, 2, at(DELAY), NOW);
    store.prepare(sealed).await.unwrap();
    let rotation = format!("oauth2_rotations/{}", operation(2));
    let one = format!("oauth2_clients/{}", client_id());

    place
        .set(&rotation, "attempt", json!({ "stringValue": "CANARY" }))
        .await;
    is_damaged(store.rotation(&operation(2)).await, "rotation");
    place
        .set(&rotation, "attempt", json!({ "integerValue": "1" }))
        .await;
    assert_eq!(store.active_rotations().await.unwrap().len(), 1);

    // A time that is no timestamp is damage as well, and so is a document that says it is another one.
    place
        .set(
            &rotation,
            "ack_deadline",
            json!({ "integerValue": "1760000000000" }),
        )
        .await;
    is_damaged(store.rotation(&operation(2)).await, "rotation");
    place
        .set(&one, "status", json!({ "nullValue": null }))
        .await;
    is_damaged(store.client(&client_id()).await, "client");
    is_damaged(store.clients(None, 10).await, "client");
    place
        .set(&one, "status", json!({ "stringValue": "active" }))
        .await;
    place
        .set(&one, "client_id", json!({ "stringValue": "another" }))
        .await;
    is_damaged(store.client(&client_id()).await, "client");

    let entries = place.list("", "audit").await;
    place
        .set(path(&entries[0]), "at", json!({ "stringValue": "now" }))
        .await;
    is_damaged(store.read(Some(&client_id()), 100).await, "audit");
    // Whoever checks the trail gets it as it lies there.
    let found = store.entries(None, 100).await.unwrap();
    assert_eq!(found.len(), entries.len());
    assert_eq!(found.iter().filter(|entry| entry.doc.is_none()).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_an_id_is_refused_by_what_it_names() {
    let place = Place::fresh().await;
    let store = place.settled().await;
    let before = store.cost();
    for id in ["", ".", "..", "a/b", "__x__", "a\nb", &"x".repeat(1501)] {
        let invalid = |what| Err::<(), _>(StoreError::InvalidId { what });
        let group = AdminGroupDoc {
            alias: id.to_owned(),
            mls_group_id: None,
            nostr_group_id: None,
            welcomers: Vec::new(),
            status: GroupState::Active,
            updated_at: NOW,
        };
        let put = store.put_group(group, audit("group.registered", NOW));
        assert_eq!(put.await, invalid("admin group"), "{id:?}");
        let lease = store.lease(id, "us", 1000, NOW).await;
        assert_eq!(lease.map(drop), invalid("lease"), "{id:?}");
        let burn = BurnNonce {
            nonce_hash: id.to_owned(),
            owner_event: "e".to_owned(),
            expires_at: NOW,
            now: NOW,
            audit: audit("nonce.burnt", NOW),
        };
        assert_eq!(
            store.burn_nonce(burn).await.map(drop),
            invalid("nonce"),
            "{id:?}"
        );
        assert_eq!(
            store.purge(&[id.to_owned()], None, NOW).await,
            invalid("outbox"),
            "{id:?}"
        );
        let chain = store.chain_head(id).await;
        assert_eq!(chain.map(drop), invalid("audit chain"), "{id:?}");
        // The type of a client's id does not let it through at all.
        assert!(id.parse::<ClientId>().is_err(), "{id:?}");
    }
    assert_eq!(store.cost().commits, before.commits);
    // An event with such an id is refused with the whole change.
    let Reserved::New(active) = store.reserve(reserve(&operation(2), NOW)).await.unwrap() else {
        panic!("not reserved")
    };
    let mut sealed = prepare(&active, 2, at(DELAY), NOW);
    sealed.outbox.push(OutboxDoc {
        event_id: "a/b".to_owned(),
        ..outbox(3, &active, NOW)
    });
    let refused = store.prepare(sealed).await;
    assert_eq!(refused, Err(StoreError::InvalidId { what: "outbox" }));
    assert_eq!(store.outbox(&operation(2)).await, Ok(Vec::new()));
    let long: ClientId = "c".repeat(1500).parse().unwrap();
    let record = audit("client.created", NOW);
    store
        .create_client(client(long.clone()), None, record)
        .await
        .unwrap();
    assert!(store.client(&long).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_much_comes_whole() {
    const MANY: usize = 620;
    let place = Place::fresh().await;
    let store = place.relay("first").await;
    for n in 0..MANY {
        let burn = BurnNonce {
            nonce_hash: format!("{n:064}"),
            owner_event: "e".to_owned(),
            expires_at: at(n as u64),
            now: NOW,
            audit: audit("nonce.burnt", at(n as u64)),
        };
        store.burn_nonce(burn).await.unwrap();
        let id: ClientId = format!("client-{n:04}").parse().unwrap();
        let record = audit("client.created", at(n as u64));
        store.create_client(client(id), None, record).await.unwrap();
    }
    let all = store.clients(None, usize::MAX).await.unwrap();
    assert_eq!(all.len(), MANY);
    assert!(all.is_sorted_by_key(|doc| doc.client_id.clone()));
    let some = store.clients(Some(&all[99].client_id), 450).await.unwrap();
    assert_eq!(some, all[100..550]);
    let trail = store.read(None, usize::MAX).await.unwrap();
    assert_eq!(trail.len(), 2 * MANY);
    assert!(trail.is_sorted_by_key(|record| record.at));
    store
        .forget_nonces(at(MANY as u64), usize::MAX)
        .await
        .unwrap();
    assert!(place.list("", "nonces").await.is_empty());
}
