//! The contract of the store port: every backend must pass every case (feature `contract`).
//!
//! ```ignore
//! keyturn_store::contract::run(|| async { Arc::new(open_an_empty_store().await) as Arc<dyn Store> }).await;
//! ```
//!
//! Each case gets an empty store of its own. All cases run; the failed ones are named together at the end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test suite: a panic is how it reports"
)]

mod acks;
mod actions;
mod audit;
pub mod counting;
mod decisions;
