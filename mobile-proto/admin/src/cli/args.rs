//! The command line. Nothing here takes a secret: a TOTP code is accepted in an argument because it is worthless after one use, and
//! `--totp -` asks for it instead.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use keyturn_proto::{ClientId, Npub, RotationId, UnixMs, VersionId};
use nostr::RelayUrl;

/// Shown below `--help`; tested against [`super::exit::Exit`].
pub const EXIT_CODES: &str = "\
Exit codes:
   0  done
   2  usage: the command line is wrong
   3  refused: unauthorized_request
   4  refused: policy_violation
   5  refused: conflict
   6  refused: not_found
   7  the relay failed: internal_error
   8  the deadline passed
   9  network: relay or service not reachable
  10  local state: home directory, keys, member database, group
  11  no proof, or no challenge
  12  the rotation ended otherwise than asked: expired, canceled, revoked
 130  interrupted";

/// The proof protocol, below `--help` of every command that needs one.
const PROOF_HELP: &str = "\
Proof:
  Every request carries a JWT that your issuer signs for this one request. What the issuer needs is one JSON object:
    {\"nonce\", \"npub\", \"mls_group\", \"aud\", \"action\", \"client_id\", \"action_id\", \"params\"}
  The first four are claims, to be copied as they stand; the rest is for display. `exp - iat` is at most 300 seconds.
  --proof-command  gets the object on stdin and prints the compact JWS on stdout (exit 0). Split at spaces, no shell.
  --proof-file P   the object is written to P.request; the JWS is read from P as soon as it answers this request.";

/// The reference admin app of Keyturn: ask for rotations, take the secret, prove that it arrived.
#[derive(Debug, Parser)]
#[command(name = "keyturn-admin", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// Global options.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Home directory: configuration, keys, encrypted group state.
    #[arg(long, global = true, env = "KEYTURN_ADMIN_HOME", value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// Relay to use instead of the configured ones, ws:// or wss://; repeat it for several, of which one is enough.
    #[arg(long = "relay", global = true, value_name = "URL", value_parser = relay_url)]
    pub relays: Vec<RelayUrl>,
    /// The service's HTTP listener instead of the configured ones; repeat it for several relays.
    #[arg(long = "service-url", global = true, value_name = "URL")]
    pub service_urls: Vec<String>,
    /// Deadline of the whole command.
    #[arg(long, global = true, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
    /// One JSON object per line on stdout, no progress.
    #[arg(long, global = true)]
    pub json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the home directory and a Nostr key.
    Init(Init),
    /// Publish a fresh key package, so that others can invite this admin.
    KeyPackage,
    /// Admin groups.
    #[command(subcommand)]
    Group(Group),
    /// Rotate a client's secret.
    #[command(after_help = PROOF_HELP)]
    Rotate(Rotate),
    /// Open a delivered secret and prove that it arrived.
    Ack(Ack),
    /// Withdraw the active rotation.
    #[command(after_help = PROOF_HELP)]
    Cancel(Withdraw),
    /// Within grace: make the previous secret current again.
    #[command(after_help = PROOF_HELP)]
    Rollback(Withdraw),
    /// Retire one version, or all of them, at once.
    #[command(after_help = PROOF_HELP)]
    Revoke(Revoke),
    /// Revoke everything and rotate without delay and without grace.
    #[command(after_help = PROOF_HELP)]
    Emergency(Emergency),
    /// Show a client's versions and its active rotation.
    #[command(after_help = PROOF_HELP)]
    Status(Status),
    /// Follow what happens in the groups until the deadline. A delivered secret is announced; it is opened and acked only with --reveal or
    /// --discard.
    Watch(Watch),
}

/// `init`.
#[derive(Debug, Args)]
pub struct Init {
    /// npub of the service; once per relay instance.
    #[arg(long = "service", value_name = "NPUB")]
    pub services: Vec<Npub>,
    /// npub whose Welcome is accepted without asking.
    #[arg(long = "welcomer", value_name = "NPUB")]
    pub welcomers: Vec<Npub>,
    /// Use the Nostr key in this file (nsec or hex, mode 0600) instead of a fresh one.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Audience of the proofs.
    #[arg(long, value_name = "AUD", default_value = keyturn_proto::proof::DEFAULT_AUDIENCE)]
    pub audience: String,
    /// Command that signs proofs; see `rotate --help`.
    #[arg(long, value_name = "COMMAND")]
    pub proof_command: Option<String>,
}

/// `group …`.
#[derive(Debug, Subcommand)]
pub enum Group {
    /// Make a group and invite its members, the service among them.
    Create {
        /// Name, shown to the members.
        name: String,
        /// Members to invite; the configured services are added by themselves.
        #[arg(value_name = "NPUB")]
        members: Vec<Npub>,
        /// Do not invite the configured services.
        #[arg(long)]
        without_service: bool,
    },
    /// Invite members to a group.
    Invite {
        /// Group: id, start of the id, or name.
        group: String,
        /// Members to invite.
        #[arg(value_name = "NPUB", required = true)]
        members: Vec<Npub>,
    },
    /// Who is in a group.
    Members {
        /// Group: id, start of the id, or name. May be left out if there is only one.
        group: Option<String>,
    },
    /// The groups this admin is in.
    List,
    /// Accept a waiting Welcome.
    Join {
        /// Who invited.
        #[arg(long, value_name = "NPUB")]
        from: Npub,
    },
}

