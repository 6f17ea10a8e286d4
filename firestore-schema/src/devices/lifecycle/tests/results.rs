//! What a device's word for its new `secret_id` does to the ones before.

use super::*;

#[test]
fn a_proven_ok_replaces_and_dooms_the_one_before() {
    let mut w = World::new();
    w.issue(1, "a");
    assert!(matches!(
        w.proven(1, "a"),
        Answer::Confirmed { proven: true, .. }
    ));
    w.later(HOUR).issue(2, "b");
    assert_eq!(
        w.current(),
        Some("a"),
        "the old one stays until the device confirms"
    );
    assert!(w.doomed().is_empty());
    w.proven(2, "b");
    assert_eq!((w.current(), w.doomed()), (Some("b"), vec!["a"]));
    assert_eq!(
        w.doc().due_at,
        Some(w.now),
        "nobody would come to destroy it"
    );
    w.change(Change::Destroyed {
        accessor: "a".into(),
        now_gone: true,
    });
    assert!(w.doomed().is_empty());
    assert_eq!(
        w.events,
        [
            "device.allowed",
            "device.asked",
            "device.issued",
            "device.confirmed",
            "device.asked",
            "device.issued",
            "device.confirmed",
            "device.destroyed"
        ]
    );
}

#[test]
fn an_ok_without_a_good_proof_destroys_nothing() {
    let mut w = World::new();
    w.issue(1, "a");
    w.proven(1, "a");
    w.later(HOUR).issue(2, "b");
    let forged = proof::proof("guess", &nonce(2));
    assert!(matches!(
        w.result(2, true, Some(forged)),
        Answer::Confirmed { proven: false, .. }
    ));
    assert_eq!((w.current(), w.doomed()), (Some("b"), vec![]));
    assert_eq!(w.doc().earlier.len(), 1);
    // The proof may follow.
    assert!(matches!(
        w.proven(2, "b"),
        Answer::Confirmed { proven: true, .. }
    ));
    assert_eq!((w.doomed(), w.doc().earlier.len()), (vec!["a"], 0));
    assert_eq!(w.proven(2, "b"), Answer::Repeat);
}

#[test]
fn a_failure_dooms_the_new_one_and_keeps_the_old() {
    let mut w = World::new();
    w.issue(1, "a");
    w.proven(1, "a");
    w.later(HOUR).issue(2, "b");
    assert!(matches!(w.result(2, false, None), Answer::Done(_)));
    assert_eq!((w.current(), w.doomed()), (Some("a"), vec!["b"]));
    assert!(w.doc().outstanding.is_none());
    // Once confirmed, a late failure changes nothing.
    assert_eq!(w.result(1, false, None), Answer::Repeat);
    assert_eq!(w.current(), Some("a"));
}

#[test]
fn a_device_that_never_answers_keeps_what_it_may_use() {
    let mut w = World::new();
    w.issue(1, "a");
    assert_eq!(
        w.expire(true),
        Answer::Stale,
        "a restart of the relay is no reason"
    );
    assert_eq!(
        w.later(MINUTE * 5).expire(false),
        Answer::Interrupted(nonce(1))
    );
    assert!(w.doomed().is_empty());
    assert!(
        matches!(w.proven(1, "a"), Answer::Confirmed { proven: true, .. }),
        "late is not too late"
    );
    w.issue(2, "b");
    w.later(MINUTE * 5).expire(false);
    w.later(LIMITS.ttl).expire(false);
    assert!(w.doc().outstanding.is_none());
    assert!(w.doomed().is_empty(), "dead by itself");
}

/// The issuer may fail for the newer one, and then the older one is all that the device has.
#[test]
fn a_newer_nonce_supersedes_and_what_the_old_one_made_goes_when_the_newer_is_confirmed() {
    let mut w = World::new();
    w.issue(1, "a");
    w.ask(2);
    assert_eq!(w.doc().outstanding.as_ref().unwrap().nonce, nonce(2));
    assert!(w.doomed().is_empty());
    assert_eq!(
        w.result(1, true, None),
        Answer::Stale,
        "it was given up, and that it is in use was not proven"
    );
    w.failed("sealed", false);
    w.later(MINUTE).ask(3);
    w.expire(true);
    w.later(MINUTE).ask(4);
    assert!(w.doomed().is_empty(), "nothing has taken its place");
    w.issued_as(w.attempt(), "b", 4);
    assert!(w.doomed().is_empty(), "it has not reached the device");
    w.proven(4, "b");
    assert_eq!((w.current(), w.doomed()), (Some("b"), vec!["a"]));
    assert_eq!(w.proven(1, "a"), Answer::Stale, "too late");
}

