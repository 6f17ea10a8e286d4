//! What must hold whatever is sent in whatever order: repeats, stale attempts, wrong fences, acks of strangers, the operator in between.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod model;

use std::collections::{BTreeMap, BTreeSet};

use keyturn_proto::notify::Outcome;
use keyturn_store::documents::{ClientStatus, RotationState, VersionState};
use keyturn_store::lifecycle::{quorum, snapshot_of};
use model::{Command, Model, command};
use proptest::prelude::*;

fn sequences() -> impl Strategy<Value = Vec<Command>> {
    prop::collection::vec(command(), 1..120)
}

/// Runs every command, and each that changed something once more, and checks after each step.
fn walk(commands: &[Command], mut check: impl FnMut(&Model, &Command, &Model, bool)) {
    let mut model = Model::new();
    for command in commands {
        for _ in 0..2 {
            let before = model.clone();
            let changed = model.run(command).unwrap_or(false);
            check(&before, command, &model, changed);
            if !changed {
                break;
            }
        }
    }
}

fn count(model: &Model, state: VersionState) -> usize {
    model
        .versions
        .values()
        .filter(|doc| doc.state == state)
        .count()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn invariant_one_active_rotation_and_the_client_names_it(commands in sequences()) {
        walk(&commands, |_, _, model, _| {
            let active: Vec<_> = model.rotations.values().filter(|doc| doc.state != RotationState::Done).collect();
            match &model.client.active_rotation {
                None => assert!(active.is_empty()),
                Some(named) => {
                    assert_eq!(active.len(), 1);
                    assert_eq!((&active[0].rotation_id, active[0].attempt, active[0].fence), (&named.rotation_id, named.attempt, named.fence));
                }
            }
            for doc in model.rotations.values() {
                assert_eq!(doc.outcome.is_some(), doc.state == RotationState::Done);
                assert_eq!(doc.completed_at.is_some(), doc.state == RotationState::Done);
            }
        });
    }

    #[test]
    fn invariant_at_most_one_version_is_recorded_per_rotation(commands in sequences()) {
        let mut ended_with = BTreeMap::new();
        walk(&commands, |_, _, model, _| {
            let mut per_rotation = BTreeMap::new();
            for doc in model.versions.values() {
                if let Some(id) = &doc.rotation_id {
                    *per_rotation.entry(id).or_insert(0) += 1;
                    assert_eq!(model.rotations[id].new_version, Some(doc.version_id));
                }
            }
            assert!(per_rotation.values().all(|n| *n == 1), "{per_rotation:?}");
            // Once a rotation is over, its version is settled for good.
            for doc in model.rotations.values().filter(|doc| doc.state == RotationState::Done) {
                let settled = ended_with.entry(doc.rotation_id.clone()).or_insert(doc.new_version);
                assert_eq!(*settled, doc.new_version);
            }
        });
    }

    #[test]
    fn invariant_an_active_client_has_one_current_version(commands in sequences()) {
        walk(&commands, |_, _, model, _| {
            let current = count(model, VersionState::Current);
            match model.client.status {
                ClientStatus::Active => assert_eq!(current, 1),
                ClientStatus::Suspended => assert!(current <= 1),
                ClientStatus::Revoked => assert!(model.client.snapshot.is_empty()),
            }
            assert!(count(model, VersionState::Grace) <= 1 && count(model, VersionState::Pending) <= 1);
            let in_state = |state| model.versions.values().find(|doc| doc.state == state).map(|doc| doc.version_id);
            assert_eq!(model.client.current_version, in_state(VersionState::Current));
            assert_eq!(model.client.previous_version, in_state(VersionState::Grace));
            for doc in model.versions.values() {
                // Grace always ends; what is current does not.
                match doc.state {
                    VersionState::Grace => assert!(doc.not_after.is_some()),
                    VersionState::Current | VersionState::Pending => assert!(doc.not_after.is_none()),
                    VersionState::Retired | VersionState::Cancelled => assert!(doc.not_after.is_some_and(|end| end <= model.now)),
                }
            }
        });
    }

    #[test]
    fn invariant_the_dead_stay_dead(commands in sequences()) {
        walk(&commands, |before, _, model, _| {
            for (id, dead) in &before.versions {
                if matches!(dead.state, VersionState::Retired | VersionState::Cancelled) {
                    assert_eq!(model.versions.get(id), Some(dead));
                }
            }
        });
    }

    #[test]
    fn invariant_the_old_secret_stays_current_until_a_quorum_and_its_time(commands in sequences()) {
        walk(&commands, |before, command, model, _| {
            let (old, new) = (before.client.current_version, model.client.current_version);
            if old == new {
                return;
            }
            match (command, new) {
                (Command::Ack { .. } | Command::Promote { .. }, Some(new)) => {
                    let made_by = model.versions[&new].rotation_id.clone().unwrap();
                    let rotation = &model.rotations[&made_by];
                    assert_eq!(rotation.outcome, Some(Outcome::Promoted));
                    assert!(rotation.not_before <= model.now && quorum::met(rotation));
                    let readers: BTreeSet<_> = rotation.readers.iter().collect();
                    assert!(rotation.quorum.acks.iter().all(|ack| readers.contains(&ack.npub)));
                    assert!(rotation.quorum.acks.iter().any(|ack| ack.proven));
                    // Everybody who counted, and everybody who can read it, had the right to at that moment.
                    let people = before.people();
                    assert!(rotation.quorum.acks.iter().all(|ack| people.stand_behind(ack, &before.client)));
                    assert!(!people.lost_a_reader(rotation));
                    // The old one is in grace exactly as long as was asked, or dead.
                    if let Some(old) = old {
                        let old = &model.versions[&old];
                        let end = model.now.0 + rotation.grace_duration_ms;
                        assert_eq!(old.not_after.unwrap().0, end);
                        let expected = if rotation.grace_duration_ms == 0 { VersionState::Retired } else { VersionState::Grace };
                        assert_eq!(old.state, expected);
                    }
                }
                (Command::Rollback { .. }, Some(new)) => assert_eq!(before.client.previous_version, Some(new)),
                (Command::Revoke { .. } | Command::Operator(ClientStatus::Revoked) | Command::Reserve { emergency: true, .. }, None) => {
                    assert_ne!(model.client.status, ClientStatus::Active);
                }
                other => panic!("{other:?} moved current from {old:?} to {new:?}"),
            }
        });
    }

    #[test]
    fn invariant_the_snapshot_says_what_the_versions_say(commands in sequences()) {
        walk(&commands, |_, _, model, _| {
            let versions: Vec<_> = model.versions.values().cloned().collect();
            assert_eq!(model.client.snapshot, snapshot_of(&versions));
        });
    }

    #[test]
    fn invariant_every_change_is_audited_and_a_repeat_changes_nothing_twice(commands in sequences()) {
        let mut previous: Option<String> = None;
        walk(&commands, |before, command, model, changed| {
            if changed && !matches!(command, Command::Announce { .. }) {
                assert!(model.audit.len() > before.audit.len(), "{command:?} left no record");
            }
            // The same command once more, at the same time: only the operator's settings may be written again, and a reservation by a spent code.
            let this = format!("{command:?}");
            let repeatable = matches!(command, Command::Operator(_) | Command::Prepare { .. } | Command::TakeOver { .. } | Command::Retire { .. }
                | Command::Revoke { .. } | Command::Rollback { .. } | Command::Wait(_));
            if changed && !repeatable && previous.as_ref() == Some(&this) {
                assert_eq!(before.client.active_rotation, model.client.active_rotation, "{command:?} acted twice");
                assert_eq!(before.client.current_version, model.client.current_version, "{command:?} acted twice");
            }
            previous = Some(this);
        });
    }

    #[test]
    fn invariant_nothing_of_a_void_attempt_is_published(commands in sequences()) {
        walk(&commands, |_, _, model, _| {
            for event in model.outbox.values() {
                let rotation = &model.rotations[&event.rotation_id];
                if event.attempt < rotation.attempt {
                    assert!(event.delete_after.is_some());
                    assert!(!keyturn_store::lifecycle::due::publishable(rotation, event, model.now));
                }
                // What is over has an end to its ciphertext.
                if rotation.state == RotationState::Done {
                    assert!(event.delete_after.is_some());
                }
            }
        });
    }

    #[test]
    fn invariant_a_held_client_comes_back_by_the_operator_alone(commands in sequences()) {
        walk(&commands, |before, command, model, _| {
            if before.client.policy.held && model.client.status == ClientStatus::Active {
                assert!(matches!(command, Command::Operator(ClientStatus::Active)), "{command:?}");
            }
        });
    }
}

/// The generator reaches what the properties speak of; otherwise they would hold for want of trying.
#[test]
fn the_random_walk_reaches_every_outcome() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut outcomes = BTreeSet::new();
    let mut voided = 0;
    for _ in 0..400 {
        let commands = sequences().new_tree(&mut runner).unwrap().current();
        walk(&commands, |before, _, model, _| {
            outcomes.extend(model.rotations.values().filter_map(|doc| doc.outcome));
            voided += usize::from(model.versions.len() < before.versions.len());
        });
    }
    assert_eq!(outcomes.len(), 5, "{outcomes:?}");
    assert!(voided > 0);
}
