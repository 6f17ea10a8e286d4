//! `keyturn audit`: the audit trail, checked and exported.
//!
//! Exit codes of `verify`: 0 nothing was touched, 3 something was, 1 it could not be checked.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use keyturn_proto::{ClientId, UnixMs};
use serde::Serialize;

use super::operate;
use super::{CliError, ConfigFile, values};
use crate::operator::OperatorError;
use crate::operator::trail::{self, ChainReport, Noted, Scope};

/// What to do with the audit trail.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Check every chain: nothing removed, edited, reordered or cut off. Prints the heads, to be noted elsewhere
    Verify(Verify),
    /// Write the trail to standard output, one JSON document per line
    Export(Export),
}

/// `audit verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// The configuration file
    #[arg(long, value_name = "FILE", required_unless_present = "from")]
    config: Option<PathBuf>,
    /// Check an exported file instead of the store
    #[arg(long, value_name = "FILE", conflicts_with_all = ["config", "client"])]
    from: Option<PathBuf>,
    /// The file was exported with --since: its chains begin somewhere
    #[arg(long, requires = "from")]
    partial: bool,
    /// Only the chain of this client: what was planted beside it is found by a check of all chains
    #[arg(long, value_name = "CLIENT_ID")]
    client: Option<ClientId>,
    /// A head noted earlier, CHAIN=SEQ:HASH; repeat for more. Finds a chain that was written anew
    #[arg(long, value_name = "HEAD")]
    expect: Vec<Noted>,
    /// Heads noted earlier: what this command printed, in a file
    #[arg(long, value_name = "FILE")]
    expect_from: Option<PathBuf>,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
}

/// `audit export`.
#[derive(Debug, Args)]
pub struct Export {
    #[command(flatten)]
    config: ConfigFile,
    /// Only what names this client
    #[arg(long, value_name = "CLIENT_ID")]
    client: Option<ClientId>,
    /// Only what happened then or later, RFC 3339
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    since: Option<UnixMs>,
    /// How it is written
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
}

/// How the trail is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One JSON document per line.
    Jsonl,
}

/// Runs it.
pub fn run(command: AuditCommand) -> Result<(), CliError> {
    match command {
        AuditCommand::Verify(args) => verify(&args),
        AuditCommand::Export(Export {
            config,
            client,
            since,
            format: Format::Jsonl,
        }) => operate::run(&config, async |op| {
            let scope = Scope { client, since };
            trail::export(op.store, &scope, op.out).await
        }),
    }
}

fn verify(args: &Verify) -> Result<(), CliError> {
    let mut noted = args.expect.clone();
    if let Some(path) = &args.expect_from {
        noted.extend(notes(path)?);
    }
    match (&args.config, &args.from) {
        (Some(config), _) => {
            let config = ConfigFile {
                path: config.clone(),
            };
            operate::run(&config, async |op| {
                let scope = match &args.client {
                    Some(_) => Looked::Chain,
                    None => Looked::Trail,
                };
                let mut report = Report::new(op.out, args.json, scope);
                match &args.client {
                    Some(client) => {
                        report.add(trail::verify_client(op.store, client, &noted).await?)?;
                    }
                    None => trail::verify_all(op.store, &noted, |chain| report.add(chain)).await?,
                }
                report.end()
            })
        }
        (None, Some(file)) => {
            let failed = |cause| OperatorError::File {
                path: file.clone(),
                cause,
            };
            let lines = BufReader::new(File::open(file).map_err(failed)?);
            let chains = trail::verify_file(lines, args.partial, &noted).map_err(failed)?;
            let mut out = io::stdout().lock();
            let mut report = Report::new(&mut out, args.json, Looked::File);
            for chain in chains {
                report.add(chain)?;
            }
            Ok(report.end()?)
        }
        // The parser asks for one of the two.
        (None, None) => Ok(()),
    }
}

/// The heads in a file: the lines of an earlier report, without what it found.
fn notes(path: &Path) -> Result<Vec<Noted>, OperatorError> {
    let failed = |cause| OperatorError::File {
        path: path.to_owned(),
        cause,
    };
    let mut noted = Vec::new();
    for line in BufReader::new(File::open(path).map_err(failed)?).lines() {
        let line = line.map_err(failed)?;
        if line.is_empty() || line.starts_with(' ') {
            continue;
        }
        let note = line
            .parse()
            .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        noted.push(note);
    }
    Ok(noted)
}

/// What was looked at, and so what `ok` says.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Looked {
    /// Every document of the trail.
    Trail,
    /// The documents of one chain, by their ids. An entry that names its client under another id is none of them.
    Chain,
    /// An exported file.
    File,
}

/// What is printed: chain by chain as text, or all in one JSON document.
struct Report<'a> {
    out: &'a mut dyn Write,
    json: bool,
    looked: Looked,
    chains: Vec<ChainReport>,
    findings: usize,
}

impl<'a> Report<'a> {
    fn new(out: &'a mut dyn Write, json: bool, looked: Looked) -> Self {
        Self {
            out,
            json,
            looked,
            chains: Vec::new(),
            findings: 0,
        }
    }

    fn add(&mut self, chain: ChainReport) -> Result<(), OperatorError> {
        self.findings += chain.findings.len();
        if self.json {
            self.chains.push(chain);
            return Ok(());
        }
        let name = chain.chain.as_deref().unwrap_or(&chain.id);
        match &chain.hash {
            Some(hash) => writeln!(self.out, "{name}={}:{hash}", chain.seq)?,
            None => writeln!(self.out, "  {name}")?,
        }
        for finding in &chain.findings {
            writeln!(self.out, "    {finding}")?;
        }
        Ok(())
    }

    fn end(self) -> Result<(), OperatorError> {
        #[derive(Serialize)]
        struct Whole<'a> {
            ok: bool,
            looked_at: Looked,
            chains: &'a [ChainReport],
        }
        if self.json {
            let whole = Whole {
                ok: self.findings == 0,
                looked_at: self.looked,
                chains: &self.chains,
            };
            serde_json::to_writer_pretty(&mut *self.out, &whole)?;
            writeln!(self.out)?;
        } else if self.looked == Looked::Chain {
            // Indented, as what is no head: who keeps the heads keeps it, too.
            writeln!(
                self.out,
                "  only this chain was looked at; entries planted under other ids are found without --client"
            )?;
        }
        self.out.flush()?;
        match self.findings {
            0 => Ok(()),
            count => Err(OperatorError::Touched(count)),
        }
    }
}
