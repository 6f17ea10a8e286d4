//! The local path's structure: equal work for an unknown client and a wrong secret.
//!
//! Time itself is measured in `benches/verify.rs`; here the operations are counted, which no busy machine can blur.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use async_trait::async_trait;
use keyturn_proto::Secret;

use super::*;
use crate::documents::{ClientStatus, SnapshotEntry, VersionState};
use crate::mac::LocalMacKey;

const NOW: UnixMs = UnixMs(1_760_000_000_000);

struct Nowhere;

#[async_trait]
impl SnapshotSource for Nowhere {
    async fn snapshot(&self, _: &ClientId) -> Result<Option<ClientSnapshot>, SourceError> {
        Ok(None)
    }
}

fn verifier() -> Verifier<Nowhere, LocalMacKey> {
    let mac = LocalMacKey::from_keys(&[7; 32], &[]);
    Verifier::new(Nowhere, mac, Settings::default()).unwrap()
}

async fn entry(n: u32, state: VersionState, secret: &str) -> SnapshotEntry {
    let version_id = format!("{n:026}").parse().unwrap();
    let client = "client".parse().unwrap();
    let mac = LocalMacKey::from_keys(&[7; 32], &[]);
    let made = mac.sign(&client, &version_id, secret).await.unwrap();
    SnapshotEntry {
        version_id,
        state,
        not_before: NOW,
        not_after: None,
        secret_hash: made.hash.as_str().to_owned(),
        mac_key_ref: made.key_ref,
        prefilter: Some(hex::encode(keyturn_proto::derive::prefilter(secret))),
        prehash: None,
    }
}

fn work(
    verifier: &Verifier<Nowhere, LocalMacKey>,
    cached: &Cached,
    secret: &PresentedSecret,
) -> (bool, Work) {
    let mut work = Work::default();
    let local = verifier.local(cached, secret, NOW, &mut work);
    (matches!(local, Local::Refused | Local::Awaited), work)
}

#[tokio::test]
async fn a_wrong_secret_and_an_unknown_client_cost_the_same_local_operations() {
    let verifier = verifier();
    let client: ClientId = "client".parse().unwrap();
    let right = Secret::generate().unwrap();
    let current = entry(1, VersionState::Current, right.expose()).await;
    let previous = entry(2, VersionState::Grace, right.expose()).await;
    let pending = entry(3, VersionState::Pending, right.expose()).await;
    let cached = |status, entries: &[&SnapshotEntry]| {
        let snapshot = ClientSnapshot {
            status,
            entries: entries.iter().map(|entry| (*entry).clone()).collect(),
            revision: 0,
            coverage: None,
        };
        Cached::of(&verifier.memo, &client, snapshot, NOW)
    };
    let wrong: PresentedSecret = Secret::generate().unwrap().into();
    let short = PresentedSecret::new("guess");
    let expected = Work {
        memo_macs: 2,
        prefilters: 1,
    };
    for secret in [&wrong, &short] {
        for (case, cached) in [
            ("unknown", Cached::nobody(&verifier.memo)),
            ("current", cached(ClientStatus::Active, &[&current])),
            ("both", cached(ClientStatus::Active, &[&current, &previous])),
            ("pending", cached(ClientStatus::Active, &[&pending])),
            ("none", cached(ClientStatus::Active, &[])),
            ("suspended", cached(ClientStatus::Suspended, &[&current])),
            ("revoked", cached(ClientStatus::Revoked, &[])),
        ] {
            assert_eq!(work(&verifier, &cached, secret), (true, expected), "{case}");
        }
    }
    // The right secret of a client that may not verify is refused by the very same work.
    let right: PresentedSecret = right.into();
    for cached in [
        cached(ClientStatus::Suspended, &[&current]),
        cached(ClientStatus::Active, &[&pending]),
    ] {
        assert_eq!(work(&verifier, &cached, &right), (true, expected));
    }
}

#[tokio::test]
async fn a_remembered_secret_costs_one_mac_as_current_and_two_as_previous() {
    let verifier = verifier();
    let client: ClientId = "client".parse().unwrap();
    let (new, old) = (Secret::generate().unwrap(), Secret::generate().unwrap());
    let snapshot = ClientSnapshot {
        status: ClientStatus::Active,
        entries: vec![
            entry(1, VersionState::Current, new.expose()).await,
            entry(2, VersionState::Grace, old.expose()).await,
        ],
        revision: 0,
        coverage: None,
    };
    let cached = Cached::of(&verifier.memo, &client, snapshot, NOW);
    for (secret, slot, macs) in [(new, 0, 1), (old, 1, 2)] {
        let secret: PresentedSecret = secret.into();
        verifier
            .memo
            .remember(cached.slots[slot].memo_key(&secret), NOW);
        let (refused, work) = work(&verifier, &cached, &secret);
        assert!(!refused);
        assert_eq!((work.memo_macs, work.prefilters), (macs, 0));
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    let mac = || LocalMacKey::from_keys(&[7; 32], &[]);
    let setting = |settings| match Verifier::new(Nowhere, mac(), settings) {
        Err(VerifierError::Setting { setting, .. }) => setting,
        _ => panic!("accepted"),
    };
    let good = Settings::default();
    let long = Settings {
        snapshot_ttl: Duration::from_secs(61),
        max_stale: Duration::from_secs(120),
        ..good
    };
    assert_eq!(setting(long), "snapshot_ttl");
    let stale = Settings {
        max_stale: Duration::from_secs(1),
        ..good
    };
    assert_eq!(setting(stale), "max_stale");
    let never = Settings {
        mac_per_source: Rate {
            per_second: 0,
            burst: 1,
        },
        ..good
    };
    assert_eq!(setting(never), "mac_per_source");
}
