//! Every other action, and joining a group, killed at every step.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_revoke_and_emergency_survive_a_kill() {
    let (mut stage, mut relay) = Stage::set().await;
    let points = [Point::AfterInbox, Point::AfterAdmit, Point::AfterAction];

    for point in points {
        let at = format!("rollback, {}", point.name());
        println!("{at}");
        let first = stage.current;
        let wish = stage.rotation(reason("to be rolled back"));
        let (signer, held) = (stage.world.issuer.signer(), &stage.held);
        carry_through(signer, &mut stage.alice, &mut stage.bob, &wish, held).await;
        stage.well(&relay, &wish, &at).await;
        let second = stage.current;

        relay.arm(point);
        let undo = Wish::new(Action::Rollback, &stage.group, reason("it breaks things"));
        let signer = stage.world.issuer.signer();
        let operator = async {
            crashed(relay).await;
            let current = stage.judge.client().await.current_version.unwrap();
            assert!([first, second].contains(&current), "{at}");
            let verified = stage.judge.verify(&stage.held.secret(current)).await;
            assert_eq!(verified, Some((current, Which::Current)), "{at}");
            stage.world.relay().await
        };
        let (reply, again) = join!(insist(signer, &mut stage.bob, &undo), operator);
        relay = again;
        let repeated = insist(signer, &mut stage.bob, &undo).await;
        for answer in [&reply.answer.body, &repeated.answer.body] {
            assert!(
                matches!(answer, NotifyState::Done { outcome: Outcome::RolledBack, current_version: Some(current), .. } if *current == first),
                "{at}: {answer:?}"
            );
        }
        let judge = &stage.judge;
        let records = judge.audited(&undo.id, "rotation.rolled_back").await;
        assert_eq!(records.len(), 1, "{at}: {records:?}");
        let verified = judge.verify(&stage.held.secret(first)).await;
        assert_eq!(verified, Some((first, Which::Current)), "{at}");
        let refused = judge.verify(&stage.held.secret(second)).await;
        assert_eq!(refused, None, "{at}");
        stage.current = first;
    }

    for point in points {
        let at = format!("revoke, {}", point.name());
        println!("{at}");
        relay.arm(point);
        let gone = stage.current;
        let all = Wish::new(Action::Revoke, &stage.group, reason("leaked"));
        let signer = stage.world.issuer.signer();
        let operator = async {
            crashed(relay).await;
            stage.world.relay().await
        };
        let (reply, again) = join!(insist(signer, &mut stage.bob, &all), operator);
        relay = again;
        assert!(
            matches!(
                reply.answer.body,
                NotifyState::Done {
                    outcome: Outcome::Revoked,
                    current_version: None,
                    ..
                }
            ),
            "{at}: {:?}",
            reply.answer
        );
        let judge = &stage.judge;
        assert_eq!(judge.client().await.status, ClientStatus::Suspended, "{at}");
        assert_eq!(judge.verify(&stage.held.secret(gone)).await, None, "{at}");

        // A rotation brings it back.
        let wish = stage.rotation(reason("after a revocation"));
        let (signer, held) = (stage.world.issuer.signer(), &stage.held);
        carry_through(signer, &mut stage.alice, &mut stage.bob, &wish, held).await;
        let new = judge.client().await.current_version.unwrap();
        let verified = judge.verify(&held.secret(new)).await;
        assert_eq!(verified, Some((new, Which::Current)), "{at}");
        stage.current = new;
    }

    for point in [Point::AfterReserve, Point::AfterPrepare] {
        let at = format!("emergency, {}", point.name());
        println!("{at}");
        relay.arm(point);
        let gone = stage.current;
        let wish = Wish::new(Action::Emergency, &stage.group, reason("leaked"));
        let (signer, held) = (stage.world.issuer.signer(), &stage.held);
        let judge = &stage.judge;
        let operator = async {
            crashed(relay).await;
            judge.recorded_once(&wish.id, &at).await;
            // Dead from the reservation on, whatever becomes of the rotation.
            assert_eq!(judge.verify(&held.secret(gone)).await, None, "{at}");
            stage.world.relay().await
        };
        let admins = carry_through(signer, &mut stage.alice, &mut stage.bob, &wish, held);
        let (_, again) = join!(admins, operator);
        relay = again;
        let mut wire = Wire::connect(&relay.url).await;
        let new = judge.promoted(&mut wire, gone, &wish.id, held, &at).await;
        assert_eq!(judge.verify(&held.secret(gone)).await, None, "{at}");
        stage.current = new;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joining_a_group_survives_a_kill_at_every_step() {
    let mut world = World::new(PROGRAM, unlimited).await;
    world.enrol("alice").await;
    world.enrol("bob").await;
    let mut relay = world.relay().await;
    let mut alice = world.admin("alice", &relay).await;
    let mut bob = world.admin("bob", &relay).await;
    alice.publish_key_package(deadline()).await.unwrap();
    bob.publish_key_package(deadline()).await.unwrap();
    let held = Held::default();
    for point in [
        Point::AfterWelcome,
        Point::AfterBind,
        Point::AfterLeafStaged,
        Point::AfterLeafPublished,
    ] {
        let at = point.name();
        println!("kill at {at}");
        let client = format!("client-{}", at.replace('_', "-"));
        world.bind(at, "alice").await;
        world.client(&client, &[at]).await;
        relay.arm(point);
        let founding = found(&world, at, &mut alice, &mut bob);
        let operator = async {
            crashed(relay).await;
            world.relay().await
        };
        let (group, again) = join!(founding, operator);
        relay = again;

        let judge = Judge::of(&world, &client);
        let groups = judge.store.groups().await.unwrap();
        let bound = groups.iter().find(|group| group.alias == at).unwrap();
        assert_eq!(bound.mls_group_id.as_ref(), Some(&group), "{at}");
        let mut wire = Wire::connect(&relay.url).await;
        let wraps = json!({ "kinds": [1059], "#p": [world.service().to_hex()], "limit": 100 });
        eventually("the Welcome was deleted", async || {
            wire.find(wraps.clone()).await.is_empty().then_some(())
        })
        .await;

        let wish = Wish {
            client: client.parse().unwrap(),
            ..Wish::new(Action::Rotation, &group, reason(at))
        };
        let signer = world.issuer.signer();
        carry_through(signer, &mut alice, &mut bob, &wish, &held).await;
        let version = judge.client().await.current_version.unwrap();
        judge
            .promoted(&mut wire, version, &wish.id, &held, at)
            .await;
    }
}

/// Alice founds a group of herself, bob and the service; both have followed the service's self-update when this returns.
async fn found(
    world: &World,
    name: &str,
    alice: &mut AdminSession,
    bob: &mut AdminSession,
) -> MlsGroupId {
    let new = NewGroup {
        name: name.to_owned(),
        admins: vec![bob.npub()],
        members: vec![world.service()],
    };
    // The Welcome goes out with the next sync if the relay dies before it has stored it.
    if let Err(error) = alice.create_group(new, deadline()).await {
        assert!(steady::group_passes(&error), "{error}");
    }
    let group = alice.find_group(Some(name)).unwrap();
    // Epoch 1 is the creation; bob and the service renew their leaves.
    eventually("everybody joined and renewed their leaf", async || {
        for session in [&mut *alice, &mut *bob] {
            steady::listen(session).await;
        }
        (epoch(alice, &group) >= 3 && epoch(bob, &group) >= 3).then_some(())
    })
    .await;
    group
}
