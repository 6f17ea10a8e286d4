//! A device asks: nonces, limits, deadlines.

use super::*;
use crate::devices::documents::{EARLIER, NONCES, PENDING, PENDING_ELSEWHERE, YOUNG_NONCES};

#[test]
fn a_nonce_counts_once() {
    let mut w = World::new();
    w.issue(1, "a");
    assert_eq!(
        w.ask(1),
        Answer::Repeat,
        "a second delivery of the request under way"
    );
    w.proven(1, "a");
    assert_eq!(w.ask(1), Answer::NonceUsed);
    w.later(HOUR * 24);
    assert_eq!(w.ask(1), Answer::NonceUsed);
    assert_eq!(w.doc().nonces.len(), 1);
}

#[test]
fn no_more_than_so_much_is_made_for_it_in_any_hour() {
    let mut w = World::new();
    for n in 0..LIMITS.per_hour {
        w.issue(n, &format!("acc-{n}"));
        w.later(MINUTE);
    }
    assert_eq!(w.ask(100), Answer::TooMany(START.plus(HOUR)));
    w.now = START.plus(HOUR);
    w.issue(100, "acc-100");
    assert_eq!(w.ask(101), Answer::TooMany(START.plus(HOUR + MINUTE)));
}

/// What came too late counts as well: it was made.
#[test]
fn what_was_overtaken_counts_for_the_hour() {
    let mut w = World::new();
    for n in 0..LIMITS.per_hour {
        w.ask(n);
        let old = w.attempt();
        w.expire(true);
        w.issued_as(old, &format!("acc-{n}"), n);
        w.change(Change::Destroyed {
            accessor: format!("acc-{n}"),
            now_gone: true,
        });
    }
    assert_eq!(w.ask(100), Answer::TooMany(START.plus(HOUR)));
}

/// Its requests are worked on faster than anything is made.
#[test]
fn who_does_not_wait_for_its_answer_spends_its_hour() {
    for begun in [false, true] {
        let mut w = World::new();
        for n in 0..LIMITS.per_hour {
            let asked = if begun { w.ask(n) } else { w.waits(n) };
            assert!(matches!(asked, Answer::Done(_)), "{n}");
        }
        // The newest is under way, and so are those that were begun.
        let until = if begun { LIMITS.step } else { HOUR };
        assert_eq!(w.ask(100), Answer::TooMany(START.plus(until)));
    }
}

/// The firmware does as it is told: it asks every ten seconds for an hour, and pays nothing for that.
#[test]
fn what_the_issuer_never_made_counts_for_nothing() {
    let mut w = World::new();
    for n in 0..360 {
        assert!(matches!(w.ask(n), Answer::Done(_)), "{n}");
        w.failed("sealed", false);
        w.later(Duration::from_secs(10));
        assert!(w.doc().nonces.len() <= NONCES);
    }
    w.issue(1000, "a");
}

#[test]
fn a_nonce_whose_signature_may_still_be_good_is_not_forgotten() {
    let mut w = World::new();
    let mut asked = 0;
    // As fast as it can: at some point it has to wait.
    let until = loop {
        match w.ask(asked) {
            Answer::Done(_) => asked += 1,
            Answer::TooMany(until) => break until,
            other => panic!("{other:?}"),
        }
        w.failed("sealed", false);
        w.later(Duration::from_secs(1));
    };
    assert_eq!(asked as usize, YOUNG_NONCES);
    assert_eq!(until, START.plus(LIMITS.replay));
    for n in 0..asked {
        assert_eq!(w.ask(n), Answer::NonceUsed, "{n} could be played again");
    }
    w.now = until;
    assert!(matches!(w.ask(asked), Answer::Done(_)));
    assert!(w.doc().nonces.len() <= YOUNG_NONCES);
    w.failed("sealed", false);
    // The document does not stay that large.
    w.later(LIMITS.replay).ask(asked + 1);
    assert_eq!(w.doc().nonces.len(), NONCES);
}

