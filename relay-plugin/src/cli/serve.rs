//! `keyturn serve`: the relay with the service in it, until a signal ends both.

use std::{
    io::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
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
    tokio::select! {
        served = Served::start(config, service) => {
            let served = served?;
            served.announce();
            let result = tokio::select! {
                () = served.ended() => Err(ServeError::RelayEnded),
                _ = terminated.recv() => Ok(()),
                _ = interrupted.recv() => Ok(()),
            };
            served.shutdown().await;
            result
        }
        // Dropped in the middle of the start: whatever was recorded is picked up by the next one.
        _ = terminated.recv() => Ok(()),
        _ = interrupted.recv() => Ok(()),
    }
}

/// The running pair: the relay and the service in it.
pub struct Served {
    keyturn: Keyturn,
    host: Host,
}

impl Served {
    /// Starts both; returns once requests are taken.
    ///
    /// # Errors
    /// [`ServeError`]; nothing is left running.
    pub async fn start(
        config: Arc<ValidatedConfig>,
        service: Box<dyn ServiceFactory>,
    ) -> Result<Self, ServeError> {
        Host::prepare(&config.relay)?;
        let keyturn = Keyturn::start(Arc::clone(&config), service)?;
        let extension = RotationExtension::of(&keyturn);
        let host = Host::start(&config.relay, move |app| {
            extension.attach(&app)?;
            Ok(app.add_extension(extension))
        })
        .await?;
        let served = Self { keyturn, host };
        if let Err(error) = served.keyturn.started().await {
            served.shutdown().await;
            return Err(ServeError::Core(error));
        }
        tracing::info!(relay = %served.relay_url(), web = %served.web_url(), "keyturn takes requests");
        Ok(served)
    }

    /// Where the relay listens.
    #[must_use]
    pub fn relay_url(&self) -> String {
        format!("ws://{}", self.host.address())
    }

    /// Where health, metrics and challenges are.
    #[must_use]
    pub fn web_url(&self) -> String {
        format!("http://{}", self.keyturn.web_address())
    }

    /// Tells whoever started us where we are: one JSON line on standard output, the only one.
    fn announce(&self) {
        let line = serde_json::json!({ "relay": self.relay_url(), "web": self.web_url() });
        // Nobody may be listening any more.
        let _ = writeln!(io::stdout(), "{line}");
    }

    /// Resolves when the relay has ended by itself.
    pub async fn ended(&self) {
        self.host.ended().await;
    }

    /// Stops the service, then the relay, within five seconds.
    pub async fn shutdown(self) {
        let Self { keyturn, host } = self;
        let now = Instant::now();
        keyturn.stop();
        let core = tokio::task::spawn_blocking(move || keyturn.shutdown(now + CORE));
        // The service's own thread keeps to the deadline; what is left of it ends with the process.
        let _ = tokio::time::timeout_at(now + WHOLE, core).await;
        host.shutdown(now + WHOLE).await;
        tracing::info!("stopped");
    }
}
