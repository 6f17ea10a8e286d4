//! The device flow over MQTT: what a device and the service say to each other (protocol.md §8).
//!
//! Topics: `iot/<device_id>/status` (device → service) and `iot/<device_id>/command` (service → device). Read in the order of the flow: [`id`] →
//! [`topic`] → [`status`] (a request) → [`identity`] (its signature, an option) → [`command`] (the answer) → [`sealed`] (the answer encrypted to the
//! device, an option) → [`status`] again (the result) → [`mod@proof`].
//!
//! What must always hold: nothing of unbounded size is accepted, unknown fields are ignored, and no error repeats a value.

pub mod command;
pub mod id;
pub mod identity;
pub mod proof;
pub mod sealed;
pub mod status;
pub mod topic;

pub use command::{Command, DeviceError, Ping, Retry};
pub use id::{DeviceId, DeviceNonce};
pub use identity::{DeviceSignature, IdentityKey, Statement};
pub use sealed::{Sealed, SealingKey, Suite};
pub use status::{AuthRequest, AuthResult, Status};

/// Longest status message that is read, in bytes. The longest legal one is under 1 KiB.
pub const MAX_STATUS: usize = 4096;
