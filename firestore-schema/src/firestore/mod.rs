//! The production store: Cloud Firestore, many relays.
//!
//! What must always hold:
//! - every port method reads one consistent moment (a snapshot by `read_time`, which locks nothing), asks the lifecycle, and writes what it says in one
//!   Commit with a precondition on every document that the judgement rests on: whoever else changed one of them meanwhile makes the commit fail, and
//!   it is read and judged again;
//! - a commit of which nobody can say whether it happened is settled by what lies in the store (the mark in its own audit entry), never by guessing;
//! - every call ends: each attempt, each method and the number of repeats are bounded;
//! - documents lie exactly where protocol.md §4 puts them, with Firestore's own timestamps and with nulls that are there;
//! - errors and logs name kinds of documents and stable causes, never a value. The client crate's own readers print values when they fail, so nothing
//!   here goes through them: its connection is used, and its generated gRPC client.
//!
//! Read in this order: `settings` → `open` → `turn` (one method from its beginning to its end) → `reading` → `commit` → `flow`.
//! `snapshots` is the verifier's way of reading: it needs none of the store's writing.

mod apply;
mod approle;
mod audit;
mod backoff;
mod call;
mod codec;
mod commit;
mod cost;
mod decisions;
mod deployed;
mod devices;
mod fault;
mod flow;
mod handle;
mod leases;
mod load;
mod nonces;
mod open;
mod outbox;
mod paths;
mod probe;
mod query;
mod reading;
mod registry;
pub(crate) mod revision;
mod settings;
pub mod snapshots;
mod stored;
mod timers;
mod transfer;
mod turn;
mod visitors;
mod writes;

pub use cost::Cost;
pub use open::{FirestoreStore, OpenError};
pub use probe::{Probe, ProbeError};
pub use settings::{FirestoreSettings, PRODUCTION};
pub use visitors::{Access, Bearer, Visitor};
