//! A device's document through its life, and what must never happen to it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use keyturn_proto::UnixMs;
use keyturn_proto::device::{DeviceId, DeviceNonce, proof};
use proptest::prelude::*;

use super::*;
use crate::devices::documents::{
    DeviceOptions, DevicePolicy, DeviceState, EARLIER, NONCES, PENDING,
};
use crate::devices::store::Limits;

const START: UnixMs = UnixMs(1_739_750_000_000);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const LIMITS: Limits = Limits {
    per_hour: 12,
    step: MINUTE,
    ttl: Duration::from_secs(12 * 3600),
};

fn id() -> DeviceId {
    "river-1".parse().unwrap()
}

fn nonce(n: u32) -> DeviceNonce {
    format!("nonce-number-{n:06}").parse().unwrap()
}

/// One device, its document, its records and the clock.
struct World {
    doc: Option<DeviceDoc>,
    now: UnixMs,
    events: Vec<String>,
}

impl World {
    fn empty() -> Self {
        Self {
            doc: None,
            now: START,
            events: Vec::new(),
        }
    }
    fn new() -> Self {
        let mut world = Self::empty();
        world.change(Change::Allow {
            role: "river-iot".into(),
            options: DeviceOptions::default(),
        });
        world
    }
    fn doc(&self) -> &DeviceDoc {
        self.doc.as_ref().unwrap()
    }
    fn later(&mut self, by: Duration) -> &mut Self {
        self.now = self.now.plus(by);
        self
    }
    fn change(&mut self, change: Change) -> Answer {
        let decision = apply(&id(), self.doc.clone(), change, self.now);
        if let Some(doc) = decision.doc {
            assert_eq!(doc.due_at, due_at(&doc), "due_at is not derived");
            self.doc = Some(doc);
        } else {
            assert!(decision.audit.is_empty(), "a record of nothing");
        }
        self.events
            .extend(decision.audit.into_iter().map(|record| record.event));
        decision.answer
    }
    /// Asks, and its turn comes at once.
    fn ask(&mut self, n: u32) -> Answer {
        let answer = self.waits(n);
        if matches!(answer, Answer::Done(_)) {
            assert!(matches!(self.start(self.attempt()), Answer::Done(_)));
        }
        answer
    }
    fn start(&mut self, attempt: u64) -> Answer {
        self.change(Change::Start {
            attempt,
            step: LIMITS.step,
        })
    }
    /// Asks, and waits for its turn.
    fn waits(&mut self, n: u32) -> Answer {
        self.change(Change::Ask {
            nonce: nonce(n),
            reason: "invalid_secret".into(),
            identity: None,
            owner: "relay".into(),
            issuer: "embedded".into(),
            limits: LIMITS,
        })
    }
    fn attempt(&self) -> u64 {
        self.doc().outstanding.as_ref().unwrap().attempt
    }
    fn issued_as(&mut self, attempt: u64, accessor: &str, n: u32) -> Answer {
        self.change(Change::Issued {
            attempt,
            role: "river-iot".into(),
            accessor: accessor.into(),
            expected_proof: proof::expected(accessor, &nonce(n)),
            expires_at: self.now.plus(LIMITS.ttl),
            confirm: MINUTE * 5,
        })
    }
    /// Asks and is issued `accessor`, whose secret is its own name.
    fn issue(&mut self, n: u32, accessor: &str) {
        assert!(matches!(self.ask(n), Answer::Done(_)));
        assert!(matches!(
            self.issued_as(self.attempt(), accessor, n),
            Answer::Done(_)
        ));
    }
    fn result(&mut self, n: u32, ok: bool, proof: Option<String>) -> Answer {
        self.change(Change::Result {
            nonce: nonce(n),
            ok,
            proof,
            reason: String::new(),
            identity: None,
            next_ping: self.now.plus(HOUR * 6),
        })
    }
    fn proven(&mut self, n: u32, accessor: &str) -> Answer {
        self.result(n, true, Some(proof::proof(accessor, &nonce(n))))
    }
    fn expire(&mut self, at_once: bool) -> Answer {
        let (attempt, in_doubt_until) = (self.attempt(), self.now.plus(LIMITS.ttl));
        self.change(Change::Expire {
            attempt,
            at_once,
            in_doubt_until,
        })
    }
    fn doomed(&self) -> Vec<&str> {
        self.doc()
            .doomed
            .iter()
            .map(|doomed| doomed.accessor.as_str())
            .collect()
    }
    fn current(&self) -> Option<&str> {
        self.doc()
            .current
            .as_ref()
            .map(|held| held.accessor.as_str())
    }
}

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
fn no_more_than_so_many_requests_in_any_hour() {
    let mut w = World::new();
    for n in 0..LIMITS.per_hour {
        assert!(matches!(w.ask(n), Answer::Done(_)));
        w.change(Change::IssueFailed {
            attempt: w.attempt(),
            why: "sealed".into(),
            in_doubt_until: None,
        });
        w.later(MINUTE);
    }
    assert_eq!(w.ask(100), Answer::TooMany(START.plus(HOUR)));
    w.now = START.plus(HOUR);
    assert!(matches!(w.ask(100), Answer::Done(_)));
    assert_eq!(w.ask(101), Answer::TooMany(START.plus(HOUR + MINUTE)));
}

