//! Reservations and rosters judged without proofs.

use keyturn_proto::ErrorClass;
use keyturn_store::documents::{ClientScope, ClientStatus, GroupState, PolicyOverrides};
use keyturn_store::store::Registry as _;

use super::world::{ALICE, BOB, CAROL, T0, World, audit, key_of};
use crate::admission::Leaf;

fn leaf(npub: keyturn_proto::Npub) -> Leaf {
    Leaf {
        npub,
        signature_key: key_of(npub),
    }
}

async fn recheck(world: &World, roster: &[Leaf]) -> &'static str {
    let rotation = world.rotation();
    world
        .admission
        .recheck(&rotation, roster)
        .await
        .err()
        .map_or("", |refusal| refusal.reason)
}

#[tokio::test]
async fn a_reservation_stands_while_everything_it_rests_on_does() {
    let world = World::new().await;
    let rotation = world.rotation();
    let roster = [leaf(BOB), leaf(ALICE)];
    let client = world.admission.recheck(&rotation, &roster).await.unwrap();
    assert_eq!(client.client_id, world.client);
}

#[tokio::test]
async fn a_reservation_falls_with_whatever_it_rested_on() {
    let roster = [leaf(ALICE)];
    let world = World::new().await;
    assert_eq!(recheck(&world, &[leaf(BOB)]).await, "group.requester_gone");
    let other_key = Leaf {
        npub: ALICE,
        signature_key: vec![9; 32],
    };
    assert_eq!(
        recheck(&world, std::slice::from_ref(&other_key)).await,
        "admin.key_not_proven"
    );
    assert_eq!(
        recheck(&world, &[other_key, leaf(ALICE)]).await,
        "",
        "one of two leaves is proven"
    );

    let own = PolicyOverrides {
        grace_max_ms: Some(999),
        ..PolicyOverrides::default()
    };
    world
        .store
        .update_client(&world.client, None, None, Some(own), T0, audit())
        .await
        .unwrap();
    assert_eq!(recheck(&world, &roster).await, "policy.grace_over_max");

    let groups = Some(vec!["other".to_owned()]);
    world
        .store
        .update_client(&world.client, None, groups, None, T0, audit())
        .await
        .unwrap();
    assert_eq!(recheck(&world, &roster).await, "group.not_of_client");

    let world = World::new().await;
    world
        .store
        .update_client(
            &world.client,
            Some(ClientStatus::Revoked),
            None,
            None,
            T0,
            audit(),
        )
        .await
        .unwrap();
    assert_eq!(recheck(&world, &roster).await, "policy.client_revoked");

    let suspended = GroupState::Suspended {
        reason: "x".to_owned(),
    };
    world
        .store
        .set_group_state("ops", suspended, T0, audit())
        .await
        .unwrap();
    assert_eq!(recheck(&world, &roster).await, "group.not_served");

    let world = World::new().await;
    world
        .change_admin(ALICE, |admin| admin.active = false)
        .await;
    assert_eq!(recheck(&world, &roster).await, "admin.revoked");
    let only = ClientScope::Only(vec!["other-client".parse().unwrap()]);
    world
        .change_admin(ALICE, |admin| (admin.active, admin.scope) = (true, only))
        .await;
    assert_eq!(recheck(&world, &roster).await, "admin.out_of_scope");
    assert!(
        world.refusals().await.is_empty(),
        "the caller records what it does about it"
    );
}

#[tokio::test]
async fn a_roster_is_authorised_when_every_leaf_is() {
    let world = World::new().await;
    let client = world.store.client(&world.client).await.unwrap().unwrap();
    let judge = async |leaves: &[Leaf]| {
        world
            .admission
            .authorise_roster(&client, "ops", leaves)
            .await
    };

    let second_device = Leaf {
        npub: BOB,
        signature_key: key_of(BOB),
    };
    assert_eq!(
        judge(&[leaf(BOB), leaf(ALICE), second_device])
            .await
            .unwrap(),
        vec![ALICE, BOB]
    );
    let (who, refusal) = judge(&[leaf(ALICE), leaf(CAROL)]).await.unwrap_err();
    assert_eq!((who, refusal.reason), (Some(CAROL), "admin.out_of_scope"));
    let impostor = Leaf {
        npub: ALICE,
        signature_key: vec![1; 32],
    };
    let (who, refusal) = judge(&[leaf(BOB), impostor.clone()]).await.unwrap_err();
    assert_eq!((who, refusal.reason), (Some(ALICE), "admin.key_not_proven"));
    assert_eq!(refusal.class, ErrorClass::UnauthorizedRequest);

    let one = world
        .admission
        .authorise_leaf(&client, "ops", &leaf(ALICE))
        .await;
    assert_eq!(one, Ok(()));
    let one = world
        .admission
        .authorise_leaf(&client, "ops", &impostor)
        .await;
    assert_eq!(one.unwrap_err().reason, "admin.key_not_proven");
    let one = world
        .admission
        .authorise_leaf(&client, "other", &leaf(ALICE))
        .await;
    assert_eq!(one.unwrap_err().reason, "group.not_of_client");
}
