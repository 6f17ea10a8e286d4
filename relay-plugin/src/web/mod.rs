//! Our own HTTP listener: health, readiness, metrics, challenges.
//!
//! Apart from the relay's, because that one answers every route with wildcard CORS. What must always hold: no CORS headers;
//! every answer but the metrics is JSON, errors too; a slow or silent client holds a connection for a bounded time.

mod approle;
mod certificate;
pub mod readiness;
mod routes;
mod serve;
mod webhook;

use std::{net::TcpListener, sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    config::ValidatedConfig, devices::issuer::embedded::login::AppRoleLogin,
    service::ChallengeIssuer,
};
pub use certificate::{CertificateDoor, DoorError};
use readiness::Readiness;
pub use serve::Limits;
pub use webhook::Webhook;
#[cfg(test)]
pub(crate) use webhook::deliver;

/// How often histograms are condensed; without it they grow.
const UPKEEP: Duration = Duration::from_secs(5);

/// What the listener shows.
pub struct Web {
    /// Limits.
    pub config: Arc<ValidatedConfig>,
    /// Behind `/readyz`.
    pub readiness: Readiness,
    /// Behind `/metrics`; `None` when the recorder is somebody else's.
    pub metrics: Option<PrometheusHandle>,
    /// Behind `/kr/v1/challenge`; `None` until the core is up.
    pub challenges: watch::Receiver<Option<Arc<dyn ChallengeIssuer>>>,
    /// Behind `/kr/v1/approle/login`; `None` where no secret_ids of our own are issued, and until the core is up.
    pub approle: watch::Receiver<Option<Arc<AppRoleLogin>>>,
    /// Behind `/kr/v1/mqtt/webhook`; `None` where brokers hand nothing over, and until the core is up.
    pub webhook: watch::Receiver<Option<Arc<Webhook>>>,
    /// Ends it.
    pub stopping: CancellationToken,
}

impl Web {
    /// Serves until `stopping`, then lets requests under way finish.
    pub async fn serve(self, listener: TcpListener) {
        if let Some(metrics) = self.metrics.clone() {
            let stopping = self.stopping.clone();
            tokio::spawn(async move {
                while tokio::time::timeout(UPKEEP, stopping.cancelled())
                    .await
                    .is_err()
                {
                    metrics.run_upkeep();
                }
            });
        }
        let limits = Limits::of(&self.config.web);
        let stopping = self.stopping.clone();
        let router = routes::router(self);
        let plain = |stream| async move { Some(stream) };
        if let Err(error) = serve::serve(listener, router, limits, plain, stopping).await {
            tracing::error!(%error, "the web listener stopped");
        }
    }
}
