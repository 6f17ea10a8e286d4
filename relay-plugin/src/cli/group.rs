//! `keyturn group`: the operator's registry of admin groups. Arguments.
//!
//! An alias binds to a group only here; names and ids inside a group never bind.

use clap::{Args, Subcommand};
use nostr::PublicKey;

use super::{client::Listing, values};

/// What to do with groups.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Bind an alias to a group, and say who may welcome the relay into it
    Bind(Bind),
    /// List the bindings and their state
    List(Listing),
    /// Let a suspended group act again, after looking at its roster
    Approve(Alias),
    /// Take a group out of service: nothing is sealed in it, no request from it counts
    Suspend(Alias),
}

/// `group bind`.
#[derive(Debug, Args)]
pub struct Bind {
    /// The name that clients and audit records use
    pub alias: String,
    /// MLS group id, hex
    #[arg(long, value_name = "HEX", value_parser = values::hex_bytes)]
    pub mls_group_id: values::Hex,
    /// nostr_group_id, 64 hex digits: the `h` tag of its events
    #[arg(long, value_name = "HEX", value_parser = values::hex_32)]
    pub nostr_group_id: [u8; 32],
    /// Who may welcome the relay into it, npub or hex; repeat for more
    #[arg(long = "welcomer", value_name = "NPUB", required = true, value_parser = values::public_key)]
    pub welcomers: Vec<PublicKey>,
}

/// A group by its alias.
#[derive(Debug, Args)]
pub struct Alias {
    /// The name it is bound to
    pub alias: String,
}
