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
pub mod damaged;
mod decisions;
mod fences;
pub mod fixture;
mod leases;
mod nonces;
mod outbox;
mod prepared;
mod promotion;
mod registry;
mod reservation;
mod timers;
mod withdrawals;
mod world;

pub use world::World;

use std::pin::Pin;
use std::sync::Arc;

use crate::store::Store;

type Run = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One named behaviour.
pub struct Case {
    /// What must hold.
    pub name: &'static str,
    run: fn(World) -> Run,
}

/// Lists the functions of a module as cases.
macro_rules! case_list {
    ($($name:ident),* $(,)?) => {
        pub(super) fn cases() -> Vec<super::Case> {
            vec![$(super::Case { name: concat!(module_path!(), "::", stringify!($name)), run: |world| Box::pin($name(world)) }),*]
        }
    };
}
use case_list;

/// Every case.
#[must_use]
pub fn cases() -> Vec<Case> {
    [
        nonces::cases(),
        reservation::cases(),
        prepared::cases(),
        outbox::cases(),
        acks::cases(),
        promotion::cases(),
        actions::cases(),
        withdrawals::cases(),
        decisions::cases(),
        timers::cases(),
        leases::cases(),
        fences::cases(),
        registry::cases(),
        audit::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Runs every case against a store of its own.
///
/// # Panics
/// At the end, naming the cases that failed.
pub async fn run<F, Fut>(empty_store: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<dyn Store>>,
{
    let mut failed = Vec::new();
    for case in cases() {
        let world = World::new(empty_store().await);
        // A task of its own turns the case's panic into a result.
        if tokio::spawn((case.run)(world)).await.is_err() {
            failed.push(case.name);
        }
    }
    assert!(
        failed.is_empty(),
        "{} cases failed:\n  {}",
        failed.len(),
        failed.join("\n  ")
    );
}