#[test]
fn a_newer_nonce_supersedes_and_what_the_old_one_made_is_doomed() {
    let mut w = World::new();
    w.issue(1, "a");
    w.ask(2);
    assert_eq!(w.doomed(), ["a"]);
    assert_eq!(w.doc().outstanding.as_ref().unwrap().nonce, nonce(2));
    assert_eq!(
        w.proven(1, "a"),
        Answer::Stale,
        "the superseded one cannot be confirmed"
    );
}

#[test]
fn an_issue_that_was_overtaken_while_the_issuer_worked_is_doomed_when_it_comes() {
    let mut w = World::new();
    w.ask(1);
    let first = w.attempt();
    w.ask(2);
    assert_eq!(w.doc().unresolved.len(), 1, "its outcome is open");
    assert!(matches!(w.issued_as(first, "a", 1), Answer::Superseded(_)));
    assert_eq!((w.doomed(), w.doc().unresolved.len()), (vec!["a"], 0));
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
    w.change(Change::Resolved {
        attempt: issue.attempt,
        accessors: vec!["lost".into()],
    });
    assert_eq!((w.doomed(), w.doc().unresolved.len()), (vec!["lost"], 0));
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
    w.change(Change::Resolved {
        attempt,
        accessors: vec!["orphan".into()],
    });
    assert_eq!(w.doomed(), ["first", "late", "orphan"]);
    assert!(w.doc().doomed.iter().all(|it| made(&it.issuer)));
}

