//! What may have been made and nobody knows of, and what has to be destroyed.

use super::*;

#[test]
fn an_issue_that_was_overtaken_while_the_issuer_worked_is_doomed_when_it_comes() {
    let mut w = World::new();
    w.ask(1);
    let first = w.attempt();
    w.ask(2);
    assert_eq!(w.doc().unresolved.len(), 1, "its outcome is open");
    assert!(matches!(w.issued_as(first, "a", 1), Answer::Superseded(_)));
    assert_eq!((w.doomed(), w.doc().unresolved.len()), (vec!["a"], 0));
    // The write of unknown outcome is repeated.
    let before = (w.doc().clone(), w.events.clone());
    assert!(matches!(w.issued_as(first, "a", 1), Answer::Superseded(_)));
    assert_eq!((w.doc().clone(), w.events.clone()), before);
    assert!(matches!(w.issued_as(w.attempt(), "b", 2), Answer::Done(_)));
}

#[test]
fn what_a_dead_relay_may_have_issued_is_looked_for_and_destroyed() {
    let mut w = World::new();
    w.ask(1);
    assert_eq!(w.expire(false), Answer::Stale, "its time is not over");
    assert_eq!(w.later(MINUTE).expire(false), Answer::Interrupted(nonce(1)));
    let issue = w.doc().unresolved[0].clone();
    assert_eq!((issue.nonce, issue.retry_at), (nonce(1), w.now));
    w.search(issue.attempt, &["lost"]);
    assert_eq!((w.doomed(), w.doc().unresolved.len()), (vec!["lost"], 0));
}

#[test]
fn an_issue_in_doubt_is_looked_for_and_a_clear_failure_is_not() {
    let mut w = World::new();
    w.ask(1);
    w.failed("timeout", true);
    assert_eq!(
        (w.doc().unresolved.len(), w.doc().outstanding.is_none()),
        (1, true)
    );
    w.ask(2);
    w.failed("sealed", false);
    assert_eq!(w.doc().unresolved.len(), 1);
}

#[test]
fn destruction_is_tried_until_the_lifetime_is_over() {
    let mut w = World::new();
    w.issue(1, "a");
    w.result(1, false, None);
    for _ in 0..3 {
        let retry_at = w.later(MINUTE).now.plus(MINUTE);
        w.change(Change::DestroyFailed {
            accessor: "a".into(),
            why: "sealed".into(),
            retry_at,
        });
        assert_eq!(w.doc().due_at, Some(retry_at));
    }
    assert_eq!(
        w.events
            .iter()
            .filter(|event| *event == "device.destroy_failed")
            .count(),
        1,
        "one record, not one a minute"
    );
    let retry_at = w.later(LIMITS.ttl).now.plus(MINUTE);
    w.change(Change::DestroyFailed {
        accessor: "a".into(),
        why: "sealed".into(),
        retry_at,
    });
    assert_eq!((w.doomed(), w.doc().due_at), (vec![], None));
}

/// The issuer may still be working on a call that its caller has given up.
#[test]
fn an_empty_search_says_nothing_until_all_who_could_be_at_it_must_be_done() {
    let mut w = World::new();
    w.ask(1);
    let attempt = w.attempt();
    w.failed("timeout", true);
    let settles = w.now.plus(QUIET);
    w.search(attempt, &[]);
    assert_eq!(w.doc().due_at, Some(settles), "the search comes again");
    assert_eq!(w.search(attempt, &[]), Answer::Stale, "of another relay");
    w.now = settles;
    w.search(attempt, &["late"]);
    assert_eq!((w.doomed(), w.doc().unresolved.len()), (vec!["late"], 0));
}

