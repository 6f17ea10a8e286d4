//! A device's document through its life, and what must never happen to it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod asking;
mod doubt;
mod listed;
mod results;
mod schedule;
mod walk;

use std::time::Duration;

use keyturn_proto::UnixMs;
use keyturn_proto::device::{DeviceId, DeviceNonce, proof};

use super::*;
use crate::devices::documents::{DeviceOptions, DevicePolicy, DeviceState};
use crate::devices::store::Limits;

const START: UnixMs = UnixMs(1_739_750_000_000);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const LIMITS: Limits = Limits {
    per_hour: 12,
    step: MINUTE,
    ttl: Duration::from_secs(12 * 3600),
    replay: Duration::from_secs(10 * 60),
};
/// How long after a call an empty search says nothing.
const QUIET: Duration = Duration::from_secs(90);

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
        self.waits_within(n, LIMITS)
    }
    fn waits_within(&mut self, n: u32, limits: Limits) -> Answer {
        self.waits_for("embedded", n, limits)
    }
    fn waits_for(&mut self, issuer: &str, n: u32, limits: Limits) -> Answer {
        self.change(Change::Ask {
            nonce: nonce(n),
            reason: "invalid_secret".into(),
            identity: None,
            owner: "relay".into(),
            issuer: issuer.into(),
            limits,
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
        let attempt = self.attempt();
        self.change(Change::Expire { attempt, at_once })
    }
    fn failed(&mut self, why: &str, in_doubt: bool) -> Answer {
        self.change(Change::IssueFailed {
            attempt: self.attempt(),
            why: why.into(),
            in_doubt,
        })
    }
    fn search(&mut self, attempt: u64, accessors: &[&str]) -> Answer {
        self.change(Change::Searched {
            attempt,
            accessors: accessors.iter().map(|&text| text.to_owned()).collect(),
            began: self.now,
            quiet: QUIET,
        })
    }
    fn allow(&mut self, role: &str, options: DeviceOptions) -> Answer {
        self.change(Change::Allow {
            role: role.into(),
            options,
        })
    }
    fn count(&self, event: &str) -> usize {
        self.events.iter().filter(|known| *known == event).count()
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
