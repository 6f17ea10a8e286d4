//! Limits, breakers and the audit trail under a flood, through the whole gate.

use std::time::Duration;

use keyturn_proto::{Action, ErrorClass};
use keyturn_store::store::{Asked, SecretStore as _};

use super::world::World;
use crate::admission::NotAdmitted;
use crate::admission::scenarios::{Attempt, Forgery, Sender};
use crate::trail::{FIRST, REPEATED};

fn forged() -> Attempt {
    Attempt {
        forgery: Forgery::ChangedClaim,
        ..Attempt::good()
    }
}

#[tokio::test]
async fn a_sender_that_keeps_being_refused_is_not_listened_to_and_others_are() {
    let mut world = World::with(|settings| settings.limits.breaker_refusals = 3).await;
    for _ in 0..3 {
        assert_eq!(world.reason(&forged()).await, "jwt.signature");
    }
    let refusal = world.send(&Attempt::good()).await.err().unwrap();
    assert_eq!(refusal.class, ErrorClass::PolicyViolation);
    assert_eq!(
        (refusal.reason, refusal.retry_after_ms),
        ("limits.breaker_open", Some(900_000))
    );
    let garbage = Attempt {
        text: |_| "{".to_owned(),
        ..Attempt::good()
    };
    assert_eq!(
        world.reason(&garbage).await,
        "limits.breaker_open",
        "not even parsed"
    );
    assert_eq!(
        world
            .reason(&Attempt {
                sender: Sender::OutOfScope,
                ..Attempt::good()
            })
            .await,
        "admin.out_of_scope"
    );
    world.wait(Duration::from_secs(900));
    assert_eq!(world.reason(&Attempt::good()).await, "");
}

#[tokio::test]
async fn a_leaf_under_somebody_elses_npub_silences_only_itself() {
    let mut world = World::with(|settings| settings.limits.breaker_refusals = 3).await;
    let impostor = Attempt {
        sender: Sender::UnprovenLeaf,
        ..Attempt::good()
    };
    for _ in 0..3 {
        assert_eq!(world.reason(&impostor).await, "admin.key_not_proven");
    }
    assert_eq!(world.reason(&impostor).await, "limits.breaker_open");
    assert_eq!(world.reason(&Attempt::good()).await, "");
}

#[tokio::test]
async fn the_common_breaker_lets_revoke_and_emergency_through() {
    let mut world = World::with(|settings| settings.limits.global_breaker_refusals = 2).await;
    for sender in [Sender::Stranger, Sender::OutOfScope] {
        assert_ne!(
            world
                .reason(&Attempt {
                    sender,
                    ..Attempt::good()
                })
                .await,
            ""
        );
    }
    assert_eq!(
        world.reason(&Attempt::good()).await,
        "limits.global_breaker_open"
    );
    for action in [Action::Revoke, Action::Emergency] {
        assert_eq!(
            world
                .reason(&Attempt {
                    action,
                    ..Attempt::good()
                })
                .await,
            "",
            "{action:?}"
        );
    }
}

#[tokio::test]
async fn only_authorised_requests_spend_a_budget() {
    let mut world = World::with(|settings| settings.limits.client_per_hour = 1).await;
    for attempt in [
        forged(),
        Attempt {
            sender: Sender::Stranger,
            ..Attempt::good()
        },
    ] {
        assert_ne!(world.reason(&attempt).await, "");
    }
    assert_eq!(world.reason(&Attempt::good()).await, "");
    let refusal = world.send(&Attempt::good()).await.err().unwrap();
    assert_eq!(
        (refusal.reason, refusal.retry_after_ms),
        ("limits.client", Some(3_600_000))
    );
    world.wait(Duration::from_secs(3600));
    assert_eq!(world.reason(&Attempt::good()).await, "");
}

