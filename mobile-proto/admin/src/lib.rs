//! The reference admin app: a library ([`AdminSession`]) and the `keyturn-admin` program on top of it.
//!
//! What must hold, everywhere in this crate: a client's secret is opened only when a person or a program asks for it, is shown once, and
//! then exists in zeroised memory only: never in an argument, a log, a file or an error.
//!
//! Read: [`home`] (what is on disk) → [`transport`] (one relay) → [`challenge`] and [`proof`] (who vouches for a request) → [`session`]
//! (groups, requests, secrets) → [`cli`].

#![forbid(unsafe_code)]

pub mod challenge;
pub mod cli;
pub mod clock;
pub mod home;
pub mod proof;
pub mod session;
pub mod transport;

pub use async_trait::async_trait;
pub use proof::{ProofError, ProofSource};
pub use session::{AdminSession, NewGroup, OpenedSecret, RequestSpec, SessionConfig, Update};
