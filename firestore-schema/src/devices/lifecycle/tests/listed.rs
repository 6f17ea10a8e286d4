//! What an operator does to a device's document.

use keyturn_proto::device::Suite;

use super::*;
use crate::devices::documents::Sealing;

#[test]
fn a_denied_device_loses_everything_and_gets_nothing() {
    let mut w = World::new();
    w.issue(1, "a");
    w.result(1, true, None);
    w.issue(2, "b");
    w.result(2, true, None);
    w.issue(3, "c");
    w.change(Change::Deny);
    let mut doomed = w.doomed();
    doomed.sort_unstable();
    assert_eq!(doomed, ["a", "b", "c"]);
    assert_eq!(w.ask(4), Answer::NotAllowed);
    assert_eq!(w.doc().state, DeviceState::Denied);
    assert_eq!(w.change(Change::Deny), Answer::Repeat);
    assert_eq!(World::empty().ask(1), Answer::NotAllowed, "an unknown one");
}

#[test]
fn an_invalidated_device_loses_everything_and_asks_again() {
    let mut w = World::new();
    assert_eq!(
        w.change(Change::Invalidate),
        Answer::Repeat,
        "it holds nothing"
    );
    w.issue(1, "a");
    w.result(1, true, None);
    w.issue(2, "b");
    w.result(2, true, None);
    w.issue(3, "c");
    w.change(Change::Invalidate);
    let mut doomed = w.doomed();
    doomed.sort_unstable();
    assert_eq!(doomed, ["a", "b", "c"]);
    assert_eq!(w.doc().state, DeviceState::Allowed);
    assert_eq!(w.change(Change::Invalidate), Answer::Repeat);
    w.issue(4, "d");
    w.result(4, true, None);
    let current = w.doc().current.clone().map(|held| held.accessor);
    assert_eq!(current.as_deref(), Some("d"));
    assert_eq!(
        World::empty().change(Change::Invalidate),
        Answer::NotAllowed
    );
}

#[test]
fn an_invalidated_device_that_waits_for_an_answer_is_told_to_ask_again() {
    let mut w = World::new();
    w.issue(1, "a");
    w.proven(1, "a");
    w.ask(2);
    let old = w.attempt();
    w.change(Change::Invalidate);
    assert_eq!(w.doc().due_at, Some(w.now));
    assert_eq!(w.expire(false), Answer::Interrupted(nonce(2)));
    assert_eq!(w.doc().unresolved.len(), 1);
    assert!(matches!(w.issued_as(old, "b", 2), Answer::Superseded(_)));
    assert_eq!(w.doomed(), ["a", "b"]);
}

/// It gets something that is younger than what had to go.
#[test]
fn a_request_that_waits_for_its_turn_outlives_an_invalidation() {
    let mut w = World::new();
    w.issue(1, "a");
    w.proven(1, "a");
    w.waits(2);
    let attempt = w.attempt();
    w.change(Change::Invalidate);
    assert_eq!(w.change(Change::Invalidate), Answer::Repeat);
    assert!(matches!(w.start(attempt), Answer::Done(_)));
    assert!(matches!(w.issued_as(attempt, "b", 2), Answer::Done(_)));
    assert_eq!(w.doomed(), ["a"]);
}

fn keyed(identity: Option<&str>, sealing: Option<&str>) -> DeviceOptions {
    DeviceOptions {
        identity_key: identity.map(|key| key.parse().unwrap()),
        sealing: sealing.map(|key| Sealing {
            key: key.parse().unwrap(),
            suite: Suite::Aes128Gcm,
            retain: false,
        }),
        ..DeviceOptions::default()
    }
}

const IDENTITY: &str = "A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg";
const SEALING: &str = "QxDu6XzJiPHAiKVXd6sM9awPd_PZUTnGyEtUKcWcZio";

/// Whatever stage it is in: nothing of it is sent or counts any more, and the device is told to ask again.
#[test]
fn under_another_role_or_another_key_an_issue_under_way_is_set_aside() {
    let changes = [
        ("sea-iot", keyed(None, None)),
        ("river-iot", keyed(Some(IDENTITY), None)),
        ("river-iot", keyed(None, Some(SEALING))),
    ];
    for (role, options) in changes {
        // It waits for its turn.
        let mut w = World::new();
        w.waits(1);
        let old = w.attempt();
        w.allow(role, options.clone());
        assert_eq!(w.start(old), Answer::Stale);
        assert_eq!(w.start(w.attempt()), Answer::Stale);
        assert_eq!(w.doc().due_at, Some(w.now));
        assert_eq!(w.expire(false), Answer::Interrupted(nonce(1)));
        assert!(w.doc().unresolved.is_empty() && w.doc().outstanding.is_none());

        // The issuer is at it.
        let mut w = World::new();
        w.ask(1);
        let old = w.attempt();
        w.allow(role, options.clone());
        assert_eq!(w.doc().unresolved.len(), 1);
        assert!(matches!(w.issued_as(old, "a", 1), Answer::Superseded(_)));
        assert_eq!((w.doomed(), w.doc().unresolved.len()), (vec!["a"], 0));
        assert_eq!(w.expire(false), Answer::Interrupted(nonce(1)));

        // It is on its way, or the device has it and says nothing; another one was superseded.
        for expired in [false, true] {
            let mut w = World::new();
            w.issue(1, "a");
            w.proven(1, "a");
            w.issue(2, "b");
            w.ask(3);
            w.failed("sealed", false);
            w.issue(4, "c");
            if expired {
                w.later(MINUTE * 5).expire(false);
            }
            w.allow(role, options.clone());
            assert_eq!((w.current(), w.doomed()), (Some("a"), vec!["b", "c"]));
            let told = w
                .doc()
                .outstanding
                .as_ref()
                .map(|issue| issue.nonce.clone());
            assert_eq!(told, (!expired).then(|| nonce(4)));
        }
    }
}

#[test]
fn what_was_superseded_under_another_key_goes_too() {
    let mut w = World::new();
    w.issue(1, "a");
    w.ask(2);
    w.failed("sealed", false);
    w.allow("river-iot", keyed(None, Some(SEALING)));
    assert_eq!(w.doomed(), ["a"]);
    assert!(w.doc().outstanding.is_none(), "nobody waits for an answer");
}

#[test]
fn other_options_leave_an_issue_under_way_alone() {
    let mut w = World::new();
    w.ask(1);
    let before = w.doc().outstanding.clone();
    let options = DeviceOptions {
        policy: DevicePolicy::Scheduled,
        ..DeviceOptions::default()
    };
    w.allow("river-iot", options);
    assert_eq!(w.doc().outstanding, before);
}
