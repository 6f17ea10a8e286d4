//! What `keyturn doctor` finds out about indexes and rules.

use std::path::Path;
use std::time::Duration;

use keyturn_store::collections::{self, ADMINS, CLIENTS, VERSIONS};
use keyturn_store::contract::fixture::{NOW, at, audit, operation, reserve};
use keyturn_store::emulator::Emulator;
use keyturn_store::firestore::{Access, Bearer, FirestoreStore, ProbeError, Visitor};
use keyturn_store::queries;
use keyturn_store::store::{BurnNonce, SecretStore as _};
use serde_json::json;

use super::Place;
use super::proxy::{Fault, Proxy};

/// gRPC status codes.
const INVALID_ARGUMENT: u32 = 3;
const NOT_FOUND: u32 = 5;
const UNAVAILABLE: u32 = 14;
const UNAUTHENTICATED: u32 = 16;
const PERMISSION_DENIED: u32 = 7;
const FAILED_PRECONDITION: u32 = 9;

/// Firestore itself says of every query whether it is one.
#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_the_catalogue_is_understood() {
    let place = Place::fresh().await;
    let unserved = place.relay("doctor").await.unserved().await;
    assert_eq!(unserved, Ok(Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_without_its_index_is_named_and_nothing_else_passes_for_one() {
    let place = Place::fresh().await;
    let proxy = Proxy::before(&place.endpoint).await;
    let settings = place.settings(&proxy.endpoint(), Duration::from_secs(60));
    let store = FirestoreStore::open(settings).await.unwrap();
    proxy.next_reads([Fault::Status(FAILED_PRECONDITION)]);
    let first = queries::all().next().unwrap();
    assert_eq!(store.unserved().await, Ok(vec![first]));
    proxy.next_reads([Fault::Status(PERMISSION_DENIED)]);
    assert_eq!(store.unserved().await, Err(ProbeError::MayNotRead));
}

/// One answer for every thing that can be wrong, each at the step where it shows.
#[tokio::test(flavor = "multi_thread")]
async fn a_probe_says_what_is_in_the_way() {
    let place = Place::fresh().await;
    let proxy = Proxy::before(&place.endpoint).await;
    let settings = place.settings(&proxy.endpoint(), Duration::from_secs(60));
    let store = FirestoreStore::open(settings).await.unwrap();
    let refused = |step, code| ProbeError::Refused { step, code };
    let invalid = "Client specified an invalid argument";
    for (code, on_read, on_write) in [
        (NOT_FOUND, ProbeError::NoDatabase, ProbeError::NoDatabase),
        (
            PERMISSION_DENIED,
            ProbeError::MayNotRead,
            ProbeError::MayNotWrite,
        ),
        (
            UNAUTHENTICATED,
            ProbeError::Credentials,
            ProbeError::Credentials,
        ),
        (
            UNAVAILABLE,
            ProbeError::Unreachable,
            ProbeError::Unreachable,
        ),
        (
            INVALID_ARGUMENT,
            refused("read", invalid),
            refused("write", invalid),
        ),
    ] {
        proxy.next_reads([Fault::Status(code)]);
        assert_eq!(store.probe().await, Err(on_read), "{code}");
        proxy.next_commits([Fault::Status(code)]);
        assert_eq!(store.probe().await, Err(on_write), "{code}");
    }
    // Nothing is left of the probes, and the next one finds nothing wrong.
    let probe = store.probe().await.unwrap();
    let slack = i64::try_from(probe.round_trip.as_millis()).unwrap() + 1_000;
    assert!(probe.clock_ahead_ms.abs() <= slack, "{probe:?}");
}

/// A server that takes a call and never answers holds nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_probe_ends_when_nobody_answers() {
    let place = Place::fresh().await;
    let proxy = Proxy::before(&place.endpoint).await;
    let settings = place.settings(&proxy.endpoint(), Duration::from_secs(2));
    let store = FirestoreStore::open(settings).await.unwrap();
    proxy.next_reads([Fault::Silence]);
    assert_eq!(store.probe().await, Err(ProbeError::Unreachable));
}

async fn under_rules(rules: &Path) -> (Emulator, Access, bool) {
    let emulator = Emulator::start(Some(rules)).await;
    let place = Place {
        project: emulator.fresh_project(),
        endpoint: emulator.endpoint(),
    };
    let store = place.relay("doctor").await;
    let found = store.access(Visitor::Nobody).await.unwrap();
    let creates = store.creates(Visitor::Nobody).await.unwrap();
    (emulator, found, creates)
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_keep_strangers_out_and_without_rules_they_are_in() {
    let all: Vec<&str> = collections::ALL.iter().map(|it| it.id).collect();
    let place = Place::fresh().await;
    let open = Access {
        read: all.clone(),
        list: all.clone(),
        update: all.clone(),
        delete: all,
    };
    let store = place.relay("doctor").await;
    assert_eq!(store.access(Visitor::Nobody).await, Ok(open));
    assert_eq!(store.creates(Visitor::Nobody).await, Ok(true));
    let rules = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/firestore.rules"));
    let (_emulator, closed, creates) = under_rules(rules).await;
    assert_eq!((closed, creates), (Access::default(), false));
}

/// One careless line is found, and the collection that it opens is named.
#[tokio::test(flavor = "multi_thread")]
async fn a_single_open_collection_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let rules = dir.path().join("careless.rules");
    let text = r#"rules_version = "2";
service cloud.firestore {
  match /databases/{database}/documents {
    match /oauth2_clients/{client} {
      allow get: if true;
      match /secrets/{version} { allow delete: if true; }
    }
    match /admins/{admin} { allow list: if true; }
  }
}
"#;
    std::fs::write(&rules, text).unwrap();
    let (_emulator, found, creates) = under_rules(&rules).await;
    assert!(!creates);
    let expected = Access {
        read: vec![CLIENTS],
        list: vec![ADMINS],
        update: Vec::new(),
        delete: vec![VERSIONS],
    };
    assert_eq!(found, expected);
}

/// As the emulator takes it: with nobody's signature.
fn unsigned(claims: serde_json::Value) -> Bearer {
    let text = crate::token::token(&claims);
    Bearer::parse(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_person_may_do_what_the_rules_say_and_no_more() {
    let rules = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/firestore.rules"));
    let emulator = Emulator::start(Some(rules)).await;
    let place = Place {
        project: emulator.fresh_project(),
        endpoint: emulator.endpoint(),
    };
    let store = place.relay("doctor").await;
    let user = unsigned(json!({}));
    assert_eq!(
        store.access(Visitor::Bearer(&user)).await,
        Ok(Access::default())
    );
    assert_eq!(store.creates(Visitor::Bearer(&user)).await, Ok(false));
    let auditor = unsigned(json!({ "auditor": true }));
    let open = collections::ALL.iter().filter(|it| it.auditors);
    let open: Vec<&str> = open.map(|it| it.id).collect();
    let expected = Access {
        read: open.clone(),
        list: open,
        ..Access::default()
    };
    assert_eq!(store.access(Visitor::Bearer(&auditor)).await, Ok(expected));
    assert_eq!(store.creates(Visitor::Bearer(&auditor)).await, Ok(false));
    assert!(place.list("", "probes").await.is_empty(), "nothing is left");

    // What is worth something is not sent in the clear.
    let real = Bearer::parse("ya29.real").unwrap();
    assert_eq!(
        store.access(Visitor::Bearer(&real)).await,
        Err(ProbeError::NotSent)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_may_write_is_found_and_one_that_is_not_accepted_proves_nothing() {
    let place = Place::fresh().await;
    let proxy = Proxy::before(&place.endpoint).await;
    let settings = place.settings(&proxy.endpoint(), Duration::from_secs(60));
    let store = FirestoreStore::open(settings).await.unwrap();
    let anybody = unsigned(json!({}));
    // Without rules the emulator lets everybody.
    assert_eq!(store.creates(Visitor::Bearer(&anybody)).await, Ok(true));
    assert!(place.list("", "probes").await.is_empty(), "nothing is left");
    proxy.next_reads([Fault::Status(UNAUTHENTICATED)]);
    let refused = store.access(Visitor::Bearer(&anybody)).await;
    assert_eq!(refused, Err(ProbeError::Credentials));
    // Nobody is refused so as well, and that is an answer.
    proxy.next_reads([Fault::Status(UNAUTHENTICATED)]);
    let access = store.access(Visitor::Nobody).await.unwrap();
    assert_eq!(access.read.len(), access.delete.len() - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_and_what_was_never_forgotten_is_counted() {
    let place = Place::fresh().await;
    let store = place.settled().await;
    store.reserve(reserve(&operation(2), NOW)).await.unwrap();
    assert_eq!(store.damaged(100).await, Ok(Vec::new()));
    let junk = json!({ "stringValue": "CANARY" });
    let rotation = format!("oauth2_rotations/{}", operation(2));
    place.set(&rotation, "attempt", junk.clone()).await;
    place.set("admins/somebody", "npub", junk).await;
    let expected = vec![("admin", 1), ("rotation under way", 1), ("rotation due", 1)];
    assert_eq!(store.damaged(100).await, Ok(expected));

    let burn = BurnNonce {
        nonce_hash: "ab".repeat(32),
        owner_event: "e".to_owned(),
        expires_at: at(5),
        now: NOW,
        audit: audit("nonce.burnt", NOW),
    };
    store.burn_nonce(burn).await.unwrap();
    assert_eq!(store.has_nonces_from_before(at(4)).await, Ok(false));
    assert_eq!(store.has_nonces_from_before(at(5)).await, Ok(true));
}
