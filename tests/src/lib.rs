//! What every end-to-end test starts from. Tests panic: that is how they fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

pub mod relay;
pub mod world;

pub use relay::Relay;
pub use world::{PATIENCE, SETTLE, World, eventually};
