//! What a bad request looks like, and how each must be answered: one list for every carriage. Test code; compiled only for tests and under
//! the feature `test-support`.
//!
//! A [`Scenario`] is a few [`Attempt`]s, the last one judged. An attempt says what is wrong with it; the carriage supplies the [`Facts`] of its
//! world (who sends, through which group, a challenge) and gets the JSON to send. [`TestIssuer`] signs, and forges, the proofs.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod attempt;
mod issuer;
mod proofs;
mod requests;
mod table;

pub use attempt::{Attempt, Code, Facts, Memory, Nonce, Sender};
pub use issuer::{Forgery, Signer, TestIssuer};
pub use table::{Expected, LOCKOUT_AFTER, Scenario, scenarios};
