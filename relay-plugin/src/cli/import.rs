//! `keyturn client import`: a client moves over with the secret it has today.
//!
//! What must always hold: a secret comes from a file that others cannot read, or through a pipe; never from an argument, which every process of the
//! machine can see; and it is repeated nowhere.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use clap::Args;
use keyturn_proto::{ClientId, VersionId};
use serde::Serialize;
use zeroize::Zeroizing;

use super::operate::{self, Operator};
use super::{CliError, ConfigFile};
use crate::config::read_private;
use crate::operator::OperatorError;
use crate::operator::import::lines::Report;
use crate::operator::import::{Entry, Imported, Importer, Material};

/// One secret or one hash, and a line break.
const MAX_ONE: u64 = 4096;
/// Some hundred thousand clients. The whole file is in memory, and wiped afterwards.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// `client import`.
#[derive(Debug, Args)]
pub struct Import {
    #[command(flatten)]
    config: ConfigFile,
    /// The OAuth2 client id or consumer name
    #[arg(required_unless_present = "from", conflicts_with = "from")]
    client_id: Option<ClientId>,
    /// Alias of an admin group that may rotate it and reads its secrets; repeat for more
    #[arg(
        long = "group",
        value_name = "ALIAS",
        required_unless_present = "from",
        conflicts_with = "from"
    )]
    groups: Vec<String>,
    #[command(flatten)]
    input: Input,
    /// Look and compare, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// One JSON object per client on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// A file of mode 0600 with the secret
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// The secret comes through a pipe
    #[arg(long)]
    secret_stdin: bool,
    /// A file of mode 0600 with the bcrypt hash of the secret ($2a$, $2b$ or $2y$, cost 4 to 15)
    #[arg(long, value_name = "FILE")]
    bcrypt_file: Option<PathBuf>,
    /// A file of mode 0600 with a JSON object per line: client_id, groups, and secret or bcrypt. Run it again to finish what was left
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
}

/// What became of one client.
#[derive(Serialize)]
struct Shown {
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    client_id: Option<ClientId>,
    result: &'static str,
    version_id: Option<VersionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<&'static str>,
}

/// Runs it.
pub fn run(args: &Import) -> Result<(), CliError> {
    operate::run(&args.config, async |op| {
        let mac = (op.mac)()?;
        let importer = Importer::new(op.store, mac.as_ref(), op.now, args.dry_run);
        match (&args.input.from, &args.client_id) {
            (Some(file), _) => many(op, &importer, file, args.json).await,
            (None, Some(client_id)) => one(op, &importer, client_id, args).await,
            // The parser demands one of the two.
            (None, None) => Err(OperatorError::NotReadable("no client is named".to_owned())),
        }
    })
}

async fn one(
    op: &mut Operator<'_>,
    importer: &Importer<'_>,
    client_id: &ClientId,
    args: &Import,
) -> Result<(), OperatorError> {
    let entry = Entry {
        client_id: client_id.clone(),
        groups: args.groups.clone(),
        material: material(&args.input)?,
    };
    let imported = importer.import(&entry).await?;
    let (result, version_id) = word(imported);
    let shown = Shown {
        line: None,
        client_id: Some(entry.client_id),
        result,
        version_id,
        reason: None,
        warning: entry.material.warning(),
    };
    show(op, &shown, args.json)
}

async fn many(
    op: &mut Operator<'_>,
    importer: &Importer<'_>,
    file: &Path,
    json: bool,
) -> Result<(), OperatorError> {
    let bytes = read_private(file, MAX_FILE).map_err(OperatorError::NotReadable)?;
    let (mut lines, mut refused) = (0, 0);
    let report = |report: Report| {
        lines += 1;
        let (result, version_id, reason) = match report.result {
            Ok(imported) => {
                let (result, version) = word(imported);
                (result, version, None)
            }
            Err(error) => {
                refused += 1;
                ("refused", None, Some(error.to_string()))
            }
        };
        let shown = Shown {
            line: Some(report.line),
            client_id: report.client_id,
            result,
            version_id,
            reason,
            warning: report.warning,
        };
        show(op, &shown, json)
    };
    importer.import_lines(&bytes, report).await?;
    if refused > 0 {
        return Err(OperatorError::LinesLeft { refused, lines });
    }
    Ok(())
}

const fn word(imported: Imported) -> (&'static str, Option<VersionId>) {
    match imported {
        Imported::Now(version) => ("imported", Some(version)),
        Imported::Already(version) => ("already imported", Some(version)),
        Imported::Would => ("would be imported", None),
    }
}

fn show(op: &mut Operator<'_>, shown: &Shown, json: bool) -> Result<(), OperatorError> {
    if json {
        serde_json::to_writer(&mut *op.out, shown)?;
        return Ok(writeln!(op.out)?);
    }
    if let Some(line) = shown.line {
        write!(op.out, "line {line}  ")?;
    }
    let client = shown.client_id.as_ref();
    write!(op.out, "{}  {}", operate::or_dash(client), shown.result)?;
    if let Some(version) = shown.version_id {
        write!(op.out, "  version {version}")?;
    }
    if let Some(reason) = &shown.reason {
        write!(op.out, ": {reason}")?;
    }
    if let Some(warning) = shown.warning {
        write!(op.out, "  (warning: {warning})")?;
    }
    Ok(writeln!(op.out)?)
}

fn material(input: &Input) -> Result<Material, OperatorError> {
    let (bytes, is_bcrypt) = match (&input.secret_file, &input.bcrypt_file) {
        (Some(path), _) => (read_private(path, MAX_ONE), false),
        (None, Some(path)) => (read_private(path, MAX_ONE), true),
        (None, None) => (from_pipe(), false),
    };
    let bytes = bytes.map_err(OperatorError::NotReadable)?;
    Ok(Material::of_bytes(&bytes, is_bcrypt)?)
}

fn from_pipe() -> Result<Zeroizing<Vec<u8>>, String> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err("a terminal would show the secret: pipe it in".to_owned());
    }
    let unreadable = |error: io::Error| format!("cannot read standard input: {error}");
    // Past the handle's own buffer, which nobody wipes; and into room for all of it, since a vector that grows leaves copies behind.
    let mut raw = File::from(stdin.as_fd().try_clone_to_owned().map_err(unreadable)?);
    let room = usize::try_from(MAX_ONE).unwrap_or(usize::MAX);
    let mut bytes = Zeroizing::new(vec![0u8; room]);
    let mut filled = 0;
    while filled < room {
        match raw.read(&mut bytes[filled..]) {
            Ok(0) => {
                bytes.truncate(filled);
                return Ok(bytes);
            }
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    Err(format!(
        "standard input is longer than {} bytes",
        MAX_ONE - 1
    ))
}
