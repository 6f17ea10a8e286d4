//! Devices and their broker: a real Mosquitto with the configuration, access rules and certificates that `docs/mosquitto` ships, and devices that nobody
//! here wrote the MQTT of: `docs/device-firmware/device.py` on paho, and Mosquitto's own command-line clients.

mod broker;
mod client;
mod device;
mod house;
mod line;

use std::path::{Path, PathBuf};

pub use broker::{Broker, Certificate, program as mosquitto};
pub use client::{Client, Mqtt};
pub use device::{Credential, Device, PythonDevice, program, python};
pub use house::House;
pub use line::{Given, Line};

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
