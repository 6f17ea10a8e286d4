//! Commits that compete, arrive late, arrive reversed, or come from somebody who was removed.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::time::Duration;

use common::{Clock, Peer, SETTLE, group, payload};
use keyturn_mls::error::SealError;
use keyturn_mls::{
    CommitRefusal, Disposition, Freeze, GroupChange, Inbound, MlsGroupId, Receipt, StagedCommit,
    UnixMs,
};
use nostr::Event;

fn rename(peer: &mut Peer, group: &MlsGroupId, name: &str, clock: &Clock) -> StagedCommit {
    let change = GroupChange {
        name: Some(name.into()),
        ..Default::default()
    };
    peer.update_group(group, change, clock.0).unwrap()
}

fn name(peer: &Peer, group: &MlsGroupId) -> String {
    peer.group_info(group).unwrap().unwrap().data.name
}

/// The commit that Marmot's order puts first, and the other.
fn in_order(a: StagedCommit, b: StagedCommit) -> (Event, Event) {
    let key = |event: &Event| (event.created_at, *event.id.as_bytes());
    if key(&a.event) < key(&b.event) {
        (a.event, b.event)
    } else {
        (b.event, a.event)
    }
}

#[test]
fn of_two_commits_the_first_in_order_counts_whatever_the_order_of_arrival() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(4, 2, &mut clock);
    let a = rename(&mut peers[0], &group, "a", &clock);
    let b = rename(&mut peers[1], &group, "b", &clock);
    let (first, second) = in_order(a.clone(), b.clone());
    let expected = if first.id == a.event.id { "a" } else { "b" };

    // Both makers had theirs accepted by a relay of their own.
    peers[0].commit_published(a.event.id, clock.0).unwrap();
    peers[1].commit_published(b.event.id, clock.0).unwrap();
    peers[0].take(&b.event, &clock);
    peers[1].take(&a.event, &clock);
    // The others see them in either order.
    peers[2].follow(&first, &clock);
    let (late, _) = peers[2].take(&second, &clock);
    assert!(matches!(
        &late[..],
        [Inbound::CommitRefused {
            reason: CommitRefusal::Lost,
            peers_may_follow: false,
            ..
        }]
    ));
    peers[3].follow(&second, &clock);
    let applied = peers[3].follow(&first, &clock);
    assert_eq!(applied.undone, Some(second.id));

    for peer in &peers {
        assert_eq!(name(peer, &group), expected);
    }
    clock.settle();
    let event = peers[2].say(&group, "{\"one\":\"branch\"}", &clock);
    for i in [0, 1, 3] {
        assert_eq!(
            peers[i].take(&event, &clock).1,
            ["{\"one\":\"branch\"}"],
            "peer {i}"
        );
    }
}

#[test]
fn the_maker_of_a_lost_commit_learns_it_and_can_commit_again() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(3, 2, &mut clock);
    let a = rename(&mut peers[0], &group, "a", &clock);
    let b = rename(&mut peers[1], &group, "b", &clock);
    let (first, second) = in_order(a, b);
    let winner = usize::from(peers[1].pending_commits().unwrap()[0].event.id == first.id);
    let loser = 1 - winner;
    peers[winner].commit_published(first.id, clock.0).unwrap();
    let applied = peers[loser].follow(&first, &clock);
    assert_eq!(applied.own_lost, Some(second.id));
    assert!(peers[loser].pending_commits().unwrap().is_empty());
    clock.settle();
    let again = rename(&mut peers[loser], &group, "again", &clock);
    peers[2].follow(&first, &clock);
    peers[loser]
        .commit_published(again.event.id, clock.0)
        .unwrap();
    peers[winner].follow(&again.event, &clock);
    peers[2].follow(&again.event, &clock);
    for peer in &peers {
        assert_eq!(name(peer, &group), "again");
    }
}

