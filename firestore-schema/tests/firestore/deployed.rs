//! What `keyturn doctor` finds out about indexes and rules.

use std::path::Path;
use std::time::Duration;

use keyturn_store::emulator::Emulator;
use keyturn_store::firestore::{FirestoreStore, ProbeError};
use keyturn_store::queries;

use super::Place;
use super::proxy::{Fault, Proxy};

/// gRPC status codes.
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
    let first = queries::all().next().unwrap().name;
    assert_eq!(store.unserved().await, Ok(vec![first]));
    proxy.next_reads([Fault::Status(PERMISSION_DENIED)]);
    assert_eq!(store.unserved().await, Err(ProbeError::MayNotRead));
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_keep_strangers_out_and_without_rules_they_are_in() {
    let open = Place::fresh().await;
    assert_eq!(
        open.relay("doctor").await.open_to_strangers().await,
        Ok(true)
    );
    let rules = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/firestore.rules"));
    let emulator = Emulator::start(Some(rules)).await;
    let closed = Place {
        project: emulator.fresh_project(),
        endpoint: emulator.endpoint(),
    };
    assert_eq!(
        closed.relay("doctor").await.open_to_strangers().await,
        Ok(false)
    );
}
