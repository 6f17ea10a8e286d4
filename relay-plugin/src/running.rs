//! The running service: its own thread and tokio runtime, its web listener, and the way in for events.
//!
//! Whether the relay is ours or somebody else's makes no difference here. What must always hold: nothing of ours runs on
//! the relay's threads; a part that fails to start is reported, and the relay goes on without it.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread,
    time::Duration,
};

use keyturn_mls::Backlog;
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::ValidatedConfig,
    delivery::rnostr::RnostrPort,
    metrics,
    service::{ChallengeIssuer, Inbound, Ports, ServedSet, Service, ServiceFactory, StartError},
    web::{self, readiness::Readiness},
};

/// What a service that is dropped without `shutdown` may still use up.
const DROP_DEADLINE: Duration = Duration::from_secs(2);

/// For blocking calls that are still under way when everything else has ended.
const LEFTOVERS: Duration = Duration::from_millis(500);

/// Why the service could not be started at all.
#[derive(Debug, thiserror::Error)]
pub enum KeyturnError {
    /// `web.listen` cannot be had.
    #[error("web.listen: cannot listen on {address}: {source}")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No thread or no runtime.
    #[error("cannot start the service's threads: {0}")]
    Threads(#[source] io::Error),
}

/// What the extension needs of the service. Cheap to clone.
#[derive(Clone)]
pub struct Entrance {
    pub(crate) inbound: mpsc::Sender<Inbound>,
    pub(crate) served: ServedSet,
    pub(crate) backlog: Backlog,
    pub(crate) relay: Arc<RnostrPort>,
    pub(crate) stopping: CancellationToken,
}

/// Where the start of the core stands.
#[derive(Debug, Clone)]
pub enum Progress {
    /// Under way: opening, loading, recovering.
    Starting,
    /// Takes requests.
    Started,
    /// Will not come up; the operator has to mend something and start again.
    Failed(Arc<StartError>),
}

/// The running service. Dropping it stops it; `shutdown` does so with a deadline of your choice.
pub struct Keyturn {
    entrance: Entrance,
    readiness: Readiness,
    web_address: SocketAddr,
    progress: watch::Receiver<Progress>,
    deadline: watch::Sender<Option<Instant>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Keyturn {
    /// Binds the web listener, then starts everything else on threads of its own. Returns before the core is up: see
    /// [`Keyturn::started`].
    pub fn start(
        config: Arc<ValidatedConfig>,
        service: Box<dyn ServiceFactory>,
    ) -> Result<Self, KeyturnError> {
        let address = config.web.listen;
        let listening = |source| KeyturnError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(listening)?;
        listener.set_nonblocking(true).map_err(listening)?;
        let web_address = listener.local_addr().map_err(listening)?;

        let (inbound, queue) = mpsc::channel(config.queue.capacity);
        let entrance = Entrance {
            inbound,
            served: ServedSet::default(),
            backlog: Backlog::default(),
            relay: Arc::new(RnostrPort::default()),
            stopping: CancellationToken::new(),
        };
        let (progress, progressed) = watch::channel(Progress::Starting);
        let (deadline, ends) = watch::channel(None);
        let readiness = Readiness::default();
        let worker = Worker {
            config,
            entrance: entrance.clone(),
            readiness: readiness.clone(),
            progress,
            ends,
        };
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("keyturn-rt")
            .enable_all()
            .build()
            .map_err(KeyturnError::Threads)?;
        let thread = thread::Builder::new()
            .name("keyturn".to_owned())
            .spawn(move || worker.run(runtime, listener, queue, service))
            .map_err(KeyturnError::Threads)?;
        Ok(Self {
            entrance,
            readiness,
            web_address,
            progress: progressed,
            deadline,
            thread: Some(thread),
        })
    }

    /// For the extension.
    pub fn entrance(&self) -> Entrance {
        self.entrance.clone()
    }

    /// Where the web listener really is; differs from the configuration when that said port 0.
    pub const fn web_address(&self) -> SocketAddr {
        self.web_address
    }

    /// The checks behind `/readyz`.
    pub const fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Resolves when the core takes requests, or has failed for good.
    pub async fn started(&self) -> Result<(), Arc<StartError>> {
        let mut progress = self.progress.clone();
        let settled = progress
            .wait_for(|now| !matches!(now, Progress::Starting))
            .await;
        match settled.as_deref() {
            Ok(Progress::Failed(error)) => Err(Arc::clone(error)),
            Ok(_) => Ok(()),
            Err(_) => Err(Arc::new(StartError {
                part: "service",
                reason: "its thread ended".to_owned(),
            })),
        }
    }

    /// Tells the sessions and the core to stop. `shutdown` waits for it.
    pub fn stop(&self) {
        self.entrance.stopping.cancel();
    }

    /// Stops and waits until everything has ended, at most until `deadline`. Blocks the calling thread.
    pub fn shutdown(mut self, deadline: Instant) {
        self.end(deadline);
    }

    fn end(&mut self, deadline: Instant) {
        self.deadline.send_replace(Some(deadline));
        self.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the service's thread panicked");
        }
        self.entrance.relay.detach();
    }
}

impl Drop for Keyturn {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end(Instant::now() + DROP_DEADLINE);
        }
    }
}

