//! Roles and secret_ids of the embedded issuer as they lie in Firestore, under two relays at once, and when commits or their answers are lost.

use std::time::Duration;

use keyturn_proto::{UnixMs, VersionId};
use keyturn_store::approle::{AppRoleDoc, AppRoleStore as _, SecretIdDoc, Spent};
use keyturn_store::audit::{Instance, verify_chain};
use keyturn_store::collections;
use keyturn_store::contract::fixture::{NOW, at, audit};
use keyturn_store::documents::AuditRecord;
use keyturn_store::firestore::FirestoreStore;
use keyturn_store::store::AuditTrail as _;

use super::Place;
use super::documents::check;
use super::proxy::{Fault, Proxy};
use super::rest::kind;

const ROLE: &str = "river-iot";
const ABORTED: u32 = 10;
const UNAVAILABLE: u32 = 14;
/// What may happen to any commit without anybody noticing.
const SURVIVED: [Fault; 4] = [
    Fault::AnswerLost,
    Fault::CallLost,
    Fault::Status(ABORTED),
    Fault::Status(UNAVAILABLE),
];

fn role(role_id: &str) -> AppRoleDoc {
    AppRoleDoc {
        role: ROLE.to_owned(),
        role_id: role_id.to_owned(),
        created_at: NOW,
    }
}

fn secret_id(uses_left: Option<u32>) -> SecretIdDoc {
    SecretIdDoc {
        accessor: VersionId::generate(NOW).unwrap(),
        role: ROLE.to_owned(),
        device: "pump-7".to_owned(),
        nonce_hash: "ab".repeat(32),
        secret_hash: "LSDynK4JQHtB-kC5lcSb7pfuuFdYN5g2qn63-HGD764".to_owned(),
        mac_key_ref: "k".to_owned(),
        prefilter: "00000000".to_owned(),
        created_at: NOW,
        expires_at: at(3_600_000),
        uses_left,
        cidrs: vec!["10.0.0.0/8".to_owned()],
    }
}

/// Nameless, so that each relay writes to a chain of its own: what is counted is the document, not the order of a chain.
fn login() -> AuditRecord {
    AuditRecord {
        client_id: None,
        ..audit("approle.login", NOW)
    }
}

async fn spend(store: &FirestoreStore, doc: &SecretIdDoc) -> Spent {
    let spent = store.spend_secret_id(&doc.accessor, NOW, login()).await;
    spent.unwrap()
}

async fn logins(store: &FirestoreStore) -> usize {
    let trail = store.read(None, usize::MAX).await.unwrap();
    trail
        .iter()
        .filter(|record| record.event == "approle.login")
        .count()
}

