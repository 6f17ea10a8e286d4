//! Properties of the transition table, over every state, event and order of deadlines.
#![allow(clippy::unwrap_used)]

use keyturn_proto::notify::Outcome;
use keyturn_proto::{Action, MlsGroupId, Npub, RotationId, UnixMs};
use keyturn_store::documents::{OutboxDoc, Quorum, RotationDoc, RotationState};
use proptest::prelude::*;

use super::*;
use crate::rotation::ports::Roster;

fn rotation() -> impl Strategy<Value = RotationDoc> {
    let state = prop_oneof![
        Just((RotationState::Reserved, None)),
        Just((RotationState::Prepared, None)),
        Just((RotationState::QuorumMet, None)),
        prop::sample::select(vec![
            Outcome::Promoted,
            Outcome::Canceled,
            Outcome::Expired,
            Outcome::RolledBack,
            Outcome::Revoked,
        ])
        .prop_map(|outcome| (RotationState::Done, Some(outcome))),
    ];
    let times = (0..100u64, 0..100u64, 0..100u64, prop::option::of(0..100u64));
    (state, times).prop_map(
        |((state, outcome), (not_before, proof_expires_at, ack_deadline, announced))| RotationDoc {
            rotation_id: id(),
            client_id: "c".parse().unwrap(),
            action: Action::Rotation,
            requested_by: Npub::from_bytes([1; 32]),
            reason: String::new(),
            mls_group: "ops".to_owned(),
            request_digest: String::new(),
            new_version: None,
            old_version: None,
            not_before: UnixMs(not_before),
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
            outcome,
            attempt: 1,
            fence: 1,
            created_at: UnixMs(0),
            proof_expires_at: UnixMs(proof_expires_at),
            ack_deadline: UnixMs(ack_deadline),
            completed_at: None,
            announced_at: announced.map(UnixMs),
        },
    )
}

fn id() -> RotationId {
    "01JM8VEZAMG2DK6T4S9N7TT1C8".parse().unwrap()
}

fn event() -> impl Strategy<Value = Event> {
    let standing = prop::sample::select(vec![Standing::Sound, Standing::Lost("x")]);
    let delivery = prop::sample::select(vec![
        Delivery::Delivered,
        Delivery::Open,
        Delivery::Void("y"),
    ]);
    let doubt = prop::sample::select(vec![Doubt::None, Doubt::OlderAttempt]);
    prop_oneof![
        Just(Event::Acked),
        Just(Event::Ticked),
        (standing, delivery, doubt).prop_map(|(standing, delivery, doubt)| Event::Looked {
            standing,
            delivery,
            doubt,
        }),
    ]
}

