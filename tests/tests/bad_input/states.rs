//! Requests with nothing wrong about them but the state of what they ask about: one rotation at a time, one content per id, policy per client.

use keyturn::operator::clients;
use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_proto::{Action, ErrorClass, Params, RotationId, VersionId};
use keyturn_store::documents::{ClientStatus, PolicyOverrides};
use keyturn_store::store::Registry as _;
use keyturn_tests::rogue::{Asked, found};
use keyturn_tests::world::{CLIENT, GROUP, now, reason, set};
use nostr::EventId;

use super::{Table, refused};

const HOUR: u64 = 3_600_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_state_of_a_client_forbids_is_refused_and_changes_nothing() {
    let mut table = Table::new(|config| {
        set(config, "policy", "denylist", vec!["denied".to_owned()]);
        set(config, "policy", "client_requests_per_hour", 1000);
        set(config, "policy", "admin_requests_per_hour", 1000);
        set(config, "policy", "breaker_refusals", 1000);
    })
    .await;
    table.slow_client().await;

    let first = while_a_rotation_is_active(&mut table).await;
    after_it_has_ended(&mut table, &first).await;
    too_soon(&mut table).await;
    clients_that_may_not(&mut table).await;
    groups_that_cannot(&mut table).await;
}

impl Table {
    async fn slow_client(&self) {
        let slow = self.world.client("slow", &[GROUP]).await;
        let policy = PolicyOverrides {
            min_interval_ms: Some(HOUR),
            ..PolicyOverrides::default()
        };
        let audit = self.trail.records().await.pop().unwrap();
        let store = &self.trail.store;
        store
            .update_client(&slow, None, None, Some(policy), now(), audit)
            .await
            .unwrap();
    }

    /// Alice asks under this id.
    async fn asks(
        &mut self,
        client: &str,
        action: Action,
        id: &RotationId,
        params: &Params,
    ) -> EventId {
        let group = self.group.clone();
        let Self { world, alice, .. } = self;
        let asked = alice
            .ask_as(world, &group, client, action, id, params)
            .await;
        asked.event
    }

    async fn refused(&mut self, event: EventId, class: ErrorClass, reason: &str) {
        refused(&self.trail, &mut self.alice, event, class, reason).await;
    }

    /// Both ack; promoted.
    async fn completed(&mut self, id: &RotationId) {
        let group = self.group.clone();
        for rogue in [&mut self.alice, &mut self.bob] {
            let ack = rogue.proven_ack(&group, id).await;
            rogue.ack(&group, &ack).await;
        }
        assert_eq!(self.alice.over(id).await, Outcome::Promoted);
        self.trail.quiet().await;
    }
}

fn fresh() -> RotationId {
    RotationId::generate(now()).unwrap()
}

fn version(answer: &NotifyState) -> VersionId {
    match answer {
        NotifyState::Accepted {
            version_id: Some(version),
            ..
        } => *version,
        other => panic!("{other:?}"),
    }
}

async fn while_a_rotation_is_active(table: &mut Table) -> RotationId {
    use ErrorClass::{Conflict, NotFound};
    let (id, params) = (fresh(), reason("the first"));
    let event = table.asks(CLIENT, Action::Rotation, &id, &params).await;
    let made = version(&table.alice.answer(event).await);
    let documents = table.trail.documents();

    let group = table.group.clone();
    let Asked { event, .. } = table
        .bob
        .ask(&table.world, &group, CLIENT, Action::Rotation)
        .await;
    refused(
        &table.trail,
        &mut table.bob,
        event,
        Conflict,
        "rotation.active",
    )
    .await;

    // The same again with fresh proofs: the first result, and no second version.
    let event = table.asks(CLIENT, Action::Rotation, &id, &params).await;
    assert_eq!(version(&table.alice.answer(event).await), made);

    let event = table
        .asks(CLIENT, Action::Rotation, &id, &reason("another content"))
        .await;
    table.refused(event, Conflict, "request.id_reused").await;
    let event = table.asks("slow", Action::Rotation, &id, &params).await;
    table.refused(event, Conflict, "request.id_reused").await;
    let event = table.asks(CLIENT, Action::Emergency, &id, &params).await;
    table.refused(event, Conflict, "request.id_reused").await;

    // That there was nothing to end is recorded, so that the same request never ends anything later.
    let mut recorded = Vec::new();
    for (client, target) in [(CLIENT, fresh()), ("slow", id.clone())] {
        let params = Params {
            target_rotation_id: Some(target),
            ..reason("not this one")
        };
        let action = fresh();
        let event = table.asks(client, Action::Cancel, &action, &params).await;
        table.refused(event, NotFound, "rotation.none_active").await;
        recorded.push(("action".to_owned(), action.to_string()));
    }
    let mut left = table.trail.documents();
    left.retain(|(kind, id, _)| !recorded.contains(&(kind.clone(), id.clone())));
    assert_eq!(left, documents);
    let client = CLIENT.parse().unwrap();
    let versions = table.trail.store.versions(&client).await.unwrap();
    assert_eq!(versions.len(), 1, "one rotation id recorded two versions");
    id
}

