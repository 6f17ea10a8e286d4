//! Acks: who counts, when it is enough.

use keyturn_proto::notify::Outcome;
use keyturn_proto::{ClientId, RotationId};

use super::World;
use super::fixture::{
    ACK_TIME, DELAY, NOW, REQUESTER, RETENTION, SECOND, THIRD, ack, admin, at, audit, client_id,
    group, npub, operation, prepare, reserve, version_id,
};
use super::world::conflict;
use crate::documents::{Actor, AdminDoc, ClientScope, GroupState, RotationState, VersionState};
use crate::store::StoreError;

super::case_list![
    the_ack_that_completes_the_quorum_promotes_if_the_time_has_come,
    a_quorum_before_its_time_waits,
    a_repeated_ack_adds_nothing,
    a_proven_ack_replaces_an_unproven_one_and_never_the_other_way_round,
    unproven_acks_alone_never_suffice_when_a_proof_is_required,
    the_requesters_own_ack_counts_only_where_policy_says_so,
    only_enrolled_readers_count,
    an_ack_after_the_deadline_does_not_count,
    an_ack_of_another_version_or_rotation_is_refused,
    racing_acks_promote_once,
    a_reader_who_was_revoked_ends_the_rotation_at_the_next_ack,
    a_reader_who_was_revoked_ends_the_rotation_at_the_promotion,
    a_reader_who_may_not_touch_the_client_any_more_ends_the_rotation,
    acks_through_a_group_that_was_suspended_do_not_count,
    a_quorum_that_is_lost_after_the_deadline_ends_the_rotation,
    acks_through_a_group_that_is_not_the_clients_any_more_do_not_count,
];

async fn the_ack_that_completes_the_quorum_promotes_if_the_time_has_come(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    let first = ack(&id, 2, REQUESTER, true, at(DELAY));
    let first = w.store.record_ack(first).await.unwrap();
    assert!(first.counted && !first.promoted);
    assert_eq!(w.client().await.current_version, Some(version_id(1)));
    let second = ack(&id, 2, SECOND, true, at(DELAY));
    let second = w.store.record_ack(second).await.unwrap();
    assert!(second.counted && second.promoted);
    assert_eq!(second.rotation, w.rotation(&id).await);
    assert_eq!(w.client().await.current_version, Some(version_id(2)));
    let events = w.events().await;
    assert_eq!(
        events[events.len() - 2..],
        ["ack.recorded", "rotation.promoted"]
    );
    w.check_snapshot().await;
}

async fn a_quorum_before_its_time_waits(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    w.acked(&id, 2, at(DELAY - 1)).await;
    assert_eq!(w.rotation(&id).await.state, RotationState::QuorumMet);
    assert_eq!(w.client().await.current_version, Some(version_id(1)));
    w.check_snapshot().await;
}

async fn a_repeated_ack_adds_nothing(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    let command = || ack(&id, 2, SECOND, true, NOW);
    assert!(w.store.record_ack(command()).await.unwrap().counted);
    let before = w.picture().await;
    for _ in 0..3 {
        let again = w.store.record_ack(command()).await.unwrap();
        assert!(!again.counted && !again.promoted);
    }
    assert_eq!(w.picture().await, before);
}

async fn a_proven_ack_replaces_an_unproven_one_and_never_the_other_way_round(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    for (proven, adds) in [(false, true), (false, false), (true, true), (false, false)] {
        let command = ack(&id, 2, SECOND, proven, NOW);
        assert_eq!(w.store.record_ack(command).await.unwrap().counted, adds);
    }
    let acks = w.rotation(&id).await.quorum.acks;
    assert_eq!(acks.len(), 1);
    assert!(acks[0].proven);
}

async fn unproven_acks_alone_never_suffice_when_a_proof_is_required(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    for by in [REQUESTER, SECOND, THIRD] {
        let result = w.store.record_ack(ack(&id, 2, by, false, at(DELAY))).await;
        assert!(!result.unwrap().promoted);
    }
    assert_eq!(w.rotation(&id).await.state, RotationState::Prepared);
    let proven = ack(&id, 2, THIRD, true, at(DELAY));
    assert!(w.store.record_ack(proven).await.unwrap().promoted);
}

async fn the_requesters_own_ack_counts_only_where_policy_says_so(w: World) {
    w.settle().await;
    let mut command = reserve(&operation(2), NOW);
    command.rotation.quorum.required = 1;
    command.rotation.quorum.requester_counts = false;
    let active = w.reserved(command).await;
    let id = operation(2);
    w.store
        .prepare(prepare(&active, 2, at(DELAY), NOW))
        .await
        .unwrap();
    let own = ack(&id, 2, REQUESTER, true, at(DELAY));
    let own = w.store.record_ack(own).await.unwrap();
    assert!(!own.counted && !own.promoted);
    assert_eq!(own.rotation.state, RotationState::Prepared);
    // Another one's unproven ack counts, but the requester's proof does not prove for it.
    let unproven = ack(&id, 2, SECOND, false, at(DELAY));
    assert!(!w.store.record_ack(unproven).await.unwrap().promoted);
    let proven = ack(&id, 2, SECOND, true, at(DELAY));
    assert!(w.store.record_ack(proven).await.unwrap().promoted);
}