#[test]
fn of_what_was_superseded_only_the_last_is_kept() {
    let mut w = World::new();
    w.issue(1, "a");
    w.issue(2, "b");
    assert!(w.doomed().is_empty());
    w.issue(3, "c");
    assert_eq!(w.doomed(), ["a"]);
    // Without a proof nothing that may be in use goes early.
    w.result(3, true, None);
    assert_eq!((w.current(), w.doomed()), (Some("c"), vec!["a"]));
    assert!(matches!(w.proven(3, "c"), Answer::Confirmed { .. }));
    assert_eq!(w.doomed(), ["a", "b"]);
}

/// Its successor never left the relay, does not work, or was never heard of again: then it is all that the device has.
#[test]
fn what_was_superseded_outlives_a_successor_that_nobody_has() {
    let gone: [fn(&mut World); 3] = [
        |w| {
            let attempt = w.attempt();
            let done = w.change(Change::NotSent { attempt });
            assert!(matches!(done, Answer::Done(_)));
        },
        |w| assert!(matches!(w.result(2, false, None), Answer::Done(_))),
        |w| {
            assert!(matches!(
                w.later(MINUTE * 5).expire(false),
                Answer::Interrupted(_)
            ))
        },
    ];
    for gone in gone {
        let mut w = World::new();
        w.issue(1, "a");
        w.issue(2, "b");
        gone(&mut w);
        assert!(!w.doomed().contains(&"a"));
        assert!(matches!(w.proven(1, "a"), Answer::Confirmed { .. }));
        assert_eq!(w.current(), Some("a"));
    }
}

#[test]
fn a_proven_ok_of_what_was_superseded_counts_until_the_newer_is_there() {
    let mut w = World::new();
    w.issue(1, "a");
    w.proven(1, "a");
    w.later(HOUR).issue(2, "b");
    w.later(MINUTE).ask(3);
    assert!(matches!(
        w.proven(2, "b"),
        Answer::Confirmed { proven: true, .. }
    ));
    assert_eq!((w.current(), w.doomed()), (Some("b"), vec!["a"]));
    // The newer one goes its way.
    w.issued_as(w.attempt(), "c", 3);
    assert_eq!(w.doomed(), ["a"]);
    w.proven(3, "c");
    assert_eq!((w.current(), w.doomed()), (Some("c"), vec!["a", "b"]));
}

#[test]
fn a_failure_of_what_was_superseded_dooms_it() {
    let mut w = World::new();
    w.issue(1, "a");
    w.ask(2);
    assert!(matches!(w.result(1, false, None), Answer::Done(_)));
    assert_eq!(
        (w.doomed(), w.doc().superseded.is_none()),
        (vec!["a"], true)
    );
    assert!(w.doc().outstanding.is_some());
}

#[test]
fn what_was_superseded_is_destroyed_with_everything_else() {
    for change in [Change::Deny, Change::Invalidate] {
        let mut w = World::new();
        w.issue(1, "a");
        w.ask(2);
        w.failed("sealed", false);
        w.change(change);
        assert_eq!(w.doomed(), ["a"]);
        assert!(w.doc().superseded.is_none());
    }
}

#[test]
fn what_could_not_be_sent_goes_and_the_device_may_ask_at_once() {
    let mut w = World::new();
    w.issue(1, "a");
    w.proven(1, "a");
    w.issue(2, "b");
    let attempt = w.attempt();
    assert!(matches!(
        w.change(Change::NotSent { attempt }),
        Answer::Done(_)
    ));
    assert_eq!((w.current(), w.doomed()), (Some("a"), vec!["b"]));
    assert!(w.doc().outstanding.is_none());
    assert_eq!(w.events.last().unwrap(), "device.not_sent");
    assert_eq!(w.change(Change::NotSent { attempt }), Answer::Stale);
    w.issue(3, "c");
    assert_eq!(w.change(Change::NotSent { attempt }), Answer::Stale);
    assert_eq!(w.doomed(), ["b"]);
}