proptest! {
    #[test]
    fn invariant_nothing_leaves_done(rotation in rotation(), event in event(), now in 0..200u64) {
        if rotation.state == RotationState::Done {
            let effect = step(&rotation, event, UnixMs(now));
            let allowed = matches!(
                effect,
                None | Some(Effect::Announce | Effect::NoteLateAck | Effect::Publish)
            );
            prop_assert!(allowed, "{effect:?}");
            if effect == Some(Effect::Publish) {
                prop_assert_eq!(rotation.outcome, Some(Outcome::Promoted));
            }
        }
    }

    #[test]
    fn invariant_only_open_ciphertext_of_the_entitled_is_published(
        rotation in rotation(), event in event(), now in 0..200u64
    ) {
        if step(&rotation, event, UnixMs(now)) == Some(Effect::Publish) {
            let sound = matches!(event, Event::Looked {
                standing: Standing::Sound, delivery: Delivery::Open, doubt: _
            });
            prop_assert!(sound);
            prop_assert!(rotation.state != RotationState::Reserved);
        }
    }

    #[test]
    fn invariant_nothing_is_prepared_in_doubt_or_twice(
        rotation in rotation(), event in event(), now in 0..200u64
    ) {
        if step(&rotation, event, UnixMs(now)) == Some(Effect::Prepare) {
            let certain = matches!(event, Event::Looked {
                standing: Standing::Sound, doubt: Doubt::None, delivery: _
            });
            prop_assert!(certain);
            prop_assert_eq!(rotation.state, RotationState::Reserved);
            prop_assert!(now < rotation.proof_expires_at.0);
        }
    }

    #[test]
    fn invariant_promotion_needs_quorum_and_time(
        rotation in rotation(), event in event(), now in 0..200u64
    ) {
        if step(&rotation, event, UnixMs(now)) == Some(Effect::Promote) {
            prop_assert_eq!(rotation.state, RotationState::QuorumMet);
            prop_assert!(now >= rotation.not_before.0);
        }
    }

    #[test]
    fn invariant_a_quorum_is_never_expired(rotation in rotation(), event in event(), now in 0..200u64) {
        let effect = step(&rotation, event, UnixMs(now));
        if let Some(Effect::Cancel { outcome: Outcome::Expired, .. }) = effect {
            prop_assert_eq!(rotation.state, RotationState::Prepared);
            prop_assert!(now >= rotation.ack_deadline.0);
        }
    }

    #[test]
    fn invariant_time_alone_ends_every_rotation_that_nobody_helps(rotation in rotation()) {
        let late = UnixMs(1000);
        let effect = step(&rotation, Event::Ticked, late);
        match rotation.state {
            RotationState::Reserved | RotationState::Prepared => {
                let ends = matches!(effect, Some(Effect::Cancel { .. }));
                prop_assert!(ends);
            }
            RotationState::QuorumMet => prop_assert_eq!(effect, Some(Effect::Promote)),
            RotationState::Done => prop_assert_eq!(effect.is_none(), rotation.announced_at.is_some()),
        }
    }

    /// Carrying out what the table says, on a model of the store, always comes to rest: published, or over.
    #[test]
    fn invariant_looking_comes_to_rest(
        mut rotation in rotation(),
        mut delivery in prop::sample::select(vec![Delivery::Delivered, Delivery::Open, Delivery::Void("y")]),
        standing in prop::sample::select(vec![Standing::Sound, Standing::Lost("x")]),
        mut doubt in prop::sample::select(vec![Doubt::None, Doubt::OlderAttempt]),
    ) {
        let mut attempts = rotation.attempt;
        for _ in 0..5 {
            let event = Event::Looked { standing, delivery, doubt };
            match step(&rotation, event, UnixMs(0)) {
                None => return Ok(()),
                Some(Effect::TakeOver(_)) => {
                    attempts += 1;
                    rotation.attempt = attempts;
                    rotation.state = RotationState::Reserved;
                    doubt = Doubt::None;
                }
                Some(Effect::Prepare) => {
                    rotation.state = RotationState::Prepared;
                    delivery = Delivery::Open;
                }
                Some(Effect::Publish) => delivery = Delivery::Delivered,
                Some(Effect::Cancel { outcome, .. }) => {
                    rotation.state = RotationState::Done;
                    rotation.outcome = Some(outcome);
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
        prop_assert!(false, "still restless: {:?}", rotation.state);
    }
}

fn sealed(hash: &str, epoch: u64) -> OutboxDoc {
    OutboxDoc {
        event_id: "00".repeat(32),
        rotation_id: id(),
        attempt: 1,
        group: "ops".to_owned(),
        epoch,
        roster_hash: hash.to_owned(),
        event_json: String::new(),
        created_at: UnixMs(0),
        delete_after: None,
        withdrawn_at: None,
    }
}

fn audience(hash: &str, epoch: u64) -> Audience {
    Audience {
        client_id: "c".parse().unwrap(),
        rosters: vec![Roster {
            alias: "ops".to_owned(),
            mls_group_id: MlsGroupId::from_bytes(b"g").unwrap(),
            epoch,
            hash: hash.to_owned(),
            leaves: Vec::new(),
            readers: Vec::new(),
        }],
    }
}

fn ciphertext(sealed: usize, open: Vec<OutboxDoc>) -> Ciphertext {
    Ciphertext { sealed, open }
}

#[test]
fn ciphertext_is_void_once_its_roster_has_changed_unless_it_is_out() {
    let same = audience("a", 5);
    let judged = |sealed, open, audience| delivery(&ciphertext(sealed, open), audience);
    assert_eq!(judged(1, vec![sealed("a", 5)], Some(&same)), Delivery::Open);
    assert_eq!(
        judged(1, vec![sealed("b", 5)], Some(&same)),
        Delivery::Void("roster.changed")
    );
    assert_eq!(judged(1, Vec::new(), Some(&same)), Delivery::Delivered);
    assert_eq!(judged(1, Vec::new(), None), Delivery::Delivered);
    assert_eq!(judged(2, vec![sealed("a", 5)], Some(&same)), Delivery::Open);
    assert_eq!(
        judged(1, vec![sealed("a", 5)], None),
        Delivery::Void("group.gone")
    );
    assert_eq!(
        judged(0, Vec::new(), Some(&same)),
        Delivery::Void("outbox.empty")
    );
}

#[test]
fn ciphertext_too_far_behind_its_group_is_void() {
    let behind = |epoch| {
        let open = ciphertext(1, vec![sealed("a", epoch)]);
        delivery(&open, Some(&audience("a", 10)))
    };
    assert_eq!(behind(10 - MAX_EPOCHS_BEHIND), Delivery::Open);
    assert_eq!(
        behind(9 - MAX_EPOCHS_BEHIND),
        Delivery::Void("epoch.too_old")
    );
}
