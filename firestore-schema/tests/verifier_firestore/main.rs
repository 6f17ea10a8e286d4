//! The verifier on Firestore, against the emulator: what it needs when all is well, and what it says when the listener, the heartbeat or Firestore is away.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mac.rs"]
mod mac;
mod proxy;
mod world;

use std::sync::Arc;
use std::time::Duration;

use keyturn_proto::Secret;
use keyturn_store::emulator::Emulator;
use keyturn_store::verifier::{Living, VerifyError};

use proxy::Proxy;
use world::{CLIENT, MAX_STALE, Relay, Server, eventually, now};

const REFUSED: VerifyError = VerifyError::Refused;

struct Stage {
    project: String,
    proxy: Proxy,
    relay: Relay,
    server: Server,
}

/// On the shared emulator, or on one of its own that a test may kill.
async fn stage(emulator: &Emulator) -> Stage {
    let project = emulator.fresh_project();
    let proxy = Proxy::before(&emulator.endpoint()).await;
    let relay = Relay::at(&emulator.endpoint(), &project).await;
    let server = Server::behind(&proxy, &project).await;
    Stage {
        project,
        proxy,
        relay,
        server,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_steady_state_firestore_is_not_asked() {
    let Stage {
        relay,
        server,
        proxy: _proxy,
        ..
    } = stage(Emulator::shared().await).await;
    let (secret, version) = relay.add(CLIENT).await;
    server.verify(CLIENT, &secret).await.unwrap();
    without_a_read(&server, async |_| {
        server.settled(1).await;
        server.reads();
        // Ten times the time that a read would be good for.
        let end = tokio::time::Instant::now() + Duration::from_secs(5);
        while tokio::time::Instant::now() < end {
            for _ in 0..100 {
                let found = server.verify(CLIENT, &secret).await.unwrap();
                assert_eq!(found.version_id, version);
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// `steady` counts from the moment that the listener is live, and must leave no read. On a machine so busy that a heartbeat came too late it was
/// not live all the time, and read: that is right as well, so it is tried again.
async fn without_a_read(server: &Server, steady: impl AsyncFn(usize)) {
    let mut reads = Vec::new();
    for attempt in 1..=5 {
        steady(attempt).await;
        match server.reads() {
            0 => return,
            some => reads.push(some),
        }
    }
    panic!("read every time: {reads:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_is_heard_without_a_read_and_told_to_whoever_holds_tokens() {
    let Stage {
        relay,
        server,
        proxy: _proxy,
        ..
    } = stage(Emulator::shared().await).await;
    without_a_read(&server, async |attempt| {
        let name = format!("{CLIENT}-{attempt}");
        let (secret, version) = relay.add(&name).await;
        let client = name.parse().unwrap();
        server.verify(&name, &secret).await.unwrap();
        server.settled(attempt).await;
        let live = async |server: &Server| {
            let live = server.verifier.is_version_live(&client, &version, now());
            live.await.unwrap()
        };
        assert!(live(&server).await);
        let mut news = server.verifier.book().subscribe();
        server.reads();
        relay.revoke(&name).await;
        let nothing_lives = Living {
            client_id: name.parse().unwrap(),
            versions: Vec::new(),
        };
        let told = async { while news.recv().await.unwrap() != nothing_lives {} };
        let told = tokio::time::timeout(world::DEADLINE, told).await;
        told.expect("nobody was told");
        assert_eq!(server.verify(&name, &secret).await, Err(REFUSED));
        assert!(!live(&server).await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_check_does_not_outlive_a_revocation_that_is_heard_meanwhile() {
    let Stage {
        relay,
        server,
        proxy: _proxy,
        ..
    } = stage(Emulator::shared().await).await;
    without_a_read(&server, async |attempt| {
        let name = format!("{CLIENT}-{attempt}");
        let (secret, _) = relay.add(&name).await;
        // Known and listened to, and yet nothing is remembered of the right secret.
        let wrong = Secret::generate().unwrap();
        assert_eq!(server.verify(&name, &wrong).await, Err(REFUSED));
        server.settled(attempt).await;
        let mut news = server.verifier.book().subscribe();
        server.mac.taken();
        server.reads();
        let shut = server.mac.shut().await;
        let meanwhile = async {
            eventually("the MAC key is asked", async || server.mac.taken() > 0).await;
            relay.revoke(&name).await;
            let nothing_lives = Living {
                client_id: name.parse().unwrap(),
                versions: Vec::new(),
            };
            let told = async { while news.recv().await.unwrap() != nothing_lives {} };
            let told = tokio::time::timeout(world::DEADLINE, told).await;
            told.expect("nobody was told");
            drop(shut);
        };
        let (answer, ()) = tokio::join!(server.verify(&name, &secret), meanwhile);
        assert_eq!(answer, Err(REFUSED));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_listener_is_noticed_read_around_and_replaced() {
    let Stage {
        relay,
        server,
        proxy,
        ..
    } = stage(Emulator::shared().await).await;
    let (secret, _) = relay.add(CLIENT).await;
    server.verify(CLIENT, &secret).await.unwrap();
    server.settled(1).await;
    proxy.freeze_open();
    relay.revoke(CLIENT).await;
    let frozen_at = now();
    eventually("the revocation is seen", async || {
        let asked = now();
        let found = server.verify(CLIENT, &secret).await;
        let late = asked.since(frozen_at) > MAX_STALE;
        assert!(found.is_err() || !late, "believed for too long");
        found == Err(REFUSED)
    })
    .await;
    server.settled(1).await;
    hears_of_another(&relay, &server).await;
}

/// The listener tells of a client that is revoked; nobody has to look.
async fn hears_of_another(relay: &Relay, server: &Server) {
    without_a_read(server, async |attempt| {
        let another = format!("another-{attempt}");
        let (secret, _) = relay.add(&another).await;
        server.verify(&another, &secret).await.unwrap();
        server.settled(1 + attempt).await;
        server.reads();
        relay.revoke(&another).await;
        eventually("the listener hears", async || {
            server.verify(&another, &secret).await == Err(REFUSED)
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_line_is_taken_up_again_with_what_was_missed() {
    let Stage {
        relay,
        server,
        proxy,
        ..
    } = stage(Emulator::shared().await).await;
    let (secret, _) = relay.add(CLIENT).await;
    server.verify(CLIENT, &secret).await.unwrap();
    server.settled(1).await;
    proxy.cut();
    eventually("the loss is noticed", async || !server.standing().live).await;
    relay.revoke(CLIENT).await;
    proxy.clear_up();
    eventually("the revocation is heard", async || {
        server.verify(CLIENT, &secret).await == Err(REFUSED)
    })
    .await;
    server.settled(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_heartbeat_it_reads_through_and_stays_right() {
    let Stage {
        mut relay,
        server,
        proxy: _proxy,
        ..
    } = stage(Emulator::shared().await).await;
    let (secret, _) = relay.add(CLIENT).await;
    server.verify(CLIENT, &secret).await.unwrap();
    server.settled(1).await;
    relay.stop_beating();
    eventually("the silence is noticed", async || !server.standing().live).await;
    server.reads();
    eventually("clients are read", async || {
        server.verify(CLIENT, &secret).await.unwrap();
        server.reads() > 0
    })
    .await;
    relay.revoke(CLIENT).await;
    eventually("the revocation is seen", async || {
        server.verify(CLIENT, &secret).await == Err(REFUSED)
    })
    .await;
    relay.start_beating().await;
    server.settled(1).await;
}

/// Everything stands still and nobody is told, then everything is gone, then it is back: answers from memory for at most the stated staleness, then
/// neither yes nor no, then answers again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_firestore_away_it_answers_for_the_stated_staleness_and_then_refuses() {
    let emulator = Emulator::start(None).await;
    let Stage {
        relay,
        server,
        proxy,
        project,
    } = stage(&emulator).await;
    let (secret, _) = relay.add(CLIENT).await;
    for killed in [false, true] {
        server.verify(CLIENT, &secret).await.unwrap();
        server.settled(1).await;
        if killed {
            break;
        }
        proxy.freeze_all();
        let answered = away(&server, &secret).await;
        assert!(answered > 0, "nothing was answered from memory");
        proxy.clear_up();
        eventually("it is back", async || {
            server.verify(CLIENT, &secret).await.is_ok()
        })
        .await;
    }
    drop(relay);
    drop(emulator);
    away(&server, &secret).await;

    // Another emulator, with nothing of the old one's but what is written anew.
    let emulator = Emulator::start(None).await;
    let relay = Relay::at(&emulator.endpoint(), &project).await;
    let (secret, _) = relay.add(CLIENT).await;
    proxy.point_at(&emulator.endpoint());
    eventually("the new state is seen", async || {
        server.verify(CLIENT, &secret).await.is_ok()
    })
    .await;
    server.settled(1).await;
    hears_of_another(&relay, &server).await;
}

/// Watches what a server says while everything is away: the secret is right, so it must never say no; yes only for the stated time.
/// Returns how often it said yes: never, if its being away took long enough to come about.
async fn away(server: &Server, secret: &keyturn_proto::Secret) -> u32 {
    let since = now();
    let answered = Arc::new(std::sync::atomic::AtomicU32::new(0));
    eventually("it says that it cannot say", async || {
        // The moment before the call is the one that it judges by.
        let asked = now();
        match server.verify(CLIENT, secret).await {
            Ok(_) => {
                assert!(asked.since(since) < MAX_STALE, "believed for too long");
                answered.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                false
            }
            Err(VerifyError::Unavailable { .. }) => asked.since(since) > Duration::from_millis(500),
            Err(VerifyError::Refused) => panic!("a right secret was refused"),
        }
    })
    .await;
    answered.load(std::sync::atomic::Ordering::Relaxed)
}
