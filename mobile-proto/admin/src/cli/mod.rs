//! The program: arguments → one session → one command → an exit code.

pub mod args;
pub mod error;
pub mod exit;
pub mod output;

mod delivery;
mod groups;
mod requests;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;
use tokio::time::Instant;

use self::args::{Cli, Command, Global, Init};
use self::error::CliError;
use self::exit::Exit;
use self::output::Output;
use crate::home::{Config, Home, read_keys};
use crate::session::{AdminSession, SessionConfig};

/// Unoptimised tree code of OpenMLS wants more than the default 2 MiB.
const STACK: usize = 8 << 20;

/// Parses the arguments of this process, runs the command, and reports.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    crate::transport::install_tls_provider();
    // Nothing below `warn` by default; never the client library's own words, which repeat what a relay sent.
    let filter = tracing_subscriber::EnvFilter::try_from_env("KEYTURN_ADMIN_LOG")
        .unwrap_or_else(|_| "warn,nostr_relay_pool=off,nostr_sdk=off".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(STACK)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("keyturn-admin: no runtime: {error}");
            return Exit::Local.into();
        }
    };
    let exit = runtime.block_on(run(cli));
    // A question that nobody answers must not keep the process.
    runtime.shutdown_background();
    exit.into()
}

/// Runs the command and reports how it ended. Ctrl-C ends it at any point; what was begun is finished by the next run.
pub async fn run(cli: Cli) -> Exit {
    let output = Output::new(cli.global.json);
    let ended = tokio::select! {
        ended = dispatch(&output, cli) => ended,
        _ = tokio::signal::ctrl_c() => Err(CliError::Interrupted),
    };
    match ended {
        Ok(()) => Exit::Ok,
        Err(error) => {
            output.error(error.exit(), &error.to_string());
            error.exit()
        }
    }
}

/// One command with what all of them need.
struct Context<'a> {
    output: &'a Output,
    session: AdminSession,
    config: Config,
    deadline: Instant,
}

async fn dispatch(output: &Output, cli: Cli) -> Result<(), CliError> {
    let Cli { global, command } = cli;
    let deadline = Instant::now() + global.timeout;
    if let Command::Init(init) = command {
        return self::init(output, global, init);
    }
    let home = Home::open(&home_dir(global.home)?)?;
    let mut config = home.config()?;
    if !global.relays.is_empty() {
        config.relays = global.relays;
    }
    if !global.service_urls.is_empty() {
        config.service_urls = global.service_urls;
    }
    let session_config = SessionConfig::from_home(&home, config.clone())?;
    let session = {
        let _progress = output.progress("connecting and catching up");
        AdminSession::open(session_config, deadline).await?
    };
    let mut context = Context {
        output,
        session,
        config,
        deadline,
    };
    let done = match command {
        Command::Init(_) => Ok(()),
        Command::KeyPackage => context.key_package().await,
        Command::Group(command) => context.group(command).await,
        Command::Rotate(rotate) => context.rotate(rotate).await,
        Command::Emergency(emergency) => context.emergency(emergency).await,
        Command::Ack(ack) => context.ack(ack).await,
        Command::Cancel(withdraw) => context.cancel(withdraw).await,
        Command::Rollback(withdraw) => context.rollback(withdraw).await,
        Command::Revoke(revoke) => context.revoke(revoke).await,
        Command::Status(status) => context.status(status).await,
        Command::Watch(watch) => context.watch(watch).await,
    };
    context.session.close().await;
    done
}

fn init(output: &Output, global: Global, init: Init) -> Result<(), CliError> {
    let Init {
        services,
        welcomers,
        key_file,
        audience,
        proof_command,
    } = init;
    let mut relays = global.relays.into_iter();
    let relay = relays
        .next()
        .ok_or_else(|| CliError::Usage("init needs --relay ws://… or wss://…".to_owned()))?;
    let mut config = Config {
        service_urls: global.service_urls,
        services,
        welcomers,
        audience,
        proof_command,
        ..Config::new(relay)
    };
    config.relays.extend(relays);
    let keys = key_file.map(|path| read_keys(&path)).transpose()?;
    let dir = home_dir(global.home)?;
    let (home, keys) = Home::create(&dir, &config, keys)?;
    // The database key is made now, so that a full disk or a wrong owner shows at once.
    SessionConfig::from_home(&home, config)?;
    let npub = keyturn_proto::Npub::from_bytes(keys.public_key().to_bytes());
    output.result(
        "initialised",
        serde_json::json!({ "npub": npub, "home": dir }),
        &format!("{npub}\nhome: {}", dir.display()),
    );
    output.note("next: keyturn-admin key-package, then let an admin invite this npub");
    Ok(())
}

fn home_dir(given: Option<PathBuf>) -> Result<PathBuf, CliError> {
    given
        .or_else(|| std::env::home_dir().map(|home| home.join(".keyturn-admin")))
        .ok_or_else(|| CliError::Usage("no home directory; pass --home DIR".to_owned()))
}

/// Asks a question on stderr and reads one line from stdin. What is typed is shown: nothing secret is ever asked for.
async fn ask(question: String) -> Result<String, CliError> {
    let read = tokio::task::spawn_blocking(move || {
        eprint!("{question} ");
        let mut line = String::new();
        let read = std::io::stdin().read_line(&mut line)?;
        if read == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
        }
        Ok(line.trim().to_owned())
    });
    read.await
        .map_err(|_| CliError::Interrupted)?
        .map_err(CliError::Prompt)
}