struct Worker {
    config: Arc<ValidatedConfig>,
    entrance: Entrance,
    readiness: Readiness,
    progress: watch::Sender<Progress>,
    ends: watch::Receiver<Option<Instant>>,
}

impl Worker {
    fn run(
        self,
        runtime: Runtime,
        listener: TcpListener,
        queue: mpsc::Receiver<Inbound>,
        service: Box<dyn ServiceFactory>,
    ) {
        runtime.block_on(async move {
            let (challenges, issuer) = watch::channel(None);
            let (approle, logins) = watch::channel(None);
            let (webhook, calls) = watch::channel(None);
            let web_stopping = CancellationToken::new();
            let web = web::Web {
                config: Arc::clone(&self.config),
                readiness: self.readiness.clone(),
                metrics: metrics::install(),
                challenges: issuer,
                approle: logins,
                webhook: calls,
                stopping: web_stopping.clone(),
            };
            let web = tokio::spawn(web.serve(listener));
            let core = self.start_core(queue, service, &challenges).await;
            approle.send_replace(core.as_ref().and_then(|core| core.approle()));
            webhook.send_replace(core.as_ref().and_then(|core| core.webhook()));
            self.entrance.stopping.cancelled().await;
            let deadline = (*self.ends.borrow()).unwrap_or_else(|| Instant::now() + DROP_DEADLINE);
            if let Some(core) = core
                && timeout_at(deadline, core.shutdown(deadline)).await.is_err()
            {
                tracing::warn!("the service did not stop in time; the next start recovers");
            }
            web_stopping.cancel();
            let _ = timeout_at(deadline, web).await;
        });
        runtime.shutdown_timeout(LEFTOVERS);
    }

    async fn start_core(
        &self,
        queue: mpsc::Receiver<Inbound>,
        service: Box<dyn ServiceFactory>,
        challenges: &watch::Sender<Option<Arc<dyn ChallengeIssuer>>>,
    ) -> Option<Arc<dyn Service>> {
        let (core, relay) = (
            self.readiness.register("service"),
            self.readiness.register("relay"),
        );
        relay.not_ready("no connection has reached the relay yet");
        let port = Arc::clone(&self.entrance.relay);
        tokio::spawn(async move {
            crate::delivery::port::RelayPort::attached(&*port).await;
            relay.ready();
        });
        let ports = Ports {
            config: Arc::clone(&self.config),
            inbound: queue,
            feed: self.entrance.inbound.clone(),
            relay: self.entrance.relay.clone(),
            served: self.entrance.served.clone(),
            backlog: self.entrance.backlog.clone(),
            readiness: self.readiness.clone(),
            stopping: self.entrance.stopping.clone(),
        };
        // Stopping while it starts (a relay that never answers, say) must not wait for the start to end.
        let started = tokio::select! {
            started = service.start(ports) => started,
            () = self.entrance.stopping.cancelled() => return None,
        };
        match started {
            Ok(service) => {
                challenges.send_replace(Some(service.challenges()));
                core.ready();
                self.progress.send_replace(Progress::Started);
                Some(service)
            }
            Err(error) => {
                tracing::error!(
                    part = error.part,
                    reason = error.reason,
                    "keyturn cannot start"
                );
                core.not_ready("failed to start; see the log");
                self.progress
                    .send_replace(Progress::Failed(Arc::new(error)));
                None
            }
        }
    }
}
