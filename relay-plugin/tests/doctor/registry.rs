//! Clients, admins and groups that do not fit together, and rotations that should have moved on.

use std::time::Duration;

use keyturn::doctor::Level;
use keyturn_proto::RotationId;
use keyturn_store::documents::{AdminDoc, GroupState, Quorum, RotationDoc, RotationState};
use keyturn_store::store::Registry as _;
use tokio::time::Instant;

use crate::audit;
use crate::patient::{Patient, beside_a_running_one};
use crate::world::PATIENCE;

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_does_not_fit_together_is_named() {
    let patient = Patient::new().await;
    let store = patient.store();
    let locked = patient.now.plus(Duration::from_secs(600));
    // A change of the seed is what replaces the lock.
    let mut admin = patient.admin_document(Some(locked));
    if let Some(totp) = &mut admin.totp {
        totp.seed_ciphertext.push('2');
    }
    store.put_admin(admin, audit(patient.now)).await.unwrap();
    patient
        .finds("registry", Level::Warn, "is locked out for", "--new-seed")
        .await;
    let suspended = GroupState::Suspended {
        reason: "welcome.for_a_served_group".to_owned(),
    };
    store
        .set_group_state("ops", suspended, patient.now, audit(patient.now))
        .await
        .unwrap();
    patient
        .finds(
            "registry",
            Level::Warn,
            "suspended (welcome.for_a_served_group)",
            "keyturn group approve ops --config ",
        )
        .await;
    store
        .put_admin(
            AdminDoc {
                active: false,
                ..store.admin(&patient.admin).await.unwrap().unwrap()
            },
            audit(patient.now),
        )
        .await
        .unwrap();
    patient
        .finds(
            "registry",
            Level::Warn,
            "no admin is enrolled",
            "admin enroll",
        )
        .await;
    patient
        .sql()
        .execute_batch("DELETE FROM admin_groups")
        .unwrap();
    patient
        .finds(
            "registry",
            Level::Fail,
            "not bound: ext-totp-svc",
            "group bind",
        )
        .await;
    patient
        .finds("registry", Level::Warn, "no admin group", "group bind")
        .await;
}

fn rotation(patient: &Patient, state: RotationState) -> RotationDoc {
    let long_ago = patient.now.minus(Duration::from_secs(3_600));
    RotationDoc {
        rotation_id: RotationId::generate(long_ago).unwrap(),
        client_id: "ext-totp-svc".parse().unwrap(),
        action: keyturn_proto::Action::Rotation,
        requested_by: patient.admin,
        reason: "test".to_owned(),
        mls_group: "ops".to_owned(),
        request_digest: "00".repeat(32),
        new_version: None,
        old_version: None,
        not_before: long_ago,
        grace_duration_ms: 0,
        grace_until: None,
        distribution_message_id: None,
        readers: Vec::new(),
        quorum: Quorum {
            required: 1,
            require_proven: true,
            requester_counts: false,
            acks: Vec::new(),
        },
        state,
        outcome: None,
        attempt: 1,
        fence: 1,
        created_at: long_ago,
        proof_expires_at: long_ago,
        ack_deadline: long_ago,
        completed_at: None,
        announced_at: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_should_have_moved_on_is_named() {
    let patient = Patient::new().await;
    for (state, word) in [
        (RotationState::Reserved, "reserved"),
        (RotationState::Prepared, "prepared"),
        (RotationState::QuorumMet, "quorum met"),
    ] {
        let rotation = rotation(&patient, state);
        let sql = patient.sql();
        sql.execute(
            "INSERT INTO rotations (rotation_id, client_id, done, due_at, doc) VALUES (?1, ?2, 0, ?3, ?4)",
            (
                rotation.rotation_id.as_str(),
                "ext-totp-svc",
                rotation.created_at.0 as i64,
                serde_json::to_string(&rotation).unwrap(),
            ),
        )
        .unwrap();
        let stuck = format!("stuck as {word} for 1h");
        patient
            .finds("timed", Level::Warn, &stuck, "keyturn serve --config ")
            .await;
        patient
            .finds("timed", Level::Warn, "work has been due for 1h", "")
            .await;
        sql.execute_batch("DELETE FROM rotations").unwrap();
    }

    // Beside a running one it is a failure.
    let (mut patient, keyturn) = beside_a_running_one(patient);
    let due = rotation(&patient, RotationState::Prepared);
    patient
        .sql()
        .execute(
            "INSERT INTO rotations (rotation_id, client_id, done, due_at, doc) VALUES (?1, ?2, 0, 1, ?3)",
            (
                due.rotation_id.as_str(),
                "ext-totp-svc",
                serde_json::to_string(&due).unwrap(),
            ),
        )
        .unwrap();
    patient.set("RELAY__PORT", "0");
    patient
        .finds(
            "timed",
            Level::Fail,
            "although keyturn is running",
            "Stuck rotation",
        )
        .await;
    tokio::task::spawn_blocking(move || keyturn.shutdown(Instant::now() + PATIENCE))
        .await
        .unwrap();
}
