//! A message as it came in, without anything of the packet that could be large: what is kept is bounded here, once.

use std::time::Instant;

use bytes::Bytes;
use keyturn_proto::device::{DeviceId, MAX_STATUS};
use rumqttc::QoS;

/// A message.
pub(super) struct Arrived {
    /// No more of it than it takes to see that it is too long; of the payload neither.
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) retain: bool,
    /// When it came in.
    pub(super) at: Instant,
    pub(super) receipt: Receipt,
}

/// What it takes to acknowledge a message, on the connection it came by. Bears nothing of the message.
pub(super) struct Receipt {
    /// What the packet was called.
    pub(super) number: u16,
    pub(super) quality: QoS,
    pub(super) connection: u64,
}

impl Arrived {
    /// What is kept of a message that comes in now. Copies of its own: the packet lies in a buffer that many others may share, and each would keep all of it alive.
    pub(super) fn keep(topic: &[u8], payload: &[u8], retain: bool, receipt: Receipt) -> Self {
        // One that is cut is nobody's: it would name a device that cannot be.
        let topic = topic.get(..MAX_TOPIC).unwrap_or(topic);
        let payload = payload.get(..=MAX_STATUS).unwrap_or(payload);
        Self {
            topic: String::from_utf8_lossy(topic).into_owned(),
            payload: Bytes::copy_from_slice(payload),
            retain,
            at: Instant::now(),
            receipt,
        }
    }

    /// Its share of the memory.
    pub(super) fn weight(&self) -> usize {
        size_of::<Self>() + self.topic.len() + self.payload.len()
    }
}

impl Receipt {
    /// Whether the broker counts it until it is acknowledged, and would send it again.
    pub(super) fn is_awaited(&self) -> bool {
        self.quality != QoS::AtMostOnce
    }
}

/// Longer than the topic of any device's status.
const MAX_TOPIC: usize = 2 * DeviceId::MAX;

#[cfg(test)]
impl Arrived {
    /// A message of a test's.
    pub(super) fn made(topic: &str, payload: &[u8], awaited: bool, number: u16) -> Self {
        let receipt = Receipt {
            number,
            quality: if awaited {
                QoS::AtLeastOnce
            } else {
                QoS::AtMostOnce
            },
            connection: u64::MAX,
        };
        Self::keep(topic.as_bytes(), payload, false, receipt)
    }
}
