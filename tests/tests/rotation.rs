//! One rotation from end to end, through a real relay process, and what the verifier says of it.
#![allow(clippy::unwrap_used, clippy::panic)]

use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_proto::{Action, Params};
use keyturn_store::store::{Registry as _, SecretStore as _};
use keyturn_tests::World;
use keyturn_tests::world::{CLIENT, reason};

const PROGRAM: &str = env!("CARGO_BIN_EXE_keyturn-under-test");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_ends_with_both_secrets_accepted_until_it_is_rolled_back() {
    let mut world = World::new(PROGRAM, |_| {}).await;
    let (relay, mut alice, mut bob, group) = world.with_group().await;
    let (_, first) = world.rotate(&mut alice, &mut bob, &group).await;
    let (second_id, second) = world.rotate(&mut alice, &mut bob, &group).await;

    let client = world
        .store()
        .client(&CLIENT.parse().unwrap())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        client.current_version,
        Some(second.notify.header.version_id)
    );
    assert_eq!(
        client.previous_version,
        Some(first.notify.header.version_id)
    );

    let reply = world
        .ask(
            &mut bob,
            &group,
            Action::Rollback,
            reason("the new one breaks production"),
        )
        .await
        .unwrap();
    let NotifyState::Done {
        outcome,
        current_version,
        ..
    } = reply.answer.body
    else {
        panic!("not done: {:?}", reply.answer)
    };
    assert_eq!(
        (outcome, current_version),
        (Outcome::RolledBack, Some(first.notify.header.version_id))
    );
    let client = world
        .store()
        .client(&CLIENT.parse().unwrap())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (client.current_version, client.previous_version),
        (Some(first.notify.header.version_id), None)
    );

    let status = world
        .ask(&mut alice, &group, Action::Status, Params::default())
        .await
        .unwrap();
    let NotifyState::Status {
        current_version,
        previous_version,
        active_rotation,
        ..
    } = status.answer.body
    else {
        panic!("no status: {:?}", status.answer)
    };
    assert_eq!(
        (current_version, previous_version, active_rotation),
        (Some(first.notify.header.version_id), None, None)
    );
    let undone = world.store().rotation(&second_id).await.unwrap().unwrap();
    assert_eq!(undone.outcome, Some(Outcome::RolledBack));
    let took = relay.terminate();
    assert!(took.as_secs() < 5, "ending took {took:?}");
}