#[test]
fn an_overtaken_own_commit_still_wins_when_it_turns_out_to_be_published() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(3, 2, &mut clock);
    let a = rename(&mut peers[0], &group, "a", &clock);
    let b = rename(&mut peers[1], &group, "b", &clock);
    let (first, second) = in_order(a, b);
    let maker = usize::from(peers[1].pending_commits().unwrap()[0].event.id == first.id);
    // The maker of the better one was told nothing yet, follows the other, then sees his own come back.
    peers[maker].follow(&second, &clock);
    peers[maker].reopen();
    let applied = peers[maker].follow(&first, &clock);
    assert!(applied.own);
    assert_eq!(applied.undone, Some(second.id));
    peers[2].follow(&first, &clock);
    clock.settle();
    let event = peers[maker].say(&group, "{}", &clock);
    assert_eq!(peers[2].take(&event, &clock).1.len(), 1);
}

#[test]
fn a_settled_epoch_never_rolls_back() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(3, 2, &mut clock);
    let a = rename(&mut peers[0], &group, "a", &clock);
    let b = rename(&mut peers[1], &group, "b", &clock);
    let (first, second) = in_order(a, b);
    peers[2].follow(&second, &clock);
    let before = peers[2].group_info(&group).unwrap().unwrap().epoch;
    clock.settle();
    peers[2].settle(clock.0).unwrap();
    let (late, _) = peers[2].take(&first, &clock);
    assert!(matches!(
        &late[..],
        [Inbound::CommitRefused {
            reason: CommitRefusal::Settled,
            peers_may_follow: true,
            ..
        }]
    ));
    assert_eq!(peers[2].group_info(&group).unwrap().unwrap().epoch, before);
}

#[test]
fn a_rival_that_arrived_in_time_and_was_taken_in_late_still_counts() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(3, 2, &mut clock);
    let a = rename(&mut peers[0], &group, "a", &clock);
    let b = rename(&mut peers[1], &group, "b", &clock);
    let (first, second) = in_order(a, b);
    peers[2].follow(&second, &clock);

    // It arrives just in time, and waits until the relay has stored it.
    let settles_at = peers[2].settles_at(&group).unwrap().unwrap();
    let arrival = peers[2].backlog.arrived(|| UnixMs(settles_at.0 - 1));
    clock.settle();
    clock.settle();
    // Meanwhile everything goes on that looks at the clock.
    peers[2].settle(clock.0).unwrap();
    assert!(matches!(
        peers[2].can_seal(&group, clock.0),
        Err(SealError::Unsettled { .. })
    ));
    let seal = peers[2].seal(&group, payload("too early"), clock.0);
    assert!(matches!(seal, Err(SealError::Unsettled { .. })));

    let taken = peers[2]
        .receive(&first, Receipt::live(arrival.at()), &mut |_| {
            Disposition::Consume
        })
        .unwrap();
    assert!(
        matches!(&taken[..], [Inbound::Commit(commit)] if commit.undone == Some(second.id)),
        "{taken:?}"
    );
    drop(arrival);
    peers[2].settle(clock.0).unwrap();
    assert_eq!(peers[2].settles_at(&group).unwrap(), None);
}

