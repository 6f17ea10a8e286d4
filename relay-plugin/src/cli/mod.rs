//! The command line: what can be asked, and who answers. One file per command.
//!
//! A command is a variant of `Command`, a file here with its arguments and a `run`, and a variant of [`CliError`].
//! Standard output is for results, standard error for logs and problems.

pub mod admin;
pub mod audit;
pub mod client;
pub mod device;
pub mod doctor;
pub mod group;
pub mod import;
pub mod operate;
pub mod serve;
pub mod store;
pub mod values;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::{
    config::{Config, Environment, ValidatedConfig},
    hardening,
    quickstart::{self, DevProofArgs, QuickstartArgs},
    service::ServiceFactory,
    telemetry,
};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "keyturn",
    version,
    about = "Rotates client secrets over MLS, inside a Nostr relay"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the relay with the rotation service
    Serve {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Enrol, list and revoke admins
    #[command(subcommand)]
    Admin(admin::AdminCommand),
    /// Register, list and show clients
    #[command(subcommand)]
    Client(client::ClientCommand),
    /// Say which devices get a secret_id over MQTT
    #[command(subcommand)]
    Device(device::DeviceCommand),
    /// Bind admin groups to aliases
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// Check the audit trail for what was removed or edited, and export it
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Move everything from one store to another
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Look at configuration, store, keys, issuer, clock and ports: what is wrong, and how to mend it
    Doctor(doctor::DoctorArgs),
    /// Watch a real rotation on this machine, with everything it needs
    Quickstart(QuickstartArgs),
    /// Sign a proof with the quickstart's development key
    #[command(hide = true)]
    DevProof(DevProofArgs),
}

/// Where the configuration is.
#[derive(Debug, clap::Args)]
pub struct ConfigFile {
    /// The configuration file; keyturn.example.toml documents every key
    #[arg(long = "config", value_name = "FILE")]
    path: PathBuf,
}

impl ConfigFile {
    /// Reads it and sets up logging as it says.
    pub fn load(&self) -> Result<ValidatedConfig, CliError> {
        let config = Config::load(&self.path, Environment::from_process())?;
        telemetry::init(&config.log)?;
        Ok(config)
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// Logging could not be set up.
    #[error(transparent)]
    Telemetry(#[from] telemetry::TelemetryError),
    /// The process could not be closed off.
    #[error(transparent)]
    Hardening(#[from] hardening::HardeningError),
    /// Something chose a TLS provider before us.
    #[error("a TLS provider is installed already")]
    Tls,
    /// `serve` failed.
    #[error(transparent)]
    Serve(#[from] serve::ServeError),
    /// An operator's command changed nothing.
    #[error(transparent)]
    Operator(#[from] crate::operator::OperatorError),
    /// `doctor` found something, or could not report.
    #[error(transparent)]
    Doctor(#[from] doctor::DoctorError),
    /// `quickstart` failed, or did not show what it promises.
    #[error(transparent)]
    Quickstart(#[from] quickstart::QuickstartError),
}

impl CliError {
    /// 4 for two stores that contradict each other, 3 for an audit trail that was touched, 2 for what the operator has to change in the configuration, 1 for everything else.
    const fn exit_code(&self) -> u8 {
        match self {
            Self::Operator(crate::operator::OperatorError::Copy(error))
                if error.is_contradiction() =>
            {
                4
            }
            Self::Operator(crate::operator::OperatorError::Touched(_)) => 3,
            Self::Config(_) | Self::Operator(crate::operator::OperatorError::Config(_)) => 2,
            Self::Telemetry(_)
            | Self::Hardening(_)
            | Self::Tls
            | Self::Serve(_)
            | Self::Operator(_)
            | Self::Doctor(_)
            | Self::Quickstart(_) => 1,
        }
    }
}

/// Parses the arguments of this process, runs the command, and reports. `core` makes the service that `serve` runs.
pub fn main(core: impl FnOnce() -> Box<dyn ServiceFactory>) -> ExitCode {
    match run(Cli::parse().command, core) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may not be set up yet, and a broken pipe leaves nobody to tell.
            let _ = writeln!(io::stderr(), "keyturn: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: Command, core: impl FnOnce() -> Box<dyn ServiceFactory>) -> Result<(), CliError> {
    // Before any secret is read.
    hardening::close_off_memory()?;
    // Two providers are in the dependency graph; without a choice, the first TLS connection would panic.
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| CliError::Tls)?;
    match command {
        Command::Serve { config } => Ok(serve::run(config.load()?, core())?),
        Command::Admin(command) => admin::run(command),
        Command::Client(command) => client::run(command),
        Command::Device(command) => device::run(command),
        Command::Group(command) => group::run(command),
        Command::Audit(command) => audit::run(command),
        Command::Store(command) => store::run(command),
        Command::Doctor(args) => doctor::run(&args),
        Command::Quickstart(args) => Ok(quickstart::run(args, core())?),
        Command::DevProof(args) => Ok(quickstart::dev_proof(&args)?),
    }
}
