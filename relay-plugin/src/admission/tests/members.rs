//! Membership, policy by client, and taking up again: what the list of scenarios cannot express as one request.

use std::collections::BTreeMap;
use std::time::Duration;

use keyturn_proto::ErrorClass::{InternalError, PolicyViolation, UnauthorizedRequest};
use keyturn_proto::{Action, ErrorClass};
use keyturn_store::documents::{ClientScope, ClientStatus, GroupState, PolicyOverrides};
use keyturn_store::store::Registry as _;

use super::world::{ALICE, T0, World, audit, group_doc, refused};
use crate::admission::Opened;
use crate::admission::scenarios::{Attempt, Sender};

async fn verdict(world: &mut World, attempt: &Attempt) -> Option<(ErrorClass, &'static str)> {
    world
        .send(attempt)
        .await
        .err()
        .map(|refusal| (refusal.class, refusal.reason))
}

#[tokio::test]
async fn a_forbidden_client_looks_like_one_that_does_not_exist() {
    let mut answers = Vec::new();
    for (sender, client) in [
        (Sender::Admin, Some("no-such-client")),
        (Sender::Admin, Some("other-client")),
        (Sender::OutOfScope, None),
        (Sender::OtherGroup, None),
        (Sender::OtherGroup, Some("no-such-client")),
    ] {
        let mut world = World::new().await;
        let attempt = Attempt {
            sender,
            client,
            ..Attempt::good()
        };
        let refusal = world.send(&attempt).await.err().unwrap();
        answers.push((refusal.class, refusal.retry_after_ms));
    }
    assert_eq!(answers, vec![(UnauthorizedRequest, None); 5]);
}

#[tokio::test]
async fn a_group_counts_while_it_is_bound_and_served() {
    let mut world = World::new().await;
    let suspended = GroupState::Suspended {
        reason: "roster changed".to_owned(),
    };
    world
        .store
        .set_group_state("ops", suspended, T0, audit())
        .await
        .unwrap();
    assert_eq!(world.reason(&Attempt::good()).await, "group.suspended");
    world
        .store
        .set_group_state("ops", GroupState::Active, T0, audit())
        .await
        .unwrap();
    assert_eq!(world.reason(&Attempt::good()).await, "");

    let mut opened = world.opened(&Attempt::good());
    opened.group.alias = "elsewhere".to_owned();
    let refusal = world.admit(&opened, T0).await.err();
    assert_eq!(refusal, refused(UnauthorizedRequest, "group.unknown"));

    let mut opened = world.opened(&Attempt::good());
    opened.group.alias = "other".to_owned();
    let refusal = world.admit(&opened, T0).await.err();
    assert_eq!(refusal, refused(UnauthorizedRequest, "group.not_bound"));
}

#[tokio::test]
async fn a_revoked_admin_and_a_narrowed_scope_count_at_once() {
    let mut world = World::new().await;
    let only = |client: &str| ClientScope::Only(vec![client.parse().unwrap()]);
    world
        .change_admin(ALICE, |admin| admin.scope = only("ext-totp-svc"))
        .await;
    assert_eq!(world.reason(&Attempt::good()).await, "");
    world
        .change_admin(ALICE, |admin| admin.scope = only("other-client"))
        .await;
    assert_eq!(world.reason(&Attempt::good()).await, "admin.out_of_scope");
    world
        .change_admin(ALICE, |admin| {
            (admin.scope, admin.active) = (ClientScope::All, false)
        })
        .await;
    assert_eq!(world.reason(&Attempt::good()).await, "admin.revoked");
}

#[tokio::test]
async fn a_client_is_judged_by_its_status() {
    let mut world = World::new().await;
    let with = |action| Attempt {
        action,
        ..Attempt::good()
    };
    let client = world.client.clone();
    world
        .store
        .update_client(
            &client,
            Some(ClientStatus::Suspended),
            None,
            None,
            T0,
            audit(),
        )
        .await
        .unwrap();
    assert_eq!(
        verdict(&mut world, &with(Action::Emergency)).await,
        Some((PolicyViolation, "policy.client_held"))
    );
    assert_eq!(verdict(&mut world, &with(Action::Revoke)).await, None);
    world
        .store
        .update_client(
            &client,
            Some(ClientStatus::Revoked),
            None,
            None,
            T0,
            audit(),
        )
        .await
        .unwrap();
    assert_eq!(
        verdict(&mut world, &with(Action::Rotation)).await,
        Some((PolicyViolation, "policy.client_revoked"))
    );
    assert_eq!(verdict(&mut world, &with(Action::Status)).await, None);
}

