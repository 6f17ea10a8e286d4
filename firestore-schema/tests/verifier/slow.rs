//! Everything that can happen while the MAC key is being asked: an answer rests on what is known when it is given.

use std::sync::Arc;
use std::time::Duration;

use keyturn_proto::{PresentedSecret, UnixMs};
use keyturn_store::contract::fixture;
use keyturn_store::documents::{ClientStatus, VersionState};
use keyturn_store::mac::MacKey;
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::{Registry as _, SecretStore as _};
use keyturn_store::verifier::{Settings, SnapshotSource, Verified, Verifier, VerifyError, Which};
use tokio::task::JoinHandle;

use super::mac::Counting;
use super::stand::{CLIENT, HERE, NOW, REFUSED, Stand, after, fresh, live, ok, snapshot};

type Answer = JoinHandle<Result<Verified, VerifyError>>;

/// Asks at [`NOW`] in a task of its own.
fn ask<S, M>(verifier: &Arc<Verifier<S, M>>, secret: &str) -> Answer
where
    S: SnapshotSource + 'static,
    M: MacKey + 'static,
{
    let (verifier, secret) = (Arc::clone(verifier), PresentedSecret::new(secret));
    tokio::spawn(async move { verifier.verify(CLIENT, &secret, HERE, NOW).await })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_dies_while_the_mac_key_is_asked_does_not_verify() {
    for change in ["suspended", "revoked", "replaced", "gone", "told"] {
        let s = Stand::new(Settings::default());
        let secret = fresh();
        let entry = s.entry(1, VersionState::Current, &secret).await;
        s.set(ClientStatus::Active, vec![entry.clone()]);
        let shut = s.mac.shut().await;
        let callers: Vec<_> = (0..8).map(|_| ask(&s.verifier, &secret)).collect();
        s.mac.asked().await;
        match change {
            "suspended" => s.set(ClientStatus::Suspended, vec![entry]),
            "revoked" => s.set(ClientStatus::Revoked, vec![]),
            "replaced" => {
                let other = s.entry(2, VersionState::Current, &fresh()).await;
                s.set(ClientStatus::Active, vec![other]);
            }
            "gone" => {
                s.source.set(None);
                s.verifier.book().gone(&CLIENT.parse().unwrap());
            }
            // As a listener does.
            _ => {
                let suspended = snapshot(ClientStatus::Suspended, vec![entry]);
                s.source.set(Some(suspended.clone()));
                s.verifier.book().tell(&CLIENT.parse().unwrap(), suspended);
            }
        }
        drop(shut);
        // Each of those who shared the answer looks for itself.
        for caller in callers {
            assert_eq!(caller.await.unwrap(), REFUSED, "{change}");
        }
        // Nor is what was found out meanwhile good for anything.
        let calls = s.mac.calls();
        assert_eq!(s.at(&secret, NOW).await, REFUSED, "{change}");
        assert_eq!(live(&s, 1, NOW).await, Ok(false), "{change}");
        assert_eq!(s.mac.calls(), calls, "{change}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_moves_to_grace_meanwhile_verifies_as_what_it_is_then() {
    let s = Stand::new(Settings::default());
    let secret = fresh();
    let mut entry = s.entry(1, VersionState::Current, &secret).await;
    s.set(ClientStatus::Active, vec![entry.clone()]);
    let shut = s.mac.shut().await;
    let caller = ask(&s.verifier, &secret);
    s.mac.asked().await;
    entry.state = VersionState::Grace;
    entry.not_after = Some(after(3_600_000));
    let next = s.entry(2, VersionState::Current, &fresh()).await;
    s.set(ClientStatus::Active, vec![next, entry]);
    drop(shut);
    assert_eq!(caller.await.unwrap(), ok(1, Which::Previous));
    assert_eq!(s.mac.calls(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_that_ends_while_the_mac_key_is_asked_is_over() {
    let left = Duration::from_millis(200);
    let s = Stand::new(Settings::default());
    let (new, old) = (fresh(), fresh());
    let current = s.entry(2, VersionState::Current, &new).await;
    let mut grace = s.entry(1, VersionState::Grace, &old).await;
    // The tolerance of two seconds ends then.
    grace.not_after = Some(UnixMs(NOW.0 - 2_000).plus(left));
    s.set(ClientStatus::Active, vec![current, grace]);
    // What is known needs no read, so that the question is asked at the very time it brings.
    assert_eq!(s.at(&fresh(), NOW).await, REFUSED);
    let shut = s.mac.shut().await;
    let caller = ask(&s.verifier, &old);
    s.mac.asked().await;
    // The window is time itself.
    tokio::time::sleep(left * 2).await;
    drop(shut);
    assert_eq!(caller.await.unwrap(), REFUSED);
    assert_eq!(s.at(&new, NOW).await, ok(2, Which::Current));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_known_is_read_again_if_its_time_has_run_out_meanwhile_and_only_then() {
    for (ttl, change_is_seen) in [
        (Duration::from_millis(100), true),
        (Duration::from_secs(60), false),
    ] {
        let s = Stand::new(Settings {
            snapshot_ttl: ttl,
            ..Settings::default()
        });
        let secret = fresh();
        let entry = s.entry(1, VersionState::Current, &secret).await;
        s.set(ClientStatus::Active, vec![entry.clone()]);
        let shut = s.mac.shut().await;
        let caller = ask(&s.verifier, &secret);
        s.mac.asked().await;
        // Nobody says so.
        let suspended = snapshot(ClientStatus::Suspended, vec![entry]);
        s.source.set(Some(suspended));
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(shut);
        let answer = caller.await.unwrap();
        if change_is_seen {
            assert_eq!((answer, s.reads()), (REFUSED, 2));
        } else {
            assert_eq!((answer, s.reads()), (ok(1, Which::Current), 1));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_look_that_cannot_be_taken_is_neither_yes_nor_no() {
    let s = Stand::new(Settings::default());
    let secret = fresh();
    let entry = s.entry(1, VersionState::Current, &secret).await;
    s.set(ClientStatus::Active, vec![entry]);
    let shut = s.mac.shut().await;
    let caller = ask(&s.verifier, &secret);
    s.mac.asked().await;
    s.source.fails(true);
    s.verifier.invalidate(&CLIENT.parse().unwrap());
    drop(shut);
    let answer = caller.await.unwrap();
    assert!(
        matches!(answer, Err(VerifyError::Unavailable { .. })),
        "{answer:?}"
    );
    // What the MAC key said still holds.
    s.source.fails(false);
    assert_eq!(s.at(&secret, NOW).await, ok(1, Which::Current));
    assert_eq!(s.mac.calls(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_check_does_not_outlive_a_revocation_in_sqlite() {
    for told in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(&dir.path().join("store.db")).unwrap());
        let (mac, secret) = (Counting::new(), fresh());
        let client = fixture::client_id();
        assert_eq!(client.as_str(), CLIENT);
        let mut version = fixture::version(1, None, VersionState::Current, NOW);
        let made = mac
            .sign(&client, &version.version_id, &secret)
            .await
            .unwrap();
        version.secret_hash = made.hash.as_str().to_owned();
        version.mac_key_ref = made.key_ref;
        version.prefilter = None;
        let doc = fixture::client(client.clone());
        let created = store.create_client(doc, Some(version), fixture::audit("test", NOW));
        created.await.unwrap();
        // Whoever changes the store says so, or every verification reads.
        let snapshot_ttl = if told {
            Duration::from_secs(60)
        } else {
            Duration::ZERO
        };
        let settings = Settings {
            snapshot_ttl,
            ..Settings::default()
        };
        let verifier = Verifier::new(Arc::clone(&store), mac.clone(), settings);
        let verifier = Arc::new(verifier.unwrap());
        let shut = mac.shut().await;
        // All bring the same time, however late they come: one who is late would know a read of his own future.
        let together = if told { 4 } else { 1 };
        let callers: Vec<_> = (0..together).map(|_| ask(&verifier, &secret)).collect();
        mac.asked().await;
        let revoke = fixture::revoke(&fixture::operation(7), None, NOW);
        store.revoke(revoke).await.unwrap();
        if told {
            verifier.invalidate(&client);
        }
        drop(shut);
        for caller in callers {
            assert_eq!(caller.await.unwrap(), REFUSED, "told: {told}");
        }
    }
}