#[test]
fn two_empty_searches_some_time_apart_end_the_doubt() {
    let mut w = World::new();
    w.ask(1);
    let attempt = w.attempt();
    w.later(MINUTE).expire(false);
    w.later(QUIET).search(attempt, &[]);
    assert_eq!(w.doc().unresolved[0].empty, 1);
    assert_eq!(w.doc().due_at, Some(w.now.plus(QUIET / 3)));
    assert_eq!(w.search(attempt, &[]), Answer::Stale, "of another relay");
    w.later(QUIET / 3).search(attempt, &[]);
    assert!(w.doc().unresolved.is_empty());
    assert_eq!(w.count("device.nothing_found"), 1);
    assert!(matches!(
        w.issued_as(attempt, "late", 1),
        Answer::Superseded(_)
    ));
    assert_eq!(w.doomed(), ["late"], "and if it comes all the same");
}

/// A relay whose issue was superseded works on until its deadline.
#[test]
fn what_a_relay_is_still_at_is_not_searched_for_before_its_deadline() {
    let mut w = World::new();
    w.ask(1);
    let (attempt, deadline) = (w.attempt(), w.now.plus(LIMITS.step));
    w.ask(2);
    assert_eq!(w.doc().unresolved[0].retry_at, deadline);
    assert_eq!(w.search(attempt, &[]), Answer::Stale);
    w.now = deadline;
    w.search(attempt, &[]);
    assert_eq!(w.doc().unresolved[0].retry_at, deadline.plus(QUIET));
}

#[test]
fn what_is_dead_by_now_is_not_searched_for_any_more() {
    for fails in [false, true] {
        let mut w = World::new();
        w.ask(1);
        let (attempt, until) = (w.attempt(), w.now.plus(LIMITS.ttl));
        w.failed("timeout", true);
        w.now = until;
        let retry_at = w.now.plus(MINUTE);
        if fails {
            let why = "sealed".into();
            w.change(Change::SearchFailed {
                attempt,
                why,
                retry_at,
            });
        } else {
            w.search(attempt, &[]);
        }
        assert!(w.doc().unresolved.is_empty());
        assert_eq!(w.count("device.nothing_found"), 1);
    }
}

/// The operator may have shortened the lifetime since: it lives as long as it was asked for.
#[test]
fn what_may_have_been_made_is_looked_for_as_long_as_it_was_asked_to_live() {
    let doubt: [fn(&mut World); 5] = [
        |w| {
            assert!(matches!(
                w.later(MINUTE).expire(false),
                Answer::Interrupted(_)
            ))
        },
        |w| assert!(matches!(w.failed("timeout", true), Answer::Done(_))),
        |w| {
            let limits = Limits {
                ttl: MINUTE * 30,
                ..LIMITS
            };
            assert!(matches!(w.waits_within(2, limits), Answer::Done(_)));
        },
        |w| assert!(matches!(w.change(Change::Deny), Answer::Done(_))),
        |w| assert!(matches!(w.change(Change::Invalidate), Answer::Done(_))),
    ];
    for (n, doubt) in doubt.iter().enumerate() {
        let mut w = World::new();
        w.ask(1);
        doubt(&mut w);
        let issue = w.doc().unresolved[0].clone();
        let latest = w.now.max(issue.given_up_at);
        assert_eq!(issue.expires_at, latest.plus(LIMITS.ttl), "{n}");
    }
}

/// A document written before the lifetime was kept.
#[test]
fn what_was_asked_for_with_an_unknown_lifetime_is_looked_for_as_long_as_any_may_last() {
    let mut w = World::new();
    w.ask(1);
    let mut json = serde_json::to_value(w.doc()).unwrap();
    let issue = json["outstanding"].as_object_mut().unwrap();
    assert!(issue.remove("ttl_ms").is_some());
    w.doc = Some(serde_json::from_value(json).unwrap());
    w.later(MINUTE).expire(false);
    assert_eq!(w.doc().unresolved[0].expires_at, w.now.plus(LONGEST));
}