/// Nothing that lives is forgotten to make room: it waits until something has died.
#[test]
fn who_never_proves_anything_gets_no_more_than_is_kept_in_mind() {
    let mut w = World::new();
    let minutes = MINUTE * 6;
    let made = u32::try_from(EARLIER).unwrap() + 1;
    for n in 0..made {
        w.issue(n, &format!("acc-{n}"));
        w.result(n, true, None);
        w.later(minutes);
    }
    assert_eq!(w.doc().earlier.len(), EARLIER);
    let first_ends = START.plus(LIMITS.ttl);
    assert_eq!(w.ask(100), Answer::TooMany(first_ends));
    w.change(Change::Deny);
    assert_eq!(w.doomed().len(), EARLIER + 1, "one was forgotten");

    w.allow("river-iot", DeviceOptions::default());
    for accessor in w
        .doomed()
        .into_iter()
        .map(str::to_owned)
        .collect::<Vec<_>>()
    {
        w.change(Change::Destroyed {
            accessor,
            now_gone: true,
        });
    }
    w.now = first_ends;
    assert!(matches!(w.ask(100), Answer::Done(_)));
}

/// Whoever moves to another issuer leaves behind what nobody can destroy any more: it waits for its end, for as long as thirty days.
#[test]
fn what_another_issuer_made_keeps_no_device_from_asking_this_one() {
    let mut w = World::new();
    let mut asked = 0;
    let mut lose = |w: &mut World, issuer: &str| {
        asked += 1;
        let answer = w.waits_for(issuer, asked, LIMITS);
        if matches!(answer, Answer::Done(_)) {
            w.start(w.attempt());
            w.failed("timeout", true);
        }
        // None of its nonces is young.
        w.later(MINUTE);
        answer
    };
    for _ in 0..PENDING {
        assert!(matches!(lose(&mut w, "vault:one"), Answer::Done(_)));
    }
    assert!(matches!(lose(&mut w, "vault:one"), Answer::TooMany(_)));
    let issuers = ["vault:two", "vault:three", "vault:four"];
    for issuer in issuers {
        for _ in 0..PENDING {
            assert!(matches!(lose(&mut w, issuer), Answer::Done(_)));
        }
    }
    assert_eq!(w.doc().unresolved.len(), PENDING_ELSEWHERE);
    assert!(matches!(lose(&mut w, "embedded"), Answer::TooMany(_)));
}

/// However long a request waits for its turn: the issuer is called only while nobody may have given the request up.
#[test]
fn a_request_is_begun_before_its_deadline_or_not_at_all() {
    let mut w = World::new();
    w.waits(1);
    let stage = |w: &World| w.doc().outstanding.as_ref().unwrap().stage;
    assert_eq!(stage(&w), Stage::Asked, "the issuer was not called");
    let attempt = w.attempt();
    w.now = w.doc().due_at.unwrap();
    assert_eq!(w.start(attempt), Answer::Stale, "its time is over");
    assert_eq!(stage(&w), Stage::Asked);
    w.now = UnixMs(w.now.0 - 1);
    assert!(matches!(w.start(attempt), Answer::Done(_)));
    assert_eq!(stage(&w), Stage::Issuing);
    let begun = w.doc().clone();
    // The repeat of a write of unknown outcome gives the caller no more time.
    w.later(MINUTE / 2);
    assert_eq!(w.start(attempt), Answer::Done(Box::new(begun)));
    w.later(MINUTE / 2);
    assert_eq!(w.start(attempt), Answer::Stale);
}

#[test]
fn a_request_that_never_reached_the_issuer_leaves_nothing_to_look_for() {
    let mut w = World::new();
    w.waits(1);
    let attempt = w.attempt();
    assert_eq!(w.expire(true), Answer::Interrupted(nonce(1)));
    assert!(w.doc().unresolved.is_empty());
    assert_eq!(w.start(attempt), Answer::Stale, "taken away meanwhile");
}

#[test]
fn a_message_verified_under_another_key_is_not_taken() {
    let mut w = World::new();
    let key: IdentityKey = "A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"
        .parse()
        .unwrap();
    w.change(Change::Allow {
        role: "river-iot".into(),
        options: DeviceOptions {
            identity_key: Some(key),
            ..DeviceOptions::default()
        },
    });
    assert_eq!(w.ask(1), Answer::KeyChanged);
    assert_eq!(w.result(1, true, None), Answer::KeyChanged);
}
