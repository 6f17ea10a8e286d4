//! Revoked after the secret was sealed and before it was published: the relay dies in between, and its next start looks again.

use keyturn::crash::Point;
use keyturn_proto::notify::Outcome;
use keyturn_proto::{Action, RotationId, kinds};
use keyturn_store::documents::{Actor, AdminDoc, AuditRecord, VersionState};
use keyturn_store::store::{Registry as _, SecretStore as _};
use keyturn_tests::Rogue;
use keyturn_tests::world::{deadline, eventually, now, reason};
use nostr::{EventId, Filter};

use super::Stage;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sealed_for_an_admin_revoked_meanwhile_is_not_published() {
    let (mut stage, mut mallory, mut bob) = Stage::new().await;
    let scene = stage
        .scene("ops", "mallory", &mut mallory, &mut [&mut bob])
        .await;
    drop((mallory, bob));
    let Stage {
        mut world,
        trail,
        relay,
    } = stage;
    relay.terminate();
    let relay = world.try_relay(Some(Point::AfterPrepare)).await.unwrap();
    let mut mallory = Rogue::open(&mut world, "mallory", &relay).await;
    mallory.ready(&scene.group).await;
    let id = RotationId::generate(now()).unwrap();
    let client = scene.client.as_str();
    let request = mallory
        .compose(
            &world,
            &scene.group,
            client,
            Action::Rotation,
            &id,
            &reason("never to arrive"),
        )
        .await;
    let text = serde_json::to_string(&request).unwrap();
    let event = mallory.seal(&scene.group, kinds::SERVICE_REQUEST, &text);
    // The relay dies of it, with or without having said OK.
    drop(mallory.relay.publish(&event, deadline()).await);
    tokio::task::spawn_blocking(move || relay.wait_for_crash())
        .await
        .unwrap();
    drop(mallory);
    let sealed = trail.store.outbox(&id).await.unwrap();
    assert!(!sealed.is_empty(), "it died before anything was sealed");
    // Revoked in the registry alone: the operator's command, which ends such rotations itself, died in between.
    let bob = trail.store.admin(&world.npub("bob")).await.unwrap();
    let revoked = AdminDoc {
        active: false,
        ..bob.unwrap()
    };
    let record = AuditRecord {
        at: now(),
        actor: Actor::Operator,
        event: "admin.revoked".to_owned(),
        reason: "by hand".to_owned(),
        client_id: None,
        rotation_id: None,
        version_id: None,
        group: None,
        nostr_event: None,
        device: None,
    };
    trail.store.put_admin(revoked, record).await.unwrap();

    let relay = world.relay().await;
    let over = eventually("the rotation is ended by the next start", async || {
        let rotation = trail.rotation(&id).await;
        rotation.outcome.map(|outcome| (outcome, rotation))
    })
    .await;
    assert_eq!(over.0, Outcome::Canceled);
    let record = trail
        .wait_for("why it was ended", |record| {
            record.rotation_id.as_ref() == Some(&id) && record.event == "rotation.canceled"
        })
        .await;
    assert_eq!(record.reason, "admin.revoked");
    trail.wait("roster.refused", "admin.revoked").await;

    let reader = Rogue::open(&mut world, "mallory", &relay).await;
    let ids = sealed
        .iter()
        .map(|event| EventId::from_hex(&event.event_id).unwrap());
    let filter = Filter::new().ids(ids);
    let stored = reader.relay.fetch_all(&filter, deadline()).await.unwrap();
    assert!(stored.is_empty(), "it was published after all");
    let client = scene.client.parse().unwrap();
    let versions = trail.store.versions(&client).await.unwrap();
    let states: Vec<VersionState> = versions.iter().map(|version| version.state).collect();
    assert_eq!(states, [VersionState::Cancelled]);
    let client = trail.store.client(&client).await.unwrap().unwrap();
    assert_eq!(
        (client.current_version, client.active_rotation),
        (None, None)
    );
}