#[tokio::test]
async fn every_judged_request_is_recorded_and_a_flood_of_others_summed_up() {
    let mut world = World::with(|settings| settings.limits.breaker_refusals = 70).await;
    // What is judged is recorded, every time; the breaker bounds it.
    for _ in 0..70 {
        assert_eq!(world.reason(&forged()).await, "jwt.signature");
    }
    assert_eq!(world.refusals().await.len(), 70);
    // Who is told of a refusal can rely on it: the mark of its event is in the store. What is only counted has none, and nobody is told.
    for n in 0..FIRST + 30 {
        let opened = world.opened(&forged());
        let judged = world.admission.admit(&opened, world.now).await;
        let told = match judged.err().unwrap() {
            NotAdmitted::Refused(refusal) => Some(refusal),
            NotAdmitted::Counted(refusal) => {
                assert_eq!(refusal.reason, "limits.breaker_open");
                None
            }
            NotAdmitted::Unrecorded => panic!("the store is there"),
        };
        assert_eq!(told.is_some(), n < FIRST);
        let asked = Asked {
            event_id: opened.event_id.clone(),
            operation: None,
        };
        let found = world.store.decided(&[asked]).await.unwrap();
        let marked = found[0].refused.as_ref().map(|refused| &*refused.reason);
        assert_eq!(marked, told.as_ref().map(|refusal| refusal.reason));
    }
    let records = world.refusals().await.split_off(70);
    assert_eq!(records.len(), FIRST as usize);
    world.admission.flush_trail(world.now, true).await;
    let records = world.refusals().await.split_off(70);
    let count = records.last().unwrap();
    assert_eq!(
        (records.len(), count.event.as_str()),
        (FIRST as usize + 1, REPEATED)
    );
    assert!(
        count.reason.starts_with("limits.breaker_open count=30 "),
        "{}",
        count.reason
    );
}

#[tokio::test]
async fn a_request_that_has_to_be_judged_again_is_paid_for_once() {
    let mut world = World::with(|settings| {
        settings.limits.admin_per_hour = 2;
        settings.limits.client_per_hour = 2;
    })
    .await;
    let opened = world.opened(&Attempt::good());
    for round in 0..5 {
        let judged = world.admit(&opened, world.now).await;
        assert!(judged.is_ok(), "round {round}");
    }
    assert_eq!(world.reason(&Attempt::good()).await, "");
    assert_eq!(world.reason(&Attempt::good()).await, "limits.admin");
}

#[tokio::test]
async fn a_refusal_that_cannot_be_recorded_is_none() {
    let mut world = World::with(|settings| settings.limits.breaker_refusals = 2).await;
    let opened = world.opened(&forged());
    world.counted.fail("record");
    for _ in 0..5 {
        let judged = world.admission.admit(&opened, world.now).await;
        assert_eq!(judged.err(), Some(NotAdmitted::Unrecorded));
    }
    assert_eq!(world.refusals().await.len(), 0);
    world.counted.mend();
    // Judged again, not held against its sender five times.
    let refusal = world.admit(&opened, world.now).await.err().unwrap();
    assert_eq!(refusal.reason, "jwt.signature");
    assert_eq!(world.refusals().await.len(), 1);
    let asked = Asked {
        event_id: opened.event_id.clone(),
        operation: None,
    };
    let found = world.store.decided(&[asked]).await.unwrap();
    let recorded = found[0].refused.as_ref().unwrap();
    assert_eq!(
        (recorded.class, recorded.reason.as_str()),
        (refusal.class, refusal.reason)
    );
}

#[tokio::test]
async fn our_own_failures_are_recorded_within_limits() {
    let mut world = World::new().await;
    world.remove_issuer();
    // What comes again because it could not be recorded takes no place from the others.
    let opened = world.opened(&Attempt::good());
    world.counted.fail("record");
    for _ in 0..2 * FIRST {
        let judged = world.admission.admit(&opened, world.now).await;
        assert_eq!(judged.err(), Some(NotAdmitted::Unrecorded));
    }
    world.counted.mend();
    for _ in 0..FIRST + 5 {
        assert_eq!(world.reason(&Attempt::good()).await, "issuer.unavailable");
    }
    assert_eq!(world.refusals().await.len(), FIRST as usize);
    world.admission.flush_trail(world.now, true).await;
    let summary = world.refusals().await.pop().unwrap();
    assert!(
        summary.reason.starts_with("issuer.unavailable count=5 "),
        "{}",
        summary.reason
    );
}
