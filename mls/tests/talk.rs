//! Members join by gift wrap, renew their leaves and talk.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{Clock, Peer, group, joined, payload};
use keyturn_mls::error::SealError;
use keyturn_mls::{Decision, Inbound, WelcomeOutcome};

#[test]
fn two_members_talk_both_ways_after_the_joiner_renewed_his_leaf() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(2, 1, &mut clock);
    let from_maker = peers[0].say(&group, "{\"a\":1}", &clock);
    let (inbounds, bodies) = peers[1].take(&from_maker, &clock);
    assert!(
        matches!(&inbounds[..], [Inbound::Message { sender, epoch: 2, inbox: None, .. }]
            if *sender == peers[0].npub()),
        "{inbounds:?}"
    );
    assert_eq!(bodies, ["{\"a\":1}"]);
    let answer = peers[1].say(&group, "{\"b\":2}", &clock);
    assert_eq!(peers[0].take(&answer, &clock).1, ["{\"b\":2}"]);
    assert_eq!(
        peers[0].roster_hash(&group).unwrap().unwrap(),
        peers[1].roster_hash(&group).unwrap().unwrap()
    );
}

#[test]
fn nothing_is_sealed_before_the_self_update_is_accepted_and_settled() {
    let mut clock = Clock::start();
    let (mut peers, group) = joined(2, 1, &mut clock);
    assert!(peers[1].needs_self_update(&group).unwrap());
    let refused = |peer: &mut Peer, clock: &Clock| {
        peer.seal(&group, payload("{}"), clock.0)
            .map(|_| ())
            .unwrap_err()
    };
    assert!(matches!(
        refused(&mut peers[1], &clock),
        SealError::NeedsSelfUpdate
    ));
    let staged = peers[1].self_update(&group, clock.0).unwrap();
    assert!(
        matches!(refused(&mut peers[1], &clock), SealError::PendingCommit(id) if id == staged.event.id)
    );
    peers[1].commit_published(staged.event.id, clock.0).unwrap();
    assert!(peers[1].needs_self_update(&group).unwrap());
    let settles_at = clock.0.plus(common::SETTLE);
    assert!(
        matches!(refused(&mut peers[1], &clock), SealError::Unsettled { settles_at: at } if at == settles_at)
    );
    assert_eq!(peers[1].next_settle().unwrap(), Some(settles_at));
    clock.settle();
    assert!(peers[1].can_seal(&group, clock.0).is_ok());
    assert!(!peers[1].needs_self_update(&group).unwrap());
}

#[test]
fn own_messages_and_repeats_are_duplicates() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(2, 1, &mut clock);
    let event = peers[0].say(&group, "{}", &clock);
    assert!(matches!(
        &peers[0].take(&event, &clock).0[..],
        [Inbound::Duplicate { .. }]
    ));
    assert!(matches!(
        &peers[1].take(&event, &clock).0[..],
        [Inbound::Message { .. }]
    ));
    assert!(matches!(
        &peers[1].take(&event, &clock).0[..],
        [Inbound::Duplicate { .. }]
    ));
    peers[1].reopen();
    assert!(matches!(
        &peers[1].take(&event, &clock).0[..],
        [Inbound::Duplicate { .. }]
    ));
}

#[test]
fn a_welcome_twice_and_a_welcome_for_a_served_group_change_nothing() {
    let mut clock = Clock::start();
    let (mut peers, group) = joined(2, 1, &mut clock);
    let mut third = Peer::new();
    let package = third.key_package(clock.0);
    let staged = peers[0].invite(&group, &[package], clock.0).unwrap();
    let welcomes = peers[0].commit_published(staged.event.id, clock.0).unwrap();
    assert_eq!(welcomes.len(), 1);
    peers[1].follow(&staged.event, &clock);
    let gift_wrap = &welcomes[0].event;

    let refused = third
        .open_welcome(gift_wrap, |_| Decision::Refuse, clock.0)
        .unwrap();
    assert!(
        matches!(refused, WelcomeOutcome::Refused { welcomer, .. } if welcomer == peers[0].npub())
    );
    let joined = third.join(gift_wrap, clock.0);
    assert_eq!(joined.welcomer, peers[0].npub());
    assert_eq!(
        joined.delete_events.len(),
        3,
        "the gift wrap and both key package events"
    );
    let again = third
        .open_welcome(gift_wrap, |_| panic!("must not be asked again"), clock.0)
        .unwrap();
    assert!(
        matches!(again, WelcomeOutcome::Duplicate(before) if before.delete_events == joined.delete_events)
    );

    // The third is removed and invited again: a Welcome for a group he has.
    let removed = peers[0].remove(&group, &[third.npub()], clock.0).unwrap();
    peers[0]
        .commit_published(removed.event.id, clock.0)
        .unwrap();
    let package = third.key_package(clock.0);
    let staged = peers[0].invite(&group, &[package], clock.0).unwrap();
    let welcomes = peers[0].commit_published(staged.event.id, clock.0).unwrap();
    let before = third.group_info(&group).unwrap().unwrap();
    let served = third.open_welcome(
        &welcomes[0].event,
        |invitation| {
            assert!(invitation.served);
            Decision::Join
        },
        clock.0,
    );
    assert!(matches!(
        served.unwrap(),
        WelcomeOutcome::AlreadyServed { .. }
    ));
    assert_eq!(
        third.group_info(&group).unwrap().unwrap().epoch,
        before.epoch
    );
    let replaced = third
        .open_welcome(&welcomes[0].event, |_| Decision::Replace, clock.0)
        .unwrap();
    assert!(matches!(replaced, WelcomeOutcome::Joined(_)));
    assert_eq!(
        third.roster_hash(&group).unwrap(),
        peers[0].roster_hash(&group).unwrap()
    );
}

