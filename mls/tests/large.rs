//! A hundred members.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::time::Instant;

use common::{Clock, joined};

#[test]
fn a_hundred_members_join_by_gift_wrap_and_read_what_the_service_seals() {
    let mut clock = Clock::start();
    let start = Instant::now();
    let (mut peers, group) = joined(100, 2, &mut clock);
    eprintln!("joined: {:?}", start.elapsed());
    let service = 99;
    let staged = peers[service].self_update(&group, clock.0).unwrap();
    let start = Instant::now();
    common::publish(&mut peers, service, &staged, &clock);
    eprintln!("100 follow: {:?}", start.elapsed());
    clock.settle();
    for round in 0..5 {
        let start = Instant::now();
        let event = peers[service].say(&group, "{\"secret\":1}", &clock);
        eprintln!("seal {round}: {:?}", start.elapsed());
        let start = Instant::now();
        for peer in &mut peers[..service] {
            assert_eq!(peer.take(&event, &clock).1, ["{\"secret\":1}"]);
        }
        eprintln!("99 open: {:?}", start.elapsed());
    }
    let hash = peers[0].roster_hash(&group).unwrap();
    assert!(
        peers
            .iter()
            .all(|peer| peer.roster_hash(&group).unwrap() == hash)
    );
}
