//! A relay that refuses, is silent, or is away.

use super::*;

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
