//! Whatever happens in whatever order.

use proptest::prelude::*;

use super::*;
use crate::devices::documents::{EARLIER, PENDING, SPENT, YOUNG_NONCES};

proptest! {
    /// The document stays bounded, and every accessor that was handed in and may live is named in it.
    #[test]
    fn invariant_nothing_that_may_live_is_forgotten(steps in proptest::collection::vec((0u8..14, 0u32..6, 0u64..60), 1..160)) {
        let mut w = World::new();
        let mut made: Vec<(String, UnixMs)> = Vec::new();
        let mut destroyed: Vec<String> = Vec::new();
        let mut asked = 0;
        for (step, n, minutes) in steps {
            w.later(MINUTE * u32::try_from(minutes).unwrap());
            let issue = w.doc().outstanding.clone();
            let attempt = issue.as_ref().map(|issue| issue.attempt);
            match (step, attempt) {
                (0 | 1, _) => { asked += 1; w.ask(asked); }
                (2, _) => { asked += 1; w.waits(asked); }
                // For the one under way, or one that was overtaken.
                (3..=5, Some(attempt)) if issue.is_some_and(|issue| issue.held.is_none()) => {
                    let accessor = format!("acc-{}", made.len());
                    let attempt = attempt.saturating_sub(u64::from(step == 5 && n == 0));
                    w.issued_as(attempt, &accessor, asked);
                    made.push((accessor, w.now.plus(LIMITS.ttl)));
                }
                (6, _) => { w.result(asked.saturating_sub(n % 2), true, None); }
                (7, _) => {
                    let held: Vec<_> = w.doc().held().map(|held| (held.nonce.clone(), held.accessor.clone())).collect();
                    if let Some((nonce, accessor)) = held.get(n as usize % held.len().max(1)).cloned() {
                        let proof = Some(proof::proof(&accessor, &nonce));
                        let next_ping = w.now.plus(HOUR);
                        w.change(Change::Result { nonce, ok: true, proof, reason: String::new(), identity: None, next_ping });
                    }
                }
                (8, _) => { w.result(asked.saturating_sub(n), false, None); }
                (9, Some(_)) => { w.expire(n % 2 == 0); }
                (10, Some(_)) => { w.failed("timeout", n % 2 == 0); }
                (11, _) => if let Some(accessor) = w.doomed().first().map(|text| (*text).to_owned()) {
                    w.change(Change::Destroyed { accessor: accessor.clone(), now_gone: true });
                    destroyed.push(accessor);
                },
                (12, _) if n == 0 => { w.change(Change::Invalidate); }
                (12, Some(attempt)) if n == 1 => { w.change(Change::NotSent { attempt }); }
                (12, _) if n == 2 => { w.allow(if asked % 2 == 0 { "river-iot" } else { "sea-iot" }, DeviceOptions::default()); }
                (13, _) => if let Some(issue) = w.doc().unresolved.first() {
                    let attempt = issue.attempt;
                    w.search(attempt, &[]);
                },
                _ => {}
            }
            let doc = w.doc();
            prop_assert!(doc.nonces.len() <= YOUNG_NONCES && doc.spent.len() <= SPENT && doc.earlier.len() <= EARLIER + 1);
            prop_assert!(doc.unresolved.len() <= PENDING && doc.doomed.len() <= PENDING + EARLIER + 4);
            let mut named: Vec<&str> = w.doomed();
            named.extend(doc.held().map(|held| held.accessor.as_str()));
            for (accessor, expires_at) in &made {
                let may_live = *expires_at > w.now && !destroyed.contains(accessor);
                prop_assert!(!may_live || named.contains(&accessor.as_str()), "{accessor} was forgotten");
            }
        }
    }
}
