//! `keyturn quickstart`: one real rotation and one device's renewal on one machine, then the relay goes on serving.
//!
//! Nothing here is a stand-in but the token issuer: a real rnostr relay with the extension, real MLS groups over real sockets, a real MQTT broker, the store and
//! the MAC key that `serve` uses by default. Read [`setup`] (what is on disk) → `people` (who takes part) → `play` (the story) → `broker`, `device`, `renewal` (the
//! device's part of it) → `checks` → [`leaks`] (the search) → [`report`].

pub mod broker;
mod checks;
mod device;
pub mod issuer;
pub mod leaks;
mod people;
mod play;
mod renewal;
pub mod report;
pub mod setup;

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use keyturn_admin::ProofSource as _;
use keyturn_proto::proof::ProofRequest;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::serve::{ServeError, Served};
use crate::config::{Config, ConfigError, Environment};
use crate::service::ServiceFactory;
use crate::telemetry;
use issuer::{DevIssuer, DevSigner};
use report::Narrator;
use setup::Layout;

/// What can be chosen.
#[derive(Debug, clap::Args)]
pub struct QuickstartArgs {
    /// End after the story; the exit status is 0 only if everything held
    #[arg(long)]
    exit: bool,
    /// Print one JSON summary line instead of the story
    #[arg(long)]
    json: bool,
    /// Where to keep everything [default: a fresh directory under the system's temporary one]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The relay's port [default: a free one]
    #[arg(long, value_name = "N", default_value_t = 0)]
    port: u16,
}

/// Signs one development proof: the program behind the `proof_command` of the quickstart's admins.
#[derive(Debug, clap::Args)]
pub struct DevProofArgs {
    /// The key file that `quickstart` made
    key: PathBuf,
}

/// Why the quickstart did not end well.
#[derive(Debug, thiserror::Error)]
pub enum QuickstartError {
    /// The data directory, a port, a socket.
    #[error("quickstart: {0}")]
    Io(#[from] std::io::Error),
    /// The configuration it wrote itself, changed by the environment.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Logging.
    #[error(transparent)]
    Telemetry(#[from] telemetry::TelemetryError),
    /// The development issuer.
    #[error(transparent)]
    Issuer(#[from] issuer::IssuerError),
    /// The relay or the service.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// A step of the story.
    #[error("{step}: {cause}")]
    Step {
        /// Which.
        step: &'static str,
        /// Why, without values.
        cause: String,
    },
    /// Everything ran, and something that must hold did not.
    #[error("everything ran, but not everything held: see the summary")]
    DidNotHold,
    /// `dev-proof`: the request or the key.
    #[error("dev-proof: {0}")]
    Proof(String),
}

/// Runs the story; blocks until the end, or until a signal when it goes on serving.
///
/// # Errors
/// [`QuickstartError`].
pub fn run(args: QuickstartArgs, service: Box<dyn ServiceFactory>) -> Result<(), QuickstartError> {
    // One runtime for the admins, the issuer and the host's shutdown; the service has its own, as under `serve`.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(8 << 20)
        .enable_all()
        .build()?;
    runtime.block_on(quickstart(args, service))
}

async fn quickstart(
    args: QuickstartArgs,
    service: Box<dyn ServiceFactory>,
) -> Result<(), QuickstartError> {
    let QuickstartArgs {
        exit,
        json,
        data_dir,
        port,
    } = args;
    let narrator = Narrator::new(json);
    // A temporary directory is removed at the end, secrets and all; a chosen one is kept.
    let temporary = match data_dir {
        Some(_) => None,
        None => Some(
            tempfile::Builder::new()
                .prefix("keyturn-quickstart-")
                .tempdir()?,
        ),
    };
    let root = match (&data_dir, &temporary) {
        (Some(dir), _) => dir.clone(),
        (None, Some(dir)) => dir.path().to_owned(),
        (None, None) => return Err(std::io::Error::other("no data directory").into()),
    };
    let port = if port == 0 { free_port()? } else { port };

    std::fs::create_dir_all(root.join("secrets"))?;
    let issuer_key = root.join("secrets/issuer.key");
    let issuer = DevIssuer::start(DevSigner::at(&issuer_key)?).await?;
    let layout = Layout::prepare(&root, port, &issuer.jwks_url())?;
    let broker = broker::start().await?;
    layout.serve_devices(broker)?;
    let config = Arc::new(Config::load(&layout.config(), Environment::default())?);
    telemetry::init_to_file(&config.log, &layout.log())?;

    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;

    let people = people::register(&layout, &config).await?;
    let served = Served::start(Arc::clone(&config), service).await?;
    narrator.line(&format!(
        "keyturn quickstart: everything is in {}",
        layout.root().display()
    ));
    let site = play::Site {
        layout: &layout,
        config: &config,
        served: &served,
        issuer: &issuer,
        broker,
    };
    let story = play::tell(&site, people, &narrator);
    let summary = tokio::select! {
        summary = story => summary,
        _ = terminated.recv() => Err(QuickstartError::Step { step: "quickstart", cause: "interrupted".to_owned() }),
        _ = interrupted.recv() => Err(QuickstartError::Step { step: "quickstart", cause: "interrupted".to_owned() }),
    };
    let summary = match summary {
        Ok(summary) => summary,
        Err(error) => {
            served.shutdown().await;
            return Err(error);
        }
    };
    if json {
        let line = serde_json::to_string(&summary).map_err(std::io::Error::other)?;
        Narrator::new(false).line(&line);
    }
    if !exit {
        play::what_next(&layout, &served, &narrator);
        tokio::select! {
            () = served.ended() => {}
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
    }
    served.shutdown().await;
    if summary.holds() {
        Ok(())
    } else {
        Err(QuickstartError::DidNotHold)
    }
}

/// Reads a proof request from standard input and prints the proof.
///
/// # Errors
/// [`QuickstartError::Proof`], [`QuickstartError::Issuer`].
pub fn dev_proof(args: &DevProofArgs) -> Result<(), QuickstartError> {
    let request: ProofRequest = serde_json::from_reader(std::io::stdin().lock())
        .map_err(|error| QuickstartError::Proof(error.to_string()))?;
    let signer = DevSigner::at(&args.key)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let proof = runtime
        .block_on(signer.prove(&request))
        .map_err(|error| QuickstartError::Proof(error.to_string()))?;
    Narrator::new(false).line(proof.expose());
    Ok(())
}

/// A port that was free a moment ago: the configuration has to name the relay's address before the relay has it.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