async fn only_enrolled_readers_count(w: World) {
    w.settle().await;
    // Enrolled, but the secret was not sealed for it.
    w.store
        .put_admin(admin(9, false), audit("admin.enrolled", NOW))
        .await
        .unwrap();
    // Sealed for it, but revoked since; sealed for it, but not enrolled for this client.
    let mut revoked = admin(SECOND, false);
    revoked.active = false;
    let mut elsewhere = admin(THIRD, false);
    elsewhere.scope = ClientScope::Only(vec!["other".parse().unwrap()]);
    let (id, _) = w.prepared(2, NOW).await;
    for doc in [revoked, elsewhere] {
        let audit = audit("admin.updated", NOW);
        w.store.put_admin(doc, audit).await.unwrap();
    }
    let before = w.picture().await;
    for by in [9, SECOND, THIRD, 77] {
        let result = w.store.record_ack(ack(&id, 2, by, true, NOW)).await;
        assert!(!result.unwrap().counted, "{by} counted");
    }
    assert_eq!(w.picture().await, before);
    assert!(w.rotation(&id).await.quorum.acks.is_empty());
}

async fn an_ack_after_the_deadline_does_not_count(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    let late = ack(&id, 2, SECOND, true, at(ACK_TIME));
    assert!(!w.store.record_ack(late).await.unwrap().counted);
    let in_time = ack(&id, 2, SECOND, true, at(ACK_TIME - 1));
    assert!(w.store.record_ack(in_time).await.unwrap().counted);
}

async fn an_ack_of_another_version_or_rotation_is_refused(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    let before = w.picture().await;
    let wrong = w.store.record_ack(ack(&id, 1, SECOND, true, NOW)).await;
    conflict(wrong, "ack.wrong_version");
    let nowhere = w
        .store
        .record_ack(ack(&operation(9), 2, SECOND, true, NOW))
        .await;
    assert_eq!(nowhere, Err(StoreError::NotFound { what: "rotation" }));
    assert_eq!(w.picture().await, before);
}

async fn racing_acks_promote_once(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    let tasks: Vec<_> = [REQUESTER, SECOND, THIRD]
        .into_iter()
        .cycle()
        .take(12)
        .map(|by| {
            let (store, command) = (w.store.clone(), ack(&id, 2, by, true, at(DELAY)));
            tokio::spawn(async move { store.record_ack(command).await })
        })
        .collect();
    let mut promoted = 0;
    for task in tasks {
        if task.await.unwrap().unwrap().promoted {
            promoted += 1;
        }
    }
    assert_eq!(promoted, 1);
    assert_eq!(w.client().await.current_version, Some(version_id(2)));
}

impl World {
    /// The operator changes an enrolment.
    async fn change(&self, n: u8, change: impl FnOnce(&mut AdminDoc)) {
        let mut doc = self.store.admin(&npub(n)).await.unwrap().unwrap();
        change(&mut doc);
        let audit = audit("admin.changed", NOW);
        self.store.put_admin(doc, audit).await.unwrap();
    }

    async fn serve(&self, served: bool) {
        let state = if served {
            GroupState::Active
        } else {
            GroupState::Suspended {
                reason: "by the operator".to_owned(),
            }
        };
        let audit = audit("group.changed", NOW);
        let set = self.store.set_group_state("ops", state, NOW, audit);
        set.await.unwrap();
    }

    /// The rotation was cancelled because somebody knows its secret who should not; the old secret stays.
    async fn check_withdrawn(&self, id: &RotationId) {
        let rotation = self.rotation(id).await;
        assert_eq!(rotation.outcome, Some(Outcome::Canceled));
        assert_eq!(self.state(2).await, VersionState::Cancelled);
        let client = self.client().await;
        assert_eq!(client.current_version, Some(version_id(1)));
        assert_eq!(client.active_rotation, None);
        let last = self.store.read(Some(&client_id()), 1).await.unwrap().pop();
        let last = last.unwrap();
        assert_eq!(
            (&*last.event, &*last.reason),
            ("rotation.canceled", "reader.revoked")
        );
        assert_eq!(last.actor, Actor::Relay);
        self.check_snapshot().await;
    }
}

