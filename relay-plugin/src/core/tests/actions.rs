//! Cancel, rollback, revoke, emergency, status.

use keyturn_proto::Action;
use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_store::documents::{ClientStatus, VersionState};
use keyturn_store::store::Registry;

use super::world::{World, because};

/// Waits until Alice has been told something.
pub(super) async fn told(world: &mut World, wanted: impl Fn(&NotifyState) -> bool) {
    let deadline = tokio::time::Instant::now() + super::world::DEADLINE;
    loop {
        let now = world.now();
        world.alice.sync(now);
        if world.alice.told.iter().any(|told| wanted(&told.body)) {
            return;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "told: {:?}",
            world.alice.told
        );
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_cancelled_rotation_leaves_the_old_secret() {
    let mut world = World::new().await;
    let id = world.rotate();
    let version = world.delivered(&id).await;
    world.ask(Action::Cancel, because("changed my mind"));
    assert_eq!(world.over(&id).await.outcome, Some(Outcome::Canceled));
    let client = world.client().await;
    assert_eq!(
        (client.current_version, client.active_rotation),
        (Some(world.first), None)
    );
    let versions = world.versions_of(&id).await;
    assert!(
        versions
            .iter()
            .all(|v| v.version_id == version && v.state == VersionState::Cancelled)
    );
    told(&mut world, |body| {
        matches!(
            body,
            NotifyState::Done {
                outcome: Outcome::Canceled,
                ..
            }
        )
    })
    .await;
    world.ask(Action::Cancel, because("again"));
    world
        .wait_audit("request.refused", "rotation.none_active")
        .await;
}

#[tokio::test]
async fn within_grace_the_previous_version_comes_back() {
    let mut world = World::new().await;
    let id = world.rotate();
    let version = world.delivered(&id).await;
    world.bob_acks(&version).await;
    world.over(&id).await;
    world.ask(Action::Rollback, because("it breaks"));
    world
        .until("rolled back", async || {
            world.client().await.current_version == Some(world.first)
        })
        .await;
    let versions = world.versions_of(&id).await;
    assert_eq!(versions[0].state, VersionState::Retired);
    told(&mut world, |body| {
        matches!(
            body,
            NotifyState::Done {
                outcome: Outcome::RolledBack,
                ..
            }
        )
    })
    .await;
}

#[tokio::test]
async fn revoke_takes_effect_without_any_ack_and_a_rotation_brings_the_client_back() {
    let mut world = World::new().await;
    world.ask(Action::Revoke, because("leaked"));
    world
        .until("suspended", async || {
            world.client().await.status == ClientStatus::Suspended
        })
        .await;
    assert_eq!(world.client().await.current_version, None);
    let id = world.rotate();
    let version = world.delivered(&id).await;
    world.bob_acks(&version).await;
    world.over(&id).await;
    let client = world.client().await;
    assert_eq!(
        (client.status, client.current_version),
        (ClientStatus::Active, Some(version))
    );
}

#[tokio::test]
async fn an_emergency_kills_the_old_secret_at_once_and_rotates() {
    let mut world = World::new().await;
    let id = world.ask(Action::Emergency, because("leaked"));
    let version = world.delivered(&id).await;
    let versions = world.store.versions(&world.client).await.unwrap();
    assert_eq!(versions[0].state, VersionState::Retired, "before any ack");
    world.bob_acks(&version).await;
    let ended = world.over(&id).await;
    assert_eq!(
        (ended.outcome, ended.grace_until),
        (Some(Outcome::Promoted), None)
    );
    let client = world.client().await;
    assert_eq!(
        (client.current_version, client.previous_version),
        (Some(version), None)
    );
}

#[tokio::test]
async fn status_says_how_the_client_stands() {
    let mut world = World::new().await;
    let first = world.first;
    world.ask(Action::Status, because(""));
    told(&mut world, |body| {
        matches!(body, NotifyState::Status { current_version, active_rotation: None, .. } if *current_version == Some(first))
    })
    .await;
}