#[test]
fn invariant_a_removed_admin_cannot_come_back_by_a_backdated_commit() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(4, 2, &mut clock);
    // The second admin, about to be removed, keeps a rival for the same epoch that is dated earlier.
    let rival = rename(&mut peers[1], &group, "mine", &clock);
    clock.pass(Duration::from_secs(3));
    let evil = peers[1].npub();
    let removal = peers[0].remove(&group, &[evil], clock.0).unwrap();
    assert!(rival.event.created_at < removal.event.created_at);
    peers[0]
        .commit_published(removal.event.id, clock.0)
        .unwrap();
    let applied = peers[2].follow(&removal.event, &clock);
    assert_eq!(applied.settles_at, None);
    assert!(!applied.facts.data.unwrap().admins.contains(&evil));

    // Well within the ten seconds, and before the removal in Marmot's order.
    let (late, _) = peers[2].take(&rival.event, &clock);
    assert!(matches!(
        &late[..],
        [Inbound::CommitRefused {
            reason: CommitRefusal::Settled,
            peers_may_follow: true,
            ..
        }]
    ));
    let inside = peers[2].members(&group).unwrap();
    assert!(inside.iter().all(|leaf| leaf.npub != evil));
    let sealed = peers[2].say(&group, "{\"secret\":1}", &clock);
    let (opened, bodies) = peers[1].take(&sealed, &clock);
    assert!(bodies.is_empty(), "{opened:?}");

    // If peers do follow him, the group freezes; a peer on our branch thaws it.
    peers[1].commit_published(rival.event.id, clock.0).unwrap();
    peers[3].follow(&rival.event, &clock);
    clock.settle();
    let elsewhere = peers[3].say(&group, "{}", &clock);
    let (alarm, _) = peers[2].take(&elsewhere, &clock);
    assert!(
        matches!(&alarm[..], [Inbound::Kept { .. }, Inbound::Frozen { .. }]),
        "{alarm:?}"
    );
    assert_eq!(
        peers[2].group_info(&group).unwrap().unwrap().frozen,
        Some(Freeze::Forked)
    );
    assert!(matches!(
        peers[2].seal(&group, payload("{}"), clock.0),
        Err(SealError::Forked)
    ));
    peers[2].reopen();
    let ours = peers[0].say(&group, "{\"still\":\"here\"}", &clock);
    let (thaw, _) = peers[2].take(&ours, &clock);
    assert!(
        matches!(&thaw[..], [Inbound::Message { .. }, Inbound::Thawed { .. }]),
        "{thaw:?}"
    );
    peers[2].say(&group, "{}", &clock);
}

#[test]
fn a_commit_dated_too_far_from_its_receipt_is_refused() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(3, 1, &mut clock);
    let staged = rename(&mut peers[0], &group, "late", &clock);
    clock.pass(SETTLE + Duration::from_secs(2));
    let (late, _) = peers[1].take(&staged.event, &clock);
    assert!(matches!(
        &late[..],
        [Inbound::CommitRefused {
            reason: CommitRefusal::NotFresh,
            peers_may_follow: true,
            ..
        }]
    ));
    // The maker can wrap the very same commit again.
    let renewed = peers[0].renew_pending(staged.event.id, clock.0).unwrap();
    peers[0]
        .commit_published(renewed.event.id, clock.0)
        .unwrap();
    peers[1].follow(&renewed.event, &clock);
    // Somebody who was away reads it back from the relay and follows.
    clock.pass(Duration::from_secs(3600));
    let followed = peers[2]
        .receive(
            &renewed.event,
            keyturn_mls::Receipt::stored(clock.0),
            &mut |_| keyturn_mls::Disposition::Consume,
        )
        .unwrap();
    assert!(
        matches!(&followed[..], [Inbound::Commit(_)]),
        "{followed:?}"
    );
    assert!(peers[2].can_seal(&group, clock.0).is_ok());
}

#[test]
fn events_in_reverse_order_are_all_opened() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(3, 2, &mut clock);
    let mut events = Vec::new();
    for i in 0..4 {
        let staged = rename(&mut peers[i % 2], &group, &format!("n{i}"), &clock);
        common::publish(&mut peers[..2], i % 2, &staged, &clock);
        events.push(staged.event);
        clock.settle();
        for peer in &mut peers[..2] {
            peer.settle(clock.0).unwrap();
        }
        events.push(peers[i % 2].say(&group, &format!("{{\"n\":{i}}}"), &clock));
    }
    let mut bodies = Vec::new();
    let mut last = Vec::new();
    for event in events.iter().rev() {
        last = peers[2]
            .receive(
                event,
                keyturn_mls::Receipt::stored(clock.0),
                &mut |message| {
                    bodies.push(String::from_utf8(message.body.to_vec()).unwrap());
                    keyturn_mls::Disposition::Consume
                },
            )
            .unwrap();
    }
    bodies.sort();
    assert_eq!(bodies, ["{\"n\":0}", "{\"n\":1}", "{\"n\":2}", "{\"n\":3}"]);
    assert_eq!(
        last.len(),
        8,
        "the first commit opens the way for all: {last:?}"
    );
    assert_eq!(name(&peers[2], &group), "n3");
}

