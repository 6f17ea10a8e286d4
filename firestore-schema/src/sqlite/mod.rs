//! The embedded store: one SQLite file, several processes.
//!
//! What must always hold:
//! - every port method is one `BEGIN IMMEDIATE` transaction, so that what the lifecycle judged is what is changed, also against another process;
//! - `synchronous=FULL`: what was answered survives a power cut, and nobody sees it before; the one exception is what wants to be told of early ([`crate::store::Early`], `durable.rs`);
//! - the file is readable by its owner only;
//! - errors name kinds of documents and stable causes, never values.
//!
//! Documents are JSON columns; what queries need stands beside them in indexed columns, and partial unique indexes repeat the invariants that SQL
//! can express (one current version, one active rotation per client).

mod apply;
mod approle;
mod audit;
mod devices;
mod durable;
mod error;
mod flow;
mod inspect;
mod load;
mod migrate;
mod open;
mod registry;
mod schema;
mod timers;
mod transfer;
mod worker;

pub use inspect::{Inspection, inspect};
pub use open::{OpenError, SqliteStore};
