//! The contract of the store of roles and secret_ids: every backend must pass every case (feature `contract`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test suite: a panic is how it reports"
)]

use std::sync::Arc;
use std::time::Duration;

use keyturn_proto::{UnixMs, VersionId};

use super::{AppRoleDoc, AppRoleStore, SecretIdDoc, Spent};
use crate::contract::fixture::audit;
use crate::store::{AuditTrail, StoreError};

/// What a backend is for the embedded issuer.
pub trait Backend: AppRoleStore + AuditTrail + 'static {}
impl<T: AppRoleStore + AuditTrail + 'static> Backend for T {}

const NOW: UnixMs = UnixMs(1_739_750_000_000);
const HOUR: Duration = Duration::from_secs(3600);

/// Runs every case, each on an empty store.
///
/// # Panics
/// When a case fails.
pub async fn run<F, Fut>(empty_store: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<dyn Backend>>,
{
    all_who_race_get_one_role(empty_store().await).await;
    a_secret_id_is_found_until_it_is_destroyed(empty_store().await).await;
    an_accessor_is_used_once(empty_store().await).await;
    the_last_use_is_allowed_once(empty_store().await).await;
    what_has_ended_is_refused_before_it_is_purged(empty_store().await).await;
    destroying_needs_the_right_role(empty_store().await).await;
    lost_ones_are_found_by_nonce(empty_store().await).await;
    purging_is_bounded_and_takes_only_what_has_ended(empty_store().await).await;
}

fn role(role_id: &str) -> AppRoleDoc {
    AppRoleDoc {
        role: "river-iot".to_owned(),
        role_id: role_id.to_owned(),
        created_at: NOW,
    }
}

fn secret_id(nonce: &str) -> SecretIdDoc {
    SecretIdDoc {
        accessor: VersionId::generate(NOW).unwrap(),
        role: "river-iot".to_owned(),
        device: "pump-7".to_owned(),
        nonce_hash: nonce.to_owned(),
        secret_hash: "LSDynK4JQHtB-kC5lcSb7pfuuFdYN5g2qn63-HGD764".to_owned(),
        mac_key_ref: "k".to_owned(),
        prefilter: "00000000".to_owned(),
        created_at: NOW,
        expires_at: NOW.plus(HOUR),
        uses_left: None,
        cidrs: vec!["10.0.0.0/8".to_owned()],
    }
}

async fn spend(store: &dyn Backend, doc: &SecretIdDoc, now: UnixMs) -> Spent {
    let record = audit("approle.login", now);
    let spent = store.spend_secret_id(&doc.accessor, now, record).await;
    spent.unwrap()
}

async fn events(store: &dyn Backend) -> Vec<String> {
    let records = store.read(None, usize::MAX).await.unwrap();
    records.into_iter().map(|record| record.event).collect()
}

async fn all_who_race_get_one_role(store: Arc<dyn Backend>) {
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let fresh = role(&format!("id-{n}"));
                let record = audit("approle.role_created", NOW);
                store.ensure_role(fresh, record).await.unwrap()
            })
        })
        .collect();
    let mut got = Vec::new();
    for task in tasks {
        got.push(task.await.unwrap());
    }
    got.dedup();
    assert_eq!(got.len(), 1);
    let found = store.role_by_id(&got[0].role_id).await.unwrap();
    assert_eq!(found.as_ref(), got.first());
    assert_eq!(store.role_by_id("id-9").await.unwrap(), None);
    assert_eq!(events(&*store).await, ["approle.role_created"]);
}

async fn a_secret_id_is_found_until_it_is_destroyed(store: Arc<dyn Backend>) {
    let doc = secret_id("n");
    assert_eq!(store.secret_id(&doc.accessor).await.unwrap(), None);
    store.add_secret_id(doc.clone()).await.unwrap();
    assert_eq!(
        store.secret_id(&doc.accessor).await.unwrap(),
        Some(doc.clone())
    );
    assert_eq!(
        spend(&*store, &doc, NOW).await,
        Spent::Allowed(Box::new(doc.clone()))
    );
    let destroy = || store.destroy_secret_id(&doc.role, &doc.accessor);
    assert!(destroy().await.unwrap());
    assert!(!destroy().await.unwrap());
    assert_eq!(store.secret_id(&doc.accessor).await.unwrap(), None);
    assert_eq!(spend(&*store, &doc, NOW).await, Spent::Gone);
    // A refusal leaves no record of a login.
    assert_eq!(events(&*store).await, ["approle.login"]);
}

