//! An instance that stands by, and what it does when the one that acts is gone.

use std::time::Duration;

use keyturn_mls::verify_key_package;
use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_proto::{
    Action, ErrorClass, RotationId, ServiceNotify, ServiceRequest, canonical, kinds,
};
use keyturn_store::contract::fixture;
use keyturn_store::documents::{Actor, RotationDoc};
use keyturn_store::store::{
    AuditTrail as _, Cancel, Decision, Lease, Refuse, Reserved, SecretStore as _, Withdraw,
    Withdrawn,
};

use super::admin::Admin;
use super::world::{World, because};
use crate::admission::{Leaf, Opened, refuse};
use crate::core::standby::{EVERY, KEPT, OLDEST, PER_LEAF};
use crate::delivery::inbox::Waiting;
use crate::rotation::Settings;
use crate::rotation::audit::Entry;

/// Another instance acts; this one stands by.
async fn standing_by() -> (World, Lease) {
    let mut world = World::with(|settings| settings.lease = Duration::from_secs(8)).await;
    let lease = stand_by(&mut world).await;
    (world, lease)
}

async fn stand_by(world: &mut World) -> Lease {
    world.kill().await;
    let (store, now) = (world.store.clone(), world.now());
    let own = world.settings.instance.clone();
    store.lease(Settings::LEASE, &own, 0, now).await.unwrap();
    let lease = store.lease(Settings::LEASE, "other", 7_200_000, now).await;
    world.start().await;
    assert!(!world.core.as_ref().unwrap().engine.acts());
    lease.unwrap()
}

/// The other one is dead.
async fn take_over(world: &World) {
    let gone = world.store.lease(Settings::LEASE, "other", 0, world.now());
    gone.await.unwrap();
    let engine = world.core.as_ref().unwrap().engine.clone();
    world
        .until("this instance acts", async || engine.acts())
        .await;
}

async fn inbox(world: &World) -> Vec<Waiting> {
    let service = &world.core.as_ref().unwrap().service;
    service.inbox(0, 10_000).await.unwrap()
}

/// The messages that wait, once there are `count`.
async fn waiting(world: &World, count: usize) -> Vec<Waiting> {
    world
        .until(&format!("{count} messages wait"), async || {
            inbox(world).await.len() == count
        })
        .await;
    inbox(world).await
}

fn digest(opened: &Opened) -> String {
    let request: ServiceRequest = serde_json::from_str(&opened.json).unwrap();
    hex::encode(canonical::request_digest(
        request.action_type,
        &request.client_id,
        &request.action_id,
        &request.params,
        &opened.group.mls_group_id,
    ))
}

/// The other instance reserves a rotation for Alice.
async fn reserved_by_the_other(world: &World, lease: &Lease, id: &RotationId, digest: String) {
    let now = world.now();
    let mut reserve = fixture::reserve(id, now);
    reserve.rotation = RotationDoc {
        client_id: world.client.clone(),
        requested_by: world.alice.npub(),
        request_digest: digest,
        fence: lease.fence,
        not_before: now,
        ..reserve.rotation
    };
    reserve.rotation.quorum.required = 1;
    reserve.rotation.quorum.requester_counts = false;
    let reserved = world.store.reserve(reserve).await.unwrap();
    assert!(matches!(reserved, Reserved::New(_)), "{reserved:?}");
}

/// What Alice was told about one message of hers.
fn answers(world: &mut World, event: &str) -> Vec<NotifyState> {
    let now = world.now();
    world.alice.sync(now);
    let told = world.alice.told.iter();
    told.filter(|told| told.in_reply_to.as_deref() == Some(event))
        .map(|told| told.body.clone())
        .collect()
}