async fn check_chains(store: &FirestoreStore) {
    for head in store.chains(None, usize::MAX).await.unwrap() {
        let entries = store.chain(&head.id, 1, usize::MAX).await.unwrap();
        assert_eq!(verify_chain(&head.id, head.doc.as_ref(), &entries), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn they_lie_where_and_how_the_schemas_say() {
    let place = Place::fresh().await;
    let store = place.relay("first").await;
    let record = audit("approle.role_created", NOW);
    store.ensure_role(role("r"), record).await.unwrap();
    for uses in [None, Some(3)] {
        store.add_secret_id(secret_id(uses)).await.unwrap();
    }
    let roles = place.list("", collections::APPROLE_ROLES).await;
    check::<AppRoleDoc>(&roles, "approle-role.json", &[]);
    let all = place.list("", collections::APPROLE_SECRET_IDS).await;
    check::<SecretIdDoc>(&all, "approle-secret-id.json", &[]);
    // What Firestore's own deletion of ended documents goes by.
    assert!(
        all.iter()
            .all(|it| kind(it, "expires_at") == "timestampValue")
    );
}

/// As many devices of a stolen image would do: more logins at once than it allows, at two relays.
#[tokio::test(flavor = "multi_thread")]
async fn two_relays_together_allow_exactly_the_uses_that_there_are() {
    const USES: u32 = 5;
    const EACH: u32 = 10;
    let place = Place::fresh().await;
    let (one, other) = (place.relay("first").await, place.relay("second").await);
    let doc = secret_id(Some(USES));
    one.add_secret_id(doc.clone()).await.unwrap();
    let tries = (0..2 * EACH).map(|n| {
        let (store, doc) = (if n % 2 == 0 { &one } else { &other }, &doc);
        async move { spend(store, doc).await }
    });
    let mut left = Vec::new();
    for spent in futures::future::join_all(tries).await {
        match spent {
            Spent::Allowed(doc) => left.push(doc.uses_left),
            Spent::Gone => {}
        }
    }
    left.sort_unstable();
    assert_eq!(left, (0..USES).map(Some).collect::<Vec<_>>());
    assert_eq!(one.secret_id(&doc.accessor).await.unwrap(), None);
    assert_eq!(logins(&one).await, USES as usize);
    check_chains(&one).await;
}

/// Once a destruction is answered, nobody logs in any more, however the two met.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_does_not_outlive_a_destruction_at_the_other_relay() {
    let place = Place::fresh().await;
    let (one, other) = (place.relay("first").await, place.relay("second").await);
    for _ in 0..20 {
        let doc = secret_id(None);
        one.add_secret_id(doc.clone()).await.unwrap();
        let before = logins(&one).await;
        let (spent, destroyed) = tokio::join!(
            spend(&one, &doc),
            other.destroy_secret_id(ROLE, &doc.accessor)
        );
        assert!(destroyed.unwrap());
        let allowed = matches!(spent, Spent::Allowed(_));
        assert_eq!(logins(&one).await - before, usize::from(allowed));
        assert_eq!(spend(&one, &doc).await, Spent::Gone);
    }
    check_chains(&one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_on_the_way_is_done_once() {
    let place = Place::fresh().await;
    let proxy = Proxy::before(&place.endpoint).await;
    let settings = place.settings(&proxy.endpoint(), Duration::from_secs(60));
    let instance = Instance::named("shaky").unwrap();
    let store = FirestoreStore::open_as(settings, &instance).await.unwrap();
    for (round, fault) in SURVIVED.into_iter().enumerate() {
        let named = AppRoleDoc {
            role: format!("role-{round}"),
            ..role(&format!("id-{round}"))
        };
        proxy.next_commits([fault]);
        let record = audit("approle.role_created", NOW);
        let made = store.ensure_role(named.clone(), record).await.unwrap();
        assert_eq!(made, named, "{fault:?}");
        let doc = secret_id(Some(2));
        proxy.next_commits([fault]);
        // Its own document is no conflict.
        store.add_secret_id(doc.clone()).await.unwrap();
        for left in [1, 0] {
            proxy.next_commits([fault]);
            let Spent::Allowed(after) = spend(&store, &doc).await else {
                panic!("{fault:?}: a use was lost")
            };
            assert_eq!(after.uses_left, Some(left), "{fault:?}");
        }
        assert_eq!(spend(&store, &doc).await, Spent::Gone, "{fault:?}");
        let doc = secret_id(None);
        store.add_secret_id(doc.clone()).await.unwrap();
        proxy.next_commits([fault]);
        let _told_or_not = store.destroy_secret_id(ROLE, &doc.accessor).await.unwrap();
        assert_eq!(store.secret_id(&doc.accessor).await.unwrap(), None);
        let ended = SecretIdDoc {
            expires_at: UnixMs(NOW.0 + 1),
            ..secret_id(None)
        };
        store.add_secret_id(ended.clone()).await.unwrap();
        proxy.next_commits([fault]);
        let _counted = store.purge_secret_ids(at(2), 10).await.unwrap();
        assert_eq!(store.secret_id(&ended.accessor).await.unwrap(), None);
    }
    assert_eq!(logins(&store).await, 2 * SURVIVED.len());
    check_chains(&store).await;
}