async fn after_it_has_ended(table: &mut Table, id: &RotationId) {
    table.completed(id).await;
    let documents = table.trail.documents();
    let event = table
        .asks(CLIENT, Action::Rotation, id, &reason("the first"))
        .await;
    let answer = table.alice.answer(event).await;
    assert!(
        matches!(
            answer,
            NotifyState::Done {
                outcome: Outcome::Promoted,
                ..
            }
        ),
        "{answer:?}"
    );
    let params = Params {
        target_rotation_id: Some(id.clone()),
        ..reason("too late")
    };
    let event = table.asks(CLIENT, Action::Cancel, &fresh(), &params).await;
    table
        .refused(event, ErrorClass::Conflict, "rotation.over")
        .await;
    assert_eq!(table.trail.documents(), documents);
}

async fn too_soon(table: &mut Table) {
    let id = fresh();
    let event = table
        .asks("slow", Action::Rotation, &id, &reason("on time"))
        .await;
    version(&table.alice.answer(event).await);
    table.completed(&id).await;
    let documents = table.trail.documents();
    let event = table
        .asks("slow", Action::Rotation, &fresh(), &reason("too soon"))
        .await;
    table
        .refused(event, ErrorClass::PolicyViolation, "policy.min_interval")
        .await;
    match table.alice.answer(event).await {
        NotifyState::Refused {
            retry_after_ms: Some(wait),
            ..
        } => assert!((HOUR - 60_000..=HOUR).contains(&wait), "{wait} ms"),
        other => panic!("{other:?}"),
    }
    assert_eq!(table.trail.documents(), documents);
}

async fn clients_that_may_not(table: &mut Table) {
    for (client, status, reason_word) in [
        ("denied", None, "policy.denylisted"),
        ("held", Some(ClientStatus::Suspended), "policy.client_held"),
        ("gone", Some(ClientStatus::Revoked), "policy.client_revoked"),
    ] {
        let id = table.world.client(client, &[GROUP]).await;
        if let Some(status) = status {
            clients::set_status(&table.trail.store, &id, status, now())
                .await
                .unwrap();
        }
        let documents = table.trail.documents();
        for action in [Action::Rotation, Action::Emergency] {
            let event = table
                .asks(client, action, &fresh(), &reason("please"))
                .await;
            table
                .refused(event, ErrorClass::PolicyViolation, reason_word)
                .await;
        }
        assert_eq!(table.trail.documents(), documents, "{client}");
    }
}

async fn groups_that_cannot(table: &mut Table) {
    let Table { world, alice, .. } = table;
    let lonely = found(world, "lonely", "alice", alice, &mut []).await;
    world.client("lonely-svc", &["lonely"]).await;
    world.bind("never", "bob").await;
    world.client("spread-svc", &[GROUP, "never"]).await;
    let documents = table.trail.documents();

    // One admin alone can never be two.
    let asked = table
        .alice
        .ask(&table.world, &lonely, "lonely-svc", Action::Rotation)
        .await;
    let class = ErrorClass::PolicyViolation;
    table
        .refused(asked.event, class, "policy.quorum_unreachable")
        .await;

    // A secret goes to all groups of a client or to none.
    let event = table
        .asks("spread-svc", Action::Rotation, &fresh(), &reason("all"))
        .await;
    table.refused(event, class, "group.not_joined").await;
    table.trail.quiet().await;
    assert_eq!(table.trail.documents(), documents);
}
