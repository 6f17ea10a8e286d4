//! The core of the service: takes in what the relay hands over, works it off, and drives what outlives a request.
//!
//! Order at start: the lease, then recovery of rotations, then the inbox, then the events that the relay stored while nobody looked, and only
//! then what arrives now. Without the lease the same is done but for recovery and the inbox: what is opened stays there (`standby`) until
//! the lease is ours. What must always hold: the order in which events arrived is the order in which they are opened; the amount of work
//! under way is bounded, so that the channel fills up and senders are told; a panic in one request ends that request and nothing else.

mod answers;
mod intake;
mod standby;
mod start;
mod work;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::delivery::distributor::GroupDistributor;
use crate::delivery::port::RelayPort;
use crate::delivery::service_member::ServiceMember;
use crate::rotation::ports::{Clock, Gate};
use crate::rotation::{Engine, Parts, Settings};
use crate::service::Inbound;
use keyturn_store::mac::MacKey;
use keyturn_store::store::Store;

/// Everything the core is built from.
pub struct Deps {
    /// Documents, registry, audit trail.
    pub store: Arc<dyn Store>,
    /// The key that hashes secrets.
    pub mac: Arc<dyn MacKey>,
    /// Admission.
    pub gate: Arc<dyn Gate>,
    /// The relay.
    pub relay: Arc<dyn RelayPort>,
    /// The relay as a group member.
    pub service: ServiceMember,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What the operator decided.
    pub settings: Settings,
    /// Events that concern us, in the order the relay took them.
    pub inbound: mpsc::Receiver<Inbound>,
}

/// The running core.
pub struct CoreHandle {
    engine: Engine,
    service: ServiceMember,
    ready: watch::Receiver<bool>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// What the tasks of the core share.
#[derive(Clone)]
struct Core {
    engine: Engine,
    service: ServiceMember,
    gate: Arc<dyn Gate>,
    relay: Arc<dyn RelayPort>,
    clock: Arc<dyn Clock>,
    answers: answers::Answers,
    retry: Duration,
    sweep: Duration,
}

/// Starts the core on the current runtime. It is at work when [`CoreHandle::ready`] resolves.
#[must_use]
pub fn start(deps: Deps) -> CoreHandle {
    let Deps {
        store,
        mac,
        gate,
        relay,
        service,
        clock,
        settings,
        inbound,
    } = deps;
    let (retry, sweep) = (settings.retry, settings.sweep);
    let distributor = GroupDistributor::new(service.clone(), Arc::clone(&gate));
    let engine = Engine::new(Parts {
        store,
        mac,
        gate: Arc::clone(&gate),
        distributor: Arc::new(distributor),
        clock: Arc::clone(&clock),
        settings,
    });
    let core = Core {
        engine: engine.clone(),
        service: service.clone(),
        gate,
        relay,
        clock,
        answers: answers::Answers::default(),
        retry,
        sweep,
    };
    let stop = CancellationToken::new();
    let (announce, ready) = watch::channel(false);
    let task = tokio::spawn(core.run(inbound, announce, stop.clone()));
    CoreHandle {
        engine,
        service,
        ready,
        stop,
        task,
    }
}

impl CoreHandle {
    /// The engine, for those who report on it.
    #[must_use]
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The relay as a group member, for those who report on it.
    #[must_use]
    pub const fn service(&self) -> &ServiceMember {
        &self.service
    }

    /// Resolves once recovery is over and live events are taken in. `false` if the core ended before.
    pub async fn ready(&self) -> bool {
        let mut ready = self.ready.clone();
        ready.wait_for(|ready| *ready).await.is_ok()
    }

    /// Lets the work under way finish until `deadline`, then lets go of it: what was cut short is found again by the next start.
    pub async fn shutdown(mut self, deadline: Instant) {
        self.stop.cancel();
        if tokio::time::timeout_at(deadline, &mut self.task)
            .await
            .is_err()
        {
            tracing::warn!("work was cut short by the shutdown; the next start takes it up");
            self.task.abort();
        }
    }
}
