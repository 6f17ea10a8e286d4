//! Our own HTTP listener: health, readiness, metrics, challenges.

pub mod readiness;