#[test]
fn a_commit_before_its_self_remove_proposal_is_kept() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(4, 1, &mut clock);
    let leave = peers[3].leave(&group, clock.0).unwrap();
    peers[0].take(&leave, &clock);
    let staged = peers[0].commit_leavers(&group, clock.0).unwrap();
    peers[0].commit_published(staged.event.id, clock.0).unwrap();
    let (kept, _) = peers[1].take(&staged.event, &clock);
    assert!(matches!(&kept[..], [Inbound::Kept { .. }]), "{kept:?}");
    peers[1].reopen();
    let (both, _) = peers[1].take(&leave, &clock);
    assert!(
        matches!(&both[..], [Inbound::SelfRemove { .. }, Inbound::Commit(_)]),
        "{both:?}"
    );
    assert_eq!(peers[1].members(&group).unwrap().len(), 3);
}

#[test]
fn a_changed_address_freezes_the_group_until_approved() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(2, 1, &mut clock);
    let before = peers[1].group_info(&group).unwrap().unwrap().nostr_group_id;
    let after = keyturn_mls::NostrGroupId::new([7; 32]);
    let change = GroupChange {
        nostr_group_id: Some(after),
        ..Default::default()
    };
    let staged = peers[0].update_group(&group, change, clock.0).unwrap();
    peers[0].commit_published(staged.event.id, clock.0).unwrap();
    let applied = peers[1].follow(&staged.event, &clock);
    assert_eq!(applied.address_changed(), Some((before, after)));
    clock.settle();
    assert!(matches!(
        peers[1].seal(&group, payload("{}"), clock.0),
        Err(SealError::AddressChanged)
    ));
    // The maker of the change goes on, under the new address, and is still understood.
    let event = peers[0].say(&group, "{\"moved\":1}", &clock);
    assert_eq!(
        event.tags.find(nostr::TagKind::h()).unwrap().content(),
        Some(after.to_hex().as_str())
    );
    assert_eq!(peers[1].take(&event, &clock).1.len(), 1);
    peers[1].approve(&group).unwrap();
    let event = peers[1].say(&group, "{}", &clock);
    assert_eq!(peers[0].take(&event, &clock).1.len(), 1);
}

#[test]
fn what_peers_sent_while_our_commit_waited_is_opened_once_it_is_merged() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(2, 2, &mut clock);
    let staged = peers[0].self_update(&group, clock.0).unwrap();
    peers[1].follow(&staged.event, &clock);
    clock.settle();
    let early = peers[1].say(&group, "{\"early\":1}", &clock);
    let (kept, _) = peers[0].take(&early, &clock);
    assert!(matches!(&kept[..], [Inbound::Kept { .. }]), "{kept:?}");
    peers[0].commit_published(staged.event.id, clock.0).unwrap();
    let mut bodies = Vec::new();
    let mut decide = |message: &keyturn_mls::AppMessage| {
        bodies.push(message.body.to_vec());
        keyturn_mls::Disposition::Consume
    };
    peers[0].receive_kept(&mut decide).unwrap();
    peers[0].receive_kept(&mut decide).unwrap();
    assert_eq!(bodies, [b"{\"early\":1}".to_vec()]);
}

