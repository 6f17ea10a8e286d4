//! Requests and their answers.

use super::*;

#[test]
fn every_other_action_is_answered() {
    run(async {
        let world = World::new().await;
        let (mut alice, _bob, group) = world.assembled().await;
        for (action, outcome) in [
            (Action::Cancel, Outcome::Canceled),
            (Action::Rollback, Outcome::RolledBack),
            (Action::Revoke, Outcome::Revoked),
        ] {
            let reply = alice
                .request(ask(action, &group), &Unsigned, soon())
                .await
                .unwrap();
            let NotifyState::Done { outcome: found, .. } = reply.answer.body else {
                panic!("{:?}", reply.answer)
            };
            assert_eq!(found, outcome);
        }
        let reply = alice
            .request(ask(Action::Status, &group), &Unsigned, soon())
            .await
            .unwrap();
        assert!(matches!(reply.answer.body, NotifyState::Status { .. }));
    });
}

#[test]
fn a_refusal_and_a_silence_are_told_apart() {
    run(async {
        let world = World::new().await;
        let (mut alice, _bob, group) = world.assembled().await;
        for class in [ErrorClass::PolicyViolation, ErrorClass::UnauthorizedRequest] {
            *world.service.temper.lock().unwrap() = Temper::Refusing(class);
            let refused = alice
                .request(ask(Action::Revoke, &group), &Unsigned, soon())
                .await;
            let Err(RequestError::Refused {
                class: found,
                retry_after,
            }) = refused
            else {
                panic!("{refused:?}")
            };
            assert_eq!(found, class);
            assert_eq!(retry_after, Some(LONG));
        }
        *world.service.temper.lock().unwrap() = Temper::Silent;
        is_not_answered(&mut alice, &world.service, || ask(Action::Revoke, &group)).await;
    });
}

#[test]
fn a_request_that_cannot_be_proven_is_never_sent() {
    run(async {
        struct Broken;
        #[keyturn_admin::async_trait]
        impl ProofSource for Broken {
            async fn prove(
                &self,
                _: &keyturn_proto::proof::ProofRequest,
            ) -> Result<keyturn_proto::request::Bearer, keyturn_admin::ProofError> {
                Err(keyturn_admin::ProofError::Other("no".to_owned()))
            }
        }
        let world = World::new().await;
        let (mut alice, _bob, group) = world.assembled().await;
        let before = world.relay.events().len();
        let refused = alice
            .request(ask(Action::Revoke, &group), &Broken, soon())
            .await;
        assert!(matches!(refused, Err(RequestError::Proof(_))));
        let mut wrong = ask(Action::Revoke, &group);
        wrong.params.rotation_reason.clear();
        let refused = alice.request(wrong, &Unsigned, soon()).await;
        assert!(matches!(refused, Err(RequestError::Invalid(_))));
        assert_eq!(world.relay.events().len(), before);
    });
}

#[test]
fn a_service_whose_key_nobody_vouches_for_is_not_believed() {
    run(async {
        let world = World::new().await;
        let (alice, bob, group) = world.assembled().await;
        alice.close().await;
        bob.close().await;
        // Its leaf may be anybody's now: nothing signed by its npub names the key.
        let service = nostr::PublicKey::from_byte_array(*world.service.npub.as_bytes());
        let vouching = world
            .relay
            .events()
            .into_iter()
            .filter(|event| event.pubkey == service)
            .collect::<Vec<_>>();
        assert!(!vouching.is_empty());
        world.relay.forget(service);

        let mut alice = world.alice().await;
        is_not_answered(&mut alice, &world.service, || ask(Action::Rotation, &group)).await;
        // What it said meanwhile is reported as what it is. The secret comes after the report, or with it.
        for _ in 0..2 {
            update(&mut alice, |update| matches!(update, Update::Alarm { .. })).await;
        }
        assert!(alice.waiting_secrets().unwrap().is_empty());

        // Vouched for again, it is believed, without a restart.
        world.relay.preload(&vouching);
        alice
            .request(ask(Action::Status, &group), &Unsigned, soon())
            .await
            .unwrap();
    });
}
