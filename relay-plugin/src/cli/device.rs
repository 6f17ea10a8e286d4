//! `keyturn device`: which devices get a secret_id over MQTT.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use keyturn_proto::device::{DeviceId, IdentityKey, SealingKey, Suite};
use keyturn_store::devices::DevicePolicy;

use super::client::Listing;
use super::operate::{self, Operator, or_dash, word};
use super::{CliError, ConfigFile};
use crate::operator::OperatorError;
use crate::operator::devices::{self, DeviceView, Entry, Which};

/// What to do with devices.
#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// Put a device on the allow-list, or change its role and options
    Allow(Allow),
    /// Take a device off the list; every secret_id that it holds is destroyed by the relay
    Deny(Deny),
    /// Have everything destroyed that devices hold; they stay on the list, and ask again
    Invalidate(Invalidate),
    /// List the devices: role, options, accessor of the secret_id in use; never a secret_id
    List(Listing),
    /// Allow every device of a file of JSON lines, as `device list --json` spells them
    Import(Import),
}

/// `device allow`.
#[derive(Debug, Args)]
pub struct Allow {
    #[command(flatten)]
    config: ConfigFile,
    /// The device, as it stands in its topics
    device_id: DeviceId,
    /// AppRole role that its secret_ids are issued under
    #[arg(long)]
    role: String,
    /// Its Ed25519 public key, base64url: then every message must be signed
    #[arg(long, value_name = "KEY")]
    identity_key: Option<IdentityKey>,
    /// Its X25519 public key, base64url: then what it is sent is sealed to it
    #[arg(long, value_name = "KEY")]
    sealing_key: Option<SealingKey>,
    /// Cipher of sealed commands: x25519-sha256-chacha20poly1305 or x25519-sha256-aes128gcm
    #[arg(long, default_value = Suite::ChaCha20Poly1305.as_str(), requires = "sealing_key")]
    suite: Suite,
    /// Let the broker keep the sealed command, for a device that sleeps
    #[arg(long, requires = "sealing_key")]
    retain: bool,
    /// When it gets a new secret_id
    #[arg(long, value_enum, default_value_t = Policy::OnDemand)]
    policy: Policy,
}

/// See `DevicePolicy`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Policy {
    /// When it asks
    OnDemand,
    /// When it asks, and it is invited to every few hours
    Scheduled,
}

/// `device deny`.
#[derive(Debug, Args)]
pub struct Deny {
    #[command(flatten)]
    config: ConfigFile,
    /// The device
    device_id: DeviceId,
}

/// `device invalidate`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(false))]
pub struct Invalidate {
    #[command(flatten)]
    config: ConfigFile,
    /// The device
    #[arg(group = "which")]
    device_id: Option<DeviceId>,
    /// Every device of this role
    #[arg(long, group = "which")]
    role: Option<String>,
    /// Every device
    #[arg(long, group = "which")]
    all: bool,
}

/// `device import`.
#[derive(Debug, Args)]
pub struct Import {
    #[command(flatten)]
    config: ConfigFile,
    /// The file; - for standard input
    file: PathBuf,
}

/// Runs it.
pub fn run(command: DeviceCommand) -> Result<(), CliError> {
    match command {
        DeviceCommand::Allow(Allow {
            config,
            device_id,
            role,
            identity_key,
            sealing_key,
            suite,
            retain,
            policy,
        }) => operate::run(&config, async |op| {
            let entry = Entry {
                device_id: device_id.clone(),
                role,
                identity_key,
                sealing_key,
                suite,
                retain,
                policy: match policy {
                    Policy::OnDemand => DevicePolicy::OnDemand,
                    Policy::Scheduled => DevicePolicy::Scheduled,
                },
            };
            let changed = devices::allow(op.store, entry, op.now).await?;
            let how = if changed { "" } else { ", as before" };
            Ok(writeln!(op.out, "{device_id} is allowed{how}")?)
        }),
        DeviceCommand::Deny(Deny { config, device_id }) => operate::run(&config, async |op| {
            let changed = devices::deny(op.store, &device_id, op.now).await?;
            let how = if changed {
                "; a running relay destroys what it holds"
            } else {
                ", as before"
            };
            Ok(writeln!(op.out, "{device_id} is denied{how}")?)
        }),
        DeviceCommand::Invalidate(Invalidate {
            config,
            device_id,
            role,
            all: _,
        }) => operate::run(&config, async |op| {
            let which = match (device_id, role) {
                (Some(device), _) => Which::One(device),
                (None, Some(role)) => Which::OfRole(role),
                (None, None) => Which::All,
            };
            let count = devices::invalidate(op.store, &which, op.now).await?;
            Ok(writeln!(
                op.out,
                "{count} devices held something; a running relay destroys it, and they ask again"
            )?)
        }),
        DeviceCommand::List(args) => {
            operate::run(&args.config, async |op| list(op, args.json).await)
        }
        DeviceCommand::Import(Import { config, file }) => operate::run(&config, async |op| {
            let imported = if file.as_os_str() == "-" {
                devices::import(op.store, io::stdin().lock(), op.now).await?
            } else {
                let opened = File::open(&file).map_err(|cause| OperatorError::File {
                    path: file.clone(),
                    cause,
                })?;
                devices::import(op.store, BufReader::new(opened), op.now).await?
            };
            Ok(writeln!(
                op.out,
                "{} devices allowed or changed, {} as before",
                imported.changed, imported.unchanged
            )?)
        }),
    }
}

async fn list(operator: &mut Operator<'_>, json: bool) -> Result<(), OperatorError> {
    let devices = devices::list(operator.store, operator.issuer.as_deref()).await?;
    if json {
        return operator.json(&devices);
    }
    for device in &devices {
        line(operator, device)?;
    }
    Ok(())
}

fn line(operator: &mut Operator<'_>, device: &DeviceView) -> Result<(), OperatorError> {
    let entry = &device.entry;
    let mut options = vec![word(&entry.policy)];
    options.extend(entry.identity_key.as_ref().map(|_| "signed".to_owned()));
    options.extend(entry.sealing_key.as_ref().map(|_| "sealed".to_owned()));
    let until = device
        .expires_at
        .map_or_else(|| "-".to_owned(), operate::time);
    let elsewhere = match &*device.another_issuer {
        [] => String::new(),
        names => format!(", by another issuer: {}", names.join(", ")),
    };
    writeln!(
        operator.out,
        "{}  {}  role {}  {}  accessor {}  until {until}  to destroy {}{elsewhere}",
        entry.device_id,
        word(&device.state),
        entry.role,
        options.join(" "),
        or_dash(device.accessor.as_ref()),
        device.to_destroy,
    )?;
    Ok(())
}
