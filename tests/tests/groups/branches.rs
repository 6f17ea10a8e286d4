//! A removed admin who publishes as if he had not been.

use std::time::Duration;

use keyturn_proto::notify::NotifyState;
use keyturn_proto::{Action, RotationId, kinds};
use keyturn_tests::trail::counter;
use keyturn_tests::world::{deadline, eventually, now, reason};

use super::Stage;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backdated_commit_does_not_bring_a_removed_admin_back() {
    let (mut stage, mut mallory, mut bob) = Stage::new().await;
    stage.world.enrol("carol").await;
    let mut carol = stage.person("carol").await;
    let scene = stage
        .scene("ops", "mallory", &mut mallory, &mut [&mut bob, &mut carol])
        .await;
    let (group, client) = (&scene.group, scene.client.as_str());

    // Before she is removed Mallory writes, and keeps, a request and a commit that is dated before her removal.
    let id = RotationId::generate(now()).unwrap();
    let params = reason("one more time");
    let compose = async |who: &keyturn_tests::Rogue| {
        let request = who
            .compose(&stage.world, group, client, Action::Rotation, &id, &params)
            .await;
        serde_json::to_string(&request).unwrap()
    };
    let text = compose(&mallory).await;
    let request = mallory.seal(group, kinds::SERVICE_REQUEST, &text);
    let earlier = now().minus(Duration::from_secs(4));
    let rival = mallory.member.self_update(group, earlier).unwrap();

    let gone = [mallory.public_key()];
    let removal = bob
        .commit(|member, now| member.remove(group, &gone, now))
        .await;
    let hex = removal.to_hex();
    stage
        .trail
        .wait_for("the removal is followed", |record| {
            record.event == "group.commit_followed" && record.nostr_event.as_ref() == Some(&hex)
        })
        .await;
    carol.ready_at(group, bob.epoch(group)).await;
    bob.ready(group).await;
    let documents = stage.trail.documents();

    // Her request opens, since past epochs do, and counts for nothing.
    mallory.relay.publish(&request, deadline()).await.unwrap();
    stage
        .trail
        .refused("message.dropped", request.id, &mallory, "sender.left_group")
        .await;

    // By Marmot's plain rule the earlier commit would win the epoch.
    assert!(rival.event.created_at.as_secs() < now().as_secs() - 2);
    mallory
        .relay
        .publish_stored(&rival.event, deadline())
        .await
        .unwrap();
    let refused = stage
        .trail
        .wait("commit.refused", "the epoch is settled")
        .await;
    assert_eq!(refused.nostr_event, Some(rival.event.id.to_hex()));
    assert_eq!(refused.group.as_ref(), Some(&scene.alias));
    eventually("the alarm is counted, once", async || {
        let alarms = counter(&stage.relay, "keyturn_alarms_total", "commit.refused").await;
        (alarms == 1).then_some(())
    })
    .await;

    // On her own branch she is a member; nobody else is on it. That somebody may be makes the group stop, and say so.
    mallory
        .member
        .commit_published(rival.event.id, now())
        .unwrap();
    // A commit settles by time alone.
    tokio::time::sleep(keyturn_tests::SETTLE).await;
    let text = compose(&mallory).await;
    let request = mallory.seal(group, kinds::SERVICE_REQUEST, &text);
    let status = {
        let id = RotationId::generate(now()).unwrap();
        let request = bob
            .compose(&stage.world, group, client, Action::Status, &id, &params)
            .await;
        let text = serde_json::to_string(&request).unwrap();
        bob.seal(group, kinds::SERVICE_REQUEST, &text)
    };
    mallory.relay.publish(&request, deadline()).await.unwrap();
    stage.trail.wait("group.frozen", "group.forked").await;
    assert_eq!(stage.trail.documents(), documents);

    // Bob proves to be on the relay's branch, and it goes on without her.
    bob.relay.publish(&status, deadline()).await.unwrap();
    stage
        .trail
        .wait("group.thawed", "peers.on_our_branch")
        .await;
    let answer = bob.answer(status.id).await;
    assert!(matches!(answer, NotifyState::Status { .. }), "{answer:?}");
    assert_eq!(stage.trail.documents(), documents);
    let id = stage.rotates(&scene, &mut bob).await;
    let rotation = stage.trail.rotation(&id).await;
    let mut readers = rotation.readers;
    readers.sort();
    let mut expected = vec![bob.npub(), carol.npub()];
    expected.sort();
    assert_eq!(readers, expected);
    mallory.hear_waiting().await;
    assert!(mallory.secrets.is_empty());
}
