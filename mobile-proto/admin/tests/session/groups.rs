//! Who comes into a group, and how.

use super::*;

#[test]
fn a_strangers_welcome_waits_to_be_accepted() {
    run(async {
        let world = World::new().await;
        let mut alice = world.alice().await;
        // Bob trusts nobody yet.
        let mut bob = world.bob.open(&world.relay, &world.service, &[]).await;
        bob.publish_key_package(soon()).await.unwrap();
        let spec = NewGroup {
            name: "party".to_owned(),
            admins: vec![world.bob.npub()],
            members: Vec::new(),
        };
        alice.create_group(spec, soon()).await.unwrap();
        let invited = |update: &Update| matches!(update, Update::Invited(_));
        let Update::Invited(waiting) = update(&mut bob, invited).await else {
            unreachable!()
        };
        assert_eq!(
            (waiting.from, waiting.name.as_str()),
            (world.alice.npub(), "party")
        );
        assert!(bob.groups().unwrap().is_empty());
        bob.close().await;

        // Still there for the next run.
        let mut bob = world.bob.open(&world.relay, &world.service, &[]).await;
        let stranger = Person::new().npub();
        assert!(matches!(
            bob.join(&stranger, soon()).await,
            Err(GroupError::NoWelcome(_))
        ));
        bob.join(&world.alice.npub(), soon()).await.unwrap();
        assert_eq!(bob.groups().unwrap().len(), 1);
    });
}

#[test]
fn somebody_is_invited_later_and_reads_on() {
    run(async {
        let world = World::new().await;
        let (mut alice, mut bob, group) = world.assembled().await;
        let carol_person = Person::new();
        let mut carol = carol_person
            .open(&world.relay, &world.service, &[&world.bob])
            .await;
        assert!(matches!(
            bob.invite(&group, &[carol_person.npub()], soon()).await,
            Err(GroupError::NoKeyPackage(_))
        ));
        carol.publish_key_package(soon()).await.unwrap();
        bob.invite(&group, &[carol_person.npub()], soon())
            .await
            .unwrap();
        joined(&mut carol).await;
        carol.ready(&group, soon()).await.unwrap();
        alice.ready(&group, soon()).await.unwrap();
        let reply = alice
            .request(ask(Action::Rotation, &group), &Unsigned, soon())
            .await
            .unwrap();
        let waiting = carol.await_secret(&reply.action_id, soon()).await.unwrap();
        carol.open_secret(&waiting).unwrap();
        assert_eq!(carol.members(&group).unwrap().len(), 4);
    });
}

#[test]
fn a_commit_of_an_interrupted_run_is_finished_by_the_next() {
    // The relay never saw the commit, or it has it and never said so: the next run has to find out which.
    for break_off in [TestRelay::mute, TestRelay::swallow_ok] {
        run(async move {
            let world = World::new().await;
            let (_alice, mut bob, group) = world.assembled().await;
            let carol = Person::new();
            let mut carol_session = carol
                .open(&world.relay, &world.service, &[&world.bob])
                .await;
            carol_session.publish_key_package(soon()).await.unwrap();

            break_off(&world.relay, 445);
            for patience in growing() {
                let shortly = Instant::now() + patience;
                let unknown = bob.invite(&group, &[carol.npub()], shortly).await;
                assert!(
                    matches!(unknown, Err(GroupError::Relay(RelayError::Timeout(_)))),
                    "{unknown:?}"
                );
                if world.relay.unanswered() > 0 {
                    break;
                }
            }
            assert!(world.relay.unanswered() > 0, "the commit was never sent");
            bob.close().await;
            world.relay.heal();
            assert!(carol_session.groups().unwrap().is_empty());

            let bob = world.bob().await;
            assert_eq!(bob.members(&group).unwrap().len(), 4);
            joined(&mut carol_session).await;
        });
    }
}

#[test]
fn key_packages_of_one_second_replace_one_another() {
    run(async {
        let world = World::new().await;
        let mut alice = world.alice().await;
        let mut last = None;
        for _ in 0..6 {
            last = Some(alice.publish_key_package(soon()).await.unwrap()[0]);
        }
        let kept: Vec<_> = world
            .relay
            .events()
            .into_iter()
            .filter(|event| {
                event.kind == nostr::Kind::from(30443)
                    && event.pubkey == world.alice.keys.public_key()
            })
            .map(|event| event.id)
            .collect();
        assert_eq!(kept, [last.unwrap()]);
    });
}
