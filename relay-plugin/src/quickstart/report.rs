//! What a quickstart prints: one line a step for people, or one JSON line for scripts.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::time::Duration;

use keyturn_proto::device::DeviceId;
use keyturn_proto::notify::Outcome;
use keyturn_proto::{ClientId, RotationId, VersionId};
use serde::Serialize;

/// How the three presented secrets were judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The new secret was accepted, as the current version.
    pub current: bool,
    /// The old secret was accepted, as the previous version in grace.
    pub previous: bool,
    /// A wrong secret was accepted. Must be false.
    pub wrong: bool,
}

/// How a device's logins were judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Logins {
    /// With the first secret_id.
    pub first: bool,
    /// With the second one, which replaced it.
    pub second: bool,
    /// With the first one again, while the device had not reported yet.
    pub first_until_reported: bool,
    /// With the first one after the device's report. Must be false.
    pub first_after: bool,
}

/// The device's part of the summary.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceSummary {
    /// Which device.
    pub device_id: DeviceId,
    /// Names the secret_id that was destroyed.
    pub destroyed_accessor: String,
    /// Names the one in use.
    pub accessor: String,
    /// Whether the service believes that the device holds it.
    pub proven: bool,
    /// See [`Logins`].
    pub logins: Logins,
    /// Milliseconds by step.
    pub elapsed_ms: BTreeMap<&'static str, u64>,
}

impl DeviceSummary {
    fn holds(&self) -> bool {
        let logins = Logins {
            first: true,
            second: true,
            first_until_reported: true,
            first_after: false,
        };
        self.proven && self.logins == logins && self.accessor != self.destroyed_accessor
    }
}

/// The summary that `--json` prints, as one line.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The rotation shown.
    pub rotation_id: RotationId,
    /// Whose secret.
    pub client_id: ClientId,
    /// The version before.
    pub old_version: VersionId,
    /// The version after.
    pub new_version: VersionId,
    /// How it ended.
    pub outcome: Outcome,
    /// See [`Verified`].
    pub verified: Verified,
    /// Milliseconds by step; `total` is the request to the promotion.
    pub elapsed_ms: BTreeMap<&'static str, u64>,
    /// See [`DeviceSummary`].
    pub device: DeviceSummary,
    /// Places in which a client's secret was found outside MLS, or a secret_id outside the device. Must be 0.
    pub plaintext_leaks: usize,
}

impl Summary {
    /// Whether all that the quickstart promises held.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.outcome == Outcome::Promoted
            && self.verified
                == Verified {
                    current: true,
                    previous: true,
                    wrong: false,
                }
            && self.device.holds()
            && self.plaintext_leaks == 0
            && self.old_version != self.new_version
    }
}

/// Where the story goes: to the terminal, or nowhere.
pub struct Narrator {
    quiet: bool,
}

impl Narrator {
    /// Tells the story unless `quiet`.
    #[must_use]
    pub const fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// One step and how long it took.
    pub fn step(&self, took: Duration, what: &str) {
        self.line(&format!("{:>7} ms  {what}", took.as_millis()));
    }

    /// A line of its own. A closed pipe is not an error of the rotation.
    pub fn line(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(io::stdout(), "{text}");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        Summary {
            rotation_id: "01JM8VEZAMG2DK6T4S9N7TT1C8".parse().unwrap(),
            client_id: "ext-totp-svc".parse().unwrap(),
            old_version: "01JM8VEZAMG2DK6T4S9N7TT1C8".parse().unwrap(),
            new_version: "01JM8VEZAMG2DK6T4S9N7TT1C9".parse().unwrap(),
            outcome: Outcome::Promoted,
            verified: Verified {
                current: true,
                previous: true,
                wrong: false,
            },
            elapsed_ms: BTreeMap::new(),
            device: DeviceSummary {
                device_id: "river-iot-0001".parse().unwrap(),
                destroyed_accessor: "a".to_owned(),
                accessor: "b".to_owned(),
                proven: true,
                logins: Logins {
                    first: true,
                    second: true,
                    first_until_reported: true,
                    first_after: false,
                },
                elapsed_ms: BTreeMap::new(),
            },
            plaintext_leaks: 0,
        }
    }

    /// Whether a summary with one thing changed still holds.
    fn with(change: impl FnOnce(&mut Summary)) -> bool {
        let mut summary = summary();
        change(&mut summary);
        summary.holds()
    }

    #[test]
    fn it_holds_only_if_everything_did() {
        assert!(with(|_| {}));
        assert!(!with(|s| s.outcome = Outcome::Expired));
        assert!(!with(|s| s.verified.current = false));
        assert!(!with(|s| s.verified.previous = false));
        assert!(!with(|s| s.verified.wrong = true));
        assert!(!with(|s| s.new_version = s.old_version));
        assert!(!with(|s| s.plaintext_leaks = 1));
        assert!(!with(|s| s.device.proven = false));
        assert!(!with(|s| s.device.accessor = "a".to_owned()));
        assert!(!with(|s| s.device.logins.first = false));
        assert!(!with(|s| s.device.logins.second = false));
        assert!(!with(|s| s.device.logins.first_until_reported = false));
        assert!(!with(|s| s.device.logins.first_after = true));
    }
}