async fn an_accessor_is_used_once(store: Arc<dyn Backend>) {
    let doc = secret_id("n");
    store.add_secret_id(doc.clone()).await.unwrap();
    let again = store.add_secret_id(doc).await;
    assert!(
        matches!(again, Err(StoreError::Conflict { .. })),
        "{again:?}"
    );
}

async fn the_last_use_is_allowed_once(store: Arc<dyn Backend>) {
    let doc = SecretIdDoc {
        uses_left: Some(3),
        ..secret_id("n")
    };
    store.add_secret_id(doc.clone()).await.unwrap();
    let tasks: Vec<_> = (0..12)
        .map(|_| {
            let (store, doc) = (Arc::clone(&store), doc.clone());
            tokio::spawn(async move { spend(&*store, &doc, NOW).await })
        })
        .collect();
    let mut left = Vec::new();
    for task in tasks {
        if let Spent::Allowed(doc) = task.await.unwrap() {
            left.push(doc.uses_left);
        }
    }
    left.sort_unstable();
    assert_eq!(left, [Some(0), Some(1), Some(2)]);
    assert_eq!(store.secret_id(&doc.accessor).await.unwrap(), None);
    assert_eq!(events(&*store).await.len(), 3);
}

async fn what_has_ended_is_refused_before_it_is_purged(store: Arc<dyn Backend>) {
    let doc = secret_id("n");
    store.add_secret_id(doc.clone()).await.unwrap();
    let last = UnixMs(doc.expires_at.0 - 1);
    assert!(matches!(
        spend(&*store, &doc, last).await,
        Spent::Allowed(_)
    ));
    assert_eq!(spend(&*store, &doc, doc.expires_at).await, Spent::Gone);
}

async fn destroying_needs_the_right_role(store: Arc<dyn Backend>) {
    let doc = secret_id("n");
    store.add_secret_id(doc.clone()).await.unwrap();
    let other = store.destroy_secret_id("other", &doc.accessor).await;
    assert!(!other.unwrap());
    assert!(store.secret_id(&doc.accessor).await.unwrap().is_some());
}

async fn lost_ones_are_found_by_nonce(store: Arc<dyn Backend>) {
    let docs = ["a", "b", "c"].map(secret_id);
    for doc in &docs {
        store.add_secret_id(doc.clone()).await.unwrap();
    }
    let wanted = ["a", "b", "x"].map(str::to_owned);
    let found = |role: &'static str, now| {
        let (store, wanted) = (Arc::clone(&store), wanted.clone());
        async move {
            let mut found = store.secret_ids_for(role, &wanted, now).await.unwrap();
            found.sort_by(|one, other| one.nonce_hash.cmp(&other.nonce_hash));
            found
        }
    };
    assert_eq!(found("river-iot", NOW).await, docs[..2]);
    assert!(found("other", NOW).await.is_empty());
    assert!(found("river-iot", NOW.plus(HOUR)).await.is_empty());
}

async fn purging_is_bounded_and_takes_only_what_has_ended(store: Arc<dyn Backend>) {
    for n in 0..5 {
        let doc = SecretIdDoc {
            expires_at: NOW.plus(HOUR * n),
            ..secret_id("n")
        };
        store.add_secret_id(doc).await.unwrap();
    }
    let then = NOW.plus(HOUR * 2);
    assert_eq!(store.purge_secret_ids(then, 2).await.unwrap(), 2);
    assert_eq!(store.purge_secret_ids(then, 2).await.unwrap(), 1);
    assert_eq!(store.purge_secret_ids(then, 2).await.unwrap(), 0);
    let left = store
        .secret_ids_for("river-iot", &["n".to_owned()], NOW)
        .await
        .unwrap();
    assert_eq!(left.len(), 2);
}