/// How a request is authorised.
#[derive(Debug, Args)]
pub struct Authorisation {
    /// Why; ends in the audit trail.
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// How the proof is made.
    #[command(flatten)]
    pub proof: Proof,
}

/// Where proof and TOTP code come from.
#[derive(Debug, Args)]
pub struct Proof {
    /// TOTP code for the relay; `-` asks for it.
    #[arg(long, value_name = "CODE")]
    pub totp: Option<String>,
    /// Command that signs the proof.
    #[arg(long, value_name = "COMMAND", conflicts_with = "proof_file")]
    pub proof_command: Option<String>,
    /// File in which the proof will appear.
    #[arg(long, value_name = "FILE")]
    pub proof_file: Option<PathBuf>,
    /// Group to send the request in: id, start of the id, or name.
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// Operation id, to repeat a request whose answer was lost, with the very same parameters. Fresh by default.
    #[arg(long, value_name = "ID")]
    pub id: Option<RotationId>,
}

/// What happens with a delivered secret.
#[derive(Debug, Args)]
pub struct Delivery {
    /// Print the secret to stdout, once. Without it a terminal is asked; a script leaves the secret unopened.
    #[arg(long)]
    pub reveal: bool,
    /// Ack without showing the secret: somebody else of the group puts it to use.
    #[arg(long, conflicts_with = "reveal")]
    pub discard: bool,
    /// Wait until the rotation is over, not only until the ack is recorded.
    #[arg(long)]
    pub wait: bool,
}

/// `rotate`.
#[derive(Debug, Args)]
pub struct Rotate {
    /// The client.
    pub client: ClientId,
    /// Authorisation.
    #[command(flatten)]
    pub auth: Authorisation,
    /// How long the old secret stays valid after the switch, for example 7d; the client's default otherwise.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub grace: Option<Duration>,
    /// Earliest switch: RFC 3339, or a delay such as 30m; the relay's minimum otherwise.
    #[arg(long, value_name = "WHEN", value_parser = when)]
    pub not_before: Option<When>,
    /// Delivery.
    #[command(flatten)]
    pub delivery: Delivery,
}

/// `ack`.
#[derive(Debug, Args)]
pub struct Ack {
    /// The rotation; may be left out if only one secret waits.
    pub rotation: Option<RotationId>,
    /// Delivery.
    #[command(flatten)]
    pub delivery: Delivery,
}

/// `watch`.
#[derive(Debug, Args)]
pub struct Watch {
    /// Print each delivered secret, once, and ack it.
    #[arg(long)]
    pub reveal: bool,
    /// Ack each delivered secret without showing it.
    #[arg(long, conflicts_with = "reveal")]
    pub discard: bool,
}

/// `cancel`, `rollback`.
#[derive(Debug, Args)]
pub struct Withdraw {
    /// The client.
    pub client: ClientId,
    /// The rotation that is meant; the active, or the latest, one otherwise.
    #[arg(long, value_name = "ID")]
    pub rotation: Option<RotationId>,
    /// Authorisation.
    #[command(flatten)]
    pub auth: Authorisation,
}

/// `revoke`.
#[derive(Debug, Args)]
pub struct Revoke {
    /// The client.
    pub client: ClientId,
    /// The version that is meant; every living one otherwise.
    #[arg(long, value_name = "ID")]
    pub version: Option<VersionId>,
    /// Authorisation.
    #[command(flatten)]
    pub auth: Authorisation,
}

/// `emergency`.
#[derive(Debug, Args)]
pub struct Emergency {
    /// The client.
    pub client: ClientId,
    /// Authorisation.
    #[command(flatten)]
    pub auth: Authorisation,
    /// Delivery.
    #[command(flatten)]
    pub delivery: Delivery,
}

/// `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// The client.
    pub client: ClientId,
    /// How the proof is made.
    #[command(flatten)]
    pub proof: Proof,
}

/// A moment, or a delay from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Unix milliseconds.
    At(UnixMs),
    /// From now on.
    In(Duration),
}

impl When {
    /// The moment, given the present.
    #[must_use]
    pub fn resolve(self, now: UnixMs) -> UnixMs {
        match self {
            Self::At(at) => at,
            Self::In(delay) => now.plus(delay),
        }
    }
}

fn when(text: &str) -> Result<When, String> {
    if let Ok(delay) = duration(text.trim_start_matches('+')) {
        return Ok(When::In(delay));
    }
    let at = humantime::parse_rfc3339(text).map_err(|_| {
        "expected RFC 3339 in UTC (2026-01-31T12:00:00Z) or a delay (30m)".to_owned()
    })?;
    let since = at
        .duration_since(std::time::UNIX_EPOCH)
        .map_err(|_| "expected a time after 1970".to_owned())?;
    Ok(When::At(UnixMs(
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
    )))
}

fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text)
        .map_err(|_| "expected a duration such as 90s, 30m, 12h, 7d or 0".to_owned())
}

fn relay_url(text: &str) -> Result<RelayUrl, String> {
    RelayUrl::parse(text).map_err(|_| "expected a ws:// or wss:// URL".to_owned())
}

#[cfg(test)]
mod tests;
