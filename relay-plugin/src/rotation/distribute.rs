//! Step 5: the ciphertext goes out, until it can be read back from the relay's database.
//!
//! The rosters were compared immediately before ([`super::recover`]): whoever left a group between sealing and publishing has made the
//! attempt void, and nothing of it is published. No record is kept of what is out: each instance asks its own relay, and publishes what is
//! not there (an event is the same event whoever publishes it).

use futures::future::join_all;
use keyturn_store::documents::{OutboxDoc, RotationDoc};

use super::engine::Engine;
use super::failure::Failure;
use super::prepare::Prepared;
use crate::crash;

/// A rotation whose every notify is stored by the relay.
pub struct Distributed {
    pub(super) rotation: RotationDoc,
}

impl Prepared {
    /// A prepared rotation as the store holds it, with those of its events that this relay does not: after a restart, or on another instance.
    pub(super) const fn recorded(rotation: RotationDoc, outbox: Vec<OutboxDoc>) -> Self {
        Self { rotation, outbox }
    }

    /// Publishes what is handed over; the groups in parallel, since no order binds them.
    ///
    /// # Errors
    /// [`Failure::Again`] while the relay is away; the outbox stays.
    pub async fn distribute(self, engine: &Engine) -> Result<Distributed, Failure> {
        let Self { rotation, outbox } = self;
        let started = engine.now();
        let results = join_all(outbox.iter().map(|event| publish(engine, event))).await;
        for result in results {
            result?;
        }
        metrics::histogram!(crate::metrics::DISTRIBUTE_SECONDS)
            .record(engine.now().since(started).as_secs_f64());
        tracing::info!(
            rotation = %rotation.rotation_id, client = %rotation.client_id, groups = outbox.len(), "delivered"
        );
        crash::point(crash::Point::AfterPublish).await;
        Ok(Distributed { rotation })
    }
}

async fn publish(engine: &Engine, event: &OutboxDoc) -> Result<(), Failure> {
    engine.distributor().publish(event).await?;
    crash::point(crash::Point::AfterOnePublish).await;
    Ok(())
}
