//! What happens when the store does not take a result.
//!
//! A request whose message is lost is made again by the device; a result is not. So a result is acknowledged when the store has it, and until then it waits:
//! its acknowledgement, and with it those of all that came after it over the same connection, since brokers want them in order. That is the broker's
//! back-pressure: it goes on delivering until as much is unacknowledged as it may send (1,024 messages, [`super::mqtt`]), so that requests get their retry answers at once all the
//! same, but for one of the same device: that stands behind its result; beyond that, messages wait at the broker, for [`WORTH`] at most. Then the result is given up, with a metric, a line in the log and a record as soon as the store takes
//! one: an outage that is longer must not stop what else can be done. What is lost then is early destruction
//! of the previous secret_id, which is left to its lifetime, or of a new one that failed.

use std::time::{Duration, Instant};

use keyturn_proto::device::{DeviceError, DeviceId, DeviceNonce};
use keyturn_store::store::StoreError;

use super::flow::{Devices, Handled, refusal};
use super::settings::jittered;
use crate::metrics as names;

/// How long after its arrival a result is still tried. Less than what brokers and proxies wait for a silent service.
const WORTH: Duration = Duration::from_secs(30);
/// First and longest pause between two tries.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// What a result is called in the audit trail that was given up.
const LOST: &str = "result.unrecorded";

impl Devices {
    /// Waits until the store is worth another try; what has become of the result, if it is not.
    pub(super) async fn outlast(
        &self,
        device: &DeviceId,
        nonce: &DeviceNonce,
        error: &StoreError,
        tries: u32,
        arrived: Instant,
    ) -> Option<Handled> {
        if self.closing.is_cancelled() {
            return Some(Handled::Interrupted);
        }
        let passes = matches!(
            error,
            StoreError::Unavailable { .. }
                | StoreError::Unknown { .. }
                | StoreError::Conflict { .. }
                | StoreError::Fenced
        );
        let pause = PAUSE.0.saturating_mul(1 << tries.min(10)).min(PAUSE.1);
        let pause = jittered(pause, 0.5);
        if !passes || arrived.elapsed() + pause >= WORTH {
            metrics::counter!(names::DEVICE_RESULTS, "result" => "store").increment(1);
            let refused = refusal(device, nonce, LOST, DeviceError::Unavailable);
            metrics::counter!(names::DEVICE_REFUSALS, "reason" => LOST).increment(1);
            self.refusals.sum_up(&refused, self.now());
            tracing::error!(%device, %nonce, %error, tries = tries + 1, "a device's result could not be recorded and is given up");
            return Some(Handled::Unrecorded);
        }
        if tries == 0 {
            tracing::warn!(%device, %nonce, %error, "a device's result could not be recorded yet");
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => None,
            () = self.closing.cancelled() => Some(Handled::Interrupted),
        }
    }
}
