//! The audit trail as chains: each entry commits to the one before, so that a record that was removed, edited or moved is found.
//!
//! Every client has a chain of its own; what names no client goes to the chain of the instance that wrote it. So no document is shared by all, and
//! two clients never wait for each other. Pure: a backend loads the heads that [`chains_of`] names, asks [`seal`], and writes entries and heads in
//! the very transaction of the change they tell of.
//!
//! What must always hold:
//! - an entry is created once: its document id is its place in the chain, so of two writers who saw the same head one fails and judges again;
//! - the head names the last entry, so a tail that was cut off is missed; who notes heads elsewhere also finds a chain that was written anew;
//! - the same change sealed on the same head gives the same hashes, so that a commit whose outcome is unknown is settled by reading one entry.
//!
//! What is hashed is documented in [`encode`]; `vectors/audit-chain.json` holds a worked example for other languages.

mod chain;
pub mod encode;
pub mod events;
mod seal;
pub mod vector;
mod verify;

pub use chain::{
    Chain, GENESIS, Instance, InvalidInstance, chain_id, chain_of, entry_id, is_chain_id, place,
};
pub use seal::{Sealed, chains_of, differences, seal};
pub use verify::{ChainCheck, Finding, verify_chain};
