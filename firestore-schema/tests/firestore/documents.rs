//! What lies in the database after a whole rotation, looked at over REST: every field of protocol.md §4, its name, its type, and its null where it has no value.

use std::collections::BTreeSet;

use keyturn_store::collections;
use keyturn_store::contract::fixture::{
    DELAY, NOW, REQUESTER, SECOND, ack, at, audit, client_id, npub, operation, prepare, reserve,
    rollback,
};
use keyturn_store::documents as docs;
use keyturn_store::firestore::FirestoreStore;
use keyturn_store::store::{AuditTrail as _, BurnNonce, Registry as _, Reserved, SecretStore as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Place;
use super::rest::{kind, path, plain};

/// One rotation to its promotion, another one under way, and one of everything else.
async fn live(store: &FirestoreStore) {
    for (n, start) in [(2, 0), (3, 2 * DELAY)] {
        let command = reserve(&operation(n), at(start));
        let Reserved::New(active) = store.reserve(command).await.unwrap() else {
            panic!("not reserved")
        };
        let sealed = prepare(&active, n, at(start + DELAY), at(start));
        store.prepare(sealed).await.unwrap();
        if n == 2 {
            for by in [REQUESTER, SECOND] {
                let ack = ack(&operation(n), n, by, true, at(DELAY));
                store.record_ack(ack).await.unwrap();
            }
        }
    }
    store.lease("rotation", "a", 15_000, NOW).await.unwrap();
    let burn = BurnNonce {
        nonce_hash: "ab".repeat(32),
        owner_event: "cd".repeat(32),
        expires_at: at(1000),
        now: NOW,
        audit: audit("nonce.burnt", NOW),
    };
    store.burn_nonce(burn).await.unwrap();
    let group = docs::AdminGroupDoc {
        alias: "ops".to_owned(),
        mls_group_id: None,
        nostr_group_id: None,
        welcomers: vec![npub(REQUESTER)],
        status: docs::GroupState::Active,
        updated_at: NOW,
    };
    let record = audit("group.registered", NOW);
    store.put_group(group, record).await.unwrap();
    let alarm = docs::AuditRecord {
        client_id: None,
        ..audit("alarm", NOW)
    };
    store.append(alarm).await.unwrap();
}

/// Reads as `T`, and `T` writes exactly what lies there but for `helpers`; every field that the schema calls a time is a timestamp or a null.
pub(super) fn check<T: Serialize + DeserializeOwned>(
    found: &[Value],
    schema: &str,
    helpers: &[&str],
) {
    assert!(!found.is_empty(), "none for {schema}");
    let schemas = keyturn_store::schema::all();
    let (_, schema_of) = schemas.iter().find(|(name, _)| *name == schema).unwrap();
    let properties = schema_of.as_value()["properties"].as_object().unwrap();
    for document in found {
        let mut fields = plain(document);
        let names: BTreeSet<&String> = fields.keys().collect();
        assert_eq!(names, properties.keys().collect(), "{schema}");
        for helper in helpers {
            assert!(fields.remove(*helper).is_some(), "{schema}: no {helper}");
        }
        for (name, property) in properties {
            let time = property.to_string().contains("#/$defs/UnixMs");
            let stored = kind(document, name);
            assert_eq!(
                stored == "timestampValue",
                time && stored != "nullValue",
                "{schema}: {name} is a {stored}"
            );
        }
        let fields = Value::Object(fields);
        let read: T = serde_json::from_value(fields.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), fields, "{schema}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_lie_where_and_how_the_protocol_says() {
    let place = Place::fresh().await;
    let store = place.settled().await;
    live(&store).await;
    let client = format!("oauth2_clients/{}", client_id());
    let all = |collection| place.list("", collection);
    let clients = all(collections::CLIENTS).await;
    let versions = place.list(&client, collections::VERSIONS).await;
    let rotations = all(collections::ROTATIONS).await;
    check::<docs::ClientDoc>(&clients, "client.json", &[]);
    check::<docs::VersionDoc>(&versions, "version.json", &["due_at"]);
    check::<docs::RotationDoc>(&rotations, "rotation.json", &["due_at"]);
    check::<docs::ActionDoc>(&all(collections::ACTIONS).await, "action.json", &[]);
    check::<docs::AdminDoc>(&all(collections::ADMINS).await, "admin.json", &[]);
    check::<docs::AdminGroupDoc>(&all(collections::GROUPS).await, "admin-group.json", &[]);
    check::<docs::OutboxDoc>(&all(collections::OUTBOX).await, "outbox.json", &[]);
    check::<docs::NonceDoc>(&all(collections::NONCES).await, "nonce.json", &[]);
    check::<docs::LeaseDoc>(&all(collections::LEASES).await, "lease.json", &[]);
    let entries = all(collections::AUDIT).await;
    check::<docs::AuditEntry>(&entries, "audit.json", &["commit"]);
    check::<docs::AuditChainDoc>(&all(collections::CHAINS).await, "audit-chain.json", &[]);

    // The names that §4 lists.
    let named = [
        (
            &clients[0],
            &[
                "current_version",
                "previous_version",
                "status",
                "admin_groups",
                "updated_at",
                "active_rotation",
            ][..],
        ),
        (
            &versions[0],
            &[
                "secret_hash",
                "algo",
                "mac_key_ref",
                "created_at",
                "not_before",
                "not_after",
                "state",
                "rotated_by",
                "rotation_reason",
            ],
        ),
        (
            &rotations[0],
            &[
                "client_id",
                "requested_by",
                "mls_group",
                "new_version",
                "old_version",
                "not_before",
                "grace_until",
                "distribution_message_id",
                "completed_at",
                "quorum",
                "outcome",
            ],
        ),
    ];
    for (document, names) in named {
        for name in names {
            kind(document, name);
        }
    }
    assert_eq!(path(&clients[0]), client);
    assert_eq!(kind(&clients[0], "updated_at"), "timestampValue");
    assert_eq!(kind(&versions[0], "algo"), "stringValue");
    // One rotation is over and announced by nobody, one waits for acks: both are due some time. A living version that is not in grace never is.
    for rotation in &rotations {
        assert_eq!(kind(rotation, "due_at"), "timestampValue");
    }
    let due = versions
        .iter()
        .filter(|it| kind(it, "due_at") == "timestampValue");
    assert_eq!(due.count(), 1, "only the version in grace is to be retired");
    // What a rollback undoes is written over, not beside.
    store
        .rollback(rollback(&operation(9), at(DELAY)))
        .await
        .unwrap();
    check::<docs::VersionDoc>(
        &place.list(&client, collections::VERSIONS).await,
        "version.json",
        &["due_at"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_is_one_commit_and_reads_cost_nothing_else() {
    let place = Place::fresh().await;
    let store = place.settled().await;
    let mut last = store.cost().commits;
    let mut commits = |store: &FirestoreStore| {
        let now = store.cost().commits;
        std::mem::replace(&mut last, now).abs_diff(now)
    };
    commits(&store);
    let Reserved::New(active) = store.reserve(reserve(&operation(2), NOW)).await.unwrap() else {
        panic!("not reserved")
    };
    assert_eq!(commits(&store), 1, "reserve");
    let sealed = prepare(&active, 2, at(DELAY), NOW);
    store.prepare(sealed.clone()).await.unwrap();
    assert_eq!(commits(&store), 1, "prepare");
    store.prepare(sealed).await.unwrap();
    assert_eq!(commits(&store), 0, "a repeat writes nothing");
    for by in [REQUESTER, SECOND] {
        let ack = ack(&operation(2), 2, by, true, at(DELAY));
        store.record_ack(ack).await.unwrap();
        assert_eq!(commits(&store), 1, "an ack, and the promotion in it");
    }
    store.client(&client_id()).await.unwrap();
    store.due(at(u64::from(u32::MAX)), 100).await.unwrap();
    store.read(None, 100).await.unwrap();
    store.ping().await.unwrap();
    assert_eq!(commits(&store), 0, "reading");
    let before = store.cost().reads;
    store.client(&client_id()).await.unwrap();
    assert_eq!(store.cost().reads - before, 1, "a snapshot is one document");
    assert_eq!(store.cost().retries, 0);
}
