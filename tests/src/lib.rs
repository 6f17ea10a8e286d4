//! What every end-to-end test starts from. Tests panic: that is how they fail.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

pub mod attack;
pub mod cluster;
pub mod fleet;
pub mod hunt;
pub mod iot;
pub mod kms;
pub mod leash;
pub mod measure;
pub mod member_file;
pub mod private_message;
pub mod relay;
pub mod rogue;
pub mod steady;
pub mod storm;
pub mod tap;
pub mod trail;
pub mod vault;
pub mod verdict;
pub mod wire;
pub mod world;

pub use relay::Relay;
pub use rogue::Rogue;
pub use trail::Trail;
pub use world::{PATIENCE, SETTLE, World, eventually};