#[test]
fn a_key_package_is_used_up_by_joining() {
    let clock = Clock::start();
    let mut maker = Peer::new();
    let mut joiner = Peer::new();
    let package = joiner.key_package(clock.0);
    let spec = keyturn_mls::GroupSpec::default();
    let first = maker
        .create_group(spec.clone(), std::slice::from_ref(&package), clock.0)
        .unwrap();
    let second = maker.create_group(spec, &[package], clock.0).unwrap();
    joiner.join(&first.welcomes[0].event, clock.0);
    let error = joiner
        .open_welcome(&second.welcomes[0].event, |_| Decision::Join, clock.0)
        .unwrap_err();
    assert!(
        matches!(error, keyturn_mls::error::WelcomeError::Mls(_)),
        "{error:?}"
    );
}

#[test]
fn three_members_with_removal_rename_and_leave() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(3, 2, &mut clock);
    let staged = peers[1]
        .update_group(
            &group,
            keyturn_mls::GroupChange {
                name: Some("renamed".into()),
                ..Default::default()
            },
            clock.0,
        )
        .unwrap();
    common::publish(&mut peers, 1, &staged, &clock);
    for peer in &peers {
        assert_eq!(
            peer.group_info(&group).unwrap().unwrap().data.name,
            "renamed"
        );
    }
    clock.settle();

    // The third asks to leave; an admin keeps talking meanwhile, then lets him go.
    let leave = peers[2].leave(&group, clock.0).unwrap();
    let (asked, _) = peers[0].take(&leave, &clock);
    assert!(
        matches!(&asked[..], [Inbound::SelfRemove { leaf, .. }] if leaf.npub == peers[2].npub())
    );
    peers[1].take(&leave, &clock);
    let meanwhile = peers[0].say(&group, "{\"n\":1}", &clock);
    assert_eq!(peers[1].take(&meanwhile, &clock).1, ["{\"n\":1}"]);
    peers[0].reopen();
    let meanwhile = peers[0].say(&group, "{\"n\":2}", &clock);
    assert_eq!(peers[1].take(&meanwhile, &clock).1, ["{\"n\":2}"]);
    let staged = peers[0].commit_leavers(&group, clock.0).unwrap();
    peers[0].commit_published(staged.event.id, clock.0).unwrap();
    let applied = peers[1].follow(&staged.event, &clock);
    assert_eq!(applied.facts.removed.len(), 1);
    assert_eq!(applied.settles_at, None, "a removal settles at once");
    let gone = peers[2].follow(&staged.event, &clock);
    assert!(gone.evicted);
    assert!(matches!(
        peers[2].seal(&group, payload("{}"), clock.0),
        Err(SealError::Evicted(_))
    ));
    assert_eq!(peers[0].members(&group).unwrap().len(), 2);

    // Sealing goes on at once, and the leaver cannot read it.
    let after = peers[0].say(&group, "{\"n\":3}", &clock);
    assert_eq!(peers[1].take(&after, &clock).1, ["{\"n\":3}"]);
    assert!(matches!(
        &peers[2].take(&after, &clock).0[..],
        [Inbound::Invalid { .. }]
    ));
}

#[test]
fn a_plain_member_may_only_renew_his_leaf() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(3, 1, &mut clock);
    let target = peers[1].npub();
    assert!(matches!(
        peers[2].remove(&group, &[target], clock.0),
        Err(keyturn_mls::error::CommitError::NotAdmin)
    ));
    let maker = peers[0].npub();
    assert!(matches!(
        peers[0].remove(&group, &[maker], clock.0),
        Err(keyturn_mls::error::CommitError::OwnLeaf)
    ));
    let staged = peers[2].self_update(&group, clock.0).unwrap();
    common::publish(&mut peers, 2, &staged, &clock);
}

#[test]
fn a_member_can_move_between_threads() {
    fn send<T: Send>() {}
    send::<keyturn_mls::Member>();
    send::<keyturn_mls::AppMessage>();
    send::<keyturn_mls::Payload>();
}
