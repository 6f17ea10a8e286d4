//! Which refusals become audit records: the first ones of a device and reason within a window, then a count. So a flood cannot fill the store, and none
//! goes unnoticed.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use keyturn_proto::UnixMs;
use keyturn_proto::device::DeviceId;
use keyturn_store::documents::{Actor, AuditDevice, AuditRecord};

use super::intake::Refused;

/// Records in full per device, reason and window.
const FIRST: u32 = 5;
/// See [`FIRST`].
const WINDOW: Duration = Duration::from_secs(600);
/// Most (device, reason) pairs told apart; further ones share a count per reason.
const MAX_KEYS: usize = 4096;
/// Most records of refusals per window in all: whoever can publish can invent device ids without end.
const ALL: u32 = 2_000;

type Key = (Option<DeviceId>, &'static str);

#[derive(Default)]
struct Seen {
    since: UnixMs,
    written: u32,
    withheld: u64,
}

#[derive(Default)]
struct State {
    seen: HashMap<Key, Seen>,
    since: UnixMs,
    written: u32,
}

/// See the module.
#[derive(Default)]
pub struct Refusals(Mutex<State>);

impl Refusals {
    /// The records to append for this refusal: itself, the counts of windows that have ended, or none.
    pub(super) fn admit(&self, refused: &Refused, now: UnixMs) -> Vec<AuditRecord> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut records = state.ended(now, false);
        let mut key = (refused.device.clone(), refused.reason);
        if state.seen.len() >= MAX_KEYS && !state.seen.contains_key(&key) {
            key.0 = None;
        }
        let room = state.written < ALL;
        let seen = state.seen.entry(key).or_insert_with(|| Seen {
            since: now,
            ..Seen::default()
        });
        if seen.written < FIRST && room {
            seen.written += 1;
            state.written += 1;
            records.push(record(
                refused.device.as_ref(),
                refused.known,
                refused.nonce.as_ref().map(|nonce| nonce.as_str()),
                "device.refused",
                refused.reason.to_owned(),
                now,
            ));
        } else {
            seen.withheld += 1;
        }
        records
    }

    /// The counts of windows that have ended; with `all`, of every window (at shutdown).
    pub(super) fn drain(&self, now: UnixMs, all: bool) -> Vec<AuditRecord> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .ended(now, all)
    }
}

impl State {
    fn ended(&mut self, now: UnixMs, all: bool) -> Vec<AuditRecord> {
        let over = |since: UnixMs| all || now < since || now.since(since) >= WINDOW;
        if !over(self.since) {
            return Vec::new();
        }
        self.since = now;
        self.written = 0;
        let mut records = Vec::new();
        self.seen.retain(|(device, reason), seen| {
            if over(seen.since) && seen.withheld > 0 {
                let count = format!("{reason} count={} since={}", seen.withheld, seen.since.0);
                records.push(record(
                    device.as_ref(),
                    false,
                    None,
                    "device.refused_repeatedly",
                    count,
                    now,
                ));
            }
            !over(seen.since)
        });
        records
    }
}

fn record(
    device: Option<&DeviceId>,
    known: bool,
    nonce: Option<&str>,
    event: &str,
    reason: String,
    at: UnixMs,
) -> AuditRecord {
    AuditRecord {
        at,
        actor: device.map_or(Actor::Unknown, |id| Actor::Device {
            device_id: id.clone(),
        }),
        event: event.to_owned(),
        reason,
        client_id: None,
        rotation_id: None,
        version_id: None,
        group: None,
        nostr_event: None,
        device: device.filter(|_| known).map(|id| AuditDevice {
            device_id: id.clone(),
            nonce: nonce.map(str::to_owned),
            accessor: None,
        }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use keyturn_proto::device::DeviceError;

    use super::*;

    const NOW: UnixMs = UnixMs(1_760_000_000_000);

    fn refused(device: usize) -> Refused {
        Refused {
            device: Some(format!("d{device}").parse().unwrap()),
            known: false,
            nonce: None,
            reason: "not_allowed",
            error: DeviceError::Unauthorized,
        }
    }

    #[test]
    fn a_flood_of_one_device_becomes_its_first_records_and_a_count() {
        let refusals = Refusals::default();
        let written: usize = (0..1000)
            .map(|_| refusals.admit(&refused(1), NOW).len())
            .sum();
        assert_eq!(written, FIRST as usize);
        assert!(refusals.drain(NOW, false).is_empty());
        let records = refusals.admit(&refused(2), NOW.plus(WINDOW));
        assert_eq!(records.len(), 2);
        assert_eq!(records[0].event, "device.refused_repeatedly");
        assert_eq!(
            records[0].reason,
            format!("not_allowed count=995 since={}", NOW.0)
        );
    }

    #[test]
    fn a_flood_of_invented_devices_is_bounded_too() {
        let refusals = Refusals::default();
        let written: usize = (0..100_000)
            .map(|n| refusals.admit(&refused(n), NOW).len())
            .sum();
        assert_eq!(written, ALL as usize);
        assert!(refusals.0.lock().unwrap().seen.len() <= MAX_KEYS + 1);
        let counted: u64 = refusals
            .drain(NOW, true)
            .iter()
            .map(|record| {
                record
                    .reason
                    .split("count=")
                    .nth(1)
                    .unwrap()
                    .split(' ')
                    .next()
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
            })
            .sum();
        assert_eq!(counted, 100_000 - u64::from(ALL));
    }
}
