//! What happens before the first live event, and the loops afterwards.

use keyturn_mls::Receipt;
use keyturn_proto::kinds;
use nostr::PublicKey;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Core;
use super::work::Desk;
use crate::delivery::port::{By, Scan};
use crate::delivery::service_member::{ServiceError, failed};
use crate::service::Inbound;

/// How far back stored events are looked at again: beyond it MDK refuses them (marmot.md).
const HORIZON_SECS: u64 = 45 * 86_400;
const PAGE: usize = 500;

impl Core {
    pub(super) async fn run(
        self,
        inbound: mpsc::Receiver<Inbound>,
        ready: watch::Sender<bool>,
        stop: CancellationToken,
    ) {
        let mut desk = Desk::new(self.clone());
        let prepared = tokio::select! {
            () = stop.cancelled() => false,
            () = self.prepare(&mut desk) => true,
        };
        if prepared {
            // In a set, so that it ends with the core however that ends.
            let mut driver = JoinSet::new();
            driver.spawn({
                let (engine, stop) = (self.engine.clone(), stop.clone());
                async move { engine.drive(stop).await }
            });
            ready.send_replace(true);
            tracing::info!("ready for requests");
            self.attend(inbound, &mut desk, &stop).await;
            stop.cancel();
            if let Some(Err(_)) = driver.join_next().await {
                tracing::error!("the driver ended with a panic");
            }
        }
        desk.finish().await;
        self.service.sum_up_refusals(true).await;
        self.engine.give_up_lease().await;
    }

    /// Lease, recovery, inbox, stored events. Each is tried until it succeeds: without them nothing may be answered.
    async fn prepare(&self, desk: &mut Desk) {
        self.relay.attached().await;
        loop {
            match self.prepare_once(desk).await {
                Ok(acts) => {
                    if !acts {
                        tracing::info!("another instance holds the lease; standing by");
                    }
                    return;
                }
                Err(error) => tracing::warn!(%error, "not ready yet"),
            }
            let next = self.engine.now().plus(self.retry);
            self.clock.sleep_until(next).await;
        }
    }

    /// Whether this instance acts. One that stands by does the same, but for what the lease is for: it recovers nothing and answers nothing.
    async fn prepare_once(&self, desk: &mut Desk) -> Result<bool, ServiceError> {
        let acts = self.engine.hold_lease().await?;
        self.service.refresh_served().await?;
        self.service.keep_house().await?;
        if acts {
            let taken = self.engine.take_charge().await;
            taken.map_err(|failure| failed(failure.reason()))?;
        }
        desk.lay_out().await?;
        self.rescan().await?;
        desk.lay_out().await?;
        // Last, because each call makes another.
        self.service.publish_key_package().await?;
        Ok(acts)
    }

    /// Takes in what the relay stored while we were away, in the order it was stored: first the invitations, then what was said in the groups.
    async fn rescan(&self) -> Result<(), ServiceError> {
        let since = self.engine.now().as_secs().saturating_sub(HORIZON_SECS);
        let recipient =
            PublicKey::from_slice(self.service.identity().as_bytes()).map_err(failed)?;
        self.take_in_stored(Scan {
            kinds: vec![kinds::GIFT_WRAP],
            by: By::Recipients(vec![recipient]),
            since: None,
            page: PAGE,
            after: None,
        })
        .await?;
        let groups = self.service.addresses().await?;
        if groups.is_empty() {
            return Ok(());
        }
        self.take_in_stored(Scan {
            kinds: vec![kinds::GROUP_EVENT],
            by: By::Groups(groups),
            since: Some(since),
            page: PAGE,
            after: None,
        })
        .await
    }

    async fn take_in_stored(&self, mut scan: Scan) -> Result<(), ServiceError> {
        loop {
            let page = self.relay.scan(scan.clone()).await.map_err(failed)?;
            for event in &page.events {
                let receipt = Receipt::stored(self.engine.now());
                self.service.take_in(event, receipt).await?;
            }
            match page.next {
                Some(cursor) => scan.after = Some(cursor),
                None => return Ok(()),
            }
        }
    }
}
