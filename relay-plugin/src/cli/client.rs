//! `keyturn client`: the clients whose secrets rotate. Arguments.

use clap::{Args, Subcommand};

/// What to do with clients.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Register a client. It gets its first secret by its first rotation
    Add(Add),
    /// List the clients
    List(Listing),
    /// Show one client: versions, states, windows, active rotation; never a hash
    Show(Show),
}

/// `client add`.
#[derive(Debug, Args)]
pub struct Add {
    /// The OAuth2 client id or consumer name
    pub client_id: String,
    /// Alias of an admin group that may rotate it and reads its secrets (see `keyturn group`); repeat for more
    #[arg(long = "group", value_name = "ALIAS", required = true)]
    pub groups: Vec<String>,
}

/// `client list`, `group list`, `admin list`.
#[derive(Debug, Args)]
pub struct Listing {
    /// One JSON document on standard output
    #[arg(long)]
    pub json: bool,
}

/// `client show`.
#[derive(Debug, Args)]
pub struct Show {
    /// The client
    pub client_id: String,
    /// One JSON document on standard output
    #[arg(long)]
    pub json: bool,
}
