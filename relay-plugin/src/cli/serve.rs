//! `keyturn serve`: the relay with the service in it, until a signal ends both.

use std::{sync::Arc, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};

use crate::{
    config::ValidatedConfig,
    extension::RotationExtension,
    host::{Host, HostError},
    running::{Keyturn, KeyturnError},
    service::{ServiceFactory, StartError},
};

/// From the signal to the end of the process; whoever sent it usually kills after ten.
const WHOLE: Duration = Duration::from_millis(4_500);
/// The core's part of it. It needs the relay, so the relay goes after it.
const CORE: Duration = Duration::from_millis(2_500);

/// Why `serve` ended other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The service's own listener or threads.
    #[error(transparent)]
    Keyturn(#[from] KeyturnError),
    /// The relay.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The core.
    #[error("cannot start: {0}")]
    Core(Arc<StartError>),
    /// The relay's threads ended by themselves.
    #[error("the relay ended unexpectedly")]
    RelayEnded,
    /// No runtime, or no signal handlers.
    #[error("cannot set up the process: {0}")]
    Process(#[from] std::io::Error),
}

/// Runs until SIGTERM or SIGINT. Blocks.
pub fn run(config: ValidatedConfig, service: Box<dyn ServiceFactory>) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(Arc::new(config), service))
}

async fn serve(
    config: Arc<ValidatedConfig>,
    service: Box<dyn ServiceFactory>,
) -> Result<(), ServeError> {
    // Before anything starts, so that a signal during the start ends it in order as well.
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let keyturn = Keyturn::start(Arc::clone(&config), service)?;
    let extension = RotationExtension::of(&keyturn);
    let host = Host::start(&config.relay, move |app| {
        extension.attach(&app)?;
        Ok(app.add_extension(extension))
    })
    .await?;
    let result = attend(&keyturn, &host, &mut terminated, &mut interrupted).await;
    let now = Instant::now();
    keyturn.stop();
    let core = tokio::task::spawn_blocking(move || keyturn.shutdown(now + CORE));
    // The service's own thread keeps to the deadline; what is left of it ends with the process.
    let _ = tokio::time::timeout_at(now + WHOLE, core).await;
    host.shutdown(now + WHOLE).await;
    tracing::info!("stopped");
    result
}

async fn attend(
    keyturn: &Keyturn,
    host: &Host,
    terminated: &mut Signal,
    interrupted: &mut Signal,
) -> Result<(), ServeError> {
    let run = async {
        keyturn.started().await.map_err(ServeError::Core)?;
        tracing::info!(relay = %host.address(), web = %keyturn.web_address(), "keyturn takes requests");
        host.ended().await;
        Err(ServeError::RelayEnded)
    };
    tokio::select! {
        ended = run => ended,
        _ = terminated.recv() => Ok(()),
        _ = interrupted.recv() => Ok(()),
    }
}
