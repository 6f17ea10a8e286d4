//! `keyturn doctor`: says what is wrong and how to mend it.

use std::io::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use keyturn_proto::UnixMs;

use super::{CliError, ConfigFile};
use crate::config::{Config, Environment};
use crate::doctor::{self, Level, Report, Subject};
use crate::telemetry;

/// `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// One JSON document on standard output: {"ok": …, "findings": […]}
    #[arg(long)]
    json: bool,
}

/// Why `doctor` did not end well.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    /// At least one check failed; the report is on standard output.
    #[error("{0} findings to mend")]
    Unwell(usize),
    /// The report could not be made or written.
    #[error("cannot report: {0}")]
    Report(#[from] io::Error),
}

/// Runs it.
pub fn run(args: &DoctorArgs) -> Result<(), CliError> {
    let report = match Config::load(&args.config.path, Environment::from_process()) {
        Ok(config) => {
            telemetry::init(&config.log)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(DoctorError::Report)?;
            runtime.block_on(doctor::examine(Subject {
                path: &args.config.path,
                config: &config,
                now: now(),
            }))
        }
        Err(error) => doctor::unloadable(&error),
    };
    write(&report, args.json).map_err(DoctorError::Report)?;
    match report.count(Level::Fail) {
        0 => Ok(()),
        fails => Err(DoctorError::Unwell(fails).into()),
    }
}

fn write(report: &Report, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        report.write_json(&mut out)?;
    } else {
        report.write_text(&mut out)?;
    }
    out.flush()
}

fn now() -> UnixMs {
    // A clock before 1970 counts as 1970, which the check of the clock finds.
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UnixMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
