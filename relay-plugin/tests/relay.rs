//! The extension and the port in a real rnostr relay.
#![allow(clippy::unwrap_used)]

mod world;

use std::time::{SystemTime, UNIX_EPOCH};

use keyturn::{
    delivery::port::{By, PublishError, Published, ReadError, Scan},
    extension::BUSY,
    service::Served,
};
use nostr::{EventBuilder, EventId, JsonUtil, Keys, Kind, Tag, Timestamp};
use nostr_relay::db::secp256k1;
use serde_json::json;
use tokio::time::{Instant, timeout};
use world::{GROUP, ORDERLY, OTHER_GROUP, PATIENCE, World, event, group_event, served};

#[tokio::test(flavor = "multi_thread")]
async fn events_that_concern_us_are_handed_over_and_still_stored() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path(), Some(served()), &[]).await;
    let mut client = world.client().await;
    let ours = group_event(GROUP, "one");
    for unrelated in [
        event(1, &[], "hello"),
        group_event(OTHER_GROUP, "not ours"),
        event(1059, &[], "no p"),
    ] {
        assert_eq!(client.publish(&unrelated).await, (true, String::new()));
    }
    let before = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_millis() as u64;
    assert_eq!(client.publish(&ours).await, (true, String::new()));

    let inbound = world.inbound().await;
    assert_eq!(
        inbound.event, ours,
        "the unrelated ones were not handed over"
    );
    assert!(inbound.received_at_ms >= before);
    assert_eq!(inbound.session.ip.unwrap().to_string(), "127.0.0.1");
    assert_eq!(inbound.session.authenticated, None);
    assert!(
        world
            .relay()
            .wait_stored(ours.id, Instant::now() + PATIENCE)
            .await
            .unwrap()
    );
    assert!(world.ports.inbound.try_recv().is_err());
    world.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_what_concerns_us_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(
        dir.path(),
        Some(served()),
        &[("KEYTURN_QUEUE__CAPACITY", "1")],
    )
    .await;
    let mut client = world.client().await;
    let (first, second) = (group_event(GROUP, "1"), group_event(GROUP, "2"));
    assert_eq!(client.publish(&first).await, (true, String::new()));
    assert_eq!(client.publish(&second).await, (false, BUSY.to_owned()));
    for unrelated in [event(1, &[], "hello"), group_event(OTHER_GROUP, "3")] {
        assert_eq!(client.publish(&unrelated).await, (true, String::new()));
    }
    assert!(
        !world.relay().stored(second.id).await.unwrap(),
        "a refused event is not stored"
    );

    assert_eq!(world.inbound().await.event, first);
    assert_eq!(
        client.publish(&second).await,
        (true, String::new()),
        "and can be sent again"
    );
    assert_eq!(world.inbound().await.event, second);
    world.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_groups_are_known_every_group_event_is_handed_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path(), None, &[]).await;
    let mut client = world.client().await;
    let early = group_event(OTHER_GROUP, "early");
    assert!(client.publish(&early).await.0);
    assert_eq!(world.inbound().await.event, early);
    world.ports.served.replace(served());
    assert!(client.publish(&group_event(OTHER_GROUP, "late")).await.0);
    assert!(client.publish(&group_event(GROUP, "ours")).await.0);
    assert_eq!(world.inbound().await.event.content, "ours");
    world.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_the_nostr_crate_cannot_read_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path(), Some(served()), &[]).await;
    let mut client = world.client().await;
    let keys = secp256k1::Keypair::new_global(&mut secp256k1::rand::thread_rng());
    let tags = vec![vec!["h".to_owned(), hex::encode(GROUP)], vec![]];
    let odd = nostr_db::Event::create(&keys, nostr_db::now(), 445, tags, "odd".to_owned()).unwrap();
    client
        .send(json!([
            "EVENT",
            serde_json::from_str::<serde_json::Value>(&odd.to_string()).unwrap()
        ]))
        .await;
    assert_eq!(client.next("OK").await[2], true);
    let plain = group_event(GROUP, "plain");
    assert!(client.publish(&plain).await.0);
    assert_eq!(world.inbound().await.event, plain);
    let relay = world.relay();
    assert!(
        relay
            .wait_stored(plain.id, Instant::now() + PATIENCE)
            .await
            .unwrap()
    );
    let page = relay.scan(scan(By::Groups(vec![GROUP]), 10)).await.unwrap();
    assert_eq!((page.events, page.unreadable), (vec![plain], 1));
    world.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_event_can_be_read_back_and_reaches_subscribers() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path(), Some(served()), &[]).await;
    let relay = world.relay();
    let mut client = world.client().await;
    client
        .send(json!(["REQ", "s", { "kinds": [445], "#h": [hex::encode(GROUP)] }]))
        .await;
    client.next("EOSE").await;

    let event = group_event(GROUP, "from inside");
    assert!(!relay.stored(event.id).await.unwrap());
    assert_eq!(relay.publish(event.clone()).await.unwrap(), Published::New);
    assert!(
        relay.stored(event.id).await.unwrap(),
        "at once, without waiting"
    );
    assert_eq!(client.next("EVENT").await[2]["id"], event.id.to_hex());
    assert_eq!(relay.publish(event).await.unwrap(), Published::Already);
    world.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_published_at_once_can_be_read_back_when_its_call_returns() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path(), Some(served()), &[]).await;
    let relay = world.relay();
    // rnostr says OK to each event of a batch while it still fills the transaction.
    let events: Vec<_> = (0..300)
        .map(|number| group_event(GROUP, &number.to_string()))
        .collect();
    let published = events.into_iter().map(|event| async {
        let id = event.id;
        assert_eq!(relay.publish(event).await.unwrap(), Published::New);
        assert!(relay.stored(id).await.unwrap());
    });
    futures::future::join_all(published).await;
    world.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_relay_would_not_take_is_not_published() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(
        dir.path(),
        Some(served()),
        &[("KEYTURN_RELAY__MAX_MESSAGE_BYTES", "65536")],
    )
    .await;
    let relay = world.relay();
    let keys = Keys::generate();
    let builder = |content: &str| EventBuilder::new(Kind::from_u16(445), content);
    let hour_ahead = Timestamp::from_secs(Timestamp::now().as_secs() + 3_600);
    let too_new = builder("")
        .custom_created_at(hour_ahead)
        .sign_with_keys(&keys)
        .unwrap();
    let too_large = builder(&"x".repeat(65_536)).sign_with_keys(&keys).unwrap();
    let mut forged = builder("").sign_with_keys(&keys).unwrap();
    forged.content = "changed".to_owned();
    for event in [too_new, too_large, forged] {
        let id = event.id;
        assert!(matches!(
            relay.publish(event).await,
            Err(PublishError::Invalid { .. })
        ));
        assert!(!relay.stored(id).await.unwrap());
    }
    // Refused by the relay's own rule for replaceable events.
    let (newer, older) = (
        Timestamp::now(),
        Timestamp::from_secs(Timestamp::now().as_secs() - 60),
    );
    let profile = |at| {
        EventBuilder::new(Kind::from_u16(0), "{}")
            .custom_created_at(at)
            .sign_with_keys(&keys)
            .unwrap()
    };
    relay.publish(profile(newer)).await.unwrap();
    let refused = relay.publish(profile(older)).await.unwrap_err();
    assert!(
        matches!(&refused, PublishError::Refused { reason } if reason.starts_with("replaced")),
        "{refused}"
    );
    world.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_published_one_after_the_other_are_scanned_in_that_order() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path(), Some(served()), &[]).await;
    let relay = world.relay();
    let mut sent = Vec::new();
    for number in 0..5 {
        let event = group_event(GROUP, &number.to_string());
        sent.push(event.id);
        relay.publish(event).await.unwrap();
        relay
            .publish(group_event(OTHER_GROUP, &number.to_string()))
            .await
            .unwrap();
    }
    // Pages of two, so that a second is cut in the middle.
    let (mut found, mut next) = (Vec::new(), None);
    loop {
        let page = relay
            .scan(Scan {
                after: next,
                ..scan(By::Groups(vec![GROUP]), 2)
            })
            .await
            .unwrap();
        assert!(page.events.len() <= 2);
        found.extend(page.events.iter().map(|event| event.id));
        assert!(
            found.len() <= sent.len(),
            "pages must not repeat themselves"
        );
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    assert_eq!(found, sent);
    for nothing in [
        By::Groups(vec![]),
        By::Recipients(vec![]),
        By::Authors(vec![]),
    ] {
        assert!(
            relay
                .scan(scan(nothing, 10))
                .await
                .unwrap()
                .events
                .is_empty()
        );
    }
    world.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_find_gift_wraps_by_recipient_and_key_packages_by_author() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path(), Some(served()), &[]).await;
    let relay = world.relay();
    let (me, author) = (Keys::generate(), Keys::generate());
    let wrap = event(1059, &[&["p", &me.public_key().to_hex()]], "wrap");
    let package = EventBuilder::new(Kind::from_u16(443), "kp")
        .sign_with_keys(&author)
        .unwrap();
    for event in [
        &wrap,
        &package,
        &event(1059, &[&["p", &author.public_key().to_hex()]], "other"),
    ] {
        relay.publish(event.clone()).await.unwrap();
    }
    let wraps = Scan {
        kinds: vec![1059],
        ..scan(By::Recipients(vec![me.public_key()]), 10)
    };
    assert_eq!(relay.scan(wraps).await.unwrap().events, [wrap]);
    let packages = Scan {
        kinds: vec![443, 30443],
        ..scan(By::Authors(vec![author.public_key()]), 10)
    };
    assert_eq!(relay.scan(packages).await.unwrap().events, [package]);
    world.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_removes_any_author_s_event_also_one_on_its_way() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path(), Some(served()), &[]).await;
    let relay = world.relay();
    let (stored, unknown) = (group_event(GROUP, "stored"), EventId::all_zeros());
    relay.publish(stored.clone()).await.unwrap();
    let deleted = relay.delete(vec![stored.id, unknown]).await.unwrap();
    assert_eq!(
        (deleted.removed, deleted.absent),
        (vec![stored.id], vec![unknown])
    );
    assert!(!relay.stored(stored.id).await.unwrap());

    // Handed over before the relay has written it: the deletion must not be overtaken by the write.
    let mut client = world.client().await;
    let fresh = group_event(GROUP, "fresh");
    client.send(json!(["EVENT", fresh])).await;
    assert_eq!(world.inbound().await.event, fresh);
    let deleted = relay.delete(vec![fresh.id]).await.unwrap();
    assert_eq!(deleted.removed, [fresh.id]);
    // The next write batch has passed once a later event is there.
    relay.publish(group_event(GROUP, "later")).await.unwrap();
    assert!(!relay.stored(fresh.id).await.unwrap());
    assert_eq!(
        relay
            .scan(scan(By::Groups(vec![GROUP]), 10))
            .await
            .unwrap()
            .events
            .len(),
        1
    );
    world.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_attach_the_first_connection_brings_the_relay() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start_with(dir.path(), Some(served()), &[], |extension, app| {
        Ok(app.add_extension(extension))
    })
    .await;
    let relay = world.relay();
    assert!(matches!(
        relay.publish(group_event(GROUP, "")).await,
        Err(PublishError::Detached)
    ));
    assert!(matches!(
        relay.stored(EventId::all_zeros()).await,
        Err(ReadError::Detached)
    ));
    let mut client = world.client().await;
    timeout(PATIENCE, relay.attached()).await.unwrap();
    relay.publish(group_event(GROUP, "inside")).await.unwrap();
    assert!(client.publish(&group_event(GROUP, "outside")).await.0);
    assert_eq!(world.inbound().await.event.content, "outside");
    world.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_closes_open_websockets_with_1001_and_keeps_what_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path(), Some(Served::default()), &[]).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(world.client().await);
    }
    let kept = event(1, &[], "acknowledged just before");
    assert!(clients[0].publish(&kept).await.0);
    // A client that never reads must not hold it up.
    let silent = tokio::net::TcpStream::connect(world.host.address())
        .await
        .unwrap();

    let started = Instant::now();
    world.stop(ORDERLY).await;
    assert!(started.elapsed() < ORDERLY, "took {:?}", started.elapsed());
    for mut client in clients {
        let close = client.close_frame().await;
        assert_eq!(close, Some(1001));
    }
    drop(silent);

    let world = World::start(dir.path(), Some(Served::default()), &[]).await;
    assert!(world.relay().stored(kept.id).await.unwrap());
    world.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_event_of_a_run_leaves_the_last_one_of_the_run_before_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = Vec::new();
    for run in 0..3 {
        let world = World::start(dir.path(), Some(served()), &[]).await;
        let relay = world.relay();
        let event = group_event(GROUP, &run.to_string());
        relay.publish(event.clone()).await.unwrap();
        kept.push(event);
        let mut found = relay
            .scan(scan(By::Groups(vec![GROUP]), 10))
            .await
            .unwrap()
            .events;
        found.sort_by(|a, b| a.content.cmp(&b.content));
        assert_eq!(found, kept);
        world.stop(PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn authentication_is_enforced_and_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    let required = [
        ("KEYTURN_RELAY__AUTH__ENABLED", "true"),
        ("KEYTURN_RELAY__AUTH__REQUIRE_TO_PUBLISH", "true"),
    ];
    let mut world = World::start(dir.path(), Some(served()), &required).await;
    let mut client = world.client().await;
    let challenge = client.next("AUTH").await[1].as_str().unwrap().to_owned();
    let refused = group_event(GROUP, "refused");
    let (ok, reason) = client.publish(&refused).await;
    assert!(!ok && reason.starts_with("auth-required"), "{reason}");

    let keys = Keys::generate();
    let tag = Tag::parse(["challenge", &challenge]).unwrap();
    let auth = EventBuilder::new(Kind::from_u16(22242), "")
        .tag(tag)
        .sign_with_keys(&keys)
        .unwrap();
    client
        .send(json!([
            "AUTH",
            serde_json::from_str::<serde_json::Value>(&auth.as_json()).unwrap()
        ]))
        .await;
    assert_eq!(client.next("OK").await[2], true);
    let taken = group_event(GROUP, "taken");
    assert!(client.publish(&taken).await.0);
    let inbound = world.inbound().await;
    assert_eq!(inbound.event, taken, "the refused one was not handed over");
    assert_eq!(inbound.session.authenticated, Some(keys.public_key()));
    world.stop(PATIENCE).await;
}

fn scan(by: By, page: usize) -> Scan {
    Scan {
        kinds: vec![445],
        by,
        since: None,
        page,
        after: None,
    }
}
