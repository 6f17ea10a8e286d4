//! Two admins, a service and a relay with the host's habits: the library from key package to proven ack.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use keyturn_admin::session::{
    AdminSession, GroupError, NewGroup, OpenSessionError, RequestError, RequestSpec, SecretError,
};
use keyturn_admin::transport::RelayError;
use keyturn_admin::{ProofSource, Update};
use keyturn_proto::notify::NotifyState;
use keyturn_proto::{Action, ErrorClass, MlsGroupId, Outcome, Params};
use support::relay::TestRelay;
use support::service::{Service, Temper};
use support::{LONG, Person, Unsigned, eventually, growing, on_disk, run, soon};
use tokio::time::Instant;

fn ask(action: Action, group: &MlsGroupId) -> RequestSpec {
    RequestSpec {
        action,
        client: "ext-totp-svc".parse().unwrap(),
        params: Params {
            rotation_reason: if action == Action::Status {
                String::new()
            } else {
                "test".to_owned()
            },
            ..Params::default()
        },
        action_id: None,
        group: group.clone(),
        totp: None,
    }
}

struct World {
    relay: TestRelay,
    service: Service,
    alice: Person,
    bob: Person,
}

impl World {
    async fn new() -> Self {
        let relay = TestRelay::start().await;
        Self {
            service: Service::start(&relay).await,
            alice: Person::new(),
            bob: Person::new(),
            relay,
        }
    }

    async fn alice(&self) -> AdminSession {
        self.alice.open(&self.relay, &self.service, &[]).await
    }

    async fn bob(&self) -> AdminSession {
        self.bob
            .open(&self.relay, &self.service, &[&self.alice])
            .await
    }

    /// Alice's group with Bob and the service, everybody in and renewed.
    async fn assembled(&self) -> (AdminSession, AdminSession, MlsGroupId) {
        let mut alice = self.alice().await;
        let mut bob = self.bob().await;
        bob.publish_key_package(soon()).await.unwrap();
        let group = alice
            .create_group(
                NewGroup {
                    name: "admins".to_owned(),
                    admins: vec![self.bob.npub()],
                    members: vec![self.service.npub],
                },
                soon(),
            )
            .await
            .unwrap()
            .id;
        joined(&mut bob).await;
        // The service renews its leaf when it gets to it, and whoever loses an epoch renews again.
        let ledger = &self.service.ledger;
        eventually("the service renewed its leaf", || {
            ledger.lock().unwrap().renewals > 0
        })
        .await;
        loop {
            for session in [&mut alice, &mut bob] {
                session.sync(soon()).await.unwrap();
                session.ready(&group, soon()).await.unwrap();
            }
            if epoch(&alice, &group) == epoch(&bob, &group) {
                return (alice, bob, group);
            }
        }
    }
}

fn epoch(session: &AdminSession, group: &MlsGroupId) -> u64 {
    let groups = session.groups().unwrap();
    groups.iter().find(|each| each.id == *group).unwrap().epoch
}

/// The next update that is `wanted`. Commits of others, and what they say, may come before it.
async fn update(session: &mut AdminSession, wanted: impl Fn(&Update) -> bool) -> Update {
    let mut passed_over = Vec::new();
    let limit = soon();
    loop {
        match session.next_update(limit).await.unwrap() {
            Some(update) if wanted(&update) => return update,
            Some(update) => passed_over.push(update),
            None => panic!("never came; but: {passed_over:?}"),
        }
    }
}

async fn joined(session: &mut AdminSession) {
    update(session, |update| matches!(update, Update::Joined { .. })).await;
}

/// Asks, and hears no word that counts as the answer. A try that ended before it had asked is made again with more patience.
async fn is_not_answered(
    session: &mut AdminSession,
    service: &Service,
    spec: impl Fn() -> RequestSpec,
) {
    let group = spec().group;
    let heard = || service.ledger.lock().unwrap().requests.len();
    let before = heard();
    for patience in growing() {
        session.ready(&group, soon()).await.unwrap();
        let shortly = Instant::now() + patience;
        match session.request(spec(), &Unsigned, shortly).await {
            Err(RequestError::NoAnswer(_)) if heard() > before => return,
            Err(
                RequestError::NoAnswer(_)
                | RequestError::Unsettled
                | RequestError::Relay(RelayError::Timeout(_)),
            ) => {}
            other => panic!("{other:?}"),
        }
    }
    panic!("the request never reached the service");
}

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
fn a_relay_that_refuses_or_keeps_silent_does_not_hang_an_admin() {
    run(async {
        let world = World::new().await;
        let (mut alice, mut bob, group) = world.assembled().await;
        world.relay.refuse(445, "blocked: no");
        let refused = alice
            .request(ask(Action::Revoke, &group), &Unsigned, soon())
            .await;
        assert!(
            matches!(&refused, Err(RequestError::Relay(RelayError::Refused(reason))) if reason == "blocked: no"),
            "{refused:?}"
        );
        // A refused commit leaves the group as it was, and able to commit again.
        let update = bob.self_update(&group, soon()).await;
        assert!(
            matches!(update, Err(GroupError::Relay(RelayError::Refused(_)))),
            "{update:?}"
        );
        world.relay.heal();
        bob.self_update(&group, soon()).await.unwrap();

        world.relay.mute(30443);
        let shortly = Instant::now() + Duration::from_millis(500);
        let muted = alice.publish_key_package(shortly).await;
        assert!(
            matches!(muted, Err(GroupError::Relay(RelayError::Timeout(_)))),
            "{muted:?}"
        );
    });
}

#[test]
fn an_unreachable_relay_is_an_error_in_time() {
    run(async {
        let world = World::new().await;
        let mut config = world.alice.config(&world.relay, &world.service, &[]);
        config.relays = vec![nostr::RelayUrl::parse("ws://127.0.0.1:1").unwrap()];
        config.patience = Duration::from_millis(500);
        let refused = AdminSession::open(config, soon()).await;
        assert!(matches!(
            refused.err(),
            Some(OpenSessionError::Relay(RelayError::Connect { .. }))
        ));
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

#[test]
fn what_happened_during_a_lost_connection_is_made_up_for() {
    run(async {
        let world = World::new().await;
        let (mut alice, mut bob, group) = world.assembled().await;
        world.relay.hang_up();
        // Both come back by themselves: one to ask, the other to hear of it.
        let rotation = loop {
            match alice
                .request(ask(Action::Rotation, &group), &Unsigned, soon())
                .await
            {
                Ok(reply) => break reply.action_id,
                Err(
                    RequestError::Relay(RelayError::Lost | RelayError::Client(_))
                    | RequestError::Sync(_),
                ) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => panic!("{error:?}"),
            }
        };
        bob.await_secret(&rotation, soon()).await.unwrap();
    });
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
