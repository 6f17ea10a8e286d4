//! `keyturn store`: everything, from one store to another.
//!
//! Exit codes of `copy`: 0 copied and verified, 4 the two stores contradict each other, 1 it could not be done; the same command goes on.

use std::io::{self, IsTerminal as _, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use keyturn_store::firestore::{FirestoreSettings, FirestoreStore};
use keyturn_store::mac::cloud_kms::Endpoint;
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::transfer::{self, Options, Report, Transfer};

use super::CliError;
use super::operate::now;
use crate::config;
use crate::operator::OperatorError;

/// The longest that one page may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What to do with whole stores.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Copy everything into an empty store and compare both; run it again to go on after an interruption
    Copy(Copy),
}

/// `store copy`.
#[derive(Debug, Args)]
pub struct Copy {
    /// The source: sqlite:PATH or firestore:PROJECT/DATABASE. Every relay on it must be stopped
    #[arg(long, value_name = "STORE")]
    from: Place,
    /// The destination, likewise
    #[arg(long, value_name = "STORE")]
    to: Place,
    /// Where Firestore is, if not at its usual address: `https://HOST[:PORT]`, or `http://127.0.0.1:PORT` for the emulator
    #[arg(long, value_name = "URL")]
    endpoint: Option<Endpoint>,
    /// Compare and count; write nothing
    #[arg(long)]
    dry_run: bool,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
}

/// A store on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file.
    Sqlite(PathBuf),
    /// A database.
    Firestore {
        /// Its project.
        project: String,
        /// Its id.
        database: String,
    },
}

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// A dry run: nothing of it may change.
    Look,
    /// Everything is read; a file is brought to the newest schema first.
    Empty,
    /// Everything is written.
    Fill,
}

/// A text that names no store.
#[derive(Debug, thiserror::Error)]
#[error("neither sqlite:PATH nor firestore:PROJECT/DATABASE")]
pub struct NoPlace;

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        match text.split_once(':') {
            Some(("sqlite", path)) if !path.is_empty() => Ok(Self::Sqlite(path.into())),
            Some(("firestore", place)) => {
                let (project, database) = place.split_once('/').ok_or(NoPlace)?;
                Ok(Self::Firestore {
                    project: config::store_project(project).ok_or(NoPlace)?,
                    database: config::store_database(database).ok_or(NoPlace)?,
                })
            }
            _ => Err(NoPlace),
        }
    }
}

impl Place {
    /// Opens it. A file that is not there is made only to write to it, and one that is only looked at is not even brought to the newest schema.
    async fn open(
        &self,
        endpoint: Option<&Endpoint>,
        purpose: Purpose,
    ) -> Result<Arc<dyn Transfer>, OperatorError> {
        match self {
            Self::Sqlite(path) => {
                if purpose != Purpose::Fill {
                    std::fs::metadata(path).map_err(|cause| OperatorError::File {
                        path: path.clone(),
                        cause,
                    })?;
                }
                let store = match purpose {
                    Purpose::Look => SqliteStore::open_to_look(path),
                    Purpose::Empty | Purpose::Fill => SqliteStore::open(path),
                };
                let store = store.map_err(crate::store::OpenError::from)?;
                Ok(Arc::new(store))
            }
            Self::Firestore { project, database } => {
                let settings = FirestoreSettings {
                    project: project.clone(),
                    database: database.clone(),
                    endpoint: endpoint.cloned(),
                    timeout: TIMEOUT,
                };
                let store = FirestoreStore::open(settings).await;
                Ok(Arc::new(store.map_err(crate::store::OpenError::from)?))
            }
        }
    }
}

/// Runs it.
pub fn run(command: StoreCommand) -> Result<(), CliError> {
    let StoreCommand::Copy(args) = command;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(OperatorError::Runtime)?;
    let report = runtime.block_on(copy(&args))?;
    let mut out = io::stdout().lock();
    print(&mut out, &report, args.json)?;
    Ok(())
}

async fn copy(args: &Copy) -> Result<Report, OperatorError> {
    if args.from == args.to {
        return Err(OperatorError::SameStore);
    }
    let endpoint = args.endpoint.as_ref();
    let as_ours = |purpose| if args.dry_run { Purpose::Look } else { purpose };
    let from = args.from.open(endpoint, as_ours(Purpose::Empty)).await?;
    let to = args.to.open(endpoint, as_ours(Purpose::Fill)).await?;
    let options = Options {
        dry_run: args.dry_run,
        ..Options::at(now())
    };
    let bar = bar();
    let copied = transfer::copy(from.as_ref(), to.as_ref(), options, |progress| {
        bar.set_message(progress.collection);
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        ControlFlow::Continue(())
    });
    let copied = copied.await;
    bar.finish_and_clear();
    Ok(copied?)
}

/// On a terminal only.
fn bar() -> ProgressBar {
    let target = if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(0), target);
    match ProgressStyle::with_template("{msg:20} {bar:40} {pos}/{len}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn print(out: &mut dyn Write, report: &Report, json: bool) -> Result<(), OperatorError> {
    if json {
        serde_json::to_writer_pretty(&mut *out, report)?;
        writeln!(out)?;
        return Ok(out.flush()?);
    }
    let verb = if report.dry_run { "to copy" } else { "copied" };
    for it in &report.collections {
        writeln!(
            out,
            "{:20} {verb} {}, already there {}, verified {}",
            it.collection, it.copied, it.already_there, it.verified
        )?;
    }
    if report.dry_run {
        writeln!(out, "nothing was written")?;
    } else {
        writeln!(out, "audit chains verified: {}", report.chains_verified)?;
    }
    Ok(out.flush()?)
}
