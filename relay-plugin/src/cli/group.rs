//! `keyturn group`: the operator's registry of admin groups.
//!
//! An alias binds to a group only here; names and ids inside a group never bind.

use clap::{Args, Subcommand};
use keyturn_proto::{MlsGroupId, Npub};
use keyturn_store::documents::GroupState;
use nostr::PublicKey;

use super::client::Listing;
use super::operate::{self, Operator, or_dash};
use super::{CliError, ConfigFile, values};
use crate::operator::OperatorError;
use crate::operator::groups::{self, Binding};

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
    #[command(flatten)]
    config: ConfigFile,
    /// The name that clients and audit records use
    alias: String,
    /// MLS group id, hex. Without it: the first group that a welcomer lets the relay into
    #[arg(long, value_name = "HEX")]
    mls_group_id: Option<MlsGroupId>,
    /// nostr_group_id, 64 hex digits: the `h` tag of its events
    #[arg(long, value_name = "HEX", value_parser = values::hex_32)]
    nostr_group_id: Option<[u8; 32]>,
    /// Who may welcome the relay into it, npub or hex; repeat for more
    #[arg(long = "welcomer", value_name = "NPUB", required = true, value_parser = values::public_key)]
    welcomers: Vec<PublicKey>,
}

/// A group by its alias.
#[derive(Debug, Args)]
pub struct Alias {
    #[command(flatten)]
    config: ConfigFile,
    /// The name it is bound to
    alias: String,
}

/// Runs it.
pub fn run(command: GroupCommand) -> Result<(), CliError> {
    match command {
        GroupCommand::Bind(args) => operate::run(&args.config, async |op| bind(op, &args).await),
        GroupCommand::List(args) => {
            operate::run(&args.config, async |op| list(op, args.json).await)
        }
        GroupCommand::Approve(args) => operate::run(&args.config, async |op| {
            groups::approve(op.store, &args.alias, op.now).await?;
            Ok(writeln!(op.out, "{} is served", args.alias)?)
        }),
        GroupCommand::Suspend(args) => operate::run(&args.config, async |op| {
            groups::suspend(op.store, &args.alias, op.now).await?;
            Ok(writeln!(op.out, "{} is suspended", args.alias)?)
        }),
    }
}

async fn bind(operator: &mut Operator<'_>, args: &Bind) -> Result<(), OperatorError> {
    let binding = Binding {
        alias: args.alias.clone(),
        mls_group_id: args.mls_group_id.clone(),
        nostr_group_id: args.nostr_group_id,
        welcomers: args
            .welcomers
            .iter()
            .map(|key| Npub::from_bytes(key.to_bytes()))
            .collect(),
    };
    groups::bind(operator.store, binding, operator.now).await?;
    Ok(writeln!(operator.out, "bound {}", args.alias)?)
}

async fn list(operator: &mut Operator<'_>, json: bool) -> Result<(), OperatorError> {
    let groups = groups::list(operator.store).await?;
    if json {
        return operator.json(&groups);
    }
    for group in &groups {
        let state = match &group.status {
            GroupState::Active => "served".to_owned(),
            GroupState::Suspended { reason } => format!("suspended: {reason}"),
        };
        let welcomers: Vec<_> = group.welcomers.iter().map(ToString::to_string).collect();
        writeln!(
            operator.out,
            "{}  {state}  mls {}  nostr {}  welcomers {}",
            group.alias,
            or_dash(group.mls_group_id.as_ref()),
            or_dash(group.nostr_group_id.as_ref()),
            welcomers.join(" "),
        )?;
    }
    Ok(())
}
