//! Devices on the schedule are invited to ask.

use std::time::Duration;

use keyturn_proto::UnixMs;
use keyturn_proto::device::{DeviceId, DeviceNonce};
use sha2::{Digest as _, Sha256};

use super::{Decision, Draft};
use crate::devices::documents::{DevicePolicy, DeviceState};
use crate::devices::store::Answer;

/// Over this time the invitations of devices are spread that an operator changes in one go.
const SPREAD: Duration = Duration::from_secs(60);

/// When a device is invited for the first time, or after it was invalidated: soon, and each at a time of its own.
pub(super) fn soon(device: &DeviceId, now: UnixMs) -> UnixMs {
    let [a, b, ..] = <[u8; 32]>::from(Sha256::digest(device.as_str()));
    now.plus(SPREAD * u32::from(u16::from_be_bytes([a, b])) / u32::from(u16::MAX))
}

impl Draft {
    pub(super) fn ping(mut self, nonce: DeviceNonce, next_ping: UnixMs) -> Decision {
        let wanted = self.doc.state == DeviceState::Allowed
            && self.doc.options.policy == DevicePolicy::Scheduled
            && self.doc.ping_at.is_some_and(|at| at <= self.now);
        if !wanted {
            return Decision::unchanged(Answer::Stale);
        }
        if let Some(missed) = self.doc.ping.take() {
            self.doc.pings_missed = self.doc.pings_missed.saturating_add(1);
            self.by_relay("device.ping_unanswered", "offline", Some(&missed), None);
        }
        self.by_relay("device.pinged", "scheduled", Some(&nonce), None);
        self.doc.ping = Some(nonce);
        self.doc.ping_at = Some(next_ping);
        self.done_with_doc()
    }

    /// It has asked, by an invitation or by itself.
    pub(super) fn ping_answered(&mut self) {
        self.doc.ping = None;
        self.doc.pings_missed = 0;
    }
}
