//! The gate as a whole, on a real store, with real keys.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod judged_again;
mod limits;
mod members;
mod scenarios;
mod second_factor;
mod world;
