//! Asking too often, and being wrong too often.

use keyturn_proto::notify::NotifyState;
use keyturn_proto::{Action, ErrorClass, RotationId, kinds};
use keyturn_tests::rogue::Asked;
use keyturn_tests::world::{CLIENT, GROUP, now, reason, set};
use nostr::EventId;
use serde_json::json;

use super::{Table, refused};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_too_often_waits_and_whoever_is_wrong_too_often_is_not_listened_to() {
    let mut table = Table::new(|config| {
        set(config, "policy", "client_requests_per_hour", 2);
        set(config, "policy", "admin_requests_per_hour", 3);
        set(config, "policy", "breaker_refusals", 3);
        set(config, "policy", "breaker_pause", "10m");
    })
    .await;
    table.world.client("another", &[GROUP]).await;

    for _ in 0..2 {
        let asked = table.alice_asks(CLIENT, Action::Rotation).await;
        let answer = table.alice.answer(asked.event).await;
        assert!(matches!(answer, NotifyState::Accepted { .. }), "{answer:?}");
        let asked = table.alice_asks(CLIENT, Action::Cancel).await;
        let answer = table.alice.answer(asked.event).await;
        assert!(matches!(answer, NotifyState::Done { .. }), "{answer:?}");
    }
    table.trail.quiet().await;
    let documents = table.trail.documents();

    let asked = table.alice_asks(CLIENT, Action::Rotation).await;
    table
        .held_back(asked.event, "limits.client", 3_600_000)
        .await;
    let asked = table.alice_asks("another", Action::Rotation).await;
    table
        .held_back(asked.event, "limits.admin", 3_600_000)
        .await;

    // Looking and protecting have budgets of their own.
    let asked = table.alice_asks(CLIENT, Action::Status).await;
    let answer = table.alice.answer(asked.event).await;
    assert!(matches!(answer, NotifyState::Status { .. }), "{answer:?}");
    assert_eq!(table.trail.documents(), documents);

    for _ in 0..3 {
        let event = table.bob_asks_badly().await;
        let class = ErrorClass::UnauthorizedRequest;
        refused(&table.trail, &mut table.bob, event, class, "jwt.aud").await;
    }
    let group = table.group.clone();
    let asked = table
        .bob
        .ask(&table.world, &group, CLIENT, Action::Status)
        .await;
    let class = ErrorClass::PolicyViolation;
    let trail = &table.trail;
    refused(
        trail,
        &mut table.bob,
        asked.event,
        class,
        "limits.breaker_open",
    )
    .await;
    assert_eq!(table.trail.documents(), documents);

    // Bob's silence is not Alice's.
    let asked = table.alice_asks(CLIENT, Action::Revoke).await;
    let answer = table.alice.answer(asked.event).await;
    assert!(matches!(answer, NotifyState::Done { .. }), "{answer:?}");
}

impl Table {
    async fn alice_asks(&mut self, client: &str, action: Action) -> Asked {
        let group = self.group.clone();
        self.alice.ask(&self.world, &group, client, action).await
    }

    async fn held_back(&mut self, event: EventId, reason: &str, longest: u64) {
        let class = ErrorClass::PolicyViolation;
        refused(&self.trail, &mut self.alice, event, class, reason).await;
        let answer = self.alice.answer(event).await;
        let NotifyState::Refused {
            retry_after_ms: Some(wait),
            ..
        } = answer
        else {
            panic!("{reason}: {answer:?}")
        };
        assert!((1..=longest).contains(&wait), "{reason}: {wait} ms");
    }

    /// A proof for another audience.
    async fn bob_asks_badly(&mut self) -> EventId {
        let id = RotationId::generate(now()).unwrap();
        let (group, params) = (self.group.clone(), reason("x"));
        let mut request = self
            .bob
            .compose(&self.world, &group, CLIENT, Action::Rotation, &id, &params)
            .await;
        let claims = json!({
            "aud": "another-relay",
            "nonce": "irrelevant",
            "npub": self.bob.npub(),
            "mls_group": group,
        });
        request.jwt_proof = self.world.issuer.signer().sign(claims, now()).unwrap();
        let text = serde_json::to_string(&request).unwrap();
        self.bob.say(&group, kinds::SERVICE_REQUEST, &text).await
    }
}