#[test]
fn of_a_search_that_keeps_failing_the_first_failure_is_recorded() {
    let mut w = World::new();
    w.ask(1);
    let (attempt, until) = (w.attempt(), w.now.plus(HOUR));
    w.change(Change::IssueFailed {
        attempt,
        why: "timeout".into(),
        in_doubt_until: Some(until),
    });
    for _ in 0..3 {
        w.change(Change::ResolveFailed {
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

#[test]
fn an_issue_in_doubt_is_looked_for_and_a_clear_failure_is_not() {
    let mut w = World::new();
    w.ask(1);
    let (attempt, until) = (w.attempt(), w.now.plus(HOUR));
    w.change(Change::IssueFailed {
        attempt,
        why: "timeout".into(),
        in_doubt_until: Some(until),
    });
    assert_eq!(
        (w.doc().unresolved.len(), w.doc().outstanding.is_none()),
        (1, true)
    );
    w.ask(2);
    w.change(Change::IssueFailed {
        attempt: w.attempt(),
        why: "sealed".into(),
        in_doubt_until: None,
    });
    assert_eq!(w.doc().unresolved.len(), 1);
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

#[test]
fn a_scheduled_device_is_invited_until_it_answers() {
    let mut w = World::new();
    let options = DeviceOptions {
        policy: DevicePolicy::Scheduled,
        ..DeviceOptions::default()
    };
    w.change(Change::Allow {
        role: "river-iot".into(),
        options,
    });
    assert_eq!(w.doc().due_at, Some(w.now));
    let next_ping = w.now.plus(MINUTE);
    assert!(matches!(
        w.change(Change::Ping {
            nonce: nonce(1),
            next_ping
        }),
        Answer::Done(_)
    ));
    assert_eq!(
        w.change(Change::Ping {
            nonce: nonce(2),
            next_ping
        }),
        Answer::Stale,
        "not yet"
    );
    w.later(MINUTE);
    let next_ping = w.now.plus(MINUTE);
    w.change(Change::Ping {
        nonce: nonce(2),
        next_ping,
    });
    assert!(w.events.contains(&"device.ping_unanswered".to_owned()));
    w.issue(2, "a");
    assert_eq!(w.doc().ping, None);
    w.proven(2, "a");
    assert_eq!(w.doc().ping_at, Some(w.now.plus(HOUR * 6)));
}

proptest! {
    /// Whatever happens in whatever order: the document stays bounded, and every accessor that was handed in and may live is named in it.
    #[test]
    fn invariant_nothing_that_may_live_is_forgotten(steps in proptest::collection::vec((0u8..9, 0u32..6, 0u64..120), 1..120)) {
        let mut w = World::new();
        let mut made: Vec<(String, UnixMs)> = Vec::new();
        let mut destroyed: Vec<String> = Vec::new();
        let mut asked = 0;
        for (step, n, minutes) in steps {
            w.later(MINUTE * u32::try_from(minutes).unwrap());
            let attempt = w.doc().outstanding.as_ref().map(|issue| issue.attempt);
            match (step, attempt) {
                (0 | 1, _) => { asked += 1; w.ask(asked); }
                (2 | 3, Some(attempt)) if w.doc().outstanding.as_ref().is_some_and(|issue| issue.held.is_none()) => {
                    let accessor = format!("acc-{}", made.len());
                    w.issued_as(attempt, &accessor, asked);
                    made.push((accessor, w.now.plus(LIMITS.ttl)));
                }
                (4, _) => { w.result(asked, true, None); }
                (5, _) => if let Some((accessor, _)) = made.last().cloned() { w.proven(asked, &accessor); },
                (6, _) => { w.result(asked.saturating_sub(n), false, None); }
                (7, Some(_)) => { w.expire(n % 2 == 0); }
                (8, _) => if let Some(accessor) = w.doomed().first().map(|text| (*text).to_owned()) {
                    w.change(Change::Destroyed { accessor: accessor.clone(), now_gone: true });
                    destroyed.push(accessor);
                },
                _ => {}
            }
            let doc = w.doc();
            prop_assert!(doc.nonces.len() <= NONCES && doc.earlier.len() <= EARLIER);
            prop_assert!(doc.doomed.len() <= PENDING + EARLIER + 2);
            let mut named: Vec<&str> = w.doomed();
            named.extend(doc.current.iter().chain(&doc.earlier).chain(doc.outstanding.iter().filter_map(|issue| issue.held.as_ref())).map(|held| held.accessor.as_str()));
            // What is left to its lifetime behind EARLIER others is the one thing that may be forgotten; this walk confirms no more than that.
            let unproven = doc.earlier.len() == EARLIER;
            for (accessor, expires_at) in &made {
                let may_live = *expires_at > w.now && !destroyed.contains(accessor);
                prop_assert!(!may_live || unproven || named.contains(&accessor.as_str()), "{accessor} was forgotten");
            }
        }
    }
}
