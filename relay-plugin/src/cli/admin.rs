//! `keyturn admin`: who may ask for rotations.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use keyturn_proto::{ClientId, Npub};
use keyturn_store::documents::ClientScope;
use nostr::PublicKey;
use serde::Serialize;

use super::client::Listing;
use super::operate::{self, Operator};
use super::{CliError, ConfigFile, values};
use crate::operator::admins::{self, AdminView, Enrolled, Enrolment, Withdrawn};
use crate::operator::{OperatorError, proofs, qr};

/// What to do with admins.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Enrol an admin, or change an enrolment; prints the otpauth URI and its QR code once
    Enroll(Enroll),
    /// List the admins
    List(Listing),
    /// Revoke an admin at once
    Revoke(Revoke),
}

/// `admin enroll`.
#[derive(Debug, Args)]
pub struct Enroll {
    #[command(flatten)]
    config: ConfigFile,
    /// npub or hex
    #[arg(value_parser = values::public_key)]
    npub: PublicKey,
    /// A client the admin may touch; repeat for more. Without it: every client of the groups the admin is in
    #[arg(long = "client", value_name = "CLIENT_ID")]
    clients: Vec<ClientId>,
    /// A key package event of the admin's (JSON), which proves an MLS key; repeat for more. Published ones are found by themselves
    #[arg(long, value_name = "FILE")]
    key_package: Vec<PathBuf>,
    /// A signed binding event of the admin's (JSON), which proves an MLS key after a change; repeat for more
    #[arg(long, value_name = "FILE")]
    binding: Vec<PathBuf>,
    /// Make a new TOTP seed for an admin that has one; the old one stops working
    #[arg(long)]
    new_seed: bool,
    /// What the authenticator app shows as the issuer
    #[arg(long, value_name = "NAME", default_value = "Keyturn")]
    issuer: String,
    /// One JSON document on standard output, without the QR code
    #[arg(long)]
    json: bool,
}

/// `admin revoke`.
#[derive(Debug, Args)]
pub struct Revoke {
    #[command(flatten)]
    config: ConfigFile,
    /// npub or hex
    #[arg(value_parser = values::public_key)]
    npub: PublicKey,
}

/// Runs it.
pub fn run(command: AdminCommand) -> Result<(), CliError> {
    match command {
        AdminCommand::Enroll(args) => {
            operate::run(&args.config, async |op| enroll(op, &args).await)
        }
        AdminCommand::List(args) => {
            operate::run(&args.config, async |op| list(op, args.json).await)
        }
        AdminCommand::Revoke(args) => operate::run(&args.config, async |op| {
            let npub = npub(&args.npub);
            let withdrawn = admins::revoke(op.store, &npub, op.now).await?;
            writeln!(op.out, "revoked {npub}")?;
            tell(op, &withdrawn)
        }),
    }
}

fn npub(key: &PublicKey) -> Npub {
    Npub::from_bytes(key.to_bytes())
}

async fn enroll(operator: &mut Operator<'_>, args: &Enroll) -> Result<(), OperatorError> {
    let npub = npub(&args.npub);
    let mut keys = Vec::new();
    for file in &args.key_package {
        keys.push(proofs::key_package(file, &npub, operator.now)?);
    }
    for file in &args.binding {
        keys.push(proofs::binding(file, &npub, operator.now)?);
    }
    let scope = match args.clients.as_slice() {
        [] => ClientScope::All,
        clients => ClientScope::Only(clients.to_vec()),
    };
    let enrolment = Enrolment {
        npub,
        scope,
        keys,
        new_seed: args.new_seed,
        issuer: args.issuer.clone(),
    };
    let seed_key = (operator.seed_key)()?;
    let enrolled = admins::enrol(operator.store, &seed_key, enrolment, operator.now).await?;
    show(operator, npub, &enrolled, args.json)
}

/// Says which rotations ended because this admin can read their secret.
fn tell(operator: &mut Operator<'_>, withdrawn: &[Withdrawn]) -> Result<(), OperatorError> {
    for Withdrawn {
        rotation_id,
        client_id,
    } in withdrawn
    {
        writeln!(
            operator.out,
            "canceled rotation {rotation_id} of {client_id}: its pending secret was sealed for this admin; ask for another one"
        )?;
    }
    Ok(())
}

/// The one place where a TOTP seed is shown.
fn show(
    operator: &mut Operator<'_>,
    npub: Npub,
    enrolled: &Enrolled,
    json: bool,
) -> Result<(), OperatorError> {
    #[derive(Serialize)]
    struct Shown<'a> {
        npub: Npub,
        otpauth: Option<&'a str>,
        withdrawn: &'a [Withdrawn],
    }
    let otpauth = enrolled.otpauth.as_ref().map(|uri| uri.as_str());
    if json {
        return operator.json(&Shown {
            npub,
            otpauth,
            withdrawn: &enrolled.withdrawn,
        });
    }
    tell(operator, &enrolled.withdrawn)?;
    let Some(uri) = otpauth else {
        let note = "its TOTP seed stays; --new-seed replaces it";
        return Ok(writeln!(operator.out, "changed {npub} ({note})")?);
    };
    writeln!(
        operator.out,
        "enrolled {npub}\n\nScan this with an authenticator app. It is not shown again.\n"
    )?;
    writeln!(operator.out, "{}\n\n{uri}", qr::render(uri)?.as_str())?;
    Ok(())
}

async fn list(operator: &mut Operator<'_>, json: bool) -> Result<(), OperatorError> {
    let admins = admins::list(operator.store).await?;
    if json {
        return operator.json(&admins);
    }
    for admin in &admins {
        let AdminView {
            npub,
            active,
            scope,
            signature_keys,
            totp,
            locked_until,
            ..
        } = admin;
        let scope = match scope {
            ClientScope::All => "all clients".to_owned(),
            ClientScope::Only(clients) => clients
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" "),
        };
        let state = if *active { "active" } else { "revoked" };
        let totp = match locked_until.filter(|until| *until > operator.now) {
            Some(until) => format!("totp locked until {}", operate::time(until)),
            None if *totp => "totp".to_owned(),
            None => "no totp".to_owned(),
        };
        let keys = signature_keys.len();
        writeln!(
            operator.out,
            "{npub}  {state}  {totp}  {keys} proven keys  {scope}"
        )?;
    }
    Ok(())
}