#[test]
fn publishing_a_commit_that_was_overtaken_says_so() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(2, 2, &mut clock);
    let a = rename(&mut peers[0], &group, "a", &clock);
    let b = rename(&mut peers[1], &group, "b", &clock);
    let (first, second) = in_order(a, b);
    let winner = usize::from(peers[1].pending_commits().unwrap()[0].event.id == first.id);
    let loser = 1 - winner;
    // The loser hears of the better one before he hears that his own was accepted.
    peers[loser].follow(&first, &clock);
    let told = peers[loser].commit_published(second.id, clock.0);
    assert!(
        matches!(told, Err(keyturn_mls::error::CommitError::Overtaken(id)) if id == second.id),
        "{told:?}"
    );
    // The winner hears of the worse one first, then that his own was accepted.
    peers[winner].follow(&second, &clock);
    peers[winner].commit_published(first.id, clock.0).unwrap();
    assert_eq!(name(&peers[0], &group), name(&peers[1], &group));
    clock.settle();
    let event = peers[winner].say(&group, "{}", &clock);
    assert_eq!(peers[loser].take(&event, &clock).1.len(), 1);
}

#[test]
fn noise_kept_before_a_refused_commit_freezes_nothing_when_tried_again() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(3, 2, &mut clock);
    // Somebody's noise under our address.
    let address = peers[0].group_info(&group).unwrap().unwrap().nostr_group_id;
    let noise = nostr::EventBuilder::new(nostr::Kind::MlsGroupMessage, "A".repeat(80))
        .tag(nostr::Tag::custom(nostr::TagKind::h(), [address.to_hex()]))
        .sign_with_keys(&nostr::Keys::generate())
        .unwrap();
    peers[2].take(&noise, &clock);
    // An honest commit that was slow, then one in time.
    let slow = rename(&mut peers[0], &group, "slow", &clock);
    clock.pass(SETTLE + Duration::from_secs(2));
    peers[2].take(&slow.event, &clock);
    peers[0].commit_rejected(slow.event.id).unwrap();
    let staged = rename(&mut peers[0], &group, "in time", &clock);
    peers[0].commit_published(staged.event.id, clock.0).unwrap();
    let (got, _) = peers[2].take(&staged.event, &clock);
    assert!(matches!(&got[..], [Inbound::Commit(_)]), "{got:?}");
    assert_eq!(peers[2].group_info(&group).unwrap().unwrap().frozen, None);
}

/// A small generator, so that a failing case can be run again by its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

#[test]
fn invariant_whatever_the_order_of_delivery_all_members_end_on_one_branch() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(4, 3, &mut clock);
    for seed in 1..=15_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // Everybody commits at once: three admins rename, one member renews his leaf.
        let mut staged = Vec::new();
        for (i, peer) in peers.iter_mut().enumerate() {
            if dice.below(3) > 0 || i == 0 {
                let commit = if i < 3 {
                    rename(peer, &group, &format!("{seed}-{i}"), &clock)
                } else {
                    peer.self_update(&group, clock.0).unwrap()
                };
                staged.push((i, commit.event));
                clock.pass(Duration::from_millis(400));
            }
        }
        // Each member hears of all of them, his own among them, in an order of his own; restarts included.
        for peer in &mut peers {
            let mut order: Vec<_> = staged.iter().map(|(_, event)| event).collect();
            for i in (1..order.len()).rev() {
                order.swap(i, dice.below(i + 1));
            }
            for event in order {
                peer.take(event, &clock);
                if dice.below(4) == 0 {
                    peer.reopen();
                }
            }
        }
        clock.settle();
        let infos: Vec<_> = peers
            .iter_mut()
            .map(|peer| {
                peer.settle(clock.0).unwrap();
                peer.group_info(&group).unwrap().unwrap()
            })
            .collect();
        for info in &infos {
            assert_eq!(
                (info.epoch, &info.data),
                (infos[0].epoch, &infos[0].data),
                "seed {seed}"
            );
        }
        // The branch is one in secrets as well, and nothing is left over.
        for i in 0..peers.len() {
            assert!(
                peers[i].pending_commits().unwrap().is_empty(),
                "seed {seed}"
            );
            let event = peers[i].say(&group, "{}", &clock);
            for j in (0..peers.len()).filter(|j| *j != i) {
                assert_eq!(
                    peers[j].take(&event, &clock).1.len(),
                    1,
                    "seed {seed}, {i} to {j}"
                );
            }
        }
    }
}