async fn a_reader_who_was_revoked_ends_the_rotation_at_the_next_ack(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    let first = ack(&id, 2, SECOND, true, at(DELAY));
    assert!(w.store.record_ack(first).await.unwrap().counted);
    // Revoked after an ack that would have made the quorum; and one that never acked.
    w.change(SECOND, |doc| doc.active = false).await;
    let next = ack(&id, 2, REQUESTER, true, at(DELAY));
    let result = w.store.record_ack(next).await.unwrap();
    assert!(!result.counted && !result.promoted);
    assert_eq!(result.rotation.outcome, Some(Outcome::Canceled));
    w.check_withdrawn(&id).await;
}

async fn a_reader_who_was_revoked_ends_the_rotation_at_the_promotion(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    w.acked(&id, 2, at(1)).await;
    assert_eq!(w.rotation(&id).await.state, RotationState::QuorumMet);
    // Neither of those who acked, but the secret was sealed for this one too.
    w.change(THIRD, |doc| doc.active = false).await;
    let audit = audit("rotation.promoted", at(DELAY));
    let promote = w
        .store
        .promote(&id, RETENTION, super::fixture::FENCE, at(DELAY), audit);
    assert_eq!(promote.await.unwrap().outcome, Some(Outcome::Canceled));
    w.check_withdrawn(&id).await;
}

async fn a_reader_who_may_not_touch_the_client_any_more_ends_the_rotation(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    w.acked(&id, 2, at(1)).await;
    let other: ClientId = "other".parse().unwrap();
    w.change(SECOND, |doc| doc.scope = ClientScope::Only(vec![other]))
        .await;
    let audit = audit("rotation.promoted", at(DELAY));
    let promote = w
        .store
        .promote(&id, RETENTION, super::fixture::FENCE, at(DELAY), audit);
    assert_eq!(promote.await.unwrap().outcome, Some(Outcome::Canceled));
    w.check_withdrawn(&id).await;
}

async fn acks_through_a_group_that_was_suspended_do_not_count(w: World) {
    w.settle().await;
    let bound = audit("group.bound", NOW);
    w.store
        .put_group(group("ops", Some(1)), bound)
        .await
        .unwrap();
    let (id, _) = w.prepared(2, NOW).await;
    w.acked(&id, 2, at(1)).await;
    w.serve(false).await;
    let promote = async |now| {
        let audit = audit("rotation.promoted", now);
        w.store
            .promote(&id, RETENTION, super::fixture::FENCE, now, audit)
            .await
    };
    let waits = promote(at(DELAY)).await.unwrap();
    assert_eq!(
        (waits.state, waits.outcome),
        (RotationState::Prepared, None)
    );
    assert!(waits.quorum.acks.is_empty());
    assert_eq!(w.events().await.last().unwrap(), "rotation.quorum_lost");
    assert_eq!(w.client().await.current_version, Some(version_id(1)));
    let before = w.picture().await;
    let suspended = w.store.record_ack(ack(&id, 2, SECOND, true, at(DELAY)));
    assert!(!suspended.await.unwrap().counted);
    conflict(promote(at(DELAY)).await, "promote.no_quorum");
    assert_eq!(w.picture().await, before);
    // Approved again, the same admins may ack again.
    w.serve(true).await;
    w.acked(&id, 2, at(DELAY)).await;
    assert_eq!(w.client().await.current_version, Some(version_id(2)));
}

async fn a_quorum_that_is_lost_after_the_deadline_ends_the_rotation(w: World) {
    w.settle().await;
    let bound = audit("group.bound", NOW);
    w.store
        .put_group(group("ops", Some(1)), bound)
        .await
        .unwrap();
    let (id, _) = w.prepared(2, NOW).await;
    w.acked(&id, 2, at(1)).await;
    w.serve(false).await;
    let late = at(ACK_TIME);
    let audit = audit("rotation.promoted", late);
    let ended = w
        .store
        .promote(&id, RETENTION, super::fixture::FENCE, late, audit)
        .await
        .unwrap();
    assert_eq!(ended.outcome, Some(Outcome::Expired));
    let events = w.events().await;
    assert_eq!(
        events[events.len() - 2..],
        ["rotation.quorum_lost", "rotation.expired"]
    );
    assert_eq!(w.state(2).await, VersionState::Cancelled);
    assert_eq!(w.client().await.active_rotation, None);
    w.check_snapshot().await;
}

async fn acks_through_a_group_that_is_not_the_clients_any_more_do_not_count(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    w.acked(&id, 2, at(1)).await;
    let groups = Some(vec!["night".to_owned()]);
    let changed = audit("client.changed", at(2));
    w.store
        .update_client(&client_id(), None, groups, None, at(2), changed)
        .await
        .unwrap();
    let audit = audit("rotation.promoted", at(DELAY));
    let promote = w
        .store
        .promote(&id, RETENTION, super::fixture::FENCE, at(DELAY), audit);
    assert_eq!(promote.await.unwrap().state, RotationState::Prepared);
    assert_eq!(w.client().await.current_version, Some(version_id(1)));
}
