//! A hundred members.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{Clock, joined};

#[test]
fn a_hundred_members_join_by_gift_wrap_and_read_what_the_service_seals() {
    let mut clock = Clock::start();
    let (mut peers, group) = joined(100, 2, &mut clock);
    let service = 99;
    let staged = peers[service].self_update(&group, clock.0).unwrap();
    common::publish(&mut peers, service, &staged, &clock);
    clock.settle();
    for _ in 0..3 {
        let event = peers[service].say(&group, "{\"secret\":1}", &clock);
        for peer in &mut peers[..service] {
            assert_eq!(peer.take(&event, &clock).1, ["{\"secret\":1}"]);
        }
    }
    let hash = peers[0].roster_hash(&group).unwrap();
    assert!(
        peers
            .iter()
            .all(|peer| peer.roster_hash(&group).unwrap() == hash)
    );
}