/// It is there: whatever was thought of its lifetime was wrong.
#[test]
fn what_is_found_alive_is_destroyed_whatever_was_thought_of_its_lifetime() {
    let mut w = World::new();
    w.ask(1);
    let attempt = w.attempt();
    w.failed("timeout", true);
    w.later(LIMITS.ttl * 2).search(attempt, &["alive"]);
    assert_eq!(w.count("device.orphan_found"), 1);
    assert_eq!(w.doomed(), ["alive"]);
    let retry_at = w.later(LIMITS.ttl).now.plus(MINUTE);
    w.change(Change::DestroyFailed {
        accessor: "alive".into(),
        why: "sealed".into(),
        retry_at,
    });
    assert_eq!(w.doomed(), ["alive"], "nobody knows that it is dead");
}

/// A document written before the searches were counted.
#[test]
fn an_old_document_is_read() {
    let mut w = World::new();
    w.ask(1);
    w.failed("timeout", true);
    let mut json = serde_json::to_value(w.doc()).unwrap();
    let fields = json.as_object_mut().unwrap();
    for field in ["superseded", "spent", "pings_missed"] {
        assert!(fields.remove(field).is_some());
    }
    let issue = fields["unresolved"][0].as_object_mut().unwrap();
    for field in ["given_up_at", "empty"] {
        assert!(issue.remove(field).is_some());
    }
    w.doc = Some(serde_json::from_value(json).unwrap());
    let attempt = w.doc().unresolved[0].attempt;
    w.search(attempt, &[]);
    w.later(QUIET).search(attempt, &[]);
    assert!(w.doc().unresolved.is_empty());
    w.issue(2, "a");
}

/// Whoever destroys it must ask the issuer that made it, whatever the configuration says by then.
#[test]
fn what_an_issuer_made_keeps_its_name() {
    let mut w = World::new();
    w.issue(1, "first");
    w.ask(2);
    let made = |issuer: &Option<String>| issuer.as_deref() == Some("embedded");
    w.change(Change::Invalidate);
    assert_eq!(w.doc().doomed.len() + w.doc().unresolved.len(), 2);
    assert!(w.doc().doomed.iter().all(|it| made(&it.issuer)));
    assert!(w.doc().unresolved.iter().all(|it| made(&it.issuer)));
    // The search finds what was lost; a late answer tells of it.
    let attempt = w.doc().unresolved[0].attempt;
    assert!(matches!(
        w.issued_as(attempt, "late", 2),
        Answer::Superseded(_)
    ));
    assert!(w.doc().doomed.iter().all(|it| made(&it.issuer)));
    w.ask(3);
    let attempt = w.attempt();
    w.change(Change::Invalidate);
    w.search(attempt, &["orphan"]);
    assert_eq!(w.doomed(), ["first", "late", "orphan"]);
    assert!(w.doc().doomed.iter().all(|it| made(&it.issuer)));
}

#[test]
fn of_a_search_that_keeps_failing_the_first_failure_is_recorded() {
    let mut w = World::new();
    w.ask(1);
    let attempt = w.attempt();
    w.failed("timeout", true);
    for _ in 0..3 {
        w.change(Change::SearchFailed {
            attempt,
            why: "sealed".into(),
            retry_at: w.now,
        });
    }
    assert_eq!(w.doc().unresolved[0].failures, 3);
    let failed = w.events.iter().filter(|it| *it == "device.search_failed");
    assert_eq!(failed.count(), 1);
}

/// As an older version wrote it.
#[test]
fn a_document_that_names_no_issuer_is_read() {
    let mut w = World::new();
    w.issue(1, "first");
    let mut value = serde_json::to_value(w.doc()).unwrap();
    let issue = value["outstanding"].as_object_mut().unwrap();
    issue.remove("issuer").unwrap();
    let held = issue["held"].as_object_mut().unwrap();
    held.remove("issuer").unwrap();
    let doc: DeviceDoc = serde_json::from_value(value).unwrap();
    assert_eq!(doc.outstanding.unwrap().held.unwrap().issuer, None);
}
