//! The topics of a device (protocol.md §8).

use super::id::DeviceId;
use crate::error::Invalid;

/// What the service subscribes to: the status topic of every device.
pub const STATUS_FILTER: &str = "iot/+/status";

/// Where `device` publishes.
#[must_use]
pub fn status(device: &DeviceId) -> String {
    format!("iot/{device}/status")
}

/// Where `device` listens.
#[must_use]
pub fn command(device: &DeviceId) -> String {
    format!("iot/{device}/command")
}

/// Whose status topic this is.
///
/// # Errors
/// [`Invalid`] for any other topic.
pub fn of_status(topic: &str) -> Result<DeviceId, Invalid> {
    topic
        .strip_prefix("iot/")
        .and_then(|rest| rest.strip_suffix("/status"))
        .ok_or(Invalid::new("topic", "iot/<device_id>/status"))?
        .parse()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_status_topics_name_a_device() {
        let device: DeviceId = "river-1".parse().unwrap();
        assert_eq!(of_status(&status(&device)).unwrap(), device);
        for other in [
            "",
            "iot/river-1/command",
            "iot//status",
            "iot/status",
            "iot/a/b/status",
            "/iot/river-1/status",
            "iot/river-1/status/",
            "iot/+/status",
        ] {
            assert!(of_status(other).is_err(), "{other:?} was accepted");
        }
    }
}
