//! What `keyturn doctor` finds out about indexes and rules.

use std::path::Path;
use std::time::Duration;

use keyturn_store::collections::{self, CLIENTS, VERSIONS};
use keyturn_store::emulator::Emulator;
use keyturn_store::firestore::{FirestoreStore, ProbeError, Strangers};
use keyturn_store::queries;

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

async fn under_rules(rules: &Path) -> (Emulator, Strangers) {
    let emulator = Emulator::start(Some(rules)).await;
    let place = Place {
        project: emulator.fresh_project(),
        endpoint: emulator.endpoint(),
    };
    let found = place.relay("doctor").await.strangers().await.unwrap();
    (emulator, found)
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_keep_strangers_out_and_without_rules_they_are_in() {
    let all: Vec<&str> = collections::ALL.iter().map(|it| it.id).collect();
    let place = Place::fresh().await;
    let open = Strangers {
        read: all.clone(),
        delete: all,
    };
    assert_eq!(place.relay("doctor").await.strangers().await, Ok(open));
    let rules = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/firestore.rules"));
    let (_emulator, closed) = under_rules(rules).await;
    assert_eq!(closed, Strangers::default());
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
  }
}
"#;
    std::fs::write(&rules, text).unwrap();
    let (_emulator, found) = under_rules(&rules).await;
    let expected = Strangers {
        read: vec![CLIENTS],
        delete: vec![VERSIONS],
    };
    assert_eq!(found, expected);
}
