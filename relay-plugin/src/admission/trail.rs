//! Which refusals become audit records of their own.
//!
//! Every refusal does, up to [`FIRST`] with the same sender and reason within [`WINDOW`]; what goes beyond is counted, and one record with the
//! count follows when the window ends. So a flood cannot fill the store, and no refusal goes unnoticed: the first ones are kept in full, the
//! rest as a number. (Counts not yet written are lost with the process; the metrics have them as well.)

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use keyturn_proto::{Npub, UnixMs};
use keyturn_store::documents::{Actor, AuditRecord};

/// Records in full per sender, reason and window.
pub const FIRST: u32 = 20;
/// See [`FIRST`].
pub const WINDOW: Duration = Duration::from_secs(600);
/// Most (sender, reason) pairs told apart; further ones share a count.
const MAX_KEYS: usize = 4096;

/// `event` of a refusal.
pub const REFUSED: &str = "request.refused";
/// `event` of the record that counts what followed the first ones.
pub const REPEATED: &str = "request.refused_repeatedly";

type Key = (Option<Npub>, &'static str);

struct Seen {
    since: UnixMs,
    written: u32,
    withheld: u64,
}

/// See the module.
pub(crate) struct Trail {
    /// `event` of the records that count.
    repeated: &'static str,
    seen: Mutex<HashMap<Key, Seen>>,
}

impl Default for Trail {
    fn default() -> Self {
        Self::counting_as(REPEATED)
    }
}

impl Trail {
    /// A trail for other refusals than those of requests.
    pub(crate) fn counting_as(repeated: &'static str) -> Self {
        Self {
            repeated,
            seen: Mutex::default(),
        }
    }

    /// The records to append for this refusal: itself, the count of a window that has ended, both or none.
    pub(crate) fn admit(
        &self,
        sender: Npub,
        reason: &'static str,
        record: AuditRecord,
        now: UnixMs,
    ) -> Vec<AuditRecord> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut records = Vec::new();
        if seen.len() >= MAX_KEYS && !seen.contains_key(&(Some(sender), reason)) {
            records = self.drained(&mut seen, now, false);
        }
        let known = seen.contains_key(&(Some(sender), reason)) || seen.len() < MAX_KEYS;
        let key = (known.then_some(sender), reason);
        let fresh = Seen {
            since: now,
            written: 0,
            withheld: 0,
        };
        let entry = seen.entry(key).or_insert(fresh);
        if over(entry, now) {
            records.extend(self.count(key, entry, now));
            *entry = Seen {
                since: now,
                written: 0,
                withheld: 0,
            };
        }
        if entry.written < FIRST {
            entry.written += 1;
            records.push(record);
        } else {
            entry.withheld += 1;
        }
        records
    }

    /// The counts of windows that have ended; with `all`, of every window (at shutdown).
    pub(crate) fn drain(&self, now: UnixMs, all: bool) -> Vec<AuditRecord> {
        self.drained(
            &mut self.seen.lock().unwrap_or_else(PoisonError::into_inner),
            now,
            all,
        )
    }

    fn drained(&self, seen: &mut HashMap<Key, Seen>, now: UnixMs, all: bool) -> Vec<AuditRecord> {
        let mut records = Vec::new();
        seen.retain(|key, entry| {
            let ends = all || over(entry, now);
            if ends {
                records.extend(self.count(*key, entry, now));
            }
            !ends
        });
        records
    }

    fn count(&self, (sender, reason): Key, entry: &Seen, now: UnixMs) -> Option<AuditRecord> {
        (entry.withheld > 0).then(|| AuditRecord {
            at: now,
            actor: sender.map_or(Actor::Unknown, |npub| Actor::Admin { npub }),
            event: self.repeated.to_owned(),
            reason: format!("{reason} count={} since={}", entry.withheld, entry.since.0),
            client_id: None,
            rotation_id: None,
            version_id: None,
            group: None,
            nostr_event: None,
            device: None,
        })
    }
}

fn over(entry: &Seen, now: UnixMs) -> bool {
    now < entry.since || now.since(entry.since) >= WINDOW
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    const NOW: UnixMs = UnixMs(1_760_000_000_000);
    const ALICE: Npub = Npub::from_bytes([1; 32]);

    fn record(now: UnixMs) -> AuditRecord {
        AuditRecord {
            at: now,
            actor: Actor::Admin { npub: ALICE },
            event: REFUSED.to_owned(),
            reason: "jwt.expired".to_owned(),
            client_id: None,
            rotation_id: None,
            version_id: None,
            group: None,
            nostr_event: None,
            device: None,
        }
    }

    #[test]
    fn a_flood_becomes_its_first_records_and_a_count() {
        let trail = Trail::default();
        let written: usize = (0..1000)
            .map(|_| trail.admit(ALICE, "jwt.expired", record(NOW), NOW).len())
            .sum();
        assert_eq!(written, FIRST as usize);
        assert_eq!(
            trail.admit(ALICE, "jwt.signature", record(NOW), NOW).len(),
            1,
            "another reason"
        );

        let later = NOW.plus(WINDOW);
        let records = trail.admit(ALICE, "jwt.expired", record(later), later);
        assert_eq!(records.len(), 2);
        assert_eq!(records[0].event, REPEATED);
        assert_eq!(
            records[0].reason,
            format!("jwt.expired count=980 since={}", NOW.0)
        );
        assert_eq!(records[1].event, REFUSED);
    }

    #[test]
    fn counts_come_out_at_the_end_of_the_window_or_at_shutdown() {
        let trail = Trail::default();
        for _ in 0..=FIRST {
            trail.admit(ALICE, "jwt.expired", record(NOW), NOW);
        }
        assert!(trail.drain(NOW, false).is_empty());
        assert_eq!(trail.drain(NOW, true).len(), 1);
        assert!(trail.drain(NOW, true).is_empty(), "only once");
    }

    #[test]
    fn memory_is_bounded_and_the_overflow_still_counted() {
        let trail = Trail::default();
        let mut records = 0;
        for sender in 0..2 * MAX_KEYS as u64 {
            let mut key = [0u8; 32];
            key[..8].copy_from_slice(&sender.to_be_bytes());
            records += trail
                .admit(Npub::from_bytes(key), "jwt.expired", record(NOW), NOW)
                .len();
        }
        assert_eq!(records, MAX_KEYS + FIRST as usize);
        let counted = trail.drain(NOW, true);
        assert_eq!(counted.len(), 1);
        assert_eq!(counted[0].actor, Actor::Unknown);
        assert!(
            counted[0]
                .reason
                .contains(&format!("count={}", MAX_KEYS - FIRST as usize))
        );
    }
}
