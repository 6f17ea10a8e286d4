//! What the audit trail says of refused messages: who, which nonce, which secret_id, why.
//!
//! What must always hold: whoever can publish can invent device ids without end, so only a device that was found on the list has records in its own chain, what anybody
//! can cause is bounded ([`TERMS`]), and what goes beyond is counted ([`crate::trail`]).

use std::sync::Arc;
use std::time::Duration;

use keyturn_proto::UnixMs;
use keyturn_proto::device::DeviceId;
use keyturn_store::documents::{Actor, AuditDevice, AuditRecord};
use keyturn_store::store::{Decision, Store};

use super::intake::Refused;
use crate::trail::{self, Terms, Trail};

/// Five records of one device with one reason, and 2,000 in all, within ten minutes; 256 devices with summaries of their own each minute.
pub const TERMS: Terms = Terms {
    repeated: "device.refused_repeatedly",
    first: 5,
    in_all: 2_000,
    every: Duration::from_secs(60),
    summaries: 256,
};

/// Who is refused: the device of the topic.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Whom {
    device: DeviceId,
    listed: bool,
}

impl trail::Sender for Whom {
    fn actor(&self) -> Actor {
        Actor::Device {
            device_id: self.device.clone(),
        }
    }

    fn device(&self) -> Option<AuditDevice> {
        Some(AuditDevice {
            device_id: self.device.clone(),
            nonce: None,
            accessor: None,
            claimed: !self.listed,
        })
    }
}

/// See the module.
pub struct Refusals(Trail<Whom>);

impl Refusals {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self(Trail::under(TERMS, store))
    }

    /// Records a refusal, now or when the store takes it, or counts it. Whether it has a record of its own by now.
    pub(super) async fn note(&self, refused: &Refused, now: UnixMs) -> bool {
        let (nonce, reason) = (nonce(refused), refused.reason);
        let decision = Decision {
            audit: record(refused, now),
            refuses: trail::mark().map(|mark| trail::marked(mark, reason, now)),
        };
        let whom = whom(refused);
        self.0.note(whom, reason, nonce, decision, now).await
    }

    /// Counts a refusal for which there is no time to wait.
    pub(super) fn sum_up(&self, refused: &Refused, now: UnixMs) {
        self.0
            .sum_up(whom(refused), refused.reason, nonce(refused), now);
    }

    /// Writes what is kept and what was only counted, as far as its time has come; with `all` all of it.
    pub(super) async fn flush(&self, now: UnixMs, all: bool) {
        self.0.flush(now, all).await;
    }
}

fn whom(refused: &Refused) -> Option<Whom> {
    refused.device.as_ref().map(|device| Whom {
        device: device.clone(),
        listed: refused.known,
    })
}

fn nonce(refused: &Refused) -> &str {
    refused.nonce.as_ref().map_or("", |nonce| nonce.as_str())
}

fn record(refused: &Refused, at: UnixMs) -> AuditRecord {
    let Refused {
        device,
        claims,
        known,
        nonce,
        accessor,
        reason,
        error: _,
        answered: _,
    } = refused;
    let about = claims.as_ref().or(device.as_ref());
    AuditRecord {
        at,
        actor: device.as_ref().map_or(Actor::Unknown, |id| Actor::Device {
            device_id: id.clone(),
        }),
        event: "device.refused".to_owned(),
        reason: (*reason).to_owned(),
        client_id: None,
        rotation_id: None,
        version_id: None,
        group: None,
        nostr_event: None,
        device: about.map(|id| AuditDevice {
            device_id: id.clone(),
            nonce: nonce.as_ref().map(|nonce| nonce.as_str().to_owned()),
            accessor: accessor.clone(),
            claimed: !known || claims.is_some(),
        }),
    }
}
