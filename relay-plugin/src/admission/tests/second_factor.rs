//! Who vouches for the second factor, and what a step is worth after it was used.

use std::time::Duration;

use keyturn_proto::{Action, UnixMs};
use keyturn_store::documents::RotationDoc;
use keyturn_store::store::{Registry as _, Reserve, Reserved, SecretStore as _};
use serde_json::json;

use super::world::{ALICE, World, audit};
use crate::admission::Permit;
use crate::admission::scenarios::{Attempt, Code, LOCKOUT_AFTER};
use crate::admission::settings::TotpPolicy;

fn attempt(amr_totp: bool, code: Code) -> Attempt {
    let claims: fn(&mut serde_json::Map<_, _>, UnixMs) = if amr_totp {
        |_, _| {}
    } else {
        |claims, _| claims["amr"] = json!(["app_attest"])
    };
    Attempt {
        claims,
        code,
        ..Attempt::good()
    }
}

#[tokio::test]
async fn policy_says_who_vouches() {
    use TotpPolicy::{Both, Either, Proof, Relay};
    let (right, wrong, absent) = (Code::AtStep(0), Code::Wrong, Code::Absent);
    let table = [
        (Proof, true, absent, ""),
        (Proof, true, wrong, ""),
        (Proof, false, right, "jwt.amr"),
        (Relay, false, right, ""),
        (Relay, true, absent, "totp.missing"),
        (Relay, true, wrong, "totp.wrong"),
        (Both, true, right, ""),
        (Both, true, absent, "totp.missing"),
        (Both, true, wrong, "totp.wrong"),
        (Both, false, right, "jwt.amr"),
        (Either, true, absent, ""),
        (Either, false, right, ""),
        (Either, true, right, ""),
        (Either, true, wrong, "totp.wrong"),
        (Either, false, absent, "totp.missing"),
        (Either, false, wrong, "totp.wrong"),
    ];
    for (policy, amr_totp, code, reason) in table {
        let mut world = World::with(|settings| settings.totp.policy = policy).await;
        let verdict = world.reason(&attempt(amr_totp, code)).await;
        assert_eq!(verdict, reason, "{policy:?}, amr totp {amr_totp}, {code:?}");
    }
}

#[tokio::test]
async fn without_enrolment_only_the_proof_can_vouch() {
    let mut world = World::new().await;
    world.change_admin(ALICE, |admin| admin.totp = None).await;
    assert_eq!(
        world.reason(&attempt(true, Code::Wrong)).await,
        "",
        "there is nothing to check it against"
    );
    assert_eq!(
        world.reason(&attempt(false, Code::Wrong)).await,
        "totp.not_enrolled"
    );
}

#[tokio::test]
async fn a_verified_step_is_in_the_permit_and_used_once_whatever_the_action() {
    for action in [Action::Rotation, Action::Cancel, Action::Status] {
        let mut world = World::new().await;
        let attempt = Attempt {
            action,
            ..attempt(false, Code::AtStep(0))
        };
        let permit = world.send(&attempt).await.ok().unwrap();
        assert_eq!(permit.totp_step(), Some(world.now.as_secs() / 30));
        assert_eq!(world.reason(&attempt).await, "totp.replayed", "{action:?}");
        world.wait(Duration::from_secs(30));
        assert_eq!(world.reason(&attempt).await, "", "{action:?}");
    }
}

#[tokio::test]
async fn the_same_event_finds_its_own_step_also_after_it_was_reserved() {
    let mut world = World::new().await;
    let opened = world.opened(&attempt(false, Code::AtStep(0)));
    let permit = world.admit(&opened, world.now).await.ok().unwrap();
    let step = permit.totp_step();
    let reserve = |permit: &Permit| Reserve {
        rotation: RotationDoc {
            rotation_id: permit.action_id().clone(),
            request_digest: permit.request_digest().to_owned(),
            ..world.rotation()
        },
        totp_step: permit.totp_step(),
        min_interval_ms: 0,
        revoke_living: false,
        now: world.now,
        audit: audit(),
    };
    let first = world.store.reserve(reserve(&permit)).await.unwrap();
    assert!(matches!(first, Reserved::New(_)), "{first:?}");
    let admin = world.store.admin(&ALICE).await.unwrap().unwrap();
    assert_eq!(admin.totp.unwrap().last_step, step);

    // Killed before the inbox row was deleted: the same event again.
    let again = world.admit(&opened, world.now).await.ok().unwrap();
    assert_eq!(again.totp_step(), step);
    let second = world.store.reserve(reserve(&again)).await.unwrap();
    assert!(matches!(second, Reserved::Repeat(_)), "{second:?}");
}

#[tokio::test]
async fn a_lock_holds_for_its_time_and_is_neither_prolonged_nor_guessable() {
    let mut world = World::new().await;
    for left in (0..LOCKOUT_AFTER).rev() {
        let refusal = world
            .send(&attempt(false, Code::Wrong))
            .await
            .err()
            .unwrap();
        assert_eq!(refusal.reason, "totp.wrong");
        assert_eq!(refusal.retry_after_ms, (left == 0).then_some(900_000));
    }
    world.wait(Duration::from_secs(300));
    for code in [Code::Wrong, Code::AtStep(0)] {
        let refusal = world.send(&attempt(false, code)).await.err().unwrap();
        assert_eq!(
            (refusal.reason, refusal.retry_after_ms),
            ("totp.locked", Some(600_000))
        );
    }
    let failures = world
        .store
        .admin(&ALICE)
        .await
        .unwrap()
        .unwrap()
        .totp
        .unwrap()
        .failures;
    assert_eq!(failures, LOCKOUT_AFTER);
    world.wait(Duration::from_secs(600));
    assert_eq!(world.reason(&attempt(false, Code::AtStep(0))).await, "");
}

#[tokio::test]
async fn a_wrong_code_does_not_spare_the_nonce() {
    let mut world = World::new().await;
    let opened = world.opened(&attempt(false, Code::Wrong));
    assert!(world.admit(&opened, world.now).await.is_err());
    let mut guess = world.opened(&attempt(false, Code::AtStep(0)));
    let request: serde_json::Value = serde_json::from_str(&opened.json).unwrap();
    let right: serde_json::Value = serde_json::from_str(&guess.json).unwrap();
    let mut merged = request;
    merged["totp"] = right["totp"].clone();
    *guess.json = merged.to_string();
    let refusal = world.admit(&guess, world.now).await.err().unwrap();
    assert_eq!(refusal.reason, "nonce.reused", "one proof buys one guess");
}
