//! A secret on its way: asked for, delivered, opened, proven; or given up.

use super::*;

#[test]
fn a_rotation_is_opened_and_proven_by_both_admins() {
    run(async {
        let world = World::new().await;
        let (mut alice, mut bob, group) = world.assembled().await;
        assert_eq!(alice.members(&group).unwrap().len(), 3);
        assert_eq!(bob.find_group(None).unwrap(), group);

        let spec = ask(Action::Rotation, &group);
        let reply = alice.request(spec, &Unsigned, soon()).await.unwrap();
        assert!(matches!(reply.answer.body, NotifyState::Accepted { .. }));
        let rotation = reply.action_id;

        for (session, person) in [(&mut alice, &world.alice), (&mut bob, &world.bob)] {
            let waiting = session.await_secret(&rotation, soon()).await.unwrap();
            let expected = world.service.ledger.lock().unwrap().secrets[0].clone();
            session.ready(&waiting.group, soon()).await.unwrap();
            let opened = session.open_secret(&waiting).unwrap();
            assert!(opened.notify.secret.expose() == expected);
            session.ack(&opened, soon()).await.unwrap();
            drop(opened);
            // Once means once.
            assert!(matches!(
                session.open_secret(&waiting),
                Err(SecretError::NotWaiting(_))
            ));
            assert!(!on_disk(person.path(), &expected), "plaintext on disk");
        }
        // What she has heard of the operation, and not taken yet, is no answer to another request under its id.
        bob.await_done(&rotation, soon()).await.unwrap();
        alice.sync(soon()).await.unwrap();
        let again = RequestSpec {
            action_id: Some(rotation.clone()),
            ..ask(Action::Status, &group)
        };
        let reply = alice.request(again, &Unsigned, soon()).await.unwrap();
        assert!(matches!(reply.answer.body, NotifyState::Status { .. }));
        let done = alice.await_done(&rotation, soon()).await.unwrap();
        assert!(matches!(
            done.body,
            NotifyState::Done {
                outcome: Outcome::Promoted,
                ..
            }
        ));
        let ledger = world.service.ledger.lock().unwrap();
        assert_eq!(ledger.proven, [world.alice.npub(), world.bob.npub()]);
        assert!(
            world
                .relay
                .events()
                .iter()
                .all(|event| !event.content.contains(&ledger.secrets[0]))
        );
    });
}

#[test]
fn a_delivered_secret_waits_closed_through_a_restart() {
    run(async {
        let world = World::new().await;
        let (mut alice, bob, group) = world.assembled().await;
        let spec = ask(Action::Rotation, &group);
        let rotation = alice
            .request(spec, &Unsigned, soon())
            .await
            .unwrap()
            .action_id;
        alice.await_secret(&rotation, soon()).await.unwrap();
        alice.close().await;
        // Bob was away when it was delivered, and comes back twice.
        bob.close().await;

        for _ in 0..2 {
            let mut bob = world.bob().await;
            bob.await_secret(&rotation, soon()).await.unwrap();
            bob.close().await;
        }
        let mut alice = world.alice().await;
        let waiting = alice.waiting_secret(None).unwrap();
        assert_eq!(waiting.about.rotation_id, rotation);
        let opened = alice.open_secret(&waiting).unwrap();
        alice.ack(&opened, soon()).await.unwrap();
        assert!(matches!(
            alice.waiting_secret(None),
            Err(SecretError::NoneWaiting)
        ));
    });
}

/// With a quorum of one the last ack may overtake the answer to the request.
#[test]
fn a_rotation_that_is_over_before_it_is_said_to_be_accepted_is_over() {
    run(async {
        let world = World::new().await;
        let (mut alice, mut bob, group) = world.assembled().await;
        *world.service.temper.lock().unwrap() = Temper::Hasty;
        let spec = ask(Action::Rotation, &group);
        let reply = alice.request(spec, &Unsigned, soon()).await.unwrap();
        // Whoever asked and whoever only listens hear of one end.
        for session in [&mut alice, &mut bob] {
            let done = session.await_done(&reply.action_id, soon()).await.unwrap();
            let NotifyState::Done { outcome, .. } = done.body else {
                panic!("{done:?}");
            };
            assert_eq!(outcome, Outcome::Promoted);
        }
    });
}

#[test]
fn a_rotation_that_is_given_up_has_one_outcome_in_whichever_order_it_is_told() {
    run(async {
        let world = World::new().await;
        let (mut alice, mut bob, group) = world.assembled().await;
        for end_first in [false, true] {
            *world.service.temper.lock().unwrap() = Temper::GivingUp { end_first };
            let spec = ask(Action::Rotation, &group);
            let id = keyturn_proto::RotationId::generate(keyturn_proto::UnixMs(
                1_760_000_000_000 + u64::from(end_first),
            ));
            let id = id.unwrap();
            let spec = RequestSpec {
                action_id: Some(id.clone()),
                ..spec
            };
            // No order leaves the requester waiting, or believing that there is a new secret.
            match alice.request(spec, &Unsigned, soon()).await {
                Err(RequestError::Refused { class, .. }) => {
                    assert_eq!(class, ErrorClass::InternalError);
                }
                Ok(reply) => assert!(
                    end_first
                        && matches!(
                            reply.answer.body,
                            NotifyState::Done {
                                outcome: Outcome::Canceled,
                                ..
                            }
                        ),
                    "{:?}",
                    reply.answer
                ),
                Err(error) => panic!("{error}"),
            }
            for session in [&mut alice, &mut bob] {
                let done = session.await_done(&id, soon()).await.unwrap();
                let NotifyState::Done { outcome, .. } = done.body else {
                    panic!("{done:?}");
                };
                assert_eq!(outcome, Outcome::Canceled);
            }
        }
    });
}
