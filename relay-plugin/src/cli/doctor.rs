//! `keyturn doctor`: says what is wrong and how to mend it.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use keyturn_proto::UnixMs;
use keyturn_store::firestore::Bearer;
use zeroize::Zeroizing;

use super::{CliError, ConfigFile};
use crate::config::{Config, Environment};
use crate::doctor::{self, Level, Report, Subject, Visitors};
use crate::telemetry;

/// `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// One JSON document on standard output: {"ok": …, "findings": […]}
    #[arg(long)]
    json: bool,
    /// Try the security rules as this Firebase Auth user, who is no auditor: a file with its id token
    #[arg(long, value_name = "FILE")]
    user_token: Option<PathBuf>,
    /// The same as an auditor
    #[arg(long, value_name = "FILE")]
    auditor_token: Option<PathBuf>,
    /// Try the rights of the verifier's account: a file with an access token of it
    #[arg(long, value_name = "FILE")]
    verifier_token: Option<PathBuf>,
}

/// Why `doctor` did not end well.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    /// At least one check failed; the report is on standard output.
    #[error("{0} findings to mend")]
    Unwell(usize),
    /// A token cannot be read.
    #[error("{} cannot be read as a token: {cause}", path.display())]
    Token {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The report could not be made or written.
    #[error("cannot report: {0}")]
    Report(#[from] io::Error),
}

/// Runs it.
pub fn run(args: &DoctorArgs) -> Result<(), CliError> {
    let visitors = Visitors {
        user: token(args.user_token.as_deref())?,
        auditor: token(args.auditor_token.as_deref())?,
        verifier: token(args.verifier_token.as_deref())?,
    };
    let report = match Config::load(&args.config.path, Environment::from_process()) {
        Ok(config) => {
            telemetry::init(&config.log)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(DoctorError::Report)?;
            let subject = Subject {
                path: &args.config.path,
                config: &config,
                now: now(),
            };
            runtime.block_on(doctor::examine_with(subject, visitors))
        }
        Err(error) => doctor::unloadable(&error),
    };
    write(&report, args.json).map_err(DoctorError::Report)?;
    match report.count(Level::Fail) {
        0 => Ok(()),
        fails => Err(DoctorError::Unwell(fails).into()),
    }
}

fn token(path: Option<&Path>) -> Result<Option<Bearer>, DoctorError> {
    let Some(path) = path else { return Ok(None) };
    let failed = |cause| DoctorError::Token {
        path: path.to_owned(),
        cause,
    };
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(failed)?);
    let token = Bearer::parse(&text);
    let wrong = || failed(io::Error::new(io::ErrorKind::InvalidData, "no token"));
    token.map(Some).ok_or_else(wrong)
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