#[tokio::test]
async fn the_permit_carries_the_judged_terms() {
    let mut world = World::new().await;
    let own = PolicyOverrides {
        grace_default_ms: Some(60_000),
        min_interval_ms: Some(5),
        ..PolicyOverrides::default()
    };
    let client = world.client.clone();
    world
        .store
        .update_client(&client, None, None, Some(own), T0, audit())
        .await
        .unwrap();
    let opened = world.opened(&Attempt::good());
    let permit = world.admit(&opened, world.now).await.ok().unwrap();
    assert_eq!(permit.grace_ms(), 60_000);
    assert_eq!(permit.min_interval_ms(), 5);
    assert_eq!(permit.not_before(), T0.plus(Duration::from_secs(600)));
    assert_eq!(permit.proof_expires_at(), T0.plus(Duration::from_secs(120)));
    assert_eq!(permit.client_id(), &client);
    assert_eq!(permit.group(), &opened.group);
    assert_eq!(permit.request_digest().len(), 64);
    assert_eq!(permit.totp_step(), None);
}

#[tokio::test]
async fn a_granted_request_costs_one_commit() {
    let mut world = World::new().await;
    let _ = world.counted.take();
    world.send(&Attempt::good()).await.ok().unwrap();
    assert_eq!(world.counted.take(), BTreeMap::from([("burn_nonce", 1)]));
}

#[tokio::test]
async fn an_event_taken_up_again_is_judged_by_the_time_it_was_received() {
    let mut world = World::new().await;
    let opened = world.opened(&Attempt::good());
    assert!(world.admit(&opened, world.now).await.is_ok());
    world.wait(Duration::from_secs(3600));
    assert!(
        world.admit(&opened, world.now).await.is_ok(),
        "the same event finds its own nonce"
    );

    let copy = Opened {
        event_id: "ff".repeat(32),
        json: opened.json.clone(),
        group: opened.group.clone(),
        leaf_signature_key: opened.leaf_signature_key.clone(),
        ..opened
    };
    let refusal = world.admit(&copy, world.now).await.err();
    assert_eq!(refusal, refused(UnauthorizedRequest, "nonce.reused"));

    let late = Opened {
        received_at: world.now,
        event_id: "fe".repeat(32),
        json: copy.json.clone(),
        group: copy.group.clone(),
        leaf_signature_key: copy.leaf_signature_key.clone(),
        ..copy
    };
    let refusal = world.admit(&late, world.now).await.err();
    assert_eq!(refusal, refused(UnauthorizedRequest, "jwt.expired"));
}

#[tokio::test]
async fn a_challenge_dies_with_its_time() {
    let mut world = World::with(|settings| settings.challenge_ttl = Duration::from_secs(60)).await;
    let mut opened = world.opened(&Attempt::good());
    opened.received_at = T0.plus(Duration::from_secs(60));
    let refusal = world.admit(&opened, opened.received_at).await.err();
    assert_eq!(refusal, refused(UnauthorizedRequest, "nonce.expired"));
}

#[tokio::test]
async fn an_issuer_that_is_away_is_our_failure_and_no_offence() {
    let mut world = World::with(|settings| settings.limits.breaker_refusals = 2).await;
    world.remove_issuer();
    for _ in 0..5 {
        let refusal = world.send(&Attempt::good()).await.err().unwrap();
        assert_eq!(
            (refusal.class, refusal.reason),
            (InternalError, "issuer.unavailable")
        );
        assert!(refusal.retry_after_ms.is_some());
    }
}

#[tokio::test]
async fn rebinding_an_alias_to_another_group_ends_the_old_one() {
    let mut world = World::new().await;
    world
        .store
        .put_group(group_doc("ops", 9), audit())
        .await
        .unwrap();
    assert_eq!(world.reason(&Attempt::good()).await, "group.not_bound");
}