async fn answered(world: &mut World, event: &str) -> NotifyState {
    let deadline = tokio::time::Instant::now() + super::world::DEADLINE;
    loop {
        if let Some(body) = answers(world, event).pop() {
            return body;
        }
        assert!(tokio::time::Instant::now() < deadline, "no answer");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// It had recorded the refusal, and died before anybody was told.
#[tokio::test]
async fn what_the_dead_instance_refused_is_not_granted_by_its_successor() {
    let (mut world, _) = standing_by().await;
    let id = world.rotate();
    let row = waiting(&world, 1).await.pop().unwrap();
    let now = world.now();
    let (class, reason) = (ErrorClass::PolicyViolation, "limits.admin");
    let audit = Entry::of_opened(now, &row.opened, "request.refused", reason);
    let decision = Decision {
        audit: audit.done(),
        refuses: Some(refuse(&row.opened, class, reason, now)),
    };
    world.store.record(vec![decision]).await.unwrap();

    take_over(&world).await;
    let told = answered(&mut world, &row.opened.event_id).await;
    let expected = NotifyState::Refused {
        error: class,
        retry_after_ms: None,
    };
    assert_eq!(told, expected);
    waiting(&world, 0).await;
    assert_eq!(world.rotation(&id).await, None);
    let records = world.store.read(None, 1000).await.unwrap();
    let refused = records.iter().filter(|r| r.event == "request.refused");
    assert_eq!(refused.count(), 1, "decided once");
    // Another request is judged for itself.
    let id = world.rotate();
    world.delivered(&id).await;
}

/// It had ended the rotation, and died before its answer; and somebody began another one.
#[tokio::test]
async fn a_cancel_that_was_carried_out_ends_no_later_rotation() {
    let mut world = World::with(|settings| settings.lease = Duration::from_secs(8)).await;
    let first = world.rotate();
    world.delivered(&first).await;
    let lease = stand_by(&mut world).await;
    let action = world.ask(Action::Cancel, because("changed my mind"));
    let row = waiting(&world, 1).await.pop().unwrap();
    let now = world.now();
    let audit = Entry::of_opened(now, &row.opened, "rotation.canceled", "changed my mind");
    let withdrawn = world.store.withdraw(Withdraw {
        client_id: world.client.clone(),
        target: None,
        action_id: action,
        request_digest: digest(&row.opened),
        totp_step: None,
        retention_ms: world.settings.retention_ms(),
        fence: lease.fence,
        now,
        audit: audit.client(&world.client).done(),
    });
    assert!(matches!(withdrawn.await, Ok(Withdrawn::Done(_))));
    let second = RotationId::generate(now).unwrap();
    reserved_by_the_other(&world, &lease, &second, "another".to_owned()).await;

    take_over(&world).await;
    let told = answered(&mut world, &row.opened.event_id).await;
    let canceled = |body: &NotifyState| {
        let NotifyState::Done { outcome, .. } = body else {
            return false;
        };
        *outcome == Outcome::Canceled
    };
    assert!(canceled(&told), "{told:?}");
    waiting(&world, 0).await;
    world.delivered(&second).await;
    assert_eq!(world.rotation(&second).await.unwrap().outcome, None);
}

#[tokio::test]
async fn a_request_that_was_granted_is_carried_on_and_not_judged_again() {
    let (mut world, lease) = standing_by().await;
    let id = world.rotate();
    let row = waiting(&world, 1).await.pop().unwrap();
    let same = digest(&row.opened);
    reserved_by_the_other(&world, &lease, &id, same).await;
    take_over(&world).await;
    world.delivered(&id).await;
    waiting(&world, 0).await;
    let burnt = world.store.read(None, 1000).await.unwrap();
    assert!(burnt.iter().all(|record| record.event != "nonce.burnt"));
}

#[tokio::test]
async fn what_others_have_dealt_with_leaves_the_inbox_with_one_look_into_the_store() {
    const OPEN: usize = 20;
    let mut world = World::with(|settings| settings.lease = Duration::from_secs(8)).await;
    let first = world.rotate();
    let version = world.delivered(&first).await;
    let lease = stand_by(&mut world).await;
    let id = world.rotate();
    let row = waiting(&world, 1).await.pop().unwrap();
    world.bob_acks(&version).await;
    for _ in 0..OPEN {
        world.rotate();
    }
    waiting(&world, OPEN + 2).await;
    // The ack comes too late, and the first request has its rotation.
    let now = world.now();
    let cancel = Cancel {
        fence: Some(lease.fence),
        ..fixture::cancel(&first, Outcome::Canceled, now)
    };
    world.store.cancel(cancel).await.unwrap();
    let same = digest(&row.opened);
    reserved_by_the_other(&world, &lease, &id, same).await;

    let before = world.counted.calls("decided");
    world.clock.forward(EVERY + Duration::from_secs(1));
    let left = waiting(&world, OPEN).await;
    assert!(
        left.iter()
            .all(|it| it.opened.event_id != row.opened.event_id)
    );
    let looks = world.counted.calls("decided") - before;
    assert!(looks < 5, "{looks} looks for {} rows", OPEN + 2);
    // Nothing older than its proof is of use, and nobody need be asked about that.
    world.counted.fail("decided");
    world.clock.forward(KEPT + EVERY);
    waiting(&world, 0).await;
    world.counted.mend();
}

#[tokio::test]
async fn taking_over_waits_for_no_look_at_what_waits() {
    let (mut world, _) = standing_by().await;
    let id = world.rotate();
    waiting(&world, 1).await;
    let held = world.counted.hold("decided");
    let before = world.counted.calls("decided");
    take_over(&world).await;
    world
        .until("what waits is being looked up", async || {
            world.counted.calls("decided") > before
        })
        .await;
    // Live events are taken in meanwhile: Bob's request has no past, and is worked off.
    let (group, client, now) = (world.group.clone(), world.client.clone(), world.now());
    let because = because("");
    world.bob.ask(&group, &client, Action::Status, because, now);
    world.wait_audit("status.told", "").await;
    assert_eq!(world.rotation(&id).await, None);
    drop(held);
    world.delivered(&id).await;
}

/// An event may come to the successor only now, from an app that tries another relay, although the dead instance has decided it.
#[tokio::test]
async fn a_live_event_that_a_sibling_has_refused_is_refused() {
    let mut world = World::new().await;
    world.siblings.insert(Admin::new(&world.relay).npub());
    world.kill().await;
    world.start().await;
    // Kept from the relay until the sibling's decision is in the store.
    world.relay.gather();
    let (group, client, now) = (world.group.clone(), world.client.clone(), world.now());
    let id = RotationId::generate(now).unwrap();
    let event = world
        .alice
        .ask_as(&group, &id, &client, Action::Rotation, because("test"), now);
    let event = event.id.to_hex();
    let audit = Entry::by_admin(now, world.alice.npub(), "request.refused", "limits.admin");
    let refuses = Refuse {
        event_id: event.clone(),
        class: ErrorClass::PolicyViolation,
        reason: "limits.admin".to_owned(),
        expires_at: now.plus(OLDEST),
    };
    let decision = Decision {
        audit: audit.event(&event).done(),
        refuses: Some(refuses),
    };
    world.store.record(vec![decision]).await.unwrap();
    world.relay.flush_reversed(now.0);
    let told = answered(&mut world, &event).await;
    assert!(matches!(told, NotifyState::Refused { .. }), "{told:?}");
    assert_eq!(world.rotation(&id).await, None);
}

#[tokio::test]
async fn a_flooding_member_displaces_nobody_but_itself() {
    let (mut world, _) = standing_by().await;
    let (group, client, now) = (world.group.clone(), world.client.clone(), world.now());
    let bobs = world
        .bob
        .ask(&group, &client, Action::Rotation, because("test"), now);
    waiting(&world, 1).await;
    // Not faster than the test's relay hands over: its channel holds 64.
    for _ in 0..4 {
        let mut last = String::new();
        for _ in 0..40 {
            let id = RotationId::generate(world.now()).unwrap();
            let (action, params) = (Action::Status, because(""));
            let sent = world
                .alice
                .ask_as(&group, &id, &client, action, params, now);
            last = sent.id.to_hex();
        }
        world
            .until("the relay keeps up", async || {
                let rows = inbox(&world).await;
                rows.iter().any(|row| row.opened.event_id == last)
            })
            .await;
    }
    let rows = waiting(&world, PER_LEAF as usize + 1).await;
    let bob = world.bob.npub();
    assert_eq!(
        rows.iter().filter(|row| row.opened.sender == bob).count(),
        1
    );
    world.clock.forward(crate::trail::EVERY);
    world
        .until("what was not kept is accounted for", async || {
            let records = world.store.read(None, 1000).await.unwrap();
            let sums = records.iter().filter(|record| {
                let alices = record.actor
                    == Actor::Admin {
                        npub: world.alice.npub(),
                    };
                alices && record.event == "member.refused_repeatedly"
            });
            let counts = sums.filter_map(|record| {
                let rest = record.reason.strip_prefix("inbox.full count=")?;
                rest.split(' ').next()?.parse::<u32>().ok()
            });
            counts.sum::<u32>() == 160 - PER_LEAF
        })
        .await;
    take_over(&world).await;
    world.delivered(&bobs).await;
}

/// What a service says when it has refused this message.
fn answer(row: &Waiting, now: keyturn_proto::UnixMs) -> String {
    let notify = ServiceNotify {
        action_id: None,
        client_id: None,
        in_reply_to: Some(row.opened.event_id.clone()),
        at: now,
        body: NotifyState::Refused {
            error: ErrorClass::Conflict,
            retry_after_ms: None,
        },
    };
    serde_json::to_string(&notify).unwrap()
}

/// A rogue admin can add a leaf that bears a sibling's npub.
#[tokio::test]
async fn the_word_of_a_leaf_whose_key_no_sibling_has_signed_settles_nothing() {
    let mut world = World::with(|settings| settings.lease = Duration::from_secs(8)).await;
    let bob = world.bob.npub();
    world.siblings.insert(bob);
    let events = world.relay.events();
    let signed = events
        .iter()
        .filter(|event| event.pubkey.to_bytes() == *bob.as_bytes());
    let signed = signed.map(|event| event.id).collect();
    crate::delivery::port::RelayPort::delete(&world.relay, signed)
        .await
        .unwrap();
    stand_by(&mut world).await;
    let (group, now) = (world.group.clone(), world.now());
    world.rotate();
    let rows = waiting(&world, 1).await;
    let kind = kinds::SERVICE_NOTIFY;
    world.bob.say(&group, kind, answer(&rows[0], now), now);
    world
        .wait_audit("message.dropped", "sibling.key_not_proven")
        .await;
    assert_eq!(inbox(&world).await.len(), 1);
    // With a key that the sibling has signed the same word counts.
    world.bob.publish_key_package(now);
    world.bob.say(&group, kind, answer(&rows[0], now), now);
    waiting(&world, 0).await;
}

#[tokio::test]
async fn a_siblings_answer_ends_the_wait_and_nobody_elses_does() {
    let mut world = World::with(|settings| settings.lease = Duration::from_secs(8)).await;
    world.siblings.insert(world.bob.npub());
    stand_by(&mut world).await;
    let (group, now) = (world.group.clone(), world.now());
    for _ in 0..2 {
        world.rotate();
    }
    let rows = waiting(&world, 2).await;
    let kind = kinds::SERVICE_NOTIFY;
    world.alice.say(&group, kind, answer(&rows[0], now), now);
    world.bob.say(&group, kind, answer(&rows[1], now), now);
    let left = waiting(&world, 1).await;
    assert_eq!(left[0].opened.event_id, rows[0].opened.event_id);
    // A service asks for nothing.
    let client = world.client.clone();
    world
        .bob
        .ask(&group, &client, Action::Status, because(""), now);
    world.wait_audit("message.dropped", "sibling.asks").await;
    assert_eq!(inbox(&world).await.len(), 1);
}

#[tokio::test]
async fn a_sibling_is_who_has_signed_the_key_of_its_leaf() {
    let mut world = World::new().await;
    let (mut sibling, mut mallory) = (Admin::new(&world.relay), Admin::new(&world.relay));
    world.siblings.insert(sibling.npub());
    world.kill().await;
    world.start().await;
    let service = world.core.as_ref().unwrap().service.clone();
    assert!(service.is_sibling(&sibling.npub()));
    assert!(!service.is_sibling(&world.alice.npub()));
    let now = world.now();
    let mallorys = mallory.publish_key_package(now);
    let mallorys = verify_key_package(&mallorys, now).unwrap().signature_key();
    let leaf = |key: &[u8]| Leaf {
        npub: sibling.npub(),
        signature_key: key.to_vec(),
    };
    let own = sibling.member.signature_key();
    let (own, forged) = (leaf(own.as_bytes()), leaf(mallorys.as_bytes()));
    assert!(!service.is_proven_sibling(&own).await, "not signed yet");
    sibling.publish_key_package(now);
    assert!(service.is_proven_sibling(&own).await);
    assert!(!service.is_proven_sibling(&forged).await);
    // What was proven once is not looked for again.
    let ids = world.relay.events().iter().map(|event| event.id).collect();
    crate::delivery::port::RelayPort::delete(&world.relay, ids)
        .await
        .unwrap();
    assert!(service.is_proven_sibling(&own).await);
}
