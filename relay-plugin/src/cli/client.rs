//! `keyturn client`: the clients whose secrets rotate.

use clap::{Args, Subcommand};
use keyturn_proto::ClientId;
use keyturn_store::documents::ClientStatus;

use super::operate::{self, Operator, or_dash, word};
use super::{CliError, ConfigFile};
use crate::operator::OperatorError;
use crate::operator::clients::{self, ClientDetail, ClientView};

/// What to do with clients.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Register a client. It gets its first secret by its first rotation
    Add(Add),
    /// Bring in a client together with the secret it has today, or its bcrypt hash. Never give a secret as an argument
    Import(super::import::Import),
    /// List the clients
    List(Listing),
    /// Show one client: versions, states, windows, active rotation; never a hash
    Show(Show),
    /// Take a client out of service: nothing verifies, and no rotation begins until it is activated again
    Suspend(Named),
    /// Put a suspended client back into service
    Activate(Named),
    /// Take a client out of service for good
    Revoke(Named),
}

/// `client add`.
#[derive(Debug, Args)]
pub struct Add {
    #[command(flatten)]
    config: ConfigFile,
    /// The OAuth2 client id or consumer name
    client_id: ClientId,
    /// Alias of an admin group that may rotate it and reads its secrets (see `keyturn group`); repeat for more
    #[arg(long = "group", value_name = "ALIAS", required = true)]
    groups: Vec<String>,
}

/// `client list`, `group list`, `admin list`.
#[derive(Debug, Args)]
pub struct Listing {
    #[command(flatten)]
    pub(super) config: ConfigFile,
    /// One JSON document on standard output
    #[arg(long)]
    pub(super) json: bool,
}

/// `client show`.
#[derive(Debug, Args)]
pub struct Show {
    #[command(flatten)]
    config: ConfigFile,
    /// The client
    client_id: ClientId,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
}

/// A client by its id.
#[derive(Debug, Args)]
pub struct Named {
    #[command(flatten)]
    config: ConfigFile,
    /// The client
    client_id: ClientId,
}

/// Runs it.
pub fn run(command: ClientCommand) -> Result<(), CliError> {
    match command {
        ClientCommand::Add(Add {
            config,
            client_id,
            groups,
        }) => operate::run(&config, async |op| {
            clients::add(op.store, client_id.clone(), groups, op.now).await?;
            Ok(writeln!(
                op.out,
                "added {client_id}; its first rotation gives it a secret"
            )?)
        }),
        ClientCommand::Import(args) => super::import::run(&args),
        ClientCommand::List(args) => {
            operate::run(&args.config, async |op| list(op, args.json).await)
        }
        ClientCommand::Show(args) => operate::run(&args.config, async |op| show(op, &args).await),
        ClientCommand::Suspend(named) => set_status(&named, ClientStatus::Suspended),
        ClientCommand::Activate(named) => set_status(&named, ClientStatus::Active),
        ClientCommand::Revoke(named) => set_status(&named, ClientStatus::Revoked),
    }
}

fn set_status(named: &Named, status: ClientStatus) -> Result<(), CliError> {
    operate::run(&named.config, async |op| {
        clients::set_status(op.store, &named.client_id, status, op.now).await?;
        Ok(writeln!(
            op.out,
            "{} is {}",
            named.client_id,
            word(&status)
        )?)
    })
}

async fn list(operator: &mut Operator<'_>, json: bool) -> Result<(), OperatorError> {
    let clients = clients::list(operator.store).await?;
    if json {
        return operator.json(&clients);
    }
    for client in &clients {
        line(operator, client)?;
    }
    Ok(())
}

async fn show(operator: &mut Operator<'_>, args: &Show) -> Result<(), OperatorError> {
    let detail = clients::show(operator.store, &args.client_id).await?;
    if args.json {
        return operator.json(&detail);
    }
    let ClientDetail { client, versions } = &detail;
    line(operator, client)?;
    for version in versions {
        let until = version
            .not_after
            .map_or_else(|| "open".to_owned(), operate::time);
        writeln!(
            operator.out,
            "  {}  {}  from {}  until {until}  {}",
            version.version_id,
            word(&version.state),
            operate::time(version.not_before),
            version.reason,
        )?;
    }
    Ok(())
}

fn line(operator: &mut Operator<'_>, client: &ClientView) -> Result<(), OperatorError> {
    let held = if client.held { " by the operator" } else { "" };
    writeln!(
        operator.out,
        "{}  {}{held}  groups {}  current {}  previous {}  rotation {}",
        client.client_id,
        word(&client.status),
        client.admin_groups.join(" "),
        or_dash(client.current_version.as_ref()),
        or_dash(client.previous_version.as_ref()),
        or_dash(client.active_rotation.as_ref()),
    )?;
    Ok(())
}
